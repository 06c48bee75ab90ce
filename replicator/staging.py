"""Staging: a complete copy of an object as it is now, not torn, not moved away meanwhile.

Knows nothing of what stands at the site; where the copy goes is decided in `step`.
"""

from __future__ import annotations

import stat
from collections.abc import Callable

from mirrorfs.journal.record import ObjectId, Place
from replicator.held import AheadError
from replicator.moves import Bench
from replicator.stores.base import Mark, MarkFlag, Staged
from replicator.view import SourceChangedError, SourceObject, SourceStat

_STAGE_TRIES = 3
_SETTLE_TRIES = 5


class Staging:
    """Stages copies for one site."""

    def __init__(self, bench: Bench, sleep: Callable[[float], None]) -> None:
        """Stage on `bench`; `sleep` waits that many seconds."""
        self._bench = bench
        self._sleep = sleep

    def _read_mark(self, identity: ObjectId, ctime_ns: int) -> Mark:
        """The mark of a copy that is read now, at that change time."""
        flags = MarkFlag.CONTENT
        told = self._bench.plan.hints(identity).settled_ctime_ns == ctime_ns
        if not told and not self._bench.source.is_quiet(ctime_ns):
            flags |= MarkFlag.AHEAD
        plan = self._bench.plan
        return Mark(identity, plan.known_tag, plan.known, ctime_ns, flags, self._bench.saved)

    def stage(self, found: SourceObject, place: Place) -> Staged:
        """A complete copy of the object as it is now, not torn, and still of that place."""
        for _ in range(_STAGE_TRIES):
            before = self._settled(found)
            mark = self._read_mark(found.id, before.ctime_ns)
            attributes = found.attributes()
            if not stat.S_ISREG(before.mode):
                staged = self._bench.store.stage(attributes, None, mark)
                self._bench.counters.made += 1
                return self._checked(staged, found, before.ctime_ns, place)
            try:
                with found.content() as content:
                    staged = self._bench.store.stage(attributes, content, mark)
            except SourceChangedError:
                continue
            after = found.stat()
            if (after.size, after.mtime_ns, after.ctime_ns) == (
                before.size,
                before.mtime_ns,
                before.ctime_ns,
            ):
                self._bench.counters.files_copied += 1
                return self._checked(staged, found, before.ctime_ns, place)
            self._bench.store.discard(staged)
        raise SourceChangedError("hot: it changes while it is read")

    def _settled(self, found: SourceObject) -> SourceStat:
        """The object as it is, when any later change will show in its change time."""
        for _ in range(_SETTLE_TRIES):
            now = found.stat()
            delay = self._bench.source.settle_delay(now.ctime_ns)
            if delay <= 0:
                return now
            self._sleep(delay)
        raise SourceChangedError("hot: it keeps changing")

    def _checked(self, staged: Staged, found: SourceObject, ctime_ns: int, place: Place) -> Staged:
        """The copy, if its object has not left the place since it was found there.

        Leaving moves the change time, so an unchanged one needs no second look.
        """
        if ctime_ns != found.ctime_ns and not self._bench.stands(place, found.id):
            self._bench.store.discard(staged)
            raise AheadError("it was moved while it was copied; that record is still to come")
        return staged
