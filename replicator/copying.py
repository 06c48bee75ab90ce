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
from typing import Final, TypeAlias

import xxhash

from replicator.stopwatch import clock, here
from replicator.stores.base import TRANSIENT
from replicator.view import SourceChangedError, SourceError

FICLONE: Final = 0x40049409
SMALL_BYTES: Final = 256 << 10
"""Up to here reading and writing is cheapest: sharing blocks, which copying inside the kernel does
as well where it can, waits until the source is on the disk."""

GROWN_BYTES_MIN: Final = 1 << 20
"""Up to here a copy is cheaper made anew than read and proven to be the beginning of its file."""

KERNEL_COPY_BYTES: Final = 64 << 20
BUFFER_BYTES: Final = 1 << 20
_COMPARED_BYTES: Final = 1 << 20

Check: TypeAlias = Callable[[int], int]
"""See base.Content."""

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def at_once(count: int) -> int:
    """A Check that never waits."""
    return count


def copy_content(source: int, stage: int, check: Check = at_once) -> int:
    """Copy all of `source` to the empty file `stage`; the bytes it has there.

    `check`: see base.Content. Raises SourceChangedError when the source became shorter meanwhile,
    SourceError when it cannot be read, OSError when the stage cannot be written.
    """
    before = os.fstat(source)
    size = before.st_size
    if size == 0:
        return 0
    account = here()
    account.size, account.copied = size, 0
    if size <= SMALL_BYTES and before.st_blocks * 512 >= size:
        return _copy_small(source, stage, size, check)
    if not clone(source, stage):
        os.ftruncate(stage, size)
        copy_extent(source, stage, 0, size, check)
    return copied(source, stage, size)


def copied(source: int, stage: int, size: int) -> int:
    """The end of a copy of so many bytes: whether they were there."""
    if os.fstat(source).st_size < size:
        raise SourceChangedError(f"became shorter than {size} bytes while it was copied")
    written = os.fstat(stage).st_size
    if written < size:
        raise OSError(errno.EIO, f"the stage holds {written} of {size} bytes")
    return written


def copy_extent(source: int, stage: int, start: int, end: int, check: Check = at_once) -> None:
    """Copy these bytes to the same place of `stage`, in order, and leave out holes. Raises as
    `copy_content`."""
    if _is_whole(source):
        _copy_range(source, stage, start, end, check)
        return
    position = start
    while position < end:
        try:
            data = os.lseek(source, position, os.SEEK_DATA)
            hole = os.lseek(source, data, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            data, hole = position, end  # no such calls here: all of it is data
        position = min(hole, end)
        if data < position:
            _copy_range(source, stage, data, position, check)


def _is_whole(file: int) -> bool:
    found = os.fstat(file)
    return found.st_blocks * 512 >= found.st_size


def begins_alike(source: int, other: int, size: int, check: Check = at_once) -> bool:
    """Whether the first so many bytes of both are the same, all of them read now."""
    offset = 0
    while offset < size:
        wanted = check(min(BUFFER_BYTES, size - offset))
        data = _read(source, wanted, offset)
        if not data or os.pread(other, len(data), offset) != data:
            return False
        offset += len(data)
    return True


def _copy_small(source: int, stage: int, size: int, check: Check) -> int:
    """As copy_content, without asking again what was read and written: it is counted."""
    data = _read(source, check(size), 0)
    _write(stage, data, 0)
    if len(data) < size:
        _read_and_write(source, stage, len(data), size, check)
    return size


def read_back(source: int, stage: int, check: Check = at_once) -> None:
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


def _digest(file: int, check: Check) -> bytes:
    digest, offset = xxhash.xxh3_128(), 0
    while data := os.pread(file, check(BUFFER_BYTES), offset):
        digest.update(data)
        offset += len(data)
    return digest.digest()


def clone(source: int, stage: int) -> bool:
    """Share the blocks of all there is; False where that is not possible."""
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


def _copy_range(source: int, stage: int, start: int, end: int, check: Check) -> None:
    while start < end:
        wanted = check(min(end - start, KERNEL_COPY_BYTES))
        began = clock()
        try:
            count = os.copy_file_range(source, stage, wanted, start, start)
        except OSError as error:
            if error.errno in _FULL:
                raise
            count = 0
        finally:
            here().copy += clock() - began
        here().copied += count
        if count == 0:  # not here, at the end, or an error that read and write can tell apart
            _read_and_write(source, stage, start, start + wanted, at_once)  # it was allowed
            _read_and_write(source, stage, start + wanted, end, check)
            return
        start += count


def _read_and_write(source: int, stage: int, start: int, end: int, check: Check) -> None:
    while start < end:
        data = _content(source, check(min(end - start, BUFFER_BYTES)), start)
        _write(stage, data, start)
        start += len(data)


def _content(source: int, count: int, offset: int) -> bytes:
    """Bytes that must be there."""
    data = _read(source, count, offset)
    if not data:
        raise SourceChangedError(f"ended at {offset} while it was copied")
    return data


def _read(source: int, count: int, offset: int) -> bytes:
    began = clock()
    try:
        return os.pread(source, count, offset)
    except OSError as error:
        code = error.errno or errno.EIO
        raise SourceError(
            f"cannot read at {offset}: {os.strerror(code)}", code, transient=code in TRANSIENT
        ) from error
    finally:
        here().source += clock() - began


def _write(stage: int, data: bytes, offset: int) -> None:
    rest = memoryview(data)
    while rest:
        count = os.pwrite(stage, rest, offset)
        rest = rest[count:]
        offset += count
        here().copied += count


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
