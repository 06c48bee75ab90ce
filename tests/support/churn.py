"""What jobs do to a tree, by a seed: every operation a mirror must follow, in any mixture.

`Churn` works on one directory, from this process. As a program it is one of several jobs:

    python -m tests.support.churn DIRECTORY SEED [OPERATIONS]

works until it is ended. SIGTERM ends it after the operation it is at; SIGUSR1 stops it there (it
sends itself SIGSTOP), until SIGCONT: then nothing is open, nothing half done. It ends with
DEAD_MOUNT when the mount it works on has died.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import shutil
import signal
import stat
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Final

DEAD_MOUNT: Final = 3

_NOREPLACE, _EXCHANGE = 1, 2
_AT_FDCWD = -100
_ENTRIES_MAX = 400
_OTHERS = (
    *(errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.EISDIR, errno.ENOTDIR, errno.EINVAL),
    *(errno.ELOOP, errno.ENODATA, errno.EPERM, errno.ENXIO, errno.ENAMETOOLONG, errno.ESTALE),
    *(errno.EBUSY, errno.EACCES, errno.ESPIPE),
)
"""What an operation may answer: its object is of the wrong kind, or another job was faster."""

_DEAD = (errno.ENOTCONN, errno.ECONNABORTED)

_THERE = os.O_NOFOLLOW | os.O_NONBLOCK  # never waits at a fifo that another job has put there
_CREATE = os.O_WRONLY | os.O_CREAT | _THERE

_libc = ctypes.CDLL(None, use_errno=True)
_NAMES = (
    *(b"a", b"b", b"c", b"data", b"flag", b"next", b"x.tmp", b"new\nline", b" ", b"-rf", b"dot."),
    *(b"not-utf-8-\xff\xfe", b"\xe2\x82\xac", b"e\xcc\x81", b"\xc3\xa9", b"Data", b"%41", b"*"),
    *(b"L" * 255, b"L" * 254 + b"\xff"),
)


def rename(old: bytes, new: bytes, flags: int) -> None:
    """renameat2(2)."""
    if _libc.renameat2(_AT_FDCWD, old, _AT_FDCWD, new, flags) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def acl(user: int, bits: int) -> bytes:
    """An access or default ACL with one named user."""
    entries = [(1, 7, -1), (2, bits, user), (4, 5, -1), (16, 7, -1), (32, 1, -1)]
    packed = [struct.pack("<HHI", tag, rights, who & 0xFFFFFFFF) for tag, rights, who in entries]
    return struct.pack("<I", 2) + b"".join(packed)


class Churn:
    """Seeded operations on one directory, which others may change as well.

    Attributes:
        done: operations that were made.  refused: those the file system refused.
    """

    def __init__(self, root: Path | bytes, seed: int) -> None:
        self.root = os.fsencode(root)
        self.random = Random(seed)
        self.done = 0
        self.refused = 0
        self._serial = 0
        self._entries: list[bytes] = []
        self._directories: list[bytes] = []
        self._operations = [
            operation for weight, operation in self._weighted() for _ in range(weight)
        ]

    def _weighted(self) -> tuple[tuple[int, Callable[[], None]], ...]:
        return (
            *((10, self.create), (5, self.overwrite), (4, self.patch), (5, self.append)),
            *((8, self.replace), (5, self.rename), (5, self.move_directory), (3, self.exchange)),
            *((2, self.rename_if_free), (2, self.rotate), (7, self.unlink), (2, self.rmdir)),
            *((1, self.remove_tree), (5, self.mkdir), (3, self.make_tree), (4, self.chmod)),
            *((3, self.chown), (4, self.utime), (4, self.symlink), (5, self.link)),
            *((3, self.set_xattr), (1, self.remove_xattr), (2, self.set_acl), (1, self.mkfifo)),
            *((1, self.mknod), (2, self.sparse), (3, self.truncate), (2, self.store_by_mapping)),
            *((2, self.orphan), (2, self.make_again), (1, self.other_kind), (2, self.two_handles)),
        )

    def run(self, operations: int) -> None:
        """So many operations that were made. OSError: the tree cannot be used any more."""
        goal = self.done + operations
        while self.done < goal:
            self.step()

    def step(self) -> None:
        """One operation."""
        if (self.done + self.refused) % 20 == 0:
            self.look()
        try:
            self.random.choice(self._operations)()
        except OSError as error:
            if error.errno not in _OTHERS:
                raise
            self.refused += 1
            return
        self.done += 1

    def look(self) -> None:
        """See what is there."""
        self._entries, self._directories = [], [self.root]
        for directory in self._directories:
            try:
                names = sorted(os.listdir(directory))
            except OSError as error:  # another job replaced something on the way to it
                if error.errno not in _OTHERS:
                    raise
                continue
            for name in names:
                path = os.path.join(directory, name)
                self._entries.append(path)
                if stat.S_ISDIR(_mode(path)):
                    self._directories.append(path)

    # choosing

    def _any(self) -> bytes:
        if not self._entries:
            raise FileNotFoundError(errno.ENOENT, "nothing is there yet")
        return self.random.choice(self._entries)

    def _directory(self) -> bytes:
        """A directory, the root included."""
        return self.random.choice(self._directories)

    def _below(self) -> bytes:
        """A directory below the root."""
        if len(self._directories) < 2:
            raise FileNotFoundError(errno.ENOENT, "no directory is there yet")
        return self.random.choice(self._directories[1:])

    def _file(self) -> bytes:
        """A regular file."""
        for _ in range(20):
            path = self._any()
            if stat.S_ISREG(_mode(path)):
                return path
        raise FileNotFoundError(errno.ENOENT, "no file was found")

    def _new(self) -> bytes:
        """A path where something may be already; depth is bounded by that of the directories."""
        if self.random.random() < 0.6:
            name = self.random.choice(_NAMES)
        else:
            self._serial += 1
            name = b"%d-%d" % (self._serial, self.random.randrange(1000))
        directory = self._directory()
        if len(directory) > 1500:
            directory = self.root
        path = os.path.join(directory, name)
        self._entries.append(path)
        return path

    def _bytes(self) -> bytes:
        size = self.random.choice((0, 1, 10, 100, 1000, 4096, 10_000, 70_000))
        return self.random.randbytes(size)

    def _room(self) -> None:
        """Trees grow for ever otherwise."""
        if len(self._entries) > _ENTRIES_MAX:
            self.remove_tree()
            self.look()

    # content

    def create(self) -> None:
        """A new file, or an existing one opened to be written from its start."""
        self._room()
        mode = self.random.choice((0o644, 0o600, 0o400, 0o777))
        _write(os.open(self._new(), _CREATE, mode), self._bytes())

    def overwrite(self) -> None:
        """All new content."""
        descriptor = os.open(self._file(), os.O_WRONLY | os.O_TRUNC | _THERE)
        _write(descriptor, self._bytes())

    def patch(self) -> None:
        """Some bytes in the middle, times put back as they were or not."""
        path = self._file()
        before = os.lstat(path)
        descriptor = os.open(path, os.O_RDWR | _THERE)
        try:
            os.pwrite(descriptor, b"patched", self.random.randrange(before.st_size + 1))
            if self.random.random() < 0.3:
                os.utime(descriptor, ns=(before.st_atime_ns, before.st_mtime_ns))
            if self.random.random() < 0.3:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def append(self) -> None:
        """At the end."""
        _write(os.open(self._file(), os.O_WRONLY | os.O_APPEND | _THERE), self._bytes())

    def two_handles(self) -> None:
        """Two open at once; the first closes before the second writes."""
        path = self._file()
        one = os.open(path, os.O_WRONLY | _THERE)
        other = os.open(path, os.O_WRONLY | os.O_APPEND | _THERE)
        _write(one, b"one")
        _write(other, b"other")

    def store_by_mapping(self) -> None:
        """Through a mapping that outlives its descriptor."""
        descriptor = os.open(self._file(), os.O_RDWR | _THERE)
        try:
            os.truncate(descriptor, 8192)
            mapping = mmap.mmap(descriptor, 8192)
        finally:
            os.close(descriptor)
        mapping[4000:4010] = b"by mapping"
        mapping.close()

    def sparse(self) -> None:
        """A file with holes."""
        descriptor = os.open(self._new(), _CREATE)
        try:
            os.ftruncate(descriptor, self.random.choice((1 << 20, 3_000_000)))
            os.pwrite(descriptor, b"island", self.random.randrange(1 << 20))
        finally:
            os.close(descriptor)

    def truncate(self) -> None:
        """Shorter or longer."""
        os.truncate(self._file(), self.random.choice((0, 5, 5000)))

    def orphan(self) -> None:
        """Written after its name is gone; perhaps another file takes the name meanwhile."""
        path = self._new()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            os.write(descriptor, b"named")
            os.unlink(path)
            if self.random.random() < 0.5:
                _write(os.open(path, _CREATE | os.O_EXCL), b"another")
            os.write(descriptor, b"nameless")
        finally:
            os.close(descriptor)

    # names

    def replace(self) -> None:
        """The idiom: write x.tmp, rename it to x."""
        self._room()
        path = self._new()
        directory, name = os.path.split(path)
        temporary = os.path.join(directory, name[:250] + b".tmp")
        _write(os.open(temporary, _CREATE | os.O_TRUNC, 0o644), self._bytes())
        os.replace(temporary, path)

    def rename(self) -> None:
        """Anything to any name."""
        os.replace(self._any(), self._new())

    def move_directory(self) -> None:
        """With all it holds; perhaps over an empty one."""
        self._rename(self._below(), self._new(), 0)

    def rename_if_free(self) -> None:
        """RENAME_NOREPLACE."""
        self._rename(self._any(), self._new(), _NOREPLACE)

    def exchange(self) -> None:
        """Two of any kind."""
        self._rename(self._any(), self._any(), _EXCHANGE)

    def _rename(self, old: bytes, new: bytes, flags: int) -> None:
        rename(old, new, flags)
        self.look()

    def rotate(self) -> None:
        """Two names swap their objects by way of a third, and what was there first moves on."""
        one, other, third = self._file(), self._file(), self._new()
        os.replace(one, third)
        os.replace(other, one)
        os.replace(third, other)

    def unlink(self) -> None:
        """Any name."""
        os.unlink(self._any())

    def make_again(self) -> None:
        """The same name, another object."""
        path = self._file()
        os.unlink(path)
        _write(os.open(path, _CREATE | os.O_EXCL, 0o640), self._bytes())

    def other_kind(self) -> None:
        """A file's name becomes a directory's."""
        path = self._file()
        os.unlink(path)
        os.mkdir(path)
        _write(os.open(os.path.join(path, b"in"), _CREATE), b"side")

    def mkdir(self) -> None:
        """A directory, with one in it now and then."""
        path = self._new()
        os.mkdir(path, self.random.choice((0o755, 0o700, 0o2775, 0o1777)))
        self._directories.append(path)

    def make_tree(self) -> None:
        """A few levels with files."""
        self._room()
        path = self._new()
        for _ in range(self.random.randint(1, 3)):
            os.mkdir(path)
            self._directories.append(path)
            _write(os.open(os.path.join(path, b"file"), _CREATE), self._bytes())
            path = os.path.join(path, self.random.choice((b"sub", b"\xfe")))

    def rmdir(self) -> None:
        """If it is empty."""
        os.rmdir(self._below())

    def remove_tree(self) -> None:
        """rm -r."""
        shutil.rmtree(self._below(), onerror=_passed_over)
        self.look()

    def symlink(self) -> None:
        """To something, or nothing."""
        os.symlink(self.random.choice((b"a", b"../data", b"/no/where", b"\xff" * 300)), self._new())

    def link(self) -> None:
        """Another name of a file (or of a fifo, a symlink)."""
        os.link(self._any(), self._new(), follow_symlinks=False)

    def mkfifo(self) -> None:
        """A fifo."""
        os.mkfifo(self._new(), 0o640)

    def mknod(self) -> None:
        """A character device that is none."""
        os.mknod(self._new(), stat.S_IFCHR | 0o600, os.makedev(250, self.random.randrange(256)))

    # attributes

    def _some(self) -> bytes:
        """Anything, the root included."""
        return self.root if self.random.random() < 0.03 else self._any()

    def chmod(self) -> None:
        """Mode."""
        path = self._some()
        if not stat.S_ISLNK(_mode(path)):
            os.chmod(path, self.random.choice((0o755, 0o700, 0o644, 0o4755, 0o2711, 0o000)))

    def chown(self) -> None:
        """Owner, group, or both."""
        uid, gid = self.random.choice(((1000, -1), (-1, 2000), (1001, 1001), (0, 0)))
        os.chown(self._some(), uid, gid, follow_symlinks=False)

    def utime(self) -> None:
        """Times to the nanosecond, in past and future."""
        ns = self.random.randrange(-(10**18), 4 * 10**18)
        os.utime(self._some(), ns=(ns, ns + 1), follow_symlinks=False)

    def set_xattr(self) -> None:
        """Of users and of root."""
        path = self._some()
        kind = stat.S_IFMT(_mode(path))
        user = kind in (stat.S_IFREG, stat.S_IFDIR) and self.random.random() < 0.7
        name = f"{'user' if user else 'trusted'}.{self.random.choice('abc')}"
        os.setxattr(
            path,
            name,
            self.random.randbytes(self.random.choice((0, 3, 200))),
            follow_symlinks=False,
        )

    def remove_xattr(self) -> None:
        """One that may be there."""
        os.removexattr(self._some(), f"user.{self.random.choice('abc')}", follow_symlinks=False)

    def set_acl(self) -> None:
        """An access ACL, or a default ACL that what is made below inherits."""
        if self.random.random() < 0.5:
            os.setxattr(self._below(), "system.posix_acl_default", acl(1005, 5))
        else:
            os.setxattr(self._file(), "system.posix_acl_access", acl(1006, 6))


def _mode(path: bytes) -> int:
    try:
        return os.lstat(path).st_mode
    except OSError as error:
        if error.errno not in _OTHERS:
            raise
        return 0


def _write(descriptor: int, data: bytes) -> None:
    """Write it and close."""
    try:
        if data:
            os.write(descriptor, data)
    finally:
        os.close(descriptor)


def _passed_over(_function: object, _path: object, caught: object) -> None:
    error = caught[1] if isinstance(caught, tuple) else caught
    if isinstance(error, OSError) and error.errno not in _OTHERS:
        raise error


def main(directory: str, seed: str, operations: str = "0") -> int:
    """One job; its exit code."""
    wanted: set[int] = set()
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, _frame: wanted.add(number))
    os.chdir(directory)  # a dead mount stays the dead mount, whatever takes its place
    churn = Churn(b".", int(seed))
    goal = int(operations)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while signal.SIGTERM not in wanted and (not goal or churn.done < goal):
        try:
            churn.step()
        except OSError as error:
            if error.errno in _DEAD:
                return DEAD_MOUNT
            raise
        if signal.SIGUSR1 in wanted:
            wanted.discard(signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGSTOP)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
