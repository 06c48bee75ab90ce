"""What jobs may expect of files and names on a mounted federation, one thing a test.

Where XRootD by itself would do something else (a rename that leaves the old file at another server,
a handle that reads back nothing, a size of nought while a file is written), what counts is what
POSIX says, or a refusal.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import random
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.federation import Federation
from tests.support.federation import federation as federation
from tests.support.federation_mounts import FederationMount
from tests.support.federation_mounts import federation_mount as federation_mount
from tests.support.overlay import reachable

pytestmark = [pytest.mark.xrootd, pytest.mark.fuse]

_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2
_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def work(federation_mount: FederationMount, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A new directory in the mount; nothing of it stays at any server."""
    name = request.node.name.replace("/", "_")[:100]
    path = federation_mount.mountpoint / name
    path.mkdir()
    yield path
    shutil.rmtree(path)


def _name(path: Path, mount: FederationMount) -> str:
    """How servers call it."""
    return "/" + str(path.relative_to(mount.mountpoint))


@contextlib.contextmanager
def fails(*codes: int) -> Iterator[None]:
    """What is done here fails with one of these errnos."""
    with pytest.raises(OSError) as raised:  # noqa: PT011 - the errno says which
        yield
    assert raised.value.errno in codes, errno.errorcode.get(raised.value.errno or 0)


@contextlib.contextmanager
def _as_user(uid: int, gid: int) -> Iterator[None]:
    """What is done here another user does."""
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def _renameat2(old: Path, new: Path, flags: int) -> None:
    if _libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")


# Content


def test_a_new_file_is_read_by_the_handle_that_made_it(work: Path) -> None:
    descriptor = os.open(work / "f", os.O_RDWR | os.O_CREAT)
    try:
        os.write(descriptor, b"content")
        assert os.pread(descriptor, 100, 0) == b"content"
        assert os.pread(descriptor, 3, 2) == b"nte"
    finally:
        os.close(descriptor)


def test_the_size_is_true_while_a_file_is_written(work: Path) -> None:
    with open(work / "f", "wb", buffering=0) as file:
        for count in range(1, 6):
            file.write(bytes(1000))
            assert os.fstat(file.fileno()).st_size == count * 1000
            assert (work / "f").stat().st_size == count * 1000
            assert file.tell() == count * 1000
    assert (work / "f").stat().st_size == 5000


def test_two_handles_see_each_other(work: Path) -> None:
    with open(work / "f", "w+b", buffering=0) as one, open(work / "f", "r+b", buffering=0) as two:
        one.write(b"from one")
        assert two.read() == b"from one"
        two.seek(5)
        two.write(b"two")
        one.seek(0)
        assert one.read() == b"from two"
    assert (work / "f").read_bytes() == b"from two"


def test_a_reader_is_joined_by_a_writer(work: Path) -> None:
    (work / "f").write_bytes(b"before")
    with open(work / "f", "rb", buffering=0) as reader:
        assert reader.read(3) == b"bef"
        with open(work / "f", "r+b", buffering=0) as writer:
            writer.write(b"behind")
            assert reader.read(3) == b"ind"
        reader.seek(0)
        assert reader.read() == b"behind"


def test_appending_by_two_handles(work: Path) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    one, two = os.open(work / "f", flags), os.open(work / "f", flags)
    try:
        for _ in range(20):
            os.write(one, b"one\n")
            os.write(two, b"two\n")
    finally:
        os.close(one)
        os.close(two)
    assert (work / "f").read_bytes() == b"one\ntwo\n" * 20


def test_appending_to_what_another_client_appended_to(
    work: Path, federation: Federation, federation_mount: FederationMount
) -> None:
    (work / "f").write_bytes(b"ours\n")
    assert (work / "f").stat().st_size == 5  # the kernel knows it now
    (server,) = federation.holders(_name(work / "f", federation_mount))
    with open(f"{server.data_dir}{_name(work / 'f', federation_mount)}", "ab") as file:
        file.write(b"theirs\n")
    with open(work / "f", "ab") as file:
        file.write(b"ours again\n")
    assert (work / "f").read_bytes() == b"ours\ntheirs\nours again\n"


