"""Take away what the source has no more, if so much may be removed at once."""

from __future__ import annotations

import stat

from mirrorfs.journal.record import Place, SequenceNumber
from replicator.moves import Bench, Mode, Moves
from replicator.planner import PlaceItem
from replicator.sitemap import inside_of
from replicator.stores.base import Directory, SiteEntry, SiteStore


def remove(
    bench: Bench, moves: Moves, directory: Directory, place: Place, entry: SiteEntry, mode: Mode
) -> None:
    """`Moves.vacate`. Raises DeletionError where an operator is to be asked before."""
    deletions, counters = bench.deletions, bench.counters
    left = deletions.left(PlaceItem(place, (SequenceNumber(0), 0)))
    counts = left is not None and not bench.alive(entry)
    if counts and _weight(bench.store, directory, place.name, entry, left or 0) > (left or 0):
        raise deletions.refuse()
    before = counters.removed + counters.kept
    moves.vacate(directory, place, entry, mode)
    deletions.count(counters.removed + counters.kept - before)


def _weight(
    store: SiteStore, directory: Directory, name: bytes, entry: SiteEntry, enough: int
) -> int:
    """How many objects stand there, from it down; not looking further than that."""
    found = 1
    if not stat.S_ISDIR(entry.mode) or found > enough:
        return found
    with inside_of(store, directory, name) as opened:
        for child in () if opened is None else store.list(opened):
            if found > enough:
                break
            inside = store.lookup(opened, child)
            if inside is not None:
                found += _weight(store, opened, child, inside, enough - found)
    return found
