"""Read a journal: from a sequence onwards, then whatever the writer appends.

Follows the segments while they are being written, rotated, repaired and removed. It needs no right
to write and takes no lock; it never repairs anything and never passes over a record.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from types import TracebackType

from mirrorfs.journal.open_segment import (
    OpenSegment,
    SegmentName,
    list_segments,
    open_segment,
)
from mirrorfs.journal.record import Record, SequenceNumber, Tag
from mirrorfs.journal.segment import (
    CorruptionError,
    Incarnation,
    Wanted,
    began,
    known_incarnations,
    parse_segment_name,
)
from mirrorfs.journal.site_cursor import Unknown, resolve
from mirrorfs.journal.wake import DirectoryWatch


class NoJournalError(Exception):
    """The directory holds no journal."""


class RecordsGoneError(Exception):
    """The journal no longer, or does not yet, hold the record asked for."""


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
        self._open: OpenSegment | None = None
        self._head: OpenSegment | None = None
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

    def first(self) -> SequenceNumber:
        """The oldest kept record (one more than `head`, if there is none)."""
        segments = self.segments()
        return segments[0].first if segments else SequenceNumber(0)

    def flags(self, segment: SegmentName) -> int:
        """The flags of its header. CorruptionError; FileNotFoundError if it was just removed."""
        opened = self._open_segment(segment)
        opened.close()
        return opened.flags

    def disk_bytes(self) -> int:
        """What the segments take on the disk."""
        taken = 0
        for segment in self.segments():
            with contextlib.suppress(FileNotFoundError):  # removed just now
                taken += os.stat(segment.name, dir_fd=self._directory_fd).st_blocks * 512
        return taken

    def incarnations(self) -> list[Incarnation]:
        """All known ones, oldest first; the last is the newest, up to the head."""
        head = self.head()
        return known_incarnations(self.header, head)

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
        if sequence >= began(header):
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
        known = self.incarnations()
        return resolve(self.header.journal, known, self.first(), (journal, tag, sequence))

    def since(self, time_ns: int) -> SequenceNumber:
        """A record no later than the first one from that time on; by the clock of the writer."""
        segments = self.segments()
        for segment, following in itertools.pairwise(segments):
            with contextlib.suppress(FileNotFoundError):  # removed just now
                opened = self._open_segment(following)
                opened.close()
                if opened.header.created_ns > time_ns:
                    return segment.first
        return segments[-1].first if segments else self.position

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
            self._pending = self._read() or []
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

    def select(self, wanted: Wanted, start: SequenceNumber | None = None) -> Iterator[list[Record]]:
        """As `read`, but only the records that are wanted: the others are checked, not decoded."""
        self.seek(self.position if start is None else start)
        while (batch := self._read(wanted)) is not None:
            assert self._open is not None
            self.position = self._open.sequence
            if batch:
                yield batch

    def _read(self, wanted: Wanted | None = None) -> list[Record] | None:
        """Records from the open segment or, once that is read to its end, the next one.

        None if there are no more, for now. Not empty unless only some are wanted.
        """
        while True:
            if self._open is None:
                self.seek(self.position)
                assert self._open is not None
            records = self._open.read(wanted)
            if records is not None:
                return records
            # The list is taken before the last look: a segment that has a successor in it does
            # not change any more, except that a torn tail was cut off before the successor came.
            following = self._following(self._open)
            if following is None:
                return None
            records = self._open.read(wanted)
            if records is not None:
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

    def _following(self, current: OpenSegment) -> SegmentName | None:
        """The segment after the current one, or in place of it if that was removed empty."""
        segments = self.segments()
        if segments and segments[-1] == current.segment:
            return None
        for segment in segments:
            if segment != current.segment and segment.first >= current.sequence:
                return segment
        if segments and segments[-1] > current.segment:
            raise RecordsGoneError(
                f"{self.path}: record {current.sequence - 1} was read, and is gone:"
                f" another {segments[-1].first} stands there"
            )
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

    def _open_newest(self) -> OpenSegment | None:
        """The newest segment, which may be open already; None if there is none at this moment."""
        while segments := self.segments():
            if self._head is not None and self._head.segment == segments[-1]:
                return self._head
            with contextlib.suppress(FileNotFoundError):  # removed just now: look again
                return self._open_segment(segments[-1])
        return None

    def _open_segment(self, segment: SegmentName) -> OpenSegment:
        opened = open_segment(self._directory_fd, segment, self.path)
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
