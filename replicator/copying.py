"""Content from an open source file to an open stage file: whole, with its holes, or not at all.

Cheapest way first: share the blocks (reflink), let the kernel copy, read and write. Errors of the
source are SourceError, of the stage OSError. What is copied is what stood there while it was read:
whoever needs one moment compares the source's change time before and after.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from typing import Final

import xxhash

from replicator.stores.base import TRANSIENT
from replicator.view import SourceChangedError, SourceError

FICLONE: Final = 0x40049409
SMALL_BYTES: Final = 256 << 10
"""Up to here reading and writing is cheapest: sharing blocks, which copying inside the kernel does
as well where it can, waits until the source is on the disk."""

KERNEL_COPY_BYTES: Final = 64 << 20
BUFFER_BYTES: Final = 1 << 20
_COMPARED_BYTES: Final = 1 << 20
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def copy_content(source: int, stage: int, check: Callable[[], None] = lambda: None) -> int:
    """Copy all of `source` to the empty file `stage`; the bytes it has there.

    `check` is called now and then, and may raise to end it. Raises SourceChangedError when the
    source became shorter meanwhile, SourceError when it cannot be read, OSError when the stage
    cannot be written.
    """
    before = os.fstat(source)
    size = before.st_size
    if size == 0:
        return 0
    whole = before.st_blocks * 512 >= size
    if whole and size <= SMALL_BYTES:
        return _copy_small(source, stage, size, check)
    if not _clone(source, stage):
        if whole:
            _copy_range(source, stage, 0, size, check)
        else:
            _copy_sparse(source, stage, size, check)
    if os.fstat(source).st_size < size:
        raise SourceChangedError(f"became shorter than {size} bytes while it was copied")
    written = os.fstat(stage).st_size
    if written < size:
        raise OSError(errno.EIO, f"the stage holds {written} of {size} bytes")
    return written


def _copy_small(source: int, stage: int, size: int, check: Callable[[], None]) -> int:
    """As copy_content, without asking again what was read and written: it is counted."""
    check()
    data = _read(source, 0, size)
    if len(data) < size:
        _read_and_write(source, stage, 0, size, check)
        return size
    rest = memoryview(data)
    while rest:
        rest = rest[os.pwrite(stage, rest, size - len(rest)) :]
    return size


def _read(source: int, start: int, size: int) -> bytes:
    try:
        return os.pread(source, size, start)
    except OSError as error:
        code = error.errno or errno.EIO
        raise SourceError(
            f"cannot read at {start}: {os.strerror(code)}", code, transient=code in TRANSIENT
        ) from error


def read_back(source: int, stage: int, check: Callable[[], None]) -> None:
    """Read both from their disks, and compare them by xxh3-128.

    Raises SourceChangedError when the source has changed since (then it proves nothing), OSError
    when the stage does not hold what was written.
    """
    before = os.fstat(source)
    os.fdatasync(stage)
    os.posix_fadvise(stage, 0, 0, os.POSIX_FADV_DONTNEED)
    if _digest(source, check) == _digest(stage, check):
        return
    after = os.fstat(source)
    if (before.st_mtime_ns, before.st_ctime_ns) != (after.st_mtime_ns, after.st_ctime_ns):
        raise SourceChangedError("changed while it was compared")
    raise OSError(errno.EIO, "what was written is not what is read back")


def _digest(file: int, check: Callable[[], None]) -> bytes:
    digest, offset = xxhash.xxh3_128(), 0
    while data := os.pread(file, BUFFER_BYTES, offset):
        check()
        digest.update(data)
        offset += len(data)
    return digest.digest()


def _clone(source: int, stage: int) -> bool:
    """Share the blocks; False where that is not possible."""
    try:
        fcntl.ioctl(stage, FICLONE, source)
    except OSError as error:
        if error.errno in _FULL:
            raise
        return False
    return True


def _copy_sparse(source: int, stage: int, size: int, check: Callable[[], None]) -> None:
    """Copy the data, leave the holes."""
    os.ftruncate(stage, size)
    position = 0
    while position < size:
        try:
            start = os.lseek(source, position, os.SEEK_DATA)
            end = os.lseek(source, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            start, end = position, size  # no such calls here: all of it is data
        end = min(end, size)
        if start < end:
            _copy_range(source, stage, start, end, check)
        position = end


def _copy_range(source: int, stage: int, start: int, end: int, check: Callable[[], None]) -> None:
    while start < end:
        check()
        try:
            count = os.copy_file_range(
                source, stage, min(end - start, KERNEL_COPY_BYTES), start, start
            )
        except OSError as error:
            if error.errno in _FULL:
                raise
            count = 0
        if count == 0:  # not here, at the end, or an error that read and write can tell apart
            _read_and_write(source, stage, start, end, check)
            return
        start += count


def _read_and_write(
    source: int, stage: int, start: int, end: int, check: Callable[[], None]
) -> None:
    while start < end:
        check()
        data = _read(source, start, min(end - start, BUFFER_BYTES))
        if not data:
            raise SourceChangedError(f"ended at {start} while it was copied")
        rest = memoryview(data)
        while rest:
            count = os.pwrite(stage, rest, start)
            rest = rest[count:]
            start += count


def same_content(one: int, other: int) -> bool:
    """Whether two open files hold the same bytes."""
    if os.fstat(one).st_size != os.fstat(other).st_size:
        return False
    offset = 0
    while data := os.pread(one, _COMPARED_BYTES, offset):
        if os.pread(other, len(data), offset) != data:
            return False
        offset += len(data)
    return True
