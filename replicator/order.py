"""Which steps may be done now, when many are under way; and which bytes are copied next.

Pure. A step claims the objects and directories it is about. Steps with a claim in common are done
in the order of the plan; all others pass each other while bytes of one are on their way. What a
step claims is fixed when it enters: what records say later of the same place cannot make it wrong,
since every step looks at the source itself.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from operator import is_not
from typing import Final, Generic, TypeAlias, TypeVar

from mirrorfs.journal.record import ObjectId, Place
from replicator.commit_order import CommitOrder
from replicator.planner import Item, ObjectItem, PlaceItem, Position

SMALL_BYTES: Final = 1 << 20
"""A file up to this size is small: a share of the workers is kept for such files."""


def claims(
    item: Item, order: CommitOrder, places: Callable[[ObjectId], Iterable[Place]]
) -> tuple[Hashable, ...]:
    """What that step must not be done beside. `places`: those known of an object."""
    found: dict[Hashable, None] = {}
    if order is CommitOrder.JOURNAL:
        found[None] = None
    elif isinstance(item, PlaceItem):
        found[item.place if order is CommitOrder.ANY else item.place.directory] = None
        found.update(dict.fromkeys(item.objects))
    elif isinstance(item, ObjectItem):
        found[item.object] = None
        if order is CommitOrder.DIRECTORY:
            found.update(dict.fromkeys(place.directory for place in places(item.object)))
    return tuple(found)


@dataclass(slots=True, eq=False)
class _Entry:
    """`blockers`: in how many queues another one is before it. `waits`: for its bytes. `urgent`: it
    goes before those that are not."""

    item: Item
    position: Position
    claims: tuple[Hashable, ...]
    blockers: int = 0
    waits: bool = False
    urgent: bool = False


class Order:
    """The steps that were taken from the plan and are not done.

    Attributes:
        last: the greatest position that has entered.
        urgent: how many steps go before the others.
    """

    def __init__(self) -> None:
        self.last: Position | None = None
        self.urgent = 0
        self._entries: dict[Item, _Entry] = {}
        self._queues: dict[Hashable, deque[_Entry]] = {}
        self._ready: list[tuple[bool, Position, int, _Entry]] = []
        self._serial = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, item: Item) -> bool:
        return item in self._entries

    def enter(self, item: Item, claims: tuple[Hashable, ...]) -> bool:
        """Take a step in; whether it may be done now."""
        entry = self._entries[item] = _Entry(item, item.position, claims)
        if self.last is None or item.position > self.last:
            self.last = item.position
        holds_up = False
        for claim in claims:
            queue = self._queues.get(claim)
            if queue is None:
                queue = self._queues[claim] = deque()
            if not queue:
                queue.append(entry)
            else:
                holds_up |= self._line_up(queue, entry)
        if holds_up:
            self.hurry(item)
        if entry.blockers == 0:
            self._offer(entry)
        return entry.blockers == 0

    @staticmethod
    def _line_up(queue: deque[_Entry], entry: _Entry) -> bool:
        """Nearly always at the end: only what was postponed, or held, comes before others. Whether
        one that is urgent comes after it."""
        at = len(queue)
        while at > 0 and queue[at - 1].position > entry.position:
            at -= 1
        queue.insert(at, entry)
        if at > 0:
            entry.blockers += 1
        else:
            queue[1].blockers += 1
        return any(queue[each].urgent for each in range(at + 1, len(queue)))

    def _offer(self, entry: _Entry) -> None:
        self._serial += 1
        heapq.heappush(self._ready, (not entry.urgent, entry.position, self._serial, entry))

    def hurry(self, item: Item) -> None:
        """It goes before the others, and so does all that has to be done before it."""
        entry = self._entries.get(item)
        if entry is None or entry.urgent:
            return
        # The latest first: so each queue is looked through once, up to the last that is wanted.
        found, seen = [(_latest_first(entry.position), id(entry), entry)], set[Hashable]()
        while found:
            entry = heapq.heappop(found)[2]
            if entry.urgent:
                continue
            entry.urgent = True
            self.urgent += 1
            if entry.blockers == 0 and not entry.waits:
                self._offer(entry)
            for claim in entry.claims:
                if claim in seen:
                    continue
                seen.add(claim)
                before = takewhile(partial(is_not, entry), self._queues[claim])
                for other in before:
                    if not other.urgent:
                        heapq.heappush(found, (_latest_first(other.position), id(other), other))

    def ready(self) -> Item | None:
        """The first step that may be done now; it stays until `wait` or `leave`."""
        while self._ready:
            entry = self._ready[0][3]
            if self._entries.get(entry.item) is entry and entry.blockers == 0 and not entry.waits:
                return entry.item
            heapq.heappop(self._ready)
        return None

    def first(self, item: Item) -> bool:
        """Whether it is here, and nothing that it must not be done beside is before it."""
        entry = self._entries.get(item)
        return entry is not None and entry.blockers == 0

    def wait(self, item: Item) -> None:
        """It cannot go on before `resume`."""
        self._entries[item].waits = True

    def waits(self, item: Item) -> bool:
        """Whether it is here, and waits."""
        entry = self._entries.get(item)
        return entry is not None and entry.waits

    def resume(self, item: Item) -> None:
        """It may have what it waited for."""
        entry = self._entries.get(item)
        if entry is not None and entry.waits:
            entry.waits = False
            if entry.blockers == 0:
                self._offer(entry)

    def leave(self, item: Item) -> None:
        """It was done, or is remembered elsewhere."""
        entry = self._entries.pop(item, None)
        if entry is None:
            return
        self.urgent -= entry.urgent
        for claim in entry.claims:
            queue = self._queues[claim]
            if queue[0] is not entry:
                queue.remove(entry)
                continue
            queue.popleft()
            if not queue:
                del self._queues[claim]
                continue
            first = queue[0]
            first.blockers -= 1
            if first.blockers == 0 and not first.waits:
                self._offer(first)
        if not self._entries:
            self.last = None


def _latest_first(position: Position) -> tuple[int, int]:
    return -position[0], -position[1]


_Job = TypeVar("_Job")
_Waiting: TypeAlias = tuple[int, int, _Job]
"""Since when, which (a number of its own), what."""


class CopyQueue(Generic[_Job]):
    """Files that wait for a worker, the oldest first; some workers are kept for what cannot wait.

    Large files take all workers but a quarter (one at least): the rest copies small files, and what
    is late, which goes before all others.
    """

    def __init__(self, workers: int) -> None:
        """So many workers."""
        self._large_max = max(1, workers - max(1, workers // 4))
        self._large_busy = 0
        self._waiting: set[int] = set()
        self._small: list[_Waiting[_Job]] = []
        self._large: list[_Waiting[_Job]] = []
        self._late: list[tuple[int, _Waiting[_Job], bool]] = []
        self._serial = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, job: _Job, size: int, since_ns: int, deadline_ns: int) -> None:
        """That file, of so many bytes, waits; its record was made then, so long after that it is
        late."""
        self._serial += 1
        self._waiting.add(self._serial)
        large = size > SMALL_BYTES
        waiting = (since_ns, self._serial, job)
        heapq.heappush(self._large if large else self._small, waiting)
        heapq.heappush(self._late, (since_ns + deadline_ns, waiting, large))

    def take(self, now_ns: int) -> tuple[_Job, bool] | None:
        """The next one, and whether it takes one of the large files' workers."""
        while self._late and self._late[0][1][1] not in self._waiting:
            heapq.heappop(self._late)
        if self._late and self._late[0][0] <= now_ns:
            _, waiting, is_large = heapq.heappop(self._late)
            return self._taken(waiting, is_large)
        small, large = self._first(self._small), self._first(self._large)
        free = self._large_busy < self._large_max
        if large is not None and free and (small is None or large[:2] < small[:2]):
            return self._taken(large, True)
        return None if small is None else self._taken(small, False)

    def _first(self, queue: list[_Waiting[_Job]]) -> _Waiting[_Job] | None:
        while queue and queue[0][1] not in self._waiting:
            heapq.heappop(queue)
        return queue[0] if queue else None

    def _taken(self, waiting: _Waiting[_Job], is_large: bool) -> tuple[_Job, bool]:
        self._waiting.remove(waiting[1])
        return waiting[2], is_large and self.lend()

    def lend(self) -> bool:
        """Take one of the large files' workers, if one is free; `done` gives it back."""
        free = self._large_busy < self._large_max
        self._large_busy += free
        return free

    def done(self, counted: bool) -> None:
        """A file that was taken has been copied; `counted` as `take` said."""
        self._large_busy -= counted
