"""One segment of a journal, open for reading: plain, or compressed and read in place.

Reads forward, from any record on. It never repairs anything and never passes over a record; what
follows a segment is the reader's business.
"""

from __future__ import annotations

import os
from typing import NamedTuple, Protocol

from mirrorfs.journal.blocks import (
    BLOCK_BYTES,
    TRAILER_BYTES,
    BlockCoder,
    Index,
    decode_index,
    index_bounds,
)
from mirrorfs.journal.record import Record, SequenceNumber, Tag
from mirrorfs.journal.segment import (
    COMPRESSED,
    FRAME_BYTES,
    HEADER_BYTES_MAX,
    PAYLOAD_BYTES_MAX,
    CorruptionError,
    Header,
    Wanted,
    decode_header,
    header_flags,
    parse_segment_name,
    scan_records,
    select_records,
    valid_frame_offsets,
)

_CHUNK_BYTES = 256 << 10
_FRAME_BYTES_MAX = FRAME_BYTES + PAYLOAD_BYTES_MAX


class SegmentName(NamedTuple):
    """A segment in the directory; they sort in journal order."""

    first: SequenceNumber
    tag: Tag
    name: str


class Head(NamedTuple):
    """What a segment begins with: its header, its flags, and where its records begin."""

    header: Header
    flags: int
    length: int


def list_segments(directory_fd: int) -> list[SegmentName]:
    """The segments of a journal directory, in order."""
    found = []
    for name in os.listdir(directory_fd):
        parsed = parse_segment_name(name)
        if parsed is not None:
            found.append(SegmentName(*parsed, name))
    return sorted(found)


def read_head(fd: int, segment: SegmentName) -> Head:
    """The head of an open segment. CorruptionError."""
    data = os.pread(fd, _CHUNK_BYTES, 0)
    decoded = decode_header(data)
    if decoded is None and len(data) == _CHUNK_BYTES:
        decoded = decode_header(os.pread(fd, HEADER_BYTES_MAX + _CHUNK_BYTES, 0))
    if decoded is None:
        raise CorruptionError(len(data), "header cut short")
    header, length = decoded
    if (header.first, header.tag) != (segment.first, segment.tag):
        raise CorruptionError(0, "the header does not belong to a segment of this name")
    return Head(header, header_flags(data), length)


def read_index(fd: int, head: Head) -> Index:
    """The index of an open compressed segment. CorruptionError."""
    size = os.fstat(fd).st_size
    trailer = os.pread(fd, TRAILER_BYTES, max(0, size - TRAILER_BYTES))
    start, stop = index_bounds(trailer, size, head.length)
    return decode_index(os.pread(fd, stop - start, start), start, head.length, head.header.first)


class Frames(NamedTuple):
    """Whole frames as they stand in a segment: of the records from `first` to before `end`."""

    data: bytes
    first: SequenceNumber
    end: SequenceNumber


class OpenSegment(Protocol):
    """A segment being read.

    Attributes:
        segment: its name. path: for messages. header: its header. flags: of that.
        sequence: of the record that `read` gives next.
    """

    segment: SegmentName
    path: str
    header: Header
    flags: int
    sequence: SequenceNumber

    def close(self) -> None:
        """Release the descriptor."""

    def read(self, wanted: Wanted | None = None) -> list[Record] | None:
        """The wanted ones of the next whole records; None if there are no more, for now."""

    def take(self, until: SequenceNumber) -> Frames | None:
        """The next whole frames, up to before record `until`, checked; None if there are none."""

    def skip(self, until: SequenceNumber | None = None) -> None:
        """Go to just before record `until`, or to the end of the whole records."""

    def rest(self) -> int:
        """Bytes after what was read that are no whole record."""

    def leftover(self) -> CorruptionError:
        """What to say when bytes stand there and the segment is sealed."""


def open_segment(directory_fd: int, segment: SegmentName, path: str) -> OpenSegment:
    """Open a segment at its first record. CorruptionError, OSError."""
    fd = os.open(segment.name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory_fd)
    file = f"{path}/{segment.name}"
    try:
        head = read_head(fd, segment)
        if head.flags & COMPRESSED:
            return CompressedSegment(fd, segment, file, head)
        return PlainSegment(fd, segment, file, head)
    except CorruptionError as error:
        os.close(fd)
        raise error.of(file) from None
    except BaseException:
        os.close(fd)
        raise


