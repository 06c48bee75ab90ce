"""Every operation, and the records it makes, in one table.

An operation is made in a directory with `file` and `other` (7 bytes each), `twice` = `again` (two
names of a file), `directory` with `inner` in it, `empty` (a directory), `symlink`, and `program`
(mode 06755). What it makes is written `kind path`, or `kind* path` if the record is not settled.
What a record says of its object is tested in test_capture.py.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.churn import acl, rename
from tests.support.mounts import Mounted
from tests.support.overlay import as_user, fails
from tests.support.watching import Watch

pytestmark = pytest.mark.fuse

NOREPLACE, EXCHANGE = 1, 2
_CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def opened(path: str, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags, 0o644)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def write(path: str, flags: int = 0, times: int = 1) -> None:
    with opened(path, os.O_WRONLY | flags) as descriptor:
        for _ in range(times):
            os.write(descriptor, b"written")


def user(code: str) -> None:
    done = as_user(f"os.chdir(arg[0])\n{code}", os.getcwd())
    assert done.returncode == 0, done.stderr


# operations of several calls


def look() -> None:
    for path in ("file", "directory", "symlink"):
        os.lstat(path)
        os.listxattr(path, follow_symlinks=False)
    os.readlink("symlink")
    os.listdir("directory")
    os.access("file", os.R_OK | os.W_OK)
    os.statvfs("file")
    assert not os.path.exists("missing")
    for flags in (os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_CREAT, os.O_WRONLY | os.O_APPEND):
        with opened("file", flags) as descriptor:
            os.fsync(descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if flags == os.O_RDONLY:
                assert os.read(descriptor, 100) == b"content"
    with opened("directory", os.O_RDONLY) as descriptor:
        os.fsync(descriptor)


def read_mapping() -> None:
    with opened("file", os.O_RDWR) as descriptor, mmap.mmap(descriptor, 7) as mapping:
        assert mapping[:] == b"content"


def run_program() -> None:
    subprocess.run(["./program"], check=True)


def store_before_close() -> None:
    with opened("file", os.O_RDWR) as descriptor:
        mapping = mmap.mmap(descriptor, 7)
        mapping[:3] = b"new"
    mapping.close()


def store_and_sync() -> None:
    with opened("file", os.O_RDWR) as descriptor, mmap.mmap(descriptor, 7) as mapping:
        mapping[:3] = b"new"
        mapping.flush()


def close_after_another_wrote() -> None:
    """The file is dirty, whichever handle wrote: the first close of a writer tells of it."""
    with opened("file", os.O_RDONLY), opened("file", os.O_WRONLY) as one:
        two = os.open("file", os.O_WRONLY)
        os.write(one, b"1")
        os.close(os.open("file", os.O_RDONLY))
        os.close(two)


def sync_by_a_reader() -> None:
    with opened("file", os.O_WRONLY) as writer, opened("file", os.O_RDONLY) as reader:
        os.write(writer, b"1")
        os.fsync(reader)


def close_in_a_child() -> None:
    with opened("file", os.O_WRONLY) as descriptor:
        os.write(descriptor, b"1")
        subprocess.run(["true"], check=True, pass_fds=(descriptor,))
        os.write(descriptor, b"2")


def killed_writer() -> None:
    code = "import os; os.write(os.open('file', os.O_WRONLY), b'1'); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9


def truncate_by_handle() -> None:
    with opened("file", os.O_RDWR) as descriptor:
        os.ftruncate(descriptor, 3)


def write_after_unlink() -> None:
    with opened("file", os.O_RDWR) as descriptor:
        os.unlink("file")
        os.write(descriptor, b"1")
        os.fsync(descriptor)
        os.ftruncate(descriptor, 0)
        os.fchmod(descriptor, 0o600)
        os.fchown(descriptor, 5, 5)
        os.utime(descriptor)
        os.setxattr(descriptor, "user.a", b"")
        with opened(".", os.O_PATH) as here, contextlib.suppress(FileNotFoundError):
            os.link(f"/proc/self/fd/{descriptor}", "resurrected", dst_dir_fd=here)


def write_after_replacement() -> None:
    with opened("file", os.O_RDWR) as descriptor:
        os.replace("other", "file")
        os.write(descriptor, b"1")


def write_between_unlinks() -> None:
    with opened("twice", os.O_RDWR) as descriptor:
        os.write(descriptor, b"1")
        os.unlink("twice")
        os.fsync(descriptor)
        os.unlink("again")
        os.write(descriptor, b"2")


def rename_while_dirty() -> None:
    with opened("file", os.O_RDWR) as descriptor:
        os.write(descriptor, b"1")
        os.replace("file", "directory/new")
        os.link("directory/new", "linked")
        os.chmod("linked", 0o600)
        os.setxattr("linked", "user.a", b"")


def make_temporary() -> None:
    with contextlib.suppress(OSError):
        os.close(os.open(".", os.O_TMPFILE | os.O_WRONLY))


def bind_socket() -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("made")


def direct() -> None:
    with opened("file", os.O_WRONLY | os.O_DIRECT) as descriptor, mmap.mmap(-1, 4096) as buffer:
        os.pwritev(descriptor, [buffer], 0)


def allocate() -> None:
    with opened("file", os.O_RDWR) as descriptor:
        os.posix_fallocate(descriptor, 0, 5000)


def send() -> None:
    with opened("file", os.O_RDONLY) as source, opened("other", os.O_WRONLY) as target:
        os.sendfile(target, source, 0, 7)


def lose_capability() -> None:
    os.setxattr("file", "security.capability", _CAPABILITY)
    write("file")


def remove_in_use() -> None:
    with opened("empty", os.O_RDONLY) as descriptor:
        os.rmdir("empty")
        assert fails(errno.ENOENT, lambda: os.mkdir("x", dir_fd=descriptor))
        os.chmod(descriptor, 0o700)


def refused() -> None:
    for call in (
        lambda: os.mkdir("directory"),
        lambda: os.rmdir("directory"),
        lambda: os.unlink("missing"),
        lambda: os.link("file", "other"),
        lambda: rename(b"file", b"other", NOREPLACE),
        lambda: rename(b"file", b"missing", EXCHANGE),
        lambda: os.replace("directory", "file"),
        lambda: os.replace("directory", "directory/below"),
        lambda: os.removexattr("file", "user.missing"),
        lambda: os.setxattr("file", "odd.name", b""),
        lambda: os.open("file", os.O_CREAT | os.O_EXCL),
        lambda: os.mkdir("n" * 256),
    ):
        with pytest.raises(OSError, match=r"\[Errno"):
            call()


def refused_to_others() -> None:
    user(
        "for call in (lambda: os.chmod('file', 0o777), lambda: os.truncate('file', 0),\n"
        "    lambda: os.unlink('file'), lambda: os.utime('file', (1, 1)), lambda: os.mkdir('x')):\n"
        "    try:\n        call()\n    except PermissionError:\n        continue\n"
        "    raise AssertionError"
    )


CREATE = os.O_CREAT | os.O_EXCL
GONE = ["unlink file"]
TABLE: list[tuple[str, Callable[[], object], list[str]]] = [
    # nothing changes
    ("looking, reading, locking, opening for writing", look, []),
    ("reading through a mapping", read_mapping, []),
    ("running a program", run_program, []),
    ("changes that are refused", refused, []),
    ("changes that are refused to others", refused_to_others, []),
    ("renaming to another name of the object", lambda: os.replace("twice", "again"), []),
    ("a temporary file without a name", make_temporary, []),
    # making
    ("creating", lambda: write("made", CREATE), ["create* made", "write made"]),
    ("creating empty", lambda: write("made", CREATE, 0), ["create* made", "write made"]),
    ("mkdir", lambda: os.mkdir("made"), ["mkdir made"]),
    ("symlink", lambda: os.symlink("x", "made"), ["symlink made"]),
    ("mknod: file", lambda: os.mknod("made"), ["create made"]),
    ("mknod: fifo", lambda: os.mkfifo("made"), ["mknod made"]),
    ("mknod: device", lambda: os.mknod("made", stat.S_IFBLK | 0o600, 1799), ["mknod made"]),
    ("mknod: socket", bind_socket, ["mknod made"]),
    ("link", lambda: os.link("file", "made"), ["link made"]),
    (
        "link of a symlink",
        lambda: os.link("symlink", "made", follow_symlinks=False),
        ["link made"],
    ),
    # content
    ("writing", lambda: write("file"), ["write file"]),
    ("writing often, once closed", lambda: write("file", 0, 50), ["write file"]),
    ("appending", lambda: write("file", os.O_APPEND, 3), ["write file"]),
    ("emptying and writing", lambda: write("file", os.O_TRUNC), ["write file"]),
    ("emptying", lambda: write("file", os.O_TRUNC, 0), ["write file"]),
    ("emptying by a reader", lambda: os.close(os.open("file", os.O_TRUNC)), ["write file"]),
    ("writing synchronously", lambda: write("file", os.O_SYNC, 3), ["write file"] * 3),
    ("writing past the page cache", direct, ["write file"]),
    ("writing by one of two names", lambda: write("twice"), ["write twice"]),
    ("storing before the last close", store_before_close, ["write file"]),
    ("storing and msync", store_and_sync, ["write file"]),
    ("closing after another handle wrote", close_after_another_wrote, ["write file"]),
    ("fsync by a reader", sync_by_a_reader, ["write file"]),
    ("closing in a child", close_in_a_child, ["write file", "write file"]),
    ("a writer that is killed", killed_writer, ["write file"]),
    ("truncate", lambda: os.truncate("file", 3), ["write file"]),
    ("truncate to the same size", lambda: os.truncate("file", 7), ["write file"]),
    ("truncate to a larger size", lambda: os.truncate("file", 99), ["write file"]),
    ("ftruncate", truncate_by_handle, ["write file"]),
    ("posix_fallocate", allocate, ["write file"]),
    ("sendfile", send, ["write other"]),
    # names
    ("rename", lambda: os.replace("file", "directory/made"), ["rename directory/made"]),
    ("rename over another", lambda: os.replace("file", "other"), ["rename other"]),
    ("rename of a directory", lambda: os.replace("directory", "made"), ["rename made"]),
    ("rename over a directory", lambda: os.replace("directory", "empty"), ["rename empty"]),
    ("rename if free", lambda: rename(b"file", b"made", NOREPLACE), ["rename made"]),
    ("exchange", lambda: rename(b"file", b"directory", EXCHANGE), ["rename directory"]),
    ("rename of a symlink", lambda: os.replace("symlink", "made"), ["rename made"]),
    ("unlink", lambda: os.unlink("file"), ["unlink file"]),
    ("unlink of one of two names", lambda: os.unlink("twice"), ["unlink twice"]),
    ("unlink of a symlink", lambda: os.unlink("symlink"), ["unlink symlink"]),
    ("rmdir", lambda: os.rmdir("empty"), ["rmdir empty"]),
    ("rmdir of a directory in use", remove_in_use, ["rmdir empty"]),
    ("using a file after unlink", write_after_unlink, GONE),
    ("writing what was replaced", write_after_replacement, ["rename file"]),
    (
        "writing while names go",
        write_between_unlinks,
        ["unlink* twice", "write again", "unlink again"],
    ),
    (
        "changing a file that is dirty",
        rename_while_dirty,
        [
            *("rename* directory/new", "link* linked", "attributes* directory/new"),
            *("xattr* directory/new", "write directory/new"),
        ],
    ),
    # attributes
    ("chmod", lambda: os.chmod("file", 0o600), ["attributes file"]),
    ("chmod to the same mode", lambda: os.chmod("file", 0o644), ["attributes file"]),
    ("chown", lambda: os.chown("file", 5, -1), ["attributes file"]),
    ("chown of a program", lambda: os.chown("program", 5, -1), ["attributes program"]),
    ("lchown", lambda: os.lchown("symlink", 5, 5), ["attributes symlink"]),
    ("utimes", lambda: os.utime("file", (1, 2)), ["attributes file"]),
    ("touch", lambda: os.utime("file"), ["attributes file"]),
    ("lutimes", lambda: os.utime("symlink", follow_symlinks=False), ["attributes symlink"]),
    ("chmod of a directory", lambda: os.chmod("directory", 0o700), ["attributes directory"]),
    ("setxattr", lambda: os.setxattr("file", "user.a", b""), ["xattr file"]),
    (
        "setxattr of a symlink",
        lambda: os.setxattr("symlink", "trusted.a", b"", follow_symlinks=False),
        ["xattr symlink"],
    ),
    (
        "access ACL",
        lambda: os.setxattr("file", "system.posix_acl_access", acl(7, 6)),
        ["xattr file"],
    ),
    (
        "default ACL",
        lambda: os.setxattr("directory", "system.posix_acl_default", acl(7, 6)),
        ["xattr directory"],
    ),
    ("losing capabilities by writing", lose_capability, ["xattr file", "xattr file", "write file"]),
    (
        "losing set-id bits by writing",
        lambda: user("os.write(os.open('program', os.O_WRONLY), b'1')"),
        ["attributes program", "write program"],
    ),
    (
        "losing set-id bits by truncate",
        lambda: user("os.truncate('program', 1)"),
        ["write program", "attributes program"],
    ),
    (
        "losing set-id bits by emptying",
        lambda: user("os.close(os.open('program', os.O_WRONLY | os.O_TRUNC))"),
        ["attributes* program", "write program"],
    ),
]


@pytest.mark.parametrize(
    ("operation", "records"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_records(
    overlay: Mounted,
    work: Path,
    monkeypatch: pytest.MonkeyPatch,
    operation: Callable[[], object],
    records: list[str],
) -> None:
    monkeypatch.chdir(work)
    for name in ("file", "other", "twice"):
        (work / name).write_bytes(b"content")
    os.link("twice", "again")
    (work / "directory").mkdir()
    (work / "directory" / "inner").touch()
    (work / "empty").mkdir()
    os.symlink("nowhere", "symlink")
    (work / "program").write_bytes(Path("/bin/true").read_bytes())
    os.chmod("program", 0o6777)
    watch = Watch(overlay, work)
    try:
        operation()
        assert watch.told() == records
        while watch.open_files():  # the kernel releases them in its own time
            os.stat(work)
        assert watch.told() == []
    finally:
        watch.close()
