"""What jobs see of names, links and listings must be what the file system below would show."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from tests.support.mounts import Mounted
from tests.support.overlay import as_user, below, fails, open_to_all

pytestmark = pytest.mark.fuse


RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
_libc = ctypes.CDLL(None, use_errno=True)


def _renameat2(old: Path, new: Path, flags: int) -> None:
    if _libc.renameat2(-100, bytes(old), -100, bytes(new), flags) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


# Names


def test_names_are_bytes(work: Path, overlay: Mounted) -> None:
    names = {b"\xff\xfe", b"a\nb", b" ", b"\xc3\xa4", b"\\", b"%s", b"-rf"}
    for name in names:
        os.close(os.open(bytes(work) + b"/" + name, os.O_CREAT | os.O_WRONLY))
    assert set(os.listdir(bytes(work))) == names
    assert set(os.listdir(bytes(below(overlay, work)))) == names


def test_names_of_255_bytes_and_no_more(work: Path) -> None:
    (work / ("x" * 255)).write_text("")
    assert os.listdir(work) == ["x" * 255]
    longer = work / ("x" * 256)
    for call in (
        longer.touch,
        longer.mkdir,
        longer.stat,
        lambda: longer.symlink_to("x"),
        lambda: (work / ("x" * 255)).rename(longer),
    ):
        assert fails(errno.ENAMETOOLONG, call)
    assert os.statvfs(work).f_namemax == 255


def test_400_levels_deep(work: Path, overlay: Mounted) -> None:
    descriptor = os.open(work, os.O_RDONLY)
    for _ in range(400):
        os.mkdir("d" * 100, dir_fd=descriptor)
        below = os.open("d" * 100, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    file = os.open("deep", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor)
    assert os.write(file, b"x") == 1
    os.close(file)
    assert os.listdir(descriptor) == ["deep"]
    os.close(descriptor)


def test_statfs_is_the_source_s(overlay: Mounted) -> None:
    above, source = os.statvfs(overlay.mountpoint), os.statvfs(overlay.source)
    assert (above.f_blocks, above.f_files, above.f_bsize) == (
        source.f_blocks,
        source.f_files,
        source.f_bsize,
    )


def test_the_reserved_name_is_hidden_and_refused(overlay: Mounted, work: Path) -> None:
    reserved = overlay.mountpoint / ".mirrorfs"
    assert (overlay.source / ".mirrorfs" / "volume").exists()
    assert ".mirrorfs" not in os.listdir(overlay.mountpoint)
    assert not reserved.exists()
    (work / "f").touch()
    for call in (
        reserved.mkdir,
        reserved.touch,
        lambda: reserved.symlink_to("x"),
        lambda: os.mkfifo(reserved),
        lambda: os.link(work / "f", reserved),
        lambda: (work / "f").rename(reserved),
    ):
        assert fails(errno.EACCES, call)
    assert fails(errno.ENOENT, lambda: reserved.rename(work / "g"))
    assert fails(errno.ENOENT, reserved.rmdir)
    (work / ".mirrorfs").mkdir()  # elsewhere it is a name like others


def test_objects_of_every_type(work: Path, overlay: Mounted) -> None:
    os.mkfifo(work / "fifo", 0o640)
    os.mknod(work / "device", stat.S_IFCHR | 0o620, os.makedev(1, 3))
    os.mknod(work / "file", stat.S_IFREG | 0o600)
    (work / "link").symlink_to("n" * 4000)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(work / "s"))
    for name in ("fifo", "device", "file", "link", "s"):
        above, source = (work / name).lstat(), (below(overlay, work) / name).lstat()
        for field in ("st_mode", "st_rdev", "st_ino", "st_size", "st_nlink", "st_mtime_ns"):
            assert getattr(above, field) == getattr(source, field), (name, field)
    assert os.readlink(work / "link") == "n" * 4000
    with open(work / "device", "wb") as null:
        null.write(b"gone")


# Renaming, linking


def test_rename_flags(work: Path) -> None:
    one, two = work / "1", work / "2"
    one.write_text("one")
    two.write_text("two")
    assert fails(errno.EEXIST, lambda: _renameat2(one, two, RENAME_NOREPLACE))
    _renameat2(one, two, RENAME_EXCHANGE)
    assert (one.read_text(), two.read_text()) == ("two", "one")
    _renameat2(one, work / "3", RENAME_NOREPLACE)
    assert (work / "3").read_text() == "two"
    assert not one.exists()
    assert fails(errno.ENOENT, lambda: _renameat2(two, work / "4", RENAME_EXCHANGE))
    assert fails(errno.EINVAL, lambda: _renameat2(two, work / "4", RENAME_WHITEOUT))


def test_exchange_of_a_directory_with_content_and_a_file(work: Path) -> None:
    (work / "d" / "e").mkdir(parents=True)
    (work / "d" / "e" / "f").write_text("deep")
    (work / "x").write_text("x")
    _renameat2(work / "d", work / "x", RENAME_EXCHANGE)
    assert (work / "d").read_text() == "x"
    assert (work / "x" / "e" / "f").read_text() == "deep"


def test_a_renamed_directory_keeps_its_known_content(work: Path, overlay: Mounted) -> None:
    (work / "a" / "b").mkdir(parents=True)
    file = work / "a" / "b" / "f"
    file.write_text("1")
    with open(file, "a") as handle:
        (work / "a").rename(work / "z")
        handle.write("2")
    assert (work / "z" / "b" / "f").read_text() == "12"
    (work / "z" / "b" / "g").write_text("new")
    assert (below(overlay, work) / "z" / "b" / "g").read_text() == "new"
    assert fails(errno.ENOENT, file.stat)


def test_rename_over_things(work: Path) -> None:
    (work / "d1").mkdir()
    (work / "d2").mkdir()
    (work / "d1" / "f").touch()
    (work / "d1").rename(work / "d2")
    assert os.listdir(work / "d2") == ["f"]
    (work / "d3").mkdir()
    assert fails(errno.ENOTEMPTY, lambda: (work / "d3").rename(work / "d2"))
    (work / "f").touch()
    assert fails(errno.EISDIR, lambda: os.replace(work / "f", work / "d2"))
    assert fails(errno.ENOTDIR, lambda: os.replace(work / "d2", work / "f"))
    assert fails(errno.EINVAL, lambda: os.replace(work / "d2", work / "d2" / "below"))


def test_hard_links_are_one_object(work: Path) -> None:
    (work / "a").write_text("one")
    os.link(work / "a", work / "b")
    (work / "sub").mkdir()
    os.link(work / "b", work / "sub" / "c")
    before = (work / "c").with_name("a").stat()
    assert before.st_nlink == 3
    (work / "sub" / "c").write_text("changed")
    (work / "b").chmod(0o604)
    for name in ("a", "b", "sub/c"):
        status = (work / name).stat()
        assert (status.st_ino, status.st_size) == (before.st_ino, 7)
        assert stat.S_IMODE(status.st_mode) == 0o604
    (work / "a").unlink()
    after = (work / "b").stat()
    assert after.st_nlink == 2
    assert after.st_ctime_ns > before.st_ctime_ns
    (work / "other").touch()
    (work / "other").rename(work / "b")
    assert (work / "sub" / "c").stat().st_nlink == 1


def test_rename_between_two_names_of_one_object_does_nothing(work: Path) -> None:
    (work / "a").touch()
    os.link(work / "a", work / "b")
    (work / "a").rename(work / "b")
    assert sorted(os.listdir(work)) == ["a", "b"]
    (work / "a").unlink()
    assert os.listdir(work) == ["b"]


def test_a_symlink_has_hard_links_times_owner_and_attributes(work: Path) -> None:
    (work / "l").symlink_to("nowhere")
    os.link(work / "l", work / "m", follow_symlinks=False)
    assert (work / "l").lstat().st_nlink == 2
    os.utime(work / "l", ns=(1_000_000_001, 2_000_000_002), follow_symlinks=False)
    os.chown(work / "l", 5, 6, follow_symlinks=False)
    os.setxattr(work / "l", "trusted.x", b"v", follow_symlinks=False)
    status = (work / "m").lstat()
    assert (status.st_atime_ns, status.st_mtime_ns) == (1_000_000_001, 2_000_000_002)
    assert (status.st_uid, status.st_gid) == (5, 6)
    assert os.getxattr(work / "m", "trusted.x", follow_symlinks=False) == b"v"
    os.removexattr(work / "m", "trusted.x", follow_symlinks=False)
    assert os.listxattr(work / "l", follow_symlinks=False) == []


# Listing


def test_dots_and_types(work: Path) -> None:
    (work / "d").mkdir()
    (work / "f").touch()
    (work / "l").symlink_to("x")
    listed = subprocess.run(["ls", "-1aUi", work], check=True, capture_output=True, text=True)
    names = {line.split()[1]: int(line.split()[0]) for line in listed.stdout.splitlines()}
    assert set(names) == {".", "..", "d", "f", "l"}
    assert names["."] == work.stat().st_ino
    assert names["f"] == (work / "f").stat().st_ino
    with os.scandir(work) as entries:
        types = {
            entry.name: (entry.is_dir(follow_symlinks=False), entry.is_symlink())
            for entry in entries
        }
    assert types == {"d": (True, False), "f": (False, False), "l": (False, True)}


def test_listing_while_names_are_removed_and_made(work: Path) -> None:
    names = {f"{number:04}" for number in range(2000)}
    for name in names:
        os.mknod(work / name)
    seen: list[str] = []
    with os.scandir(work) as entries:
        for entry in entries:
            seen.append(entry.name)
            os.unlink(entry.path)
            if len(seen) % 100 == 0:
                os.mknod(work / f"new{len(seen)}")
    assert len(seen) == len(set(seen))
    assert names <= set(seen)
    assert {name for name in os.listdir(work) if not name.startswith("new")} == set()


def test_rewinding_and_seeking(work: Path) -> None:
    for number in range(500):
        os.mknod(work / str(number))
    _libc.opendir.restype = ctypes.c_void_p
    _libc.readdir.restype = ctypes.c_void_p
    _libc.telldir.restype = ctypes.c_long
    directory = ctypes.c_void_p(_libc.opendir(bytes(work)))

    def read() -> bytes | None:
        entry = _libc.readdir(directory)
        return ctypes.string_at(entry + 19) if entry else None

    names, places = [], []
    while True:
        places.append(_libc.telldir(directory))
        name = read()
        if name is None:
            break
        names.append(name)
    assert len(names) == len(set(names)) == 502
    for at in (400, 3, 250):
        _libc.seekdir(directory, ctypes.c_long(places[at]))
        assert read() == names[at]
    os.mknod(work / "new")
    _libc.rewinddir(directory)
    again = set(iter(read, None))
    _libc.closedir(directory)
    assert again == {*names, b"new"}


# Many at once, and afterwards


def test_eight_processes_in_one_directory(work: Path) -> None:
    code = """
