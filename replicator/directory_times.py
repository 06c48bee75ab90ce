"""The times of directories: set last, since every change inside moves them."""

from __future__ import annotations

from mirrorfs.journal.record import ObjectId
from replicator.moves import Bench
from replicator.stores.base import StoreError
from replicator.view import SourceError


def finish(bench: Bench) -> None:
    """Set those of the directories touched. Those that fail for good are left to `timeless`.
    Raises StoreError, SourceError."""
    touched = bench.touched
    for identity in sorted(touched):
        try:
            set_times(bench, identity)
        except (StoreError, SourceError) as error:
            if error.transient:
                raise
            bench.timeless[identity] = error
        touched.discard(identity)  # not before: what failed is still to be done
    bench.map.trim()


def set_times(bench: Bench, identity: ObjectId) -> None:
    """Those of one, now. Raises StoreError, SourceError."""
    found = bench.source.open(identity)
    if found is None:
        return
    with found:
        directory = bench.map.find(identity)
        if directory is not None:
            now = found.stat()
            bench.store.set_directory_times(directory, now.atime_ns, now.mtime_ns)
