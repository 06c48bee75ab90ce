"""Look through a journal: the last record of something, what came since a time, who wrote.

Reads only, segment by segment, and keeps nothing but what was asked for: a journal may hold many
million records.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from mirrorfs.journal.reader import JournalReader, RecordsGoneError
from mirrorfs.journal.record import Change, Checkpoint, Kind, ObjectId, Record, SequenceNumber
from replicator.observing import FOLLOWED

_BATCH: Final = 4096


def by_segment(reader: JournalReader) -> Iterator[Iterator[Record]]:
    """The records of each segment, in order; the newest segment first."""
    following = SequenceNumber(reader.head() + 1)
    for segment in reversed(reader.segments()):
        yield between(reader, segment.first, following)
        following = segment.first


def between(reader: JournalReader, first: SequenceNumber, end: SequenceNumber) -> Iterator[Record]:
    """The records from `first` to just before `end`, as far as they are (still) there."""
    try:
        reader.seek(first)
        while reader.position < end:
            batch = reader.poll(min(_BATCH, end - reader.position))
            if not batch:
                return
            yield from batch
    except RecordsGoneError:
        return  # removed by retention meanwhile


def since(reader: JournalReader, time_ns: int) -> Iterator[Record]:
    """The records made since then, up to the head as it is now."""
    end = SequenceNumber(reader.head() + 1)
    records = between(reader, reader.since(time_ns), end)
    yield from (each for each in records if each.time_ns >= time_ns)


def last_of(
    reader: JournalReader, wanted: Mapping[str, Callable[[Record], bool]]
) -> dict[str, Record]:
    """The last record of each sort wanted, as far as there is one."""
    found: dict[str, Record] = {}
    for records in by_segment(reader):
        here: dict[str, Record] = {}
        for record in records:
            for sort, is_it in wanted.items():
                if sort not in found and is_it(record):
                    here[sort] = record
        found |= here
        if len(found) == len(wanted):
            break
    return found


def about_path(path: bytes) -> Callable[[Record], bool]:
    """Whether a record is about that path, as it was then."""
    return lambda record: isinstance(record.body, Change) and record.body.path == path


def about_object(identity: ObjectId) -> Callable[[Record], bool]:
    """Whether a record is about that object."""
    return lambda record: (
        isinstance(record.body, Change) and identity in (record.body.object, record.body.other)
    )


def checkpoints(reader: JournalReader, count: int) -> list[Record]:
    """The newest checkpoints, the newest first."""
    found: list[Record] = []
    for records in by_segment(reader):
        here = [each for each in records if isinstance(each.body, Checkpoint)]
        found += reversed(here)
        if len(found) >= count:
            break
    return found[:count]


def checkpoint_of(reader: JournalReader, name: str) -> tuple[Record, SequenceNumber] | None:
    """The newest checkpoint of that name, and the sequence of the one before it (of any name)."""
    found: Record | None = None
    for records in by_segment(reader):
        here = [each for each in records if isinstance(each.body, Checkpoint)]
        for record in reversed(here):
            if found is not None:
                return found, record.sequence
            if isinstance(record.body, Checkpoint) and record.body.name == name:
                found = record
    return None if found is None else (found, SequenceNumber(0))


# what is expected at a site ----------------------------------------------------------------------


@dataclass(slots=True)
class Expected:
    """Files that records say became complete, by slice of time.

    Attributes:
        slices: start of the slice (ns) -> object -> newest sequence, time and path there.
        gone: files that have no name any more. oldest_ns: of the first record there was.
    """

    slices: dict[int, dict[ObjectId, tuple[int, int, bytes]]] = field(default_factory=dict)
    gone: set[ObjectId] = field(default_factory=set)
    oldest_ns: int = 0

    def add(self, record: Record, slice_ns: int) -> None:
        """Take in the next record."""
        self.oldest_ns = self.oldest_ns or record.time_ns
        body = record.body
        if not isinstance(body, Change) or not stat.S_ISREG(body.mode):
            return
        if body.other is not None and not body.other_links:
            self.gone.add(body.other)
        if record.kind is Kind.UNLINK and not body.links:
            self.gone.add(body.object)
        elif record.kind in FOLLOWED and body.links and record.settled:
            files = self.slices.setdefault(record.time_ns // slice_ns * slice_ns, {})
            before = files.get(body.object)
            path = body.path if body.path is not None else (before[2] if before else b"?")
            time_ns = before[1] if before else record.time_ns
            files[body.object] = (record.sequence, time_ns, path)


# who makes the work ------------------------------------------------------------------------------


@dataclass(slots=True)
class Share:
    """What somebody made: records, files and bytes written."""

    records: int = 0
    bytes: int = 0
    files: set[ObjectId] = field(default_factory=set)


def shares(records: Iterator[Record], key: Callable[[Change], str | None]) -> dict[str, Share]:
    """Records by a key of theirs; those without it are left out."""
    found: dict[str, Share] = {}
    for record in records:
        body = record.body
        if not isinstance(body, Change):
            continue
        name = key(body)
        if name is None:
            continue
        share = found.setdefault(name, Share())
        share.records += 1
        share.files.add(body.object)
        if record.kind is Kind.WRITE:
            share.bytes += body.size
    return found