import random
rng = random.Random(arg[1])
os.chdir(arg[0])
names = [str(n) for n in range(6)]
for _ in range(500):
    a, b = rng.choice(names), rng.choice(names)
    try:
        match rng.randrange(6):
            case 0: os.close(os.open(a, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            case 1: os.replace(a, b)
            case 2: os.link(a, b)
            case 3: os.unlink(a)
            case 4: os.stat(a)
            case 5:
                with open(a, 'ab') as f: f.write(b'x')
    except (FileNotFoundError, FileExistsError):
        pass
"""
    program = f"import os, sys\narg = sys.argv[1:]\n{code}"
    running = [subprocess.Popen(["python3", "-c", program, work, str(seed)]) for seed in range(8)]
    assert [process.wait() for process in running] == [0] * 8
    groups: dict[int, int] = {}
    for name in os.listdir(work):
        status = (work / name).stat()
        groups[status.st_ino] = groups.get(status.st_ino, 0) + 1
    for name in os.listdir(work):
        status = (work / name).stat()
        assert status.st_nlink == groups[status.st_ino]


def test_changes_made_behind_the_mount_never_confuse_objects(work: Path, overlay: Mounted) -> None:
    under = below(overlay, work)
    assert not (work / "b").exists()  # which the kernel keeps in mind
    (under / "b").write_text("foreign")
    (under / "b").chmod(0o600)
    assert fails(errno.EEXIST, lambda: os.open(work / "b", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    done = as_user("open(arg[0] + '/b', 'w')", open_to_all(work))
    assert "PermissionError" in done.stderr
    assert (work / "b").read_text() == "foreign"
    (under / "c").write_text("foreign")
    assert (work / "c").read_text() == "foreign"
