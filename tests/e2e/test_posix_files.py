"""What jobs see of content, open files and times must be what the file system below would show."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
import subprocess
from functools import partial
from pathlib import Path

import pytest

from tests.support.mounts import Mounted
from tests.support.overlay import as_user, below, fails, open_to_all

pytestmark = pytest.mark.fuse


# Open files


def test_unlinked_but_open(work: Path, overlay: Mounted) -> None:
    with open(work / "f", "w+b") as file:
        file.write(b"content")
        file.flush()
        (work / "f").unlink()
        assert os.listdir(work) == []
        assert os.listdir(below(overlay, work)) == []
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
            open_to_all(work),
        )
        assert done.returncode == 0, done.stderr


def test_the_umask_is_applied_once(work: Path) -> None:
    done = as_user(
        "os.close(os.open(arg[0] + '/f', os.O_CREAT | os.O_WRONLY, 0o777))\n"
        "os.mkdir(arg[0] + '/d', 0o777)\n"
        "os.mkfifo(arg[0] + '/p', 0o777)",
        open_to_all(work),
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
        assert (below(overlay, work) / "f").read_bytes()[:5] == b"store"
        mapping[100:104] = b"late"
    assert file.read_bytes()[100:104] == b"late"
    assert (below(overlay, work) / "f").read_bytes()[100:104] == b"late"


def test_execute_only_and_busy_programs(work: Path) -> None:
    program = work / "program"
    program.write_bytes(Path("/bin/true").read_bytes())
    program.chmod(0o111)
    open_to_all(work)
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
    assert (work / "f").stat().st_blocks == (below(overlay, work) / "f").stat().st_blocks < 1000


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
    done = as_user("os.utime(arg[0])", open_to_all(work / "f"))  # "now" needs only write access
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
    assert os.listxattr(below(overlay, file)) == ["trusted.t"]
    open_to_all(work)
    done = as_user("print(os.listxattr(arg[0]))", file)
    assert done.stdout == "[]\n"


def test_mirrorfs_s_own_attributes_are_not_for_jobs(work: Path, overlay: Mounted) -> None:
    file = work / "f"
    file.touch()
    os.setxattr(below(overlay, file), "trusted.mirrorfs.mark", b"m")
    assert os.listxattr(file) == []
    for name in ("trusted.mirrorfs.mark", "user.mirrorfs.x"):
        assert fails(errno.ENODATA, partial(os.getxattr, file, name))
        assert fails(errno.EPERM, partial(os.setxattr, file, name, b"1"))
        assert fails(errno.EPERM, partial(os.removexattr, file, name))
    assert b'"pid"' in os.getxattr(overlay.mountpoint, "trusted.mirrorfs.daemon")
    assert "trusted.mirrorfs.daemon" not in os.listxattr(overlay.mountpoint)
