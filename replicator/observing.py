"""Measures the work of one site: times of steps, what is being done, what became whole and when.

An `Observer` of the engine. It is told on the threads that carry out steps, and asked by the one
that reports; a lock held for microseconds keeps the two apart. It never looks at source or site.
"""

from __future__ import annotations

import contextlib
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from mirrorfs.journal.record import Change, Kind, ObjectId, Place, Record
from replicator.applied import Applied, ApplyLog
from replicator.planner import Item, ObjectItem, PlaceItem
from replicator.stopwatch import SPENT, Progress, clock
from replicator.wording import escaped
from replicator.work import Doing, WorkReport, WorkWindow

_AWAITED_MAX: Final = 500_000
"""Files that are followed at once; above that the oldest are not logged."""

FOLLOWED: Final = frozenset({Kind.CREATE, Kind.WRITE, Kind.RENAME, Kind.LINK})
"""After such a record, if it is settled, the site is to have the file, whole, of that name."""

Key: TypeAlias = Place | ObjectId


@dataclass(slots=True)
class _Awaited:
    """A file that is to become whole at the site.

    Attributes:
        needs: its places, and the object itself, that are to be made true.
        places: those a step at which may make it true on the way.
    """

    record_ns: int
    path: bytes
    size: int = 0
    sequence: int = 0
    needs: set[Key] = field(default_factory=set)
    places: set[Place] = field(default_factory=set)


@dataclass(slots=True)
class _Running:
    item: Item
    began_ns: int
    began: int
    source: int
    site: int
    copy: int
    progress: Progress


