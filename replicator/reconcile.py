"""Reconcile: compare a directory with the site and apply the difference.

The same step as ever, for every name found on either side, directory by directory, with no lock
on the tree. It serves the initial copy, recovery, gaps and repair. Over several directories it
sweeps them all first (what is gone or elsewhere leaves, living objects to limbo) and creates
afterwards, so that renames stay renames.
"""

from __future__ import annotations

import contextlib
import stat
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TypeVar

from mirrorfs.journal.record import ObjectId, Place
from replicator import schedule
from replicator.held import DeferredError
from replicator.moves import NORMAL, Mode
from replicator.planner import Item, ObjectItem, PlaceItem, Position, ReconcileItem
from replicator.staging import CopyingError
from replicator.step import Step
from replicator.stores.base import StoreError
from replicator.view import SourceChangedError, SourceError

_Result = TypeVar("_Result")
_TOUCHED_MAX = 4096
_LATER_MAX = 64


@dataclass(slots=True)
class Reconciled:
    """What came of a reconcile.

    Attributes:
        failed: what could not be made true, and why: somebody must come back to it.
        seen: the directories it was in.
    """

    failed: list[tuple[Item, Exception]] = field(default_factory=list)
    seen: set[ObjectId] = field(default_factory=set)

    @contextlib.contextmanager
    def unless_fatal(self, item: Item) -> Iterator[None]:
        """What fails inside, but would not fail everywhere else, is noted as `item`."""
        try:
            yield
        except (DeferredError, SourceChangedError) as error:
            self.failed.append((item, error))
        except (StoreError, SourceError) as error:
            if error.transient:
                raise
            self.failed.append((item, error))


class Reconciler:
    """Reconciles directories of one site."""

    def __init__(self, step: Step, tick: Callable[[], None]) -> None:
        """Reconcile by `step`; `tick` is called for every directory and may raise to stop."""
        self._step = step
        self._source = step.bench.source
        self._store = step.bench.store
        self._tick = tick
        self._later: deque[PlaceItem] = deque()

    def reconcile(
        self, item: ReconcileItem, *, adopt: bool = False, keep: bool = True
    ) -> Reconciled:
        """Make a directory true, its own attributes included; with `item.whole` all below it, too.

        `keep`: what has gone from the source goes to `kept`.
        Raises StoreError and SourceError where going on would be of no use.
        """
        mode = Mode(trust=False, keep=keep, exact=True, adopt=adopt, descends=item.whole)
        if not adopt:
            swept = Reconciled()  # what fails here fails again below
            self._walk(item, swept, lambda at: self._sweep(at, mode))
        done = Reconciled()
        try:
            self._walk(item, done, lambda at: self._create(at, mode, item.position, done))
            self._catch_up(mode, done, 0)
        finally:
            for each in self._later:
                self._step.staging.release(each)
            self._later.clear()
        return done

    def settle_doubts(self, position: Position, *, keep: bool) -> Reconciled:
        """Reconcile, whole depth, what the steps left in doubt. Raises what `reconcile` raises."""
        doubt = self._step.bench.doubt
        total = Reconciled()
        while (identity := doubt.next()) is not None:
            done = self.reconcile(ReconcileItem(identity, True, position), keep=keep)
            total.failed += done.failed
            total.seen |= done.seen
            doubt.settled(identity)
        return total

    def _walk(
        self, item: ReconcileItem, done: Reconciled, visit: Callable[[ObjectId], list[ObjectId]]
    ) -> None:
        waiting = [item.directory]
        while waiting:
            self._tick()
            at = waiting.pop()
            with done.unless_fatal(replace(item, directory=at, path=None)):
                children = self._patiently(item, lambda at=at: visit(at))  # type: ignore[misc]
                done.seen.add(at)
                if item.whole:
                    waiting += children
            if len(self._step.bench.touched) > _TOUCHED_MAX:
                self._step.finish()

    def _sweep(self, identity: ObjectId, mode: Mode) -> list[ObjectId]:
        """Take away what the source has not there; the directories that stay."""
        source = self._source.open(identity)
        if source is None:
            return []
        children: list[ObjectId] = []
        with source:
            directory = self._step.bench.map.find(identity)
            if directory is None:
                return []
            for name in self._store.list(directory):
                entry = self._store.lookup(directory, name)
                if entry is None:
                    continue
                found = self._source.lookup(source, name)
                place = Place(identity, name)
                if found is None:
                    self._step.moves.vacate(directory, place, entry, mode)
                    continue
                with found:
                    if schedule.is_copy(found, entry):
                        if stat.S_ISDIR(entry.mode):
                            children.append(found.id)
                    elif stat.S_ISDIR(entry.mode):
                        self._step.moves.vacate(directory, place, entry, mode)
                    elif self._step.bench.alive(entry):
                        self._step.moves.save(directory, place, entry, NORMAL)
        return children

    def _create(
        self, identity: ObjectId, mode: Mode, position: Position, done: Reconciled
    ) -> list[ObjectId]:
        """Make every place in the directory true; the directories in it."""
        source = self._source.open(identity)
        if source is None:
            return []
        bench = self._step.bench
        with source:
            directory = self._step.directory(source, mode)
            if directory is None:
                return []
            bench.counters.directories_reconciled += 1
            with done.unless_fatal(ObjectItem(identity, position)):
                own = ObjectItem(identity, position)
                self._patiently(own, lambda: self._step.directory_attributes(source, mode))
            names = sorted({*self._store.list(directory), *self._source.list(source)})
            for name in names:
                item = PlaceItem(Place(identity, name), position)
                with done.unless_fatal(item):
                    self._place(item, mode)
                self._catch_up(mode, done, _LATER_MAX)
            return self._directories(identity, names)

    def _place(self, item: PlaceItem, mode: Mode) -> None:
        """Make a place true, or come back to it when its bytes are there."""
        staging = self._step.staging
        staging.owner = (item, 0)
        try:
            self._step.place(item.place, mode)
        except CopyingError:
            self._later.append(item)
        except BaseException:
            staging.release(item)
            raise
        else:
            staging.release(item)

    def _catch_up(self, mode: Mode, done: Reconciled, leave: int) -> None:
        """Wait for bytes until no more than so many places are to be come back to."""
        while len(self._later) > leave:
            self._tick()
            item = self._later.popleft()
            with done.unless_fatal(item):
                self._patiently(item, lambda item=item: self._step.place(item.place, mode))  # type: ignore[misc]

    def _patiently(self, owner: Item, act: Callable[[], _Result]) -> _Result:
        """Do that; where bytes are needed, wait for them."""
        staging = self._step.staging
        try:
            while True:
                staging.owner = (owner, 0)
                try:
                    return act()
                except CopyingError:
                    staging.wait()
        finally:
            staging.release(owner)

    def _directories(self, identity: ObjectId, names: list[bytes]) -> list[ObjectId]:
        children: list[ObjectId] = []
        source = self._source.open(identity)
        if source is None:
            return children
        with source:
            for name in names:
                found = self._source.lookup(source, name)
                if found is not None:
                    with found:
                        if stat.S_ISDIR(found.mode):
                            children.append(found.id)
        return children
