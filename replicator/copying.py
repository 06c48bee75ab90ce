"""Content from an open source file to an open stage file: whole, with its holes, or not at all.

Cheapest way first: share the blocks (reflink), let the kernel copy, read and write. Errors of the
source are SourceError, of the stage OSError. What is copied is what stood there while it was read:
whoever needs one moment compares the source's change time before and after.
"""

from __future__ import annotations

import errno
import fcntl
import os
from typing import Final

from replicator.stopwatch import clock, here
from replicator.stores.base import TRANSIENT
from replicator.view import SourceChangedError, SourceError

FICLONE: Final = 0x40049409
SMALL_BYTES: Final = 256 << 10
"""Up to here reading and writing is cheapest: sharing blocks, which copying inside the kernel does
as well where it can, waits until the source is on the disk."""

KERNEL_COPY_BYTES: Final = 64 << 20
BUFFER_BYTES: Final = 1 << 20
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def copy_content(source: int, stage: int) -> int:
    """Copy all of `source` to the empty file `stage`; the bytes it has there.

    Raises SourceChangedError when the source became shorter meanwhile, SourceError when it cannot
    be read, OSError when the stage cannot be written.
    """
    before = os.fstat(source)
    size = before.st_size
    if size == 0:
        return 0
    account = here()
    account.size, account.copied = size, 0
    whole = before.st_blocks * 512 >= size
    if whole and size <= SMALL_BYTES:
        _read_and_write(source, stage, 0, size)
    elif not _clone(source, stage):
        if whole:
            _copy_range(source, stage, 0, size)
        else:
            _copy_sparse(source, stage, size)
    if os.fstat(source).st_size < size:
        raise SourceChangedError(f"became shorter than {size} bytes while it was copied")
    written = os.fstat(stage).st_size
    if written < size:
        raise OSError(errno.EIO, f"the stage holds {written} of {size} bytes")
    return written


def _clone(source: int, stage: int) -> bool:
    """Share the blocks; False where that is not possible."""
    began = clock()
    try:
        fcntl.ioctl(stage, FICLONE, source)
    except OSError as error:
        if error.errno in _FULL:
            raise
        return False
    finally:
        here().copy += clock() - began
    return True


def _copy_sparse(source: int, stage: int, size: int) -> None:
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
            _copy_range(source, stage, start, end)
        position = end


def _copy_range(source: int, stage: int, start: int, end: int) -> None:
    while start < end:
        began = clock()
        try:
            count = os.copy_file_range(
                source, stage, min(end - start, KERNEL_COPY_BYTES), start, start
            )
        except OSError as error:
            if error.errno in _FULL:
                raise
            count = 0
        finally:
            here().copy += clock() - began
        here().copied += count
        if count == 0:  # not here, at the end, or an error that read and write can tell apart
            _read_and_write(source, stage, start, end)
            return
        start += count


def _read_and_write(source: int, stage: int, start: int, end: int) -> None:
    while start < end:
        began = clock()
        try:
            data = os.pread(source, min(end - start, BUFFER_BYTES), start)
        except OSError as error:
            code = error.errno or errno.EIO
            raise SourceError(
                f"cannot read at {start}: {os.strerror(code)}", code, transient=code in TRANSIENT
            ) from error
        finally:
            here().source += clock() - began
        if not data:
            raise SourceChangedError(f"ended at {start} while it was copied")
        rest = memoryview(data)
        while rest:
            count = os.pwrite(stage, rest, start)
            rest = rest[count:]
            start += count
            here().copied += count
