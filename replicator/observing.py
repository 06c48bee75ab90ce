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
from typing import Final

import msgspec

from mirrorfs.journal.record import Change, Kind, ObjectId, Place, Record
from replicator.applied import Applied, ApplyLog
from replicator.planner import Item, ObjectItem, PlaceItem
from replicator.stopwatch import Account, clock, here
from replicator.wording import escaped
from replicator.work import Doing, WorkReport, WorkWindow

_AWAITED_MAX: Final = 500_000
"""Files that are followed at once; above that the oldest are not logged."""

FOLLOWED: Final = frozenset({Kind.CREATE, Kind.WRITE, Kind.RENAME, Kind.LINK})
"""After such a record, if it is settled, the site is to have the file, whole, of that name."""


@dataclass(slots=True)
class _Awaited:
    """A file that is to become whole at the site.

    Attributes:
        content: the object itself is to be made true.
        place: its newest name, if that is to be made true.
        places: where it stands; a step there may make its content true on the way.
    """

    record_ns: int
    path: bytes
    size: int = 0
    sequence: int = 0
    content: bool = False
    place: Place | None = None
    places: list[Place] = field(default_factory=list)


@dataclass(slots=True)
class _Running:
    item: Item
    began_ns: int
    began: int
    source: int
    site: int
    copy: int
    account: Account
    copies: bool

    def told(self, now_ns: int) -> tuple[int, Doing]:
        """For how long it runs, and what."""
        lasted = max(0, now_ns - self.began_ns)
        told = Doing(
            path=_shown(self.item),
            since_ns=self.began_ns,
            seconds=lasted / 1e9,
            size=self.account.size,
            copied=self.account.copied,
        )
        return lasted, told


def _running(item: Item, *, copies: bool) -> _Running:
    """The calling thread begins with that."""
    at = here()
    at.size = at.copied = 0
    return _Running(item, time.time_ns(), clock(), at.source, at.site, at.copy, at, copies)


class Observing:
    """See Observer.

    Attributes:
        workers: how many files may be copied at once.
        object_waits: whether content or attributes of an object are still to be made true.
        failed_size: bytes of the file that was being copied when a step last ended in trouble.
    """

    def __init__(self, log: ApplyLog | None = None, workers: int = 1) -> None:
        self.workers = workers
        self.failed_size = 0
        self.object_waits: Callable[[ObjectId], bool] = lambda _: False
        self._log = log
        self._window = WorkWindow()
        self._copies = WorkWindow()
        self._lock = threading.Lock()
        self._running: dict[int, _Running] = {}
        self._awaited: dict[ObjectId, _Awaited] = {}
        self._by_place: dict[Place, ObjectId] = {}

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
        identity = body.object
        awaited = self._awaited.get(identity)
        if awaited is None:
            if len(self._awaited) >= _AWAITED_MAX:
                self._forget(next(iter(self._awaited)))
            awaited = self._awaited[identity] = _Awaited(record.time_ns, body.path or b"")
        awaited.sequence = record.sequence
        if body.path is not None:
            awaited.path = body.path
        if record.kind is Kind.WRITE:
            awaited.size = body.size
            awaited.content = True
            for each in body.places:
                self._watch(identity, awaited, each)
            return
        if record.kind is not Kind.LINK:
            self._forget_places(identity, awaited)
        awaited.place = body.places[0] if record.kind is Kind.LINK else body.places[-1]
        self._watch(identity, awaited, awaited.place)

    def _watch(self, identity: ObjectId, awaited: _Awaited, place: Place) -> None:
        if place not in awaited.places:
            awaited.places.append(place)
            self._by_place[place] = identity

    def _removed(self, body: Change) -> None:
        if not body.links:
            self._forget(body.object)
            return
        awaited = self._awaited.get(body.object)
        if awaited is not None and awaited.place in body.places:
            awaited.place = None

    def begun(self, item: Item) -> None:
        """See Observer."""
        running = _running(item, copies=False)
        now = running.began_ns
        with self._lock:
            self._running[threading.get_ident()] = running
            awaited = self._awaited_by(item)
            if awaited is not None:
                self._window.waited(now, max(0, now - awaited.record_ns))

    def copying(self, item: Item) -> None:
        """See Observer."""
        running = _running(item, copies=True)
        with self._lock:
            self._running[threading.get_ident()] = running

    def copied(self, item: Item) -> None:
        """See Observer."""
        self.failed_size = here().size
        with self._lock:
            self._ended()

    def _awaited_by(self, item: Item) -> _Awaited | None:
        if isinstance(item, PlaceItem):
            identity = self._by_place.get(item.place)
            return None if identity is None else self._awaited.get(identity)
        return self._awaited.get(item.object) if isinstance(item, ObjectItem) else None

    def done(self, item: Item) -> None:
        """See Observer."""
        with self._lock:
            now = self._ended()
            awaited = self._awaited_by(item)
            if awaited is None:
                return
            if isinstance(item, PlaceItem):
                identity = self._by_place[item.place]
                if awaited.place == item.place:
                    awaited.place = None
                if awaited.content and not self.object_waits(identity):  # true on the way
                    awaited.content = False
            elif isinstance(item, ObjectItem):
                identity = item.object
                awaited.content = False
            if not awaited.content and awaited.place is None:
                self._log_and_forget(identity, now)

    def held(self, item: Item) -> None:
        """See Observer."""
        with self._lock:
            self._ended()

    def dropped(self, item: Item) -> None:
        """See Observer."""
        self.failed_size = here().size or self.failed_size
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
            account = running.account
            parts = (
                account.source - running.source,
                account.site - running.site,
                account.copy - running.copy,
            )
            window = self._copies if running.copies else self._window
            window.add(now, clock() - running.began, parts)
        return now

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
        for place in awaited.places:
            if self._by_place.get(place) == identity:
                del self._by_place[place]
        awaited.places.clear()

    # asked for reports -------------------------------------------------------------------------

    def report(self, now_ns: int) -> WorkReport:
        """The last minute, and the steps under way."""
        with self._lock:
            running = list(self._running.values())
            deciding = [each.told(now_ns) for each in running if not each.copies]
            copying = [each.told(now_ns) for each in running if each.copies]
            copies = self._copies.report(now_ns, self.workers, copying)
            return msgspec.structs.replace(self._window.report(now_ns, 1, deciding), copies=copies)

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
