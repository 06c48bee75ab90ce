"""Read a journal: from a sequence onwards, then whatever the writer appends.

Follows the segments while they are being written, rotated, repaired and removed. It needs no right
to write and takes no lock; it never repairs anything and never passes over a record.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple

from mirrorfs.journal.record import Record, SequenceNumber, Tag
from mirrorfs.journal.segment import (
    FRAME_BYTES,
    HEADER_BYTES_MAX,
    PAYLOAD_BYTES_MAX,
    CorruptionError,
    Header,
    Incarnation,
    decode_header,
    decode_records,
    parse_segment_name,
    scan_records,
    valid_frame_offsets,
)
from mirrorfs.journal.wake import DirectoryWatch

_CHUNK_BYTES = 256 << 10
_FRAME_BYTES_MAX = FRAME_BYTES + PAYLOAD_BYTES_MAX


class NoJournalError(Exception):
    """The directory holds no journal."""


class RecordsGoneError(Exception):
    """The journal no longer, or does not yet, hold the record asked for."""


class SegmentName(NamedTuple):
    """A segment in the directory; they sort in journal order."""

    first: SequenceNumber
    tag: Tag
    name: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """A cursor says nothing about this journal: an initial copy is due."""

    reason: str


def list_segments(directory_fd: int) -> list[SegmentName]:
    """The segments of a journal directory, in order."""
    found = []
    for name in os.listdir(directory_fd):
        parsed = parse_segment_name(name)
        if parsed is not None:
            found.append(SegmentName(*parsed, name))
    return sorted(found)


def nodes_with_journals(directory: str) -> list[str]:
    """Where several nodes write one source, each has a journal in a directory of its name here."""
    try:
        with os.scandir(directory) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        return [
            name
            for name in names
            if any(parse_segment_name(file) for file in os.listdir(os.path.join(directory, name)))
        ]
    except OSError:
        return []


def _no_journal(directory: str) -> str:
    nodes = nodes_with_journals(directory)
    if not nodes:
        return "no journal there"
    return (
        f"{len(nodes)} journals are there, one a node ({', '.join(nodes)}), and this is for one:"
        f" name {directory}/NODE"
    )


def read_header(fd: int, segment: SegmentName) -> tuple[Header, int]:
    """Header of an open segment and its length in bytes. CorruptionError."""
    data = os.pread(fd, _CHUNK_BYTES, 0)
    decoded = decode_header(data)
    if decoded is None and len(data) == _CHUNK_BYTES:
        decoded = decode_header(os.pread(fd, HEADER_BYTES_MAX + _CHUNK_BYTES, 0))
    if decoded is None:
        raise CorruptionError(len(data), "header cut short")
    header, length = decoded
    if (header.first, header.tag) != (segment.first, segment.tag):
        raise CorruptionError(0, "the header does not belong to a segment of this name")
    return header, length


class _OpenSegment:
    """One segment, read forward. Nothing is buffered between two reads: its writer may cut off a
    frame that was not whole."""

    def __init__(self, directory_fd: int, segment: SegmentName, path: str) -> None:
        self.segment = segment
        self.path = f"{path}/{segment.name}"
        self._fd = os.open(segment.name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory_fd)
        try:
            self.header, self.offset = read_header(self._fd, segment)
        except CorruptionError as error:
            os.close(self._fd)
            raise error.of(self.path) from None
        self.sequence = segment.first
        self._suspect: tuple[int, int, CorruptionError] | None = None

    def close(self) -> None:
        os.close(self._fd)

    def read(self) -> list[Record]:
        """The next whole records, some or none."""
        for size in (_CHUNK_BYTES, _FRAME_BYTES_MAX):
            data = os.pread(self._fd, size, self.offset)
            try:
                records, length = decode_records(data, self.sequence, self.offset)
            except CorruptionError as error:
                records, length = decode_records(
                    data[: error.offset - self.offset], self.sequence, self.offset
                )
                if not records:
                    self._judge(error)
                    return []
            if records or len(data) < size:
                break
        self.offset += length
        self.sequence = SequenceNumber(self.sequence + len(records))
        return records

    def skip(self, until: SequenceNumber | None = None) -> None:
        """Go to just before record `until`, or to the end of the whole records."""
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
        """Bytes after what was read."""
        return max(os.fstat(self._fd).st_size - self.offset, 0)

    def leftover(self) -> CorruptionError:
        """What to say when bytes stand there and the segment is sealed."""
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


class JournalReader:
    """Reads one journal in order.

    Attributes:
        path: the journal directory.
        position: sequence of the record that `poll` returns next.
        wake_fd: readable (for select, poll, trio) when something in the directory has changed.
    """

    def __init__(self, directory: str) -> None:
        """Open at the first kept record. NoJournalError, CorruptionError, OSError."""
        self.path = directory
        try:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            self._directory_fd = os.open(directory, flags)
        except (FileNotFoundError, NotADirectoryError):
            raise NoJournalError(f"{directory}: no journal there") from None
        self._open: _OpenSegment | None = None
        self._head: _OpenSegment | None = None
        self._watch: DirectoryWatch | None = None
        self._pending: list[Record] = []
        self._taken = 0
        self.position = SequenceNumber(0)
        try:
            newest = self._open_newest()
            if newest is None:
                raise NoJournalError(f"{directory}: {_no_journal(directory)}")
            self._head = newest
            self.header = newest.header
            self.position = self.segments()[0].first
        except Exception:
            self.close()
            raise

    def __enter__(self) -> JournalReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release all descriptors."""
        for segment in (self._open, self._head):
            if segment is not None:
                segment.close()
        self._open = self._head = None
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        os.close(self._directory_fd)

    # What there is

    def segments(self) -> list[SegmentName]:
        """The segments, oldest first."""
        return list_segments(self._directory_fd)

    def incarnations(self) -> list[Incarnation]:
        """All known ones, oldest first; the last is the newest, up to the head."""
        head = self.head()
        header = self.header
        return [*header.incarnations, Incarnation(header.tag, _began(header), head)]

    def head(self) -> SequenceNumber:
        """The newest whole record on disk (one less than the first, if there is none).

        Reads only what was appended since it was last asked.
        """
        newest = self._open_newest()
        if newest is not None and newest is not self._head:
            if self._head is not None:
                self._head.close()
            self._head = newest
            self.header = newest.header
        assert self._head is not None
        self._head.skip()
        return SequenceNumber(self._head.sequence - 1)

    def tag_of(self, sequence: SequenceNumber) -> Tag:
        """The incarnation that wrote a record. RecordsGoneError if it is too old to tell."""
        header = self.header
        if sequence >= _began(header):
            return header.tag
        for incarnation in reversed(header.incarnations):
            if incarnation.first <= sequence <= incarnation.last:
                return incarnation.tag
        raise RecordsGoneError(f"{self.path}: no incarnation is known for record {sequence}")

    def resolve(
        self, journal: bytes, tag: Tag, sequence: SequenceNumber
    ) -> SequenceNumber | Unknown:
        """The place of a cursor in this journal: everything up to it has been done.

        Cut back to the end of its incarnation if it lies beyond that. Unknown where the format
        says that an initial copy is due.
        """
        if journal != self.header.journal:
            return Unknown("the cursor belongs to another journal")
        for incarnation in self.incarnations():
            if incarnation.tag == tag:
                cut = SequenceNumber(min(sequence, incarnation.last))
                break
        else:
            return Unknown("the journal does not know the cursor's incarnation")
        segments = self.segments()
        if segments and cut + 1 < segments[0].first:
            return Unknown(f"record {cut + 1} is no longer in the journal")
        return cut

    # Reading

    def seek(self, sequence: SequenceNumber) -> None:
        """Let `poll` go on with that record; head + 1 is allowed. RecordsGoneError otherwise."""
        within = [segment for segment in self.segments() if segment.first <= sequence]
        if not within:
            raise RecordsGoneError(f"{self.path}: record {sequence} is not kept any more")
        try:
            self._turn_to(within[-1])
        except FileNotFoundError:
            raise RecordsGoneError(f"{self.path}: record {sequence} was just removed") from None
        assert self._open is not None
        self._open.skip(sequence)
        if self._open.sequence != sequence:
            raise RecordsGoneError(
                f"{self.path}: there is no record {sequence}, {self._open.sequence - 1} is the last"
            )
        self.position = sequence

    def poll(self, limit: int = 4096) -> list[Record]:
        """The next records, at most `limit`; none if there are no more yet. Does not wait.

        Raises CorruptionError, naming file and offset, and RecordsGoneError if the next record's
        segment was removed before it was read.
        """
        if self._taken == len(self._pending):
            self._pending = self._read()
            self._taken = 0
        if self._taken == 0 and len(self._pending) <= limit:
            batch, self._pending = self._pending, []
        else:
            batch = self._pending[self._taken : self._taken + limit]
            self._taken += len(batch)
        self.position = SequenceNumber(self.position + len(batch))
        return batch

    def read(self, start: SequenceNumber | None = None) -> Iterator[list[Record]]:
        """Batches of records from `start` (else from `position`) to the present end."""
        if start is not None:
            self.seek(start)
        while batch := self.poll():
            yield batch

    def _read(self) -> list[Record]:
        """Records from the open segment or, once that is read to its end, the next one."""
        while True:
            if self._open is None:
                self.seek(self.position)
                assert self._open is not None
            records = self._open.read()
            if records:
                return records
            # The list is taken before the last look: a segment that has a successor in it does
            # not change any more, except that a torn tail was cut off before the successor came.
            following = self._following(self._open)
            if following is None:
                return []
            records = self._open.read()
            if records:
                return records
            if self._open.rest():
                raise self._open.leftover()
            if following.first != self._open.sequence:
                raise RecordsGoneError(
                    f"{self.path}: record {self._open.sequence} is gone,"
                    f" {following.first} is the first kept after it"
                )
            with contextlib.suppress(FileNotFoundError):  # removed just now: look again
                self._turn_to(following)

    def _following(self, current: _OpenSegment) -> SegmentName | None:
        """The segment after the current one, or in place of it if that was removed empty."""
        segments = self.segments()
        if segments and segments[-1] == current.segment:
            return None
        for segment in segments:
            if segment != current.segment and segment.first >= current.sequence:
                return segment
        return None

    def _turn_to(self, segment: SegmentName) -> None:
        opened = self._open_segment(segment)
        if self._open is not None:
            self._open.close()
        self._open = opened
        self._pending = []
        self._taken = 0
        if segment.first >= self.header.first:
            self.header = opened.header

    def _open_newest(self) -> _OpenSegment | None:
        """The newest segment, which may be open already; None if there is none at this moment."""
        while segments := self.segments():
            if self._head is not None and self._head.segment == segments[-1]:
                return self._head
            with contextlib.suppress(FileNotFoundError):  # removed just now: look again
                return self._open_segment(segments[-1])
        return None

    def _open_segment(self, segment: SegmentName) -> _OpenSegment:
        opened = _OpenSegment(self._directory_fd, segment, self.path)
        if self._head is not None and opened.header.journal != self.header.journal:
            opened.close()
            raise CorruptionError(0, "belongs to another journal", opened.path)
        return opened

    def unread_bytes(self) -> int:
        """Bytes after the last whole record of the open segment: cut short, or being written."""
        return 0 if self._open is None else self._open.rest()

    # Waiting

    @property
    def wake_fd(self) -> int:
        """See the class. Begin to watch before the `poll` that decides to wait."""
        if self._watch is None:
            self._watch = DirectoryWatch(self._directory_fd)
        return self._watch.fd

    def drain_wake(self) -> None:
        """Forget what made `wake_fd` readable; `poll` after it."""
        if self._watch is not None:
            self._watch.drain()


def _began(header: Header) -> SequenceNumber:
    """First sequence of the incarnation a header belongs to."""
    if header.incarnations:
        return SequenceNumber(header.incarnations[-1].last + 1)
    return SequenceNumber(1)
