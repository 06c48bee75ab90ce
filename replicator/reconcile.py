"""Reconcile: compare a directory with the site and apply the difference.

The same step as ever, for every name found on either side, directory by directory, with no lock
on the tree. It serves the initial copy, recovery, gaps and repair. Over several directories it
sweeps them all first (what is gone or elsewhere leaves, living objects to limbo) and creates
afterwards, so that renames stay renames.
"""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

from mirrorfs.journal.record import ObjectId, Place
from replicator import schedule
from replicator.held import DeferredError
from replicator.moves import Mode
from replicator.planner import Item, ObjectItem, PlaceItem, Position, ReconcileItem
from replicator.step import Step
from replicator.stores.base import Directory, SiteEntry, StoreError
from replicator.view import SourceChangedError, SourceError

_TOUCHED_MAX = 4096
RECONCILING = Mode(trust=False, exact=True, reconciles=True)


@dataclass(slots=True)
class Reconciled:
    """What came of a reconcile.

    Attributes:
        failed: what could not be made true, and why: somebody must come back to it.
        seen: the directories it was in.
        left: living objects that stand no longer where the site had them.
    """

    failed: list[tuple[Item, Exception]] = field(default_factory=list)
    seen: set[ObjectId] = field(default_factory=set)
    left: set[ObjectId] = field(default_factory=set)

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

    def reconcile(
        self, *items: ReconcileItem, adopt: bool = False, keep: bool = True, again: bool = False
    ) -> Reconciled:
        """Make directories true, their own attributes included; with `whole` all below them, too.

        All are swept before anything is created: what moved from one to another moves.
        `keep`: what has gone from the source goes to `kept`. `again`: if this is cut off, the same
        items come again; so a doubt about one that is `whole` is settled with it.
        Raises StoreError and SourceError where going on would be of no use.
        """
        modes = [
            replace(RECONCILING, keep=keep, adopt=adopt, descends=item.whole) for item in items
        ]
        done, swept = Reconciled(), Reconciled()  # what fails when it is swept fails again below
        for item, mode in zip(items, modes, strict=True):
            if not adopt:
                self._walk(item, swept, partial(self._sweep, mode=mode, swept=swept))
        for item, mode in zip(items, modes, strict=True):
            if again and item.whole:
                self._step.bench.doubt.settled(item.directory)
            create = partial(self._create, mode=mode, position=item.position, done=done)
            self._walk(item, done, create)
        self._follow(swept.left, items[0], modes[0], done)
        return done

    def _follow(
        self, left: set[ObjectId], item: ReconcileItem, mode: Mode, done: Reconciled
    ) -> None:
        """What has left a directory may have changed there; it may stand in others by further
        names, which nobody looks at."""
        for identity in sorted(left):
            with done.unless_fatal(ObjectItem(identity, item.position)):
                copies = self._step.bench.map.copies(identity)
                if any(copy.place is not None for copy in copies):
                    self._step.object(identity, mode)

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
                children = visit(at)
                done.seen.add(at)
                if item.whole:
                    waiting += children
            if len(self._step.bench.touched) > _TOUCHED_MAX:
                self._step.finish()

    def _sweep(self, identity: ObjectId, mode: Mode, swept: Reconciled) -> list[ObjectId]:
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
                    self._note_leaving(entry, swept)
                    self._step.moves.vacate(directory, place, entry, mode)
                    continue
                with found:
                    if not schedule.is_copy(found, entry):
                        self._note_leaving(entry, swept)
                        self._displace(directory, place, entry, mode)
                    elif stat.S_ISDIR(entry.mode):
                        children.append(found.id)
        return children

    def _note_leaving(self, entry: SiteEntry, swept: Reconciled) -> None:
        """It may have further names. A directory has none."""
        if entry.mark and not stat.S_ISDIR(entry.mode) and self._step.bench.alive(entry):
            swept.left.add(entry.mark.object)

    def _displace(self, directory: Directory, place: Place, entry: SiteEntry, mode: Mode) -> None:
        """Another object stands there now: what lives goes to limbo."""
        if stat.S_ISDIR(entry.mode):
            self._step.moves.vacate(directory, place, entry, mode)
        elif self._step.bench.alive(entry):
            self._step.moves.save(directory, place, entry, replace(mode, keep=False))

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
                self._step.directory_attributes(source, mode)
            names = sorted({*self._store.list(directory), *self._source.list(source)})
            for name in names:
                place = Place(identity, name)
                with done.unless_fatal(PlaceItem(place, position)):
                    self._step.place(place, mode)
            return self._directories(identity, names)

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