def test_what_another_client_wrote_is_read_after_open(
    work: Path, federation: Federation, federation_mount: FederationMount
) -> None:
    (work / "f").write_bytes(b"short")
    assert (work / "f").read_bytes() == b"short"
    (server,) = federation.holders(_name(work / "f", federation_mount))
    Path(f"{server.data_dir}{_name(work / 'f', federation_mount)}").write_bytes(b"rather long")
    assert (work / "f").read_bytes() == b"rather long"


def test_what_another_client_wrote_over_as_much_is_read_after_open(
    work: Path, federation: Federation, federation_mount: FederationMount
) -> None:
    """The same size, and perhaps the same second."""
    (work / "f").write_bytes(b"one")
    (server,) = federation.holders(_name(work / "f", federation_mount))
    stored = Path(f"{server.data_dir}{_name(work / 'f', federation_mount)}")
    for content in (b"two", b"six", b"ten"):
        stored.write_bytes(content)
        assert (work / "f").read_bytes() == content
    os.utime(stored, (5, 5))
    assert (work / "f").read_bytes() == b"ten"
    stored.write_bytes(b"new")
    assert (work / "f").read_bytes() == b"new"


def test_truncation(work: Path) -> None:
    with open(work / "f", "w+b", buffering=0) as file:
        file.write(b"0123456789")
        file.truncate(4)
        assert os.fstat(file.fileno()).st_size == 4
        file.truncate(6)
        assert os.pread(file.fileno(), 100, 0) == b"0123\0\0"
    os.truncate(work / "f", 2)
    assert (work / "f").read_bytes() == b"01"
    os.truncate(work / "f", 3)
    assert (work / "f").read_bytes() == b"01\0"
    with open(work / "f", "wb"):
        pass
    assert (work / "f").stat().st_size == 0


def test_a_hole(work: Path) -> None:
    with open(work / "f", "wb") as file:
        file.seek(3 << 20)
        file.write(b"end")
    content = (work / "f").read_bytes()
    assert len(content) == (3 << 20) + 3
    assert content.strip(b"\0") == b"end"


