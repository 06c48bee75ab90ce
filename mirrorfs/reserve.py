"""Space kept for records on the journal's disk, and how much room is left there beside it.

A file that takes up space until records need it: then it gives some back, part by part, so that
what others write cannot take it all. Decides nothing about who may use it.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from typing import Final

RESERVE_NAME: Final = "reserve"

_PARTS: Final = 8
_PART_BYTES_MIN: Final = 64 << 10
_SHARE_OF_DISK: Final = 16
_SAMPLES: Final = 60


class Reserve:
    """The reserve of one journal; `size_bytes`, but no more than a sixteenth of the disk."""

    def __init__(self, directory: str, size_bytes: int) -> None:
        self._directory = directory
        self._path = os.path.join(directory, RESERVE_NAME)
        self._size_bytes = size_bytes

    def give(self) -> bool:
        """Give back a part of it; False if there is nothing left to give, or it cannot."""
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            size = os.fstat(fd).st_size
            part = max(_PART_BYTES_MIN, self._size_bytes // _PARTS)
            os.ftruncate(fd, max(0, size - part))
            os.fsync(fd)  # only then may a journaling file system use the blocks again
        except OSError:
            return False
        finally:
            os.close(fd)
        if size <= part:
            with contextlib.suppress(OSError):
                os.unlink(self._path)
        return True

    def make_whole(self) -> bool:
        """Take what is missing, if a quarter more than that is free; whether it is whole."""
        try:
            disk = os.statvfs(self._directory)
            total, free = disk.f_blocks * disk.f_frsize, disk.f_bfree * disk.f_frsize
            wanted = min(self._size_bytes, total // _SHARE_OF_DISK or self._size_bytes)
            if not wanted:
                return True
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(self._path, flags, 0o600)
        except OSError:
            return False
        try:
            has = os.fstat(fd)
            missing = wanted - min(has.st_size, has.st_blocks * 512)
            if missing <= 0:
                os.ftruncate(fd, wanted)
                return True
            return free >= missing + wanted // 4 and _allocated(fd, wanted, has.st_size)
        except OSError:
            return False
        finally:
            os.close(fd)


def _allocated(fd: int, wanted: int, before: int) -> bool:
    """Let the file have that many bytes of the disk, or as many as before."""
    try:
        os.posix_fallocate(fd, 0, wanted)
        os.fsync(fd)
    except OSError:
        os.ftruncate(fd, before)
        return False
    return True


class Room:
    """How much is left on a disk, and, as things have gone of late, for how long.

    Attributes:
        bytes: what root can still write there; None if the disk does not tell.
        seconds: until nothing is left; None while it does not get less.
    """

    def __init__(self, directory: str) -> None:
        self.bytes: int | None = None
        self.seconds: float | None = None
        self._directory = directory
        self._samples: deque[tuple[float, int]] = deque(maxlen=_SAMPLES)

    def look(self, now: float) -> None:
        """Look at the disk; `now`: seconds, of any clock that does not jump. Never raises."""
        try:
            disk = os.statvfs(self._directory)
        except OSError:
            self.bytes = self.seconds = None
            return
        self.bytes = disk.f_bfree * disk.f_frsize
        self._samples.append((now, self.bytes))
        since, then = self._samples[0]
        used = then - self.bytes
        self.seconds = self.bytes * (now - since) / used if used > 0 and now > since else None
