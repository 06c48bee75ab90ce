"""Write compressed segments; compress a sealed one in place, crash-safe.

FORMAT.md beside this file, section 9, is normative. Never looks at what a record says, and never
gives up a plain segment before its compressed one was read back from the disk.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Final

from mirrorfs.journal.blocks import (
    BLOCK_BYTES,
    SIZE_MAX,
    Block,
    BlockCoder,
    Index,
    cut_block,
    encode_index,
)
from mirrorfs.journal.open_segment import Head, SegmentName, read_head, read_index
from mirrorfs.journal.record import SequenceNumber
from mirrorfs.journal.segment import COMPRESSED, CorruptionError, Header, encode_header
from mirrorfs.journal.writer import COMPRESSED_SUFFIX, NEW_SUFFIX

_READ_BYTES: Final = 2 * BLOCK_BYTES

Pause = Callable[[float], None]
"""Told how many seconds a piece of work took; may wait, and raise to stop it."""


class CompressedWriter:
    """Writes one compressed segment to a descriptor, which stays the caller's."""

    def __init__(self, fd: int, header: Header, flags: int = 0) -> None:
        """Write its head. OSError."""
        self._fd = fd
        self._coder = BlockCoder()
        self._blocks: list[Block] = []
        self._offset = 0
        self._size = 0
        self._write(encode_header(header, flags | COMPRESSED))

    def add(self, frames: bytes | memoryview, first: SequenceNumber, count: int) -> None:
        """Write one block. OSError."""
        self._blocks.append(Block(first, self._offset))
        self._size += len(frames)
        self._write(self._coder.encode(frames, first, count))

    def finish(self, end: SequenceNumber) -> Index:
        """Write index and trailer; `end`: the sequence after the last record. OSError."""
        index = Index(tuple(self._blocks), self._offset, end, self._size)
        self._write(encode_index(index))
        return index

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            written = os.write(self._fd, view)
            self._offset += written
            view = view[written:]


def blocks_of(fd: int, head: Head) -> Iterator[tuple[memoryview, SequenceNumber, SequenceNumber]]:
    """The frames of a plain, sealed segment in pieces for blocks: frames, first, after the last.

    Every frame is checked. CorruptionError, OSError.
    """
    sequence, offset = head.header.first, head.length
    size = os.fstat(fd).st_size
    while offset < size:
        for length in (_READ_BYTES, SIZE_MAX):  # all that a block may have
            data = os.pread(fd, length, offset)
            cut = cut_block(data, sequence, offset, last=offset + len(data) >= size)
            if cut is not None:
                break
        else:
            raise CorruptionError(offset, "a record cut short in a sealed segment")
        yield memoryview(data)[: cut.length], sequence, cut.sequence
        sequence, offset = cut.sequence, offset + cut.length


def compress_segment(directory_fd: int, segment: SegmentName, pause: Pause) -> bool:
    """Put a compressed segment in the place of a sealed plain one; False if it needs none.

    Raises CorruptionError (the plain segment stays), OSError, and whatever `pause` raises: nothing
    is left behind then.
    """
    fd = os.open(segment.name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory_fd)
    try:
        head = read_head(fd, segment)
        if head.flags & COMPRESSED or os.fstat(fd).st_size == head.length:
            return False
        scratch = segment.name + COMPRESSED_SUFFIX + NEW_SUFFIX
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        out = os.open(scratch, flags, 0o600, dir_fd=directory_fd)
        try:
            _compress(fd, head, out, pause)
            _compare(fd, head, out, segment, pause)
            os.replace(scratch, segment.name, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(scratch, dir_fd=directory_fd)
            raise
        finally:
            os.close(out)
    finally:
        os.close(fd)
    os.fsync(directory_fd)
    return True


def _compress(fd: int, head: Head, out: int, pause: Pause) -> None:
    """Write the compressed segment, durably."""
    writer = CompressedWriter(out, head.header, head.flags)
    end = head.header.first
    began = time.monotonic()
    for frames, first, end in blocks_of(fd, head):
        writer.add(frames, first, end - first)
        pause(time.monotonic() - began)
        began = time.monotonic()
    writer.finish(end)
    os.fsync(out)
    os.posix_fadvise(out, 0, 0, os.POSIX_FADV_DONTNEED)  # what follows reads from the disk


def _compare(fd: int, head: Head, out: int, segment: SegmentName, pause: Pause) -> None:
    """Read the compressed segment back; CorruptionError unless it holds what the plain one does."""
    again = read_head(out, segment)
    if again.header != head.header or again.flags != head.flags | COMPRESSED:
        raise CorruptionError(0, "its compressed copy has another header")
    index = read_index(out, again)
    coder = BlockCoder()
    offset = head.length
    for number, (_, at) in enumerate(index.blocks):
        began = time.monotonic()
        stop = index.bounds(number)[1]
        frames = coder.decode(os.pread(out, stop - at, at), index, number)
        if os.pread(fd, len(frames), offset) != frames:
            raise CorruptionError(offset, "its compressed copy differs")
        offset += len(frames)
        pause(time.monotonic() - began)
    if offset != os.fstat(fd).st_size or index.size != offset - head.length:
        raise CorruptionError(offset, "its compressed copy ends here")
