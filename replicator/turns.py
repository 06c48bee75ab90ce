"""Whose turn it is: steps of the plan, held ones, what comparisons owe; many are under way.

A step is under way from its first look until it was done or is held. One that waits for its bytes,
or for the records that explain what it saw, keeps its turn: what shares nothing with it passes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator

from mirrorfs.journal.record import Change, ObjectId, Place, SequenceNumber
from replicator.commit_order import CommitOrder
from replicator.held import Key, key_of
from replicator.order import Order, claims
from replicator.patience import Patience
from replicator.planner import Item, ObjectItem, PlaceItem, Plan, ReconcileItem
from replicator.step import Step
from replicator.surroundings import Surroundings

_AHEAD_NS = 1_000_000_000
_UNDER_WAY_MAX = 1024
"""So many steps are taken from the plan before one of them is done."""


class Turns:
    """The steps of one site that are under way, or wait for their turn."""

    def __init__(self, plan: Plan, step: Step, world: Surroundings) -> None:
        self._plan = plan
        self._names = step.bench.names
        self._staging = step.staging
        self._world = world
        self._order = Order()
        self._retries: dict[Item, None] = {}
        self._owed: dict[Item, None] = {}
        self._ahead: dict[Item, int] = {}
        self._patience = Patience()
        self._blocked: deque[PlaceItem | ObjectItem] = deque()

    def next(self) -> Item | None:
        """The step to do now. What shares nothing with those under way passes them. Nothing passes
        a reconcile, and it passes nothing but what is owed, or was held: what a record still to be
        done brings would be taken for something that has records for all that is in it."""
        plan, order = self._plan, self._order
        self._resume()
        while True:
            fresh = plan.fresh()
            item = order.ready()
            full = len(order) >= _UNDER_WAY_MAX
            if isinstance(fresh, ReconcileItem):
                full = len(order) > len(self._owed) + len(self._retries)
            late = order.last is not None and fresh is not None and fresh.position < order.last
            if item is not None and (full or not late):
                if plan.waits(item) or item in self._retries or item in self._owed:
                    return item
                self.leave(item)  # it was done on the way to something else
            elif fresh is None or full:
                return None
            elif isinstance(fresh, ReconcileItem):
                return fresh
            else:
                plan.take()
                self._enter(fresh)

    def _resume(self) -> None:
        arrived, now_ns = self._staging.arrived, self._world.clock_ns()
        for each, since_ns in self._ahead.items():
            if now_ns - since_ns >= _AHEAD_NS:
                self._order.resume(each)
        for waiting in self._patience.items():
            if not self._patience.wait(waiting, ObjectId(b""), now_ns):
                self._order.resume(waiting)
        while arrived:
            waited = arrived.pop()
            if waited is not None:
                self._order.resume(waited)

    def _enter(self, item: PlaceItem | ObjectItem) -> bool:
        ready = self._order.enter(item, claims(item, self._world.commit_order, self._places))
        if not ready:
            self._blocked.append(item)
        return ready

    def _places(self, identity: ObjectId) -> Iterator[Place]:
        yield from self._plan.hints(identity).places
        yield from self._names.places(identity)

    def has(self, item: Item) -> bool:
        """Whether it is that step's turn."""
        return item not in self._order or self._order.first(item)

    def retry(self, item: PlaceItem | ObjectItem) -> bool:
        """Try that held step again; whether it is its turn."""
        self._retries[item] = None
        return self._enter(item)

    @property
    def retries(self) -> set[Key]:
        """The held steps that are tried again now."""
        return {key_of(each) for each in self._retries}

    def owe(self, items: Iterable[PlaceItem | ObjectItem], *, begun: bool = True) -> None:
        """A comparison needs bytes for these; `begun`: they are being copied. What records tell of
        the same directories comes after them: it would be seen beside older data otherwise."""
        for item in items:
            self._owed[item] = None
            self._order.enter(item, claims(item, CommitOrder.DIRECTORY, self._places))
            if begun:
                self._order.wait(item)

    def wait(self, item: Item) -> None:
        """Its bytes are on their way."""
        self._ahead.pop(item, None)
        self._patience.end(item, self._world.clock_ns())
        self._order.wait(item)

    def comes(self, item: Item) -> bool:
        """Whether the step waits for the next records, and others for it, before it is held."""
        now_ns = self._world.clock_ns()
        if item not in self._order or item in self._retries or item in self._owed:
            return False
        if now_ns - self._ahead.setdefault(item, now_ns) >= _AHEAD_NS:
            return False
        self._order.wait(item)
        return True

    def follows(self, item: Item, directory: ObjectId) -> bool:
        """Whether the step waits for one before it that is held in that directory."""
        if item not in self._order or item in self._retries or item in self._owed:
            return False
        if not self._patience.wait(item, directory, self._world.clock_ns()):
            return False
        self._order.wait(item)
        return True

    @property
    def waiting(self) -> bool:
        """Whether bytes, or records, are on their way: there will be more to do."""
        return self._staging.under_way or bool(self._ahead) or bool(self._patience)

    @property
    def due_ns(self) -> list[int]:
        """When steps that wait for records are held."""
        ahead = [since_ns + _AHEAD_NS for since_ns in self._ahead.values()]
        return ahead + self._patience.due_ns()

    def told(self, change: Change) -> None:
        """What steps wait for may not be what they need any more."""
        if len(self._staging):
            for place in change.places:
                at = self._plan.place(place)
                if at is not None:
                    self._order.resume(at)
                    self._renew(at)
            about = self._plan.object(change.object)
            if about is not None:
                self._order.resume(about)
            self._bury(change)

    def _bury(self, change: Change) -> None:
        """What that change was the end of needs no copy."""
        gone = change.other if change.other_links == 0 else None
        if change.links == 0:
            gone = change.object
        item = None if gone is None else self._plan.object(gone)
        if item is not None:
            self._order.resume(item)
            if not self._order.first(item):
                self._staging.renounce(item, None)

    def _renew(self, item: PlaceItem) -> None:
        """What is copied before the turn of that step has gone from its place: it is not copied any
        further, but what has come there."""
        came = item.arrived
        stands = came is not None and came[0] >= max(item.vacated, default=0)
        newest = came[1] if came is not None and stands else None
        if not self._order.first(item) and self._staging.renounce(item, newest):
            self._blocked.append(item)

    def read(self) -> None:
        """There were new records."""
        for item in (*self._ahead, *self._patience.items()):
            self._order.resume(item)

    def leave(self, item: Item) -> None:
        """It was done, or is remembered elsewhere."""
        self._order.leave(item)
        self._ahead.pop(item, None)
        self._patience.leave(item, self._world.clock_ns())
        self._retries.pop(item, None)
        self._owed.pop(item, None)
        self._staging.release(item)

    def hurry(self, items: Iterable[Item], up_to: SequenceNumber) -> None:
        """Jobs wait for these, of records up to that one: they go before all others, with what has
        to be done before them. Nothing passes a reconcile for that, either."""
        plan = self._plan
        while (fresh := plan.fresh()) is not None and fresh.position[0] <= up_to:
            if isinstance(fresh, ReconcileItem):
                break
            plan.take()
            self._enter(fresh)
        for item in items:
            self._order.hurry(item)

    @property
    def hurried(self) -> int:
        """How many steps go before all others."""
        return self._order.urgent

    def prefetch(self, begin: Callable[[PlaceItem | ObjectItem], None]) -> None:
        """Have bytes copied for steps whose turn has not come yet."""
        while self._blocked and len(self._staging) < self._world.copies_max:
            item = self._blocked.popleft()
            if item in self._order and self._plan.waits(item) and not self._order.waits(item):
                self._staging.owner = (item, item.time_ns)
                begin(item)
