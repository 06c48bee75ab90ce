"""Large files in the stage: copied in extents, by several hands; what is done outlives a failure.

The bytes of such a file are in `P` and a digest of its object's id; which extents of exactly which
content are there is said by an extended attribute, which is written when they are on the disk. The
attribute goes when the file is complete and gets its place. It is on the disk then: after a power
cut, before the replicator is back, nobody sees half of it. Errors are OSError, or as the source
puts them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import xxhash

from replicator.copying import clone, copied, copy_extent
from replicator.extents import Extents
from replicator.stores.base import NO_SPACE, Content, Version
from replicator.view import SourceChangedError

PREFIX: Final = b"P"
"""Names in the stage that outlive their process."""

EXTENTS: Final = "trusted.mirrorfs.extents"
EXTENT_BYTES: Final = 32 << 20
LARGE_BYTES: Final = 64 << 20
SYNC_BYTES: Final = 128 << 20
_SHARE_MAX: Final = 10
"""What failed may take one part in so many of the site's file system."""


@dataclass(slots=True)
class _Copy:
    """One that is being made.

    Attributes:
        unsynced: so many bytes are copied, and not yet written down.
        doubtful: not all could be brought to the disk; asked again, it would say that all is.
    """

    name: bytes
    fd: int
    extents: Extents
    unsynced: int = 0
    doubtful: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)
    writing: threading.Lock = field(default_factory=threading.Lock)

    def sync(self) -> None:
        """Bring it to the disk. Once that failed, it fails: the next one, of another hand, would
        be told that all is well. Under `writing`."""
        if self.doubtful:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self.doubtful = True
        os.fdatasync(self.fd)
        self.doubtful = False


class Unfinished:
    """The large files of one stage.

    Attributes:
        large_bytes: a file from this size on is copied so.
        each: bytes of an extent.  sync_bytes: so often what is done is written down.
        left_bytes_max: what failed may take.
    """

    def __init__(self, stage: int, boot: bytes) -> None:
        """`stage`: descriptor of the directory. `boot`: 16 bytes, of this boot of the host."""
        self.large_bytes = LARGE_BYTES
        self.each = EXTENT_BYTES
        self.sync_bytes = SYNC_BYTES
        room = os.statvfs(stage)
        self.left_bytes_max = room.f_blocks * room.f_frsize // _SHARE_MAX
        self._stage = stage
        self._boot = boot
        self._busy: set[bytes] = set()
        self._lock = threading.Lock()

    def copy(self, content: Content, version: Version) -> tuple[bytes, int, int] | None:
        """The name of a complete copy, a descriptor of it, and how many bytes were copied now;
        None: that object is being copied already, for others who have given up."""
        name = PREFIX + xxhash.xxh3_128_hexdigest(version.object).encode()
        with self._lock:
            if name in self._busy:
                return None
            self._busy.add(name)
        try:
            return name, *self._copy(name, content, version)
        except BaseException:
            self.release(name)
            raise

    def _copy(self, name: bytes, content: Content, version: Version) -> tuple[int, int]:
        copy = self._open(name, Extents.of(version, self._boot, self.each))
        missing = sum(end - start for _, start, end in copy.extents.missing())
        try:
            self._fill(copy, content)
            with copy.writing:
                copy.sync()
        except BaseException as error:
            self._fail(copy, error)
            raise
        return copy.fd, missing

    def finished(self, name: bytes) -> None:
        """Before a complete copy gets its place."""
        try:
            os.removexattr(b"/proc/self/fd/%d/%s" % (self._stage, name), EXTENTS)
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
                raise

    def release(self, name: bytes) -> None:
        """It has its place, or was given up."""
        with self._lock:
            self._busy.discard(name)

    def tidy(self, left_bytes_max: int | None = None) -> None:
        """Remove what says nothing of itself, then the oldest until the rest takes no more than it
        may."""
        found = []
        for name in (os.fsencode(each) for each in os.listdir(self._stage)):
            with self._lock:
                if not name.startswith(PREFIX) or name in self._busy:
                    continue
            with contextlib.suppress(FileNotFoundError):
                told = os.stat(name, dir_fd=self._stage, follow_symlinks=False)
                if stat.S_ISREG(told.st_mode) and self._says(name):
                    found.append((told.st_mtime_ns, told.st_blocks * 512, name))
                else:
                    os.unlink(name, dir_fd=self._stage)
        left = sum(size for _, size, _ in found)
        most = self.left_bytes_max if left_bytes_max is None else left_bytes_max
        for _, size, name in sorted(found):
            if left > most or not most:
                os.unlink(name, dir_fd=self._stage)
                left -= size

    def _says(self, name: bytes) -> bool:
        try:
            os.getxattr(b"/proc/self/fd/%d/%s" % (self._stage, name), EXTENTS)
        except OSError:
            return False
        return True

    def _open(self, name: bytes, extents: Extents) -> _Copy:
        """What there is of that content, or an empty file."""
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        with contextlib.suppress(OSError):
            fd = os.open(name, flags, dir_fd=self._stage)
            with contextlib.suppress(OSError):
                size = os.fstat(fd).st_size
                if size == extents.version.size and extents.resume(os.getxattr(fd, EXTENTS)):
                    return _Copy(name, fd, extents)
            os.close(fd)
            os.unlink(name, dir_fd=self._stage)
        fd = os.open(name, flags | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=self._stage)
        return _Copy(name, fd, extents)

    def _fill(self, copy: _Copy, content: Content) -> None:
        source, size = content.fileno(), copy.extents.version.size
        if not copy.extents.done and not os.fstat(copy.fd).st_size and clone(source, copy.fd):
            copy.extents.finish_all()
        else:
            os.ftruncate(copy.fd, size)
            content.share(
                [partial(self._part, copy, content, *each) for each in copy.extents.missing()]
            )
        copied(source, copy.fd, size)

    def _part(self, copy: _Copy, content: Content, number: int, start: int, end: int) -> None:
        copy_extent(content.fileno(), copy.fd, start, end, content.check)
        with copy.lock:
            copy.extents.finish(number)
            copy.unsynced += end - start
            due = copy.unsynced >= self.sync_bytes
        if due:
            self._write_down(copy)

    def _write_down(self, copy: _Copy) -> None:
        """Say what is done: what is on the disk by then."""
        with copy.writing:
            with copy.lock:
                told, copy.unsynced = copy.extents.encode(), 0
            copy.sync()
            os.setxattr(copy.fd, EXTENTS, told)

    def _fail(self, copy: _Copy, error: BaseException) -> None:
        """Leave what is done for the next time, or nothing, if its space is needed, or nobody can
        say what it is worth."""
        full = isinstance(error, OSError) and error.errno in NO_SPACE
        try:
            if not (full or copy.doubtful or isinstance(error, SourceChangedError)):
                self._write_down(copy)
            if full or copy.doubtful or not self._says(copy.name):
                os.unlink(copy.name, dir_fd=self._stage)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(copy.name, dir_fd=self._stage)
        finally:
            os.close(copy.fd)
            with contextlib.suppress(OSError):
                self.tidy()
