"""Churn by jobs that also keep files open and mapped, and do what is rare: for records' sake.

As a program it is one of several jobs on one directory:

    python -m tests.support.busy_jobs DIRECTORY SEED OPERATIONS
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat
import struct
import sys
from collections.abc import Callable, Iterator
from typing import Final

from tests.support.churn import Churn

_KEPT_MAX: Final = 6
_USER: Final = 1005
_CAPABILITY: Final = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
_NO_SUCH_THING: Final = (errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS)


class BusyJob(Churn):
    """Churn, and more. What is kept open is closed by the end of the process at the latest."""

    def __init__(self, root: bytes, seed: int) -> None:
        self._kept: list[int] = []
        self._mapped: list[mmap.mmap] = []
        super().__init__(root, seed)

    def _weighted(self) -> tuple[tuple[int, Callable[[], None]], ...]:
        return (
            *super()._weighted(),
            *((5, self.keep), (8, self.write_kept), (3, self.truncate_kept), (3, self.sync_kept)),
            *((3, self.attributes_of_kept), (3, self.close_kept), (2, self.link_kept)),
            *((2, self.keep_mapping), (3, self.store_in_mapping), (2, self.close_mapping)),
            *((3, self.touch), (2, self.empty_by_reading), (2, self.write_around_close)),
            *((2, self.write_directly), (2, self.copy_range), (1, self.allocate)),
            *((3, self.as_somebody), (2, self.grant_capability), (1, self.mknod_file)),
        )

    # what stays open

    def keep(self) -> None:
        """Open a file, to be written later, whatever becomes of its names."""
        while len(self._kept) >= _KEPT_MAX:
            os.close(self._kept.pop(0))
        how = self.random.choice((os.O_RDWR, os.O_WRONLY | os.O_APPEND, os.O_RDWR | os.O_CREAT))
        path = self._new() if how & os.O_CREAT else self._file()
        self._kept.append(_open(path, how))

    def _one_kept(self) -> int:
        if not self._kept:
            self.keep()
        return self.random.choice(self._kept)

    def write_kept(self) -> None:
        """At an offset, or at the end."""
        os.pwrite(self._one_kept(), self._bytes() or b"kept", self.random.randrange(9000))

    def truncate_kept(self) -> None:
        """By its handle."""
        os.ftruncate(self._one_kept(), self.random.choice((0, 7, 6000)))

    def sync_kept(self) -> None:
        """fsync(2) or fdatasync(2)."""
        self.random.choice((os.fsync, os.fdatasync))(self._one_kept())

    def attributes_of_kept(self) -> None:
        """Mode, owner, times and attributes by its handle."""
        kept = self._one_kept()
        how = self.random.randrange(4)
        if how == 0:
            os.fchmod(kept, self.random.choice((0o600, 0o4711)))
        elif how == 1:
            os.fchown(kept, self.random.choice((0, _USER)), -1)
        elif how == 2:
            os.utime(kept, ns=(5, self.random.randrange(10**18)))
        else:
            os.setxattr(kept, "user.kept", self.random.randbytes(3))

    def link_kept(self) -> None:
        """A new name of an open file, if it has one still."""
        kept, directory = self._one_kept(), os.open(self.root, os.O_PATH)
        try:
            os.link(b"/proc/self/fd/%d" % kept, self._new(), dst_dir_fd=directory)
        finally:
            os.close(directory)

    def close_kept(self) -> None:
        """Any of them."""
        self._one_kept()
        os.close(self._kept.pop(self.random.randrange(len(self._kept))))

    def keep_mapping(self) -> None:
        """Of a new file, which others seldom truncate: a store beyond its end ends a job."""
        self._serial += 1
        path = os.path.join(self.root, b"mapped-%d-%d" % (os.getpid(), self._serial))
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.ftruncate(descriptor, 8192)
            self._mapped.append(mmap.mmap(descriptor, 8192))
        finally:
            os.close(descriptor)

    def store_in_mapping(self) -> None:
        """After the last close."""
        if not self._mapped:
            self.keep_mapping()
        mapping = self.random.choice(self._mapped)
        mapping[100:103] = self.random.randbytes(3)
        if self.random.random() < 0.3:
            mapping.flush()

    def close_mapping(self) -> None:
        """With what was stored and not yet written back."""
        self.store_in_mapping()
        self._mapped.pop().close()

    # what is rare

    def touch(self) -> None:
        """Both times are now."""
        os.utime(self._some(), follow_symlinks=False)

    def empty_by_reading(self) -> None:
        """Opened for reading, and emptied all the same."""
        os.close(_open(self._file(), os.O_RDONLY | os.O_TRUNC))

    def write_around_close(self) -> None:
        """Before and after a copy of the descriptor was closed."""
        descriptor = _open(self._file(), os.O_WRONLY)
        try:
            os.write(descriptor, b"before")
            os.close(os.dup(descriptor))
            if self.random.random() < 0.5:
                os.write(descriptor, b"after")
        finally:
            os.close(descriptor)

    def write_directly(self) -> None:
        """Past the kernel's pages, to the disk."""
        descriptor = _open(self._file(), os.O_WRONLY | os.O_DIRECT | os.O_SYNC)
        try:
            with mmap.mmap(-1, 4096) as buffer:
                buffer[:] = self.random.randbytes(4096)
                os.pwritev(descriptor, [buffer], 0)
        finally:
            os.close(descriptor)

    def copy_range(self) -> None:
        """From one file to another, in the kernel."""
        source = _open(self._file(), os.O_RDONLY)
        try:
            target = _open(self._file(), os.O_WRONLY)
            try:
                os.copy_file_range(source, target, 5000)
            except OSError as error:
                if error.errno not in _NO_SUCH_THING:
                    raise
                os.sendfile(target, source, 0, 5000)
            finally:
                os.close(target)
        finally:
            os.close(source)

    def allocate(self) -> None:
        """posix_fallocate(3)."""
        descriptor = _open(self._file(), os.O_RDWR)
        try:
            os.posix_fallocate(descriptor, 0, 5000)
        finally:
            os.close(descriptor)

    def as_somebody(self) -> None:
        """Another user's change takes set-id bits away."""
        path = self._file()
        os.chmod(path, 0o6777)
        with _user():
            change = self.random.randrange(3)
            if change == 0:
                os.truncate(path, 3)
            else:
                flags = os.O_TRUNC if change == 1 else 0
                descriptor = _open(path, os.O_WRONLY | flags)
                try:
                    os.write(descriptor, b"as somebody")
                finally:
                    os.close(descriptor)

    def grant_capability(self) -> None:
        """The next write takes it away."""
        path = self._file()
        os.setxattr(path, "security.capability", _CAPABILITY, follow_symlinks=False)
        if self.random.random() < 0.5:
            os.truncate(path, 11)

    def mknod_file(self) -> None:
        """A regular file that nobody opened."""
        os.mknod(self._new(), stat.S_IFREG | 0o604)


def _open(path: bytes, flags: int) -> int:
    """A regular file; never waits at a fifo that another job put there."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o640)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.ENXIO, "not a file any more", path)
    return descriptor


@contextlib.contextmanager
def _user() -> Iterator[None]:
    os.setegid(_USER)
    os.seteuid(_USER)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def main(directory: str, seed: str, operations: str) -> int:
    """One job; its exit code."""
    os.chdir(directory)
    BusyJob(b".", int(seed)).run(int(operations))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