def test_random_reads_and_writes(work: Path, tmp_path: Path) -> None:
    """The same as on a local file, through several handles of different kinds."""
    chance = random.Random(7)
    paths = (work / "f", tmp_path / "f")
    both = [
        [open(path, mode, buffering=0) for mode in ("w+b", "r+b", "rb")]  # noqa: SIM115
        for path in paths
    ]
    try:
        for _ in range(400):
            which, offset = chance.randrange(3), chance.randrange(4 << 20)
            length = chance.choice((1, 100, 4096, 70_000, 1 << 20))
            action = chance.choice(("read", "read", "write", "write", "append", "truncate", "sync"))
            data = chance.randbytes(length)
            results: list[object] = []
            for handles in both:
                file = handles[which if action == "read" else which % 2]
                if action == "read":
                    results.append(os.pread(file.fileno(), length, offset))
                elif action == "write":
                    results.append(os.pwrite(file.fileno(), data, offset))
                elif action == "append":
                    file.seek(0, os.SEEK_END)
                    results.append(file.write(data))
                elif action == "truncate":
                    results.append(file.truncate(offset))
                else:
                    os.fsync(file.fileno())
                results.append(os.fstat(file.fileno()).st_size)
            assert results[: len(results) // 2] == results[len(results) // 2 :], action
    finally:
        for file in (*both[0], *both[1]):
            file.close()
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_large_files(work: Path) -> None:
    content = random.Random(3).randbytes(20 << 20)
    (work / "f").write_bytes(content)
    assert (work / "f").read_bytes() == content
    with open(work / "f", "r+b") as file:
        file.seek(5 << 20)
        file.write(b"in the middle")
    expected = content[: 5 << 20] + b"in the middle" + content[(5 << 20) + 13 :]
    assert (work / "f").read_bytes() == expected


def test_memory_mapping(work: Path) -> None:
    with open(work / "f", "w+b") as file:
        file.write(bytes(8192))
        file.flush()
        with mmap.mmap(file.fileno(), 8192) as mapped:
            mapped[4000:4010] = b"by mapping"
            mapped.flush()
            assert os.pread(file.fileno(), 10, 4000) == b"by mapping"
    assert (work / "f").read_bytes()[4000:4010] == b"by mapping"


def test_a_mapping_that_outlives_its_descriptor(work: Path) -> None:
    with open(work / "f", "w+b") as file:
        file.write(bytes(4096))
        file.flush()
        mapped = mmap.mmap(file.fileno(), 4096)
    mapped[0:4] = b"late"
    mapped.close()
    with open(work / "f", "rb") as file:
        assert file.read(4) == b"late"


def test_open_flags(work: Path) -> None:
    (work / "f").write_bytes(b"content")
    with fails(errno.EEXIST):
        os.open(work / "f", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    descriptor = os.open(work / "f", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_SYNC)
    os.write(descriptor, b"new")
    os.close(descriptor)
    assert (work / "f").read_bytes() == b"new"
    with fails(errno.EISDIR):
        os.open(work, os.O_WRONLY)
    with fails(errno.ENOTDIR):
        os.open(work / "f", os.O_RDONLY | os.O_DIRECTORY)
    with fails(errno.ENOENT):
        os.open(work / "nothing", os.O_RDWR)
    with fails(errno.ENOTDIR):
        os.open(work / "f" / "below", os.O_RDWR | os.O_CREAT)


def test_a_descriptor_goes_on_after_its_copy_was_closed(work: Path) -> None:
    one = os.open(work / "f", os.O_RDWR | os.O_CREAT)
    try:
        os.write(one, b"first ")
        os.close(os.dup(one))  # the file is closed at its server
        os.write(one, b"second")
        assert os.pread(one, 100, 0) == b"first second"
    finally:
        os.close(one)
    assert (work / "f").read_bytes() == b"first second"


def test_locks_within_the_mount(work: Path) -> None:
    with open(work / "f", "wb") as one, open(work / "f", "wb") as two:
        fcntl.flock(one, fcntl.LOCK_EX)
        with fails(errno.EAGAIN):
            fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_another_program_sees_a_file_as_soon_as_it_is_closed(
    work: Path, federation: Federation, federation_mount: FederationMount
) -> None:
    """With a client that minds who has what open."""
    (work / "f").write_bytes(b"content")
    url = os.getxattr(work / "f", "user.xrootd.url").decode()
    done = subprocess.run(["xrdcp", "-s", url, "-"], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, b"content"), done.stderr


# Names of open files


def test_unlinked_but_open(work: Path) -> None:
    with open(work / "f", "w+b", buffering=0) as file:
        file.write(b"content")
        (work / "f").unlink()
        assert os.listdir(work) == []
        status = os.fstat(file.fileno())
        assert (status.st_nlink, status.st_size) == (0, 7)
        (work / "f").write_bytes(b"another")
        file.write(b", more")
        os.ftruncate(file.fileno(), 10)
        assert os.pread(file.fileno(), 100, 0) == b"content, m"
        assert os.fstat(file.fileno()).st_size == 10
        assert os.fstat(file.fileno()).st_ino != (work / "f").stat().st_ino
    assert (work / "f").read_bytes() == b"another"


def test_unlinked_after_it_was_closed_at_its_server(work: Path) -> None:
    with open(work / "f", "w+b", buffering=0) as file:
        file.write(b"content")
        os.close(os.dup(file.fileno()))
        (work / "f").unlink()
        assert os.pread(file.fileno(), 100, 0) == b"content"


def test_renamed_while_open(work: Path) -> None:
    with open(work / "f", "w+b", buffering=0) as file:
        file.write(b"one ")
        os.close(os.dup(file.fileno()))
        (work / "f").rename(work / "g")
        file.write(b"two")
        (work / "f").write_bytes(b"another")
        assert os.pread(file.fileno(), 100, 0) == b"one two"
    assert (work / "g").read_bytes() == b"one two"
    assert (work / "f").read_bytes() == b"another"


def test_a_directory_above_an_open_file_is_renamed(work: Path) -> None:
    (work / "a/b").mkdir(parents=True)
    with open(work / "a/b/f", "w+b", buffering=0) as file:
        file.write(b"one ")
        (work / "a").rename(work / "c")
        os.close(os.dup(file.fileno()))
        file.write(b"two")
        (work / "c/b/g").write_bytes(b"beside")
    assert (work / "c/b/f").read_bytes() == b"one two"
    assert sorted(os.listdir(work / "c/b")) == ["f", "g"]
    assert os.listdir(work) == ["c"]


def test_replaced_while_open(work: Path) -> None:
    (work / "old").write_bytes(b"old content")
    with open(work / "old", "rb", buffering=0) as file:
        (work / "new").write_bytes(b"new")
        (work / "new").rename(work / "old")
        assert file.read() == b"old content"
    assert (work / "old").read_bytes() == b"new"


def test_rename_flags(work: Path) -> None:
    (work / "a").write_bytes(b"a")
    (work / "b").write_bytes(b"b")
    with fails(errno.EEXIST):
        _renameat2(work / "a", work / "b", _RENAME_NOREPLACE)
    with fails(errno.EINVAL):
        _renameat2(work / "a", work / "b", _RENAME_EXCHANGE)
    _renameat2(work / "a", work / "c", _RENAME_NOREPLACE)
    assert {path.name: path.read_bytes() for path in work.iterdir()} == {"b": b"b", "c": b"a"}


# Attributes


def test_times(work: Path) -> None:
    (work / "f").write_bytes(b"content")
    os.utime(work / "f", ns=(981_173_106_123_456_789, 981_173_107_987_654_321))
    status = (work / "f").stat()
    assert status.st_atime_ns == 981_173_106_123_456_789
    assert status.st_mtime_ns == 981_173_107_987_654_321
    os.utime(work / "f", ns=(-1, -1))
    assert (work / "f").stat().st_mtime_ns == -1
    (work / "d").mkdir()
    os.utime(work / "d", (5, 6))
    assert (work / "d").stat().st_mtime == 6


def test_times_set_before_close_stay(work: Path) -> None:
    """As tar and cp -p do it."""
    with open(work / "f", "wb") as file:
        file.write(b"content")
        file.flush()
        os.utime(file.fileno(), (5, 6))
    assert (work / "f").stat().st_mtime == 6
    with os.scandir(work) as entries:
        assert [entry.stat().st_mtime for entry in entries] == [6]


def test_a_write_voids_times(work: Path) -> None:
    """Even to the same size within the same second."""
    (work / "f").write_bytes(b"content")
    os.utime(work / "f", (5, 6))
    with open(work / "f", "r+b") as file:
        file.write(b"CONTENT")
    assert (work / "f").stat().st_mtime > 6
    os.utime(work / "f", (5, 6))
    os.truncate(work / "f", 7)
    assert (work / "f").stat().st_mtime > 6


def test_attributes_are_kept_at_the_servers(work: Path, federation_mount: FederationMount) -> None:
    (work / "f").write_bytes(b"content")
    (work / "d").mkdir()
    (work / "link").symlink_to("f")
    for name in ("f", "d"):
        os.chown(work / name, 1234, 4321)
        os.chmod(work / name, 0o6751)
        os.setxattr(work / name, "user.note", b"\0\xff%41\n")
        os.utime(work / name, ns=(1, 2))
    os.chown(work / "link", 7, 8, follow_symlinks=False)

    def seen() -> list[tuple[int, ...]]:
        found: list[tuple[int, ...]] = []
        for name in ("f", "d", "link"):
            s = (work / name).lstat()
            found.append((s.st_mode, s.st_uid, s.st_gid, s.st_size * (name != "d"), s.st_mtime_ns))
        return found

    before = seen()
    assert before[0] == (stat.S_IFREG | 0o6751, 1234, 4321, 7, 2)
    assert before[1] == (stat.S_IFDIR | 0o6751, 1234, 4321, 0, 2)
    assert before[2][:3] == (stat.S_IFLNK | 0o777, 7, 8)
    federation_mount.umount()
    federation_mount.mount()
    assert seen() == before
    assert os.readlink(work / "link") == "f"
    assert os.getxattr(work / "f", "user.note") == b"\0\xff%41\n"
    assert os.getxattr(work / "d", "user.note") == b"\0\xff%41\n"


def test_modes(work: Path) -> None:
    for mode in (0o600, 0o644, 0o664, 0o4755, 0o634, 0o1777, 0o600):
        with open(work / "f", "wb"):
            pass
        os.chmod(work / "f", mode)
        assert stat.S_IMODE((work / "f").stat().st_mode) == mode
    mask = os.umask(0)
    try:
        os.close(os.open(work / "open", os.O_CREAT, 0o666))
        os.mkdir(work / "d", 0o1777)
    finally:
        os.umask(mask)
    assert stat.S_IMODE((work / "open").stat().st_mode) == 0o666
    assert stat.S_IMODE((work / "d").stat().st_mode) == 0o1777


def test_a_file_that_may_not_be_written_is_made_with_content(work: Path) -> None:
    descriptor = os.open(work / "f", os.O_WRONLY | os.O_CREAT, 0o444)
    os.write(descriptor, b"one ")
    os.close(os.dup(descriptor))
    os.write(descriptor, b"two")
    os.close(descriptor)
    assert (work / "f").read_bytes() == b"one two"


def test_new_files_belong_to_who_makes_them(work: Path) -> None:
    reachable(work)
    work.chmod(0o777)
    with _as_user(1000, 1000):
        (work / "f").write_bytes(b"one")
        (work / "f").write_bytes(b"two")
        (work / "d").mkdir()
        (work / "link").symlink_to("f")
        with fails(errno.EPERM):
            os.chown(work / "f", 0, 0)
    for name in ("f", "d", "link"):
        status = (work / name).lstat()
        assert (status.st_uid, status.st_gid) == (1000, 1000)
    os.chmod(work / "f", 0o600)
    with _as_user(1001, 1001), fails(errno.EACCES):
        (work / "f").read_bytes()
    os.chown(work / "d", 5, 6)
    os.chmod(work / "d", 0o2777)
    with _as_user(1000, 1000):
        (work / "d/f").touch()
        (work / "d/e").mkdir()
    assert (work / "d/f").stat().st_gid == 6
    assert (work / "d/e").stat().st_gid == 6
    assert (work / "d/e").stat().st_mode & stat.S_ISGID


def test_symlinks(work: Path) -> None:
    target = "../%41 \udcff/" + "x" * 200
    os.symlink(target, work / "odd")
    assert os.readlink(work / "odd") == target
    assert (work / "odd").lstat().st_size == len(os.fsencode(target))
    (work / "f").write_bytes(b"content")
    (work / "link").symlink_to("f")
    assert (work / "link").read_bytes() == b"content"
    with fails(errno.EEXIST):
        os.symlink("elsewhere", work / "link")
    (work / "link").rename(work / "renamed")
    assert os.readlink(work / "renamed") == "f"
    with os.scandir(work) as entries:
        kinds = {entry.name: entry.is_symlink() for entry in entries}
    assert kinds == {"odd": True, "f": False, "renamed": True}
    (work / "renamed").unlink()
    assert (work / "f").exists()


def test_extended_attributes(work: Path) -> None:
    (work / "f").write_bytes(b"content")
    os.setxattr(work / "f", "user.empty", b"")
    os.setxattr(work / "f", "user.note", b"text")
    os.setxattr(work / "f", "user.note", b"\xff\0 %41")
    os.setxattr(work / "f", "user.ä\n", b"odd name")
    assert sorted(os.listxattr(work / "f")) == ["user.empty", "user.note", "user.ä\n"]
    assert os.getxattr(work / "f", "user.note") == b"\xff\0 %41"
    assert os.getxattr(work / "f", "user.ä\n") == b"odd name"
    assert os.getxattr(work / "f", "user.empty") == b""
    os.removexattr(work / "f", "user.note")
    with fails(errno.ENODATA):
        os.getxattr(work / "f", "user.note")
    with fails(errno.ENODATA):
        os.removexattr(work / "f", "user.note")
    with fails(errno.ENOTSUP):
        os.setxattr(work / "f", "trusted.a", b"")
    for name in ("user.xrootd.url", "user.mirrorfs.mode"):
        with fails(errno.EPERM):
            os.setxattr(work / "f", name, b"")
    with fails(errno.ENODATA):
        os.getxattr(work / "f", "user.mirrorfs.mode")
    os.utime(work / "f", (5, 6))
    assert sorted(os.listxattr(work / "f")) == ["user.empty", "user.ä\n"]


def test_what_a_federation_cannot_hold(work: Path) -> None:
    (work / "f").touch()
    with fails(errno.EPERM):
        os.link(work / "f", work / "g")
    with fails(errno.EPERM):
        os.mkfifo(work / "fifo")
    for name in (b"what?", b"two\nlines", b"\xff"):
        path = os.path.join(os.fsencode(work), name)
        with fails(errno.ENOENT):
            os.stat(path)
        for make in (
            lambda path: os.close(os.open(path, os.O_CREAT)),
            os.mkdir,
            lambda path: os.symlink("f", path),
            lambda path: os.replace(work / "f", path),
        ):
            with fails(errno.EINVAL, errno.EILSEQ):
                make(path)
    with fails(errno.ENAMETOOLONG):
        (work / ("x" * 255)).touch()
    assert os.listdir(work) == ["f"]