class Observing:
    """See Observer.

    Attributes:
        workers: how many steps may run at once.
        object_waits: whether content or attributes of an object are still to be made true.
        failed_size: bytes of the file that was being copied when a step last ended in trouble.
    """

    def __init__(self, log: ApplyLog | None = None, workers: int = 1) -> None:
        self.workers = workers
        self.failed_size = 0
        self.object_waits: Callable[[ObjectId], bool] = lambda _: False
        self._log = log
        self._window = WorkWindow()
        self._lock = threading.Lock()
        self._running: dict[int, _Running] = {}
        self._awaited: dict[ObjectId, _Awaited] = {}
        self._by_place: dict[Place, set[ObjectId]] = {}

    def restart(self) -> None:
        """A new engine begins: what the last one was at is forgotten."""
        with self._lock:
            self._running.clear()
            self._awaited.clear()
            self._by_place.clear()

    # the engine tells --------------------------------------------------------------------------

    def fed(self, record: Record) -> None:
        """See Observer."""
        body = record.body
        if not isinstance(body, Change) or not stat.S_ISREG(body.mode):
            return
        with self._lock:
            if body.other is not None and not body.other_links:
                self._forget(body.other)
            if record.kind is Kind.UNLINK:
                self._removed(body)
            elif record.kind in FOLLOWED and body.links and record.settled:
                self._await(record, body)

    def _await(self, record: Record, body: Change) -> None:
        awaited = self._awaited.get(body.object)
        if awaited is None:
            if len(self._awaited) >= _AWAITED_MAX:
                self._forget(next(iter(self._awaited)))
            awaited = self._awaited[body.object] = _Awaited(record.time_ns, body.path or b"")
        awaited.sequence = record.sequence
        if body.path is not None:
            awaited.path = body.path
        if record.kind is Kind.WRITE:
            awaited.size = body.size
            awaited.needs.add(body.object)
            for each in body.places:
                self._watch(body.object, awaited, each)
            return
        place = body.places[0] if record.kind is Kind.LINK else body.places[-1]
        if record.kind is not Kind.LINK:
            self._forget_places(body.object, awaited)
        awaited.needs.add(place)
        self._watch(body.object, awaited, place)

    def _watch(self, identity: ObjectId, awaited: _Awaited, place: Place) -> None:
        awaited.places.add(place)
        self._by_place.setdefault(place, set()).add(identity)

    def _removed(self, body: Change) -> None:
        if not body.links:
            self._forget(body.object)
            return
        awaited = self._awaited.get(body.object)
        if awaited is not None:
            for place in body.places:
                self._forget_place(body.object, awaited, place)

    def begun(self, item: Item) -> None:
        """See Observer."""
        now, spent = time.time_ns(), SPENT
        spent.progress.size = spent.progress.copied = 0
        running = _Running(item, now, clock(), spent.source, spent.site, spent.copy, spent.progress)
        with self._lock:
            self._running[threading.get_ident()] = running
            record_ns = self._record_ns(item)
            if record_ns:
                self._window.waited(now, max(0, now - record_ns))

    def _record_ns(self, item: Item) -> int:
        if isinstance(item, ObjectItem):
            awaited = self._awaited.get(item.object)
            return 0 if awaited is None else awaited.record_ns
        if isinstance(item, PlaceItem):
            for identity in self._by_place.get(item.place, ()):
                return self._awaited[identity].record_ns
        return 0

    def done(self, item: Item) -> None:
        """See Observer."""
        with self._lock:
            now = self._ended()
            if isinstance(item, ObjectItem):
                self._made_true(item.object, item.object, now)
            elif isinstance(item, PlaceItem):
                for identity in tuple(self._by_place.get(item.place, ())):
                    self._made_true(identity, item.place, now)
                    if not self.object_waits(identity):  # it was made true on the way
                        self._made_true(identity, identity, now)

    def held(self, item: Item) -> None:
        """See Observer."""
        with self._lock:
            self._ended()

    def dropped(self, item: Item) -> None:
        """See Observer."""
        self.failed_size = SPENT.progress.size
        with self._lock:
            self._ended()

    def all_true(self) -> None:
        """Nothing waits and nothing is held: whatever was still followed is at the site."""
        with self._lock:
            now = time.time_ns()
            for identity in tuple(self._awaited):
                self._log_and_forget(identity, now)

    def _ended(self) -> int:
        now, running = time.time_ns(), self._running.pop(threading.get_ident(), None)
        if running is not None:
            spent = SPENT
            parts = (
                spent.source - running.source,
                spent.site - running.site,
                spent.copy - running.copy,
            )
            self._window.add(now, clock() - running.began, parts)
        return now

    def _made_true(self, identity: ObjectId, key: Key, now: int) -> None:
        awaited = self._awaited.get(identity)
        if awaited is None:
            return
        awaited.needs.discard(key)
        if not awaited.needs:
            self._log_and_forget(identity, now)

    def _log_and_forget(self, identity: ObjectId, now: int) -> None:
        awaited = self._forget(identity)
        if awaited is not None and self._log is not None:
            self._log.add(
                Applied(
                    awaited.record_ns,
                    now,
                    awaited.size,
                    awaited.sequence,
                    identity.hex(),
                    escaped(awaited.path),
                )
            )

    def _forget(self, identity: ObjectId) -> _Awaited | None:
        awaited = self._awaited.pop(identity, None)
        if awaited is not None:
            self._forget_places(identity, awaited)
        return awaited

    def _forget_places(self, identity: ObjectId, awaited: _Awaited) -> None:
        for place in tuple(awaited.places):
            self._forget_place(identity, awaited, place)

    def _forget_place(self, identity: ObjectId, awaited: _Awaited, place: Place) -> None:
        awaited.needs.discard(place)
        awaited.places.discard(place)
        waiting = self._by_place.get(place, set())
        waiting.discard(identity)
        if not waiting:
            self._by_place.pop(place, None)

    # asked for reports -------------------------------------------------------------------------

    def report(self, now_ns: int) -> WorkReport:
        """The last minute, and the steps under way."""
        with self._lock:
            running = [
                (
                    max(0, now_ns - each.began_ns),
                    Doing(
                        path=_shown(each.item),
                        since_ns=each.began_ns,
                        seconds=max(0, now_ns - each.began_ns) / 1e9,
                        size=each.progress.size,
                        copied=each.progress.copied,
                    ),
                )
                for each in self._running.values()
            ]
            return self._window.report(now_ns, self.workers, running)

    def flush(self) -> None:
        """Write the apply log; a full disk there must not stop us."""
        if self._log is not None:
            with self._lock:
                lines = self._log.take()
            with contextlib.suppress(OSError):
                self._log.write(lines, time.time_ns())


def _shown(item: Item) -> str:
    path = item.path
    if path is None and isinstance(item, PlaceItem):
        path = item.place.name
    return "?" if path is None else "/" + escaped(path)