class PlainSegment:
    """See OpenSegment. Nothing is buffered between two reads: its writer may cut off a frame that
    was not whole."""

    def __init__(self, fd: int, segment: SegmentName, path: str, head: Head) -> None:
        """Takes over the descriptor."""
        self.segment = segment
        self.path = path
        self.header, self.flags, self.offset = head
        self.sequence = segment.first
        self._fd = fd
        self._suspect: tuple[int, int, CorruptionError] | None = None

    def close(self) -> None:
        """See OpenSegment."""
        os.close(self._fd)

    def read(self, wanted: Wanted | None = None) -> list[Record] | None:
        """See OpenSegment."""
        for size in (_CHUNK_BYTES, _FRAME_BYTES_MAX):
            data = os.pread(self._fd, size, self.offset)
            try:
                found = select_records(data, self.sequence, self.offset, wanted)
            except CorruptionError as error:
                before = data[: error.offset - self.offset]
                found = select_records(before, self.sequence, self.offset, wanted)
                if not found.length:
                    self._judge(error)
                    return None
            if found.length or len(data) < size:
                break
        self.offset += found.length
        self.sequence = found.sequence
        return found.records if found.length else None

    def take(self, until: SequenceNumber) -> Frames | None:
        """See OpenSegment."""
        first = self.sequence
        if first >= until:
            return None
        for size in (_CHUNK_BYTES, _FRAME_BYTES_MAX):
            data = os.pread(self._fd, size, self.offset)
            scan = scan_records(data, first, self.offset, until, BLOCK_BYTES)
            if scan.length or scan.error is not None or len(data) < size:
                break
        if not scan.length:
            if scan.error is not None:
                self._judge(scan.error)
            return None
        self.offset += scan.length
        self.sequence = scan.sequence
        return Frames(data[: scan.length], first, scan.sequence)

    def skip(self, until: SequenceNumber | None = None) -> None:
        """See OpenSegment."""
        size = _CHUNK_BYTES
        while self.sequence != until:
            data = os.pread(self._fd, size, self.offset)
            scan = scan_records(data, self.sequence, self.offset, until)
            self.sequence = scan.sequence
            self.offset += scan.length
            if scan.length:
                size = _CHUNK_BYTES
            elif scan.error is not None:
                self._judge(scan.error)
                return
            elif len(data) < size:
                return
            else:
                size = _FRAME_BYTES_MAX

    def rest(self) -> int:
        """See OpenSegment."""
        return max(os.fstat(self._fd).st_size - self.offset, 0)

    def leftover(self) -> CorruptionError:
        """See OpenSegment."""
        if self._suspect is not None and self._suspect[0] == self.offset:
            return self._suspect[2].of(self.path)
        return CorruptionError(self.offset, "a record cut short in a sealed segment", self.path)

    def _judge(self, error: CorruptionError) -> None:
        """A bad frame: raise, unless it can be a tail that the writer's next start repairs."""
        size = max(os.fstat(self._fd).st_size, self.offset)
        if self._suspect is not None and self._suspect[:2] == (self.offset, size):
            return
        rest = os.pread(self._fd, size - self.offset, self.offset)
        for _ in valid_frame_offsets(rest, SequenceNumber(self.sequence - 1)):
            raise error.of(self.path)
        self._suspect = (self.offset, size, error)


class CompressedSegment:
    """See OpenSegment. Decompresses one block at a time.

    Attributes:
        index: where its blocks are.
    """

    def __init__(self, fd: int, segment: SegmentName, path: str, head: Head) -> None:
        """Takes over the descriptor. CorruptionError, without the file's name."""
        self.segment = segment
        self.path = path
        self.header, self.flags, _ = head
        self.sequence = segment.first
        self.index = read_index(fd, head)
        self._fd = fd
        self._coder = BlockCoder()

    def close(self) -> None:
        """See OpenSegment."""
        os.close(self._fd)

    def read(self, wanted: Wanted | None = None) -> list[Record] | None:
        """See OpenSegment."""
        if self.sequence >= self.index.end:
            return None
        number = self.index.number_of(self.sequence)
        at = self.index.blocks[number]
        frames = self._rest_of(number)
        try:
            found = select_records(frames, self.sequence, 0, wanted)
        except CorruptionError as error:
            raise self._bad(at.offset, error) from None
        if found.length != len(frames) or found.sequence != self.index.after(number):
            raise CorruptionError(at.offset, "a block that is not whole records", self.path)
        self.sequence = found.sequence
        return found.records

    def take(self, until: SequenceNumber) -> Frames | None:
        """See OpenSegment."""
        first = self.sequence
        if first >= min(self.index.end, until):
            return None
        number = self.index.number_of(first)
        frames = self._rest_of(number)
        scan = scan_records(frames, first, until=until)
        if scan.error is not None or scan.sequence != min(self.index.after(number), until):
            error = scan.error or CorruptionError(0, "no whole records")
            raise self._bad(self.index.blocks[number].offset, error)
        self.sequence = scan.sequence
        return Frames(bytes(frames[: scan.length]), first, scan.sequence)

    def _rest_of(self, number: int) -> memoryview:
        """The frames of that block from our record on. CorruptionError, OSError."""
        start, stop = self.index.bounds(number)
        try:
            frames = self._coder.decode(os.pread(self._fd, stop - start, start), self.index, number)
        except CorruptionError as error:
            raise error.of(self.path) from None
        first = self.index.blocks[number].first
        return memoryview(frames)[scan_records(frames, first, until=self.sequence).length :]

    def _bad(self, offset: int, error: CorruptionError) -> CorruptionError:
        return CorruptionError(offset, f"in the block there: {error.reason}", self.path)

    def skip(self, until: SequenceNumber | None = None) -> None:
        """See OpenSegment."""
        end = self.index.end
        self.sequence = end if until is None else min(max(until, self.segment.first), end)

    def rest(self) -> int:
        """See OpenSegment."""
        return 0

    def leftover(self) -> CorruptionError:
        """See OpenSegment."""
        return CorruptionError(self.index.stop, "bytes that are no record", self.path)
