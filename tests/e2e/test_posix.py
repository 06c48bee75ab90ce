"""What jobs see through a mount must be what the file system below would have shown them."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import socket
import stat
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.support.mounts import Mounted
from tests.support.overlay import OTHER, as_user, fails, overlaid

pytestmark = pytest.mark.fuse

RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(scope="module")
def overlay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """One mount for all tests here; each works in a directory of its own."""
    with overlaid(tmp_path_factory.mktemp("posix")) as overlay:
        yield overlay


@pytest.fixture
def work(overlay: Mounted, request: pytest.FixtureRequest) -> Path:
    """A new directory in the mount."""
    path: Path = overlay.mountpoint / request.node.name.replace("/", "_")[:200]
    path.mkdir()
    return path


def _below(overlay: Mounted, path: Path) -> Path:
    return overlay.source / path.relative_to(overlay.mountpoint)


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
    assert set(os.listdir(bytes(_below(overlay, work)))) == names


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
    above, below = os.statvfs(overlay.mountpoint), os.statvfs(overlay.source)
    assert (above.f_blocks, above.f_files, above.f_bsize) == (
        below.f_blocks,
        below.f_files,
        below.f_bsize,
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
        above, below = (work / name).lstat(), (_below(overlay, work) / name).lstat()
        for field in ("st_mode", "st_rdev", "st_ino", "st_size", "st_nlink", "st_mtime_ns"):
            assert getattr(above, field) == getattr(below, field), (name, field)
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
    assert (_below(overlay, work) / "z" / "b" / "g").read_text() == "new"
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


# Open files


def test_unlinked_but_open(work: Path, overlay: Mounted) -> None:
    with open(work / "f", "w+b") as file:
        file.write(b"content")
        file.flush()
        (work / "f").unlink()
        assert os.listdir(work) == []
        assert os.listdir(_below(overlay, work)) == []
        status = os.fstat(file.fileno())
        assert (status.st_nlink, status.st_size) == (0, 7)
        os.fchmod(file.fileno(), 0o611)
        os.fchown(file.fileno(), 7, 8)
        os.utime(file.fileno(), ns=(3, 4))
        os.setxattr(file.fileno(), "user.a", b"b")
        assert os.getxattr(file.fileno(), "user.a") == b"b"
        os.ftruncate(file.fileno(), 3)
        status = os.fstat(file.fileno())
        assert (status.st_size, status.st_uid, status.st_gid) == (3, 7, 8)
        assert stat.S_IMODE(status.st_mode) == 0o611
        file.seek(0)
        assert file.read() == b"con"
        (work / "f").write_text("another")
        assert os.fstat(file.fileno()).st_ino != (work / "f").stat().st_ino


def test_a_removed_directory_that_is_in_use(work: Path) -> None:
    directory = work / "d"
    directory.mkdir()
    descriptor = os.open(directory, os.O_RDONLY)
    directory.rmdir()
    assert os.fstat(descriptor).st_nlink == 0
    assert os.listdir(descriptor) == []
    assert fails(errno.ENOENT, lambda: os.mkdir("x", dir_fd=descriptor))
    os.close(descriptor)


def test_a_path_descriptor_survives_the_removal(work: Path) -> None:
    (work / "f").write_text("x")
    descriptor = os.open(work / "f", os.O_PATH)
    (work / "f").unlink()
    assert os.fstat(descriptor).st_nlink == 0
    os.close(descriptor)


def test_create_with_a_mode_that_forbids_what_the_handle_does(work: Path) -> None:
    for mode in (0o400, 0o000):
        done = as_user(
            f"fd = os.open(arg[0] + '/f', os.O_CREAT | os.O_RDWR | os.O_EXCL, {mode})\n"
            "os.write(fd, b'x')\n"
            "assert os.pread(fd, 9, 0) == b'x'\n"
            f"assert stat.S_IMODE(os.fstat(fd).st_mode) == {mode}\n"
            "os.ftruncate(fd, 0)\n"
            "os.unlink(arg[0] + '/f')",
            _open_to_all(work),
        )
        assert done.returncode == 0, done.stderr


def test_the_umask_is_applied_once(work: Path) -> None:
    done = as_user(
        "os.close(os.open(arg[0] + '/f', os.O_CREAT | os.O_WRONLY, 0o777))\n"
        "os.mkdir(arg[0] + '/d', 0o777)\n"
        "os.mkfifo(arg[0] + '/p', 0o777)",
        _open_to_all(work),
        umask=0o027,
    )
    assert done.returncode == 0, done.stderr
    assert [stat.S_IMODE((work / name).stat().st_mode) for name in "fdp"] == [0o750] * 3


def test_truncation_by_path_handle_and_open(work: Path) -> None:
    file = work / "f"
    file.write_bytes(b"0123456789")
    os.truncate(file, 4)
    assert file.read_bytes() == b"0123"
    os.truncate(file, 6)
    assert file.read_bytes() == b"0123\0\0"
    with open(file, "r+b") as handle:
        os.ftruncate(handle.fileno(), 2)
        assert file.stat().st_size == 2
    with open(file, "wb"):
        assert file.stat().st_size == 0


def test_two_handles_and_append(work: Path) -> None:
    file = work / "f"
    with open(file, "ab", 0) as one, open(file, "ab", 0) as two, open(file, "rb", 0) as reader:
        for _ in range(50):
            one.write(b"1")
            two.write(b"22")
        assert reader.read() == b"122" * 50
    assert file.stat().st_size == 150


def test_append_from_four_processes(work: Path) -> None:
    code = (
        "fd = os.open(arg[0], os.O_WRONLY | os.O_APPEND | os.O_CREAT)\n"
        "for i in range(300):\n    os.write(fd, arg[1].encode() * 10)"
    )
    (work / "f").touch(0o666)
    programs = [
        subprocess.Popen(
            ["python3", "-c", f"import os, sys\narg = sys.argv[1:]\n{code}", work / "f", c]
        )
        for c in "abcd"
    ]
    assert [program.wait() for program in programs] == [0] * 4
    content = (work / "f").read_bytes()
    assert len(content) == 4 * 300 * 10
    pieces = {content[at : at + 10] for at in range(0, len(content), 10)}
    assert pieces == {b"a" * 10, b"b" * 10, b"c" * 10, b"d" * 10}


def test_direct_io_sync_and_odd_buffers(work: Path) -> None:
    descriptor = os.open(work / "f", os.O_RDWR | os.O_CREAT | os.O_DIRECT | os.O_SYNC, 0o644)
    buffer = mmap.mmap(-1, 8192)
    buffer.write(b"d" * 8192)
    assert os.pwritev(descriptor, [buffer], 0) == 8192
    assert os.preadv(descriptor, [buffer], 4096) == 4096
    os.close(descriptor)
    assert (work / "f").read_bytes() == b"d" * 8192


@pytest.mark.parametrize("flag", ["O_NOFOLLOW", "O_NONBLOCK", "O_NOCTTY", "O_NOATIME", "O_ASYNC"])
def test_flags_that_concern_the_caller_alone(work: Path, flag: str) -> None:
    flags = os.O_RDWR | getattr(os, flag)
    os.close(os.open(work / "f", flags | os.O_CREAT, 0o644))
    descriptor = os.open(work / "f", flags)
    assert os.write(descriptor, b"x") == 1
    os.close(descriptor)


def test_memory_mappings(work: Path, overlay: Mounted) -> None:
    file = work / "f"
    file.write_bytes(bytes(8192))
    with open(file, "r+b") as handle, mmap.mmap(handle.fileno(), 8192) as mapping:
        mapping[0:5] = b"store"
        mapping.flush()
        assert (_below(overlay, work) / "f").read_bytes()[:5] == b"store"
        mapping[100:104] = b"late"
    assert file.read_bytes()[100:104] == b"late"
    assert (_below(overlay, work) / "f").read_bytes()[100:104] == b"late"


def test_execute_only_and_busy_programs(work: Path) -> None:
    program = work / "program"
    program.write_bytes(Path("/bin/true").read_bytes())
    program.chmod(0o111)
    _open_to_all(work)
    code = "sys.exit(os.spawnv(os.P_WAIT, arg[0], [arg[0]]))"
    assert as_user(code, program).returncode == 0
    assert as_user("open(arg[0], 'rb')", program).returncode != 0
    program.chmod(0o755)
    sleeper = work / "sleeper"
    sleeper.write_bytes(Path("/bin/cat").read_bytes())
    sleeper.chmod(0o755)
    with subprocess.Popen([sleeper], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert fails(errno.ETXTBSY, lambda: sleeper.open("r+b"))
        running.communicate()


def test_large_reads_and_writes(work: Path) -> None:
    data = os.urandom(3 << 20)
    (work / "f").write_bytes(data)
    assert (work / "f").read_bytes() == data
    assert (work / "f").stat().st_blocks * 512 >= len(data)


def test_sparse_files_stay_sparse(work: Path, overlay: Mounted) -> None:
    with open(work / "f", "wb") as file:
        file.seek(100 << 20)
        file.write(b"end")
    assert (work / "f").stat().st_size == (100 << 20) + 3
    assert (work / "f").stat().st_blocks == (_below(overlay, work) / "f").stat().st_blocks < 1000


def test_sync_of_files_and_directories(work: Path) -> None:
    with open(work / "f", "wb") as file:
        file.write(b"x")
        file.flush()
        os.fsync(file.fileno())
        os.fdatasync(file.fileno())
    descriptor = os.open(work, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def test_locks_between_processes(work: Path) -> None:
    (work / "f").touch(0o666)
    with open(work / "f", "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        code = (
            "import fcntl\nf = open(arg[0], 'r+b')\n"
            "try:\n    fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
            "except BlockingIOError:\n    sys.exit(7)"
        )
        assert as_user(code, work / "f", uid=0, gid=0).returncode == 7


# Times, attributes


@pytest.mark.parametrize(
    ("atime", "mtime"),
    [(1, 2), (1_700_000_000_123_456_789, 987_654_321), (8_583_775_200_000_000_001, 5)],
)
def test_times_to_the_nanosecond(work: Path, atime: int, mtime: int) -> None:
    (work / "f").touch()
    os.utime(work / "f", ns=(atime, mtime))
    status = (work / "f").stat()
    assert (status.st_atime_ns, status.st_mtime_ns) == (atime, mtime)


def test_one_time_alone_and_now(work: Path) -> None:
    (work / "f").touch()
    os.utime(work / "f", ns=(11, 22))
    subprocess.run(["touch", "-a", "-d", "@5.25", work / "f"], check=True)
    status = (work / "f").stat()
    assert (status.st_atime_ns, status.st_mtime_ns) == (5_250_000_000, 22)
    subprocess.run(["touch", "-m", work / "f"], check=True)
    status = (work / "f").stat()
    assert status.st_atime_ns == 5_250_000_000
    assert status.st_mtime_ns > 10**18
    done = as_user("os.utime(arg[0])", _open_to_all(work / "f"))  # "now" needs only write access
    assert done.returncode == 0, done.stderr
    assert as_user("os.utime(arg[0], ns=(1, 1))", work / "f").returncode != 0


def test_times_of_the_directory_follow_its_content(work: Path) -> None:
    def moved(action: object) -> bool:
        before = work.stat().st_mtime_ns
        assert callable(action)
        action()
        return work.stat().st_mtime_ns > before

    assert moved((work / "f").touch)
    assert moved(lambda: (work / "f").rename(work / "g"))
    assert moved((work / "g").unlink)


def test_extended_attributes(work: Path, overlay: Mounted) -> None:
    file = work / "f"
    file.touch()
    os.setxattr(file, "user.a", b"1", os.XATTR_CREATE)
    assert fails(errno.EEXIST, lambda: os.setxattr(file, "user.a", b"2", os.XATTR_CREATE))
    assert fails(errno.ENODATA, lambda: os.setxattr(file, "user.b", b"2", os.XATTR_REPLACE))
    os.setxattr(file, "user.a", b"\0" * 1000, os.XATTR_REPLACE)
    os.setxattr(file, "trusted.t", b"")
    assert sorted(os.listxattr(file)) == ["trusted.t", "user.a"]
    assert os.getxattr(file, "user.a") == bytes(1000)
    os.removexattr(file, "user.a")
    assert fails(errno.ENODATA, lambda: os.getxattr(file, "user.a"))
    assert os.listxattr(_below(overlay, file)) == ["trusted.t"]
    _open_to_all(work)
    done = as_user("print(os.listxattr(arg[0]))", file)
    assert done.stdout == "[]\n"


def test_mirrorfs_s_own_attributes_are_not_for_jobs(work: Path, overlay: Mounted) -> None:
    file = work / "f"
    file.touch()
    os.setxattr(_below(overlay, file), "trusted.mirrorfs.mark", b"m")
    assert os.listxattr(file) == []
    for name in ("trusted.mirrorfs.mark", "user.mirrorfs.x"):
        assert fails(errno.ENODATA, partial(os.getxattr, file, name))
        assert fails(errno.EPERM, partial(os.setxattr, file, name, b"1"))
        assert fails(errno.EPERM, partial(os.removexattr, file, name))
    assert b'"pid"' in os.getxattr(overlay.mountpoint, "trusted.mirrorfs.daemon")
    assert "trusted.mirrorfs.daemon" not in os.listxattr(overlay.mountpoint)


# Users


def _open_to_all(path: Path) -> Path:
    path.chmod(0o777 if path.is_dir() else 0o666)
    return path


def test_new_objects_belong_to_the_caller(work: Path, overlay: Mounted) -> None:
    done = as_user(
        "d = arg[0]\n"
        "open(d + '/f', 'w').close(); os.mkdir(d + '/d'); os.mkfifo(d + '/p')\n"
        "os.symlink('x', d + '/l'); os.mknod(d + '/n'); open(d + '/d/inner', 'w').close()\n"
        "os.link(d + '/f', d + '/h')",
        _open_to_all(work),
        gid=777,
    )
    assert done.returncode == 0, done.stderr
    for name in ("f", "d", "p", "l", "n", "d/inner", "h"):
        status = (_below(overlay, work) / name).lstat()
        assert (status.st_uid, status.st_gid) == (OTHER, 777), name
    (work / "of root").touch()
    assert (_below(overlay, work) / "of root").stat().st_uid == 0


def test_set_group_id_directories_pass_their_group_on(work: Path) -> None:
    os.chown(work, 0, 4242)
    work.chmod(0o2777)
    done = as_user("open(arg[0] + '/f', 'w').close(); os.mkdir(arg[0] + '/d')", work)
    assert done.returncode == 0, done.stderr
    assert ((work / "f").stat().st_gid, (work / "d").stat().st_gid) == (4242, 4242)
    assert (work / "d").stat().st_mode & stat.S_ISGID


def test_permission_by_a_supplementary_group(work: Path) -> None:
    (work / "f").write_text("secret")
    os.chown(work / "f", 0, 900)
    (work / "f").chmod(0o660)
    os.chown(work, 0, 900)
    work.chmod(0o770)
    code = "assert open(arg[0] + '/f').read() == 'secret'; open(arg[0] + '/new', 'w').close()"
    assert as_user(code, work, groups=(800, 900)).returncode == 0
    assert as_user(code, work, groups=(800,)).returncode != 0
    status = (work / "new").stat()
    assert (status.st_uid, status.st_gid) == (OTHER, OTHER)


def test_others_are_kept_out(work: Path) -> None:
    (work / "private").mkdir(0o700)
    (work / "f").write_text("x")
    (work / "f").chmod(0o600)
    for code in (
        "open(arg[0] + '/f')",
        "os.listdir(arg[0] + '/private')",
        "open(arg[0] + '/new', 'w')",
        "os.unlink(arg[0] + '/f')",
        "os.chmod(arg[0] + '/f', 0o777)",
        "os.chown(arg[0] + '/f', os.getuid(), -1)",
        "os.utime(arg[0] + '/f')",
        "os.truncate(arg[0] + '/f', 0)",
        "os.setxattr(arg[0] + '/f', 'user.a', b'')",
    ):
        done = as_user(f"try:\n    {code}\nexcept PermissionError:\n    sys.exit(5)", work)
        assert done.returncode == 5, (code, done.stderr)


def test_sticky_directories(work: Path) -> None:
    work.chmod(0o1777)
    (work / "f").touch(0o666)
    done = as_user(
        "try:\n    os.unlink(arg[0] + '/f')\nexcept PermissionError:\n    sys.exit(5)", work
    )
    assert done.returncode == 5, done.stderr


@pytest.mark.parametrize(
    "code",
    [
        "fd = os.open(arg[0], os.O_WRONLY); os.write(fd, b'x')",
        "os.truncate(arg[0], 1)",
        "os.close(os.open(arg[0], os.O_WRONLY | os.O_TRUNC))",
    ],
)
def test_another_user_s_change_ends_set_id_bits(work: Path, code: str) -> None:
    _open_to_all(work)
    (work / "f").write_text("program")
    (work / "f").chmod(0o6777)
    done = as_user(code, work / "f")
    assert done.returncode == 0, done.stderr
    assert stat.S_IMODE((work / "f").stat().st_mode) == 0o777
    (work / "f").chmod(0o6777)
    assert as_user(code, work / "f", uid=0, gid=0).returncode == 0
    assert stat.S_IMODE((work / "f").stat().st_mode) == 0o6777


def test_a_change_of_owner_ends_set_id_bits(work: Path) -> None:
    (work / "f").touch()
    os.chown(work / "f", OTHER, OTHER)
    (work / "f").chmod(0o6755)
    done = as_user("os.chown(arg[0], -1, 900)", work / "f", groups=(900,))
    assert done.returncode == 0, done.stderr
    status = (work / "f").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_gid) == (0o755, 900)


def test_acls_are_enforced_and_inherited(work: Path, overlay: Mounted) -> None:
    work.chmod(0o700)
    (work / "f").write_text("x")
    (work / "f").chmod(0o600)
    code = "open(arg[0] + '/f').read()"
    assert as_user(code, work).returncode != 0
    subprocess.run(["setfacl", "-m", f"u:{OTHER}:rwx", "-m", f"d:u:{OTHER}:rwx", work], check=True)
    subprocess.run(["setfacl", "-m", f"u:{OTHER}:r", work / "f"], check=True)
    assert as_user(code, work).returncode == 0
    assert as_user("open(arg[0] + '/f', 'a')", work).returncode != 0
    (work / "f").chmod(0o600)  # closes the mask
    assert as_user(code, work).returncode != 0
    (work / "sub").mkdir()
    (work / "sub" / "new").write_text("y")
    shown = [
        subprocess.run(["getfacl", "-cpn", path], check=True, capture_output=True, text=True).stdout
        for path in (work / "sub", _below(overlay, work) / "sub")
    ]
    assert shown[0] == shown[1]
    assert f"default:user:{OTHER}:rwx" in shown[0]
    assert as_user("open(arg[0]).read()", work / "sub" / "new").returncode == 0


def test_an_acl_set_from_outside_the_group_ends_set_group_id(work: Path) -> None:
    for name, groups, kept in (("in", (900,), True), ("out", (), False)):
        (work / name).touch()
        os.chown(work / name, OTHER, 900)
        (work / name).chmod(0o2775)
        _open_to_all(work)
        done = as_user(
            "import subprocess\nsys.exit(subprocess.call(['setfacl', '-m', 'u:77:rwx', arg[0]]))",
            work / name,
            groups=groups,
        )
        assert done.returncode == 0, done.stderr
        assert bool((work / name).stat().st_mode & stat.S_ISGID) is kept


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


def test_four_processes_in_one_directory(work: Path) -> None:
    code = """
import random
rng = random.Random(arg[1])
os.chdir(arg[0])
names = [str(n) for n in range(6)]
for _ in range(800):
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
    running = [subprocess.Popen(["python3", "-c", program, work, str(seed)]) for seed in range(4)]
    assert [process.wait() for process in running] == [0] * 4
    groups: dict[int, int] = {}
    for name in os.listdir(work):
        status = (work / name).stat()
        groups[status.st_ino] = groups.get(status.st_ino, 0) + 1
    for name in os.listdir(work):
        status = (work / name).stat()
        assert status.st_nlink == groups[status.st_ino]


def test_changes_made_behind_the_mount_never_confuse_objects(work: Path, overlay: Mounted) -> None:
    below = _below(overlay, work)
    assert not (work / "b").exists()  # which the kernel keeps in mind
    (below / "b").write_text("foreign")
    (below / "b").chmod(0o600)
    assert fails(errno.EEXIST, lambda: os.open(work / "b", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    done = as_user("open(arg[0] + '/b', 'w')", _open_to_all(work))
    assert "PermissionError" in done.stderr
    assert (work / "b").read_text() == "foreign"
    (below / "c").write_text("foreign")
    assert (work / "c").read_text() == "foreign"
