"""All records about one path, and about the object that is there, through its renames.

Reads the journal twice: which object it is, the last record says. The source is asked, too, where
it can be: an object may be older than all records about its path.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from mirrorfs.journal.control_client import ControlError
from mirrorfs.journal.finding import Trail
from mirrorfs.journal.paths import inside
from mirrorfs.journal.reader import JournalReader
from mirrorfs.journal.record import ObjectId, Record, SequenceNumber
from replicator.opening import open_journaled_source
from replicator.source import Source
from replicator.view import SourceError, SourceRefusedError


def history(
    reader: JournalReader, path: bytes, start: SequenceNumber | None = None
) -> Iterator[Record]:
    """The records, oldest first, from `start` on. CorruptionError, RecordsGoneError, OSError."""
    found = inside(path, reader)
    trail = Trail(found, _object_at(reader, found))
    first = reader.first() if start is None else max(start, reader.first())
    for batch in reader.select(trail.wanted, first):
        for record in batch:
            trail.look(record)
    for batch in reader.select(trail.wanted, first):
        yield from (record for record in batch if trail.tells(record))


def _object_at(reader: JournalReader, path: bytes) -> ObjectId | None:
    """Which object the source has there now; None if it has none, or cannot be asked."""
    with contextlib.suppress(SourceError, SourceRefusedError, ControlError, OSError):
        source = open_journaled_source(reader)
        try:
            return _walk(source, path)
        finally:
            source.close()
    return None


def _walk(source: Source, path: bytes) -> ObjectId | None:
    names = [name for name in path.split(b"/") if name]
    with contextlib.ExitStack() as stack:
        at = stack.enter_context(source.root)
        for name in names:
            found = source.lookup(at, name)
            if found is None:
                return None
            at = stack.enter_context(found)
        return at.id
