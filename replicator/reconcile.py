"""Reconcile: compare directories with the site and apply the difference, a few names at a time.

The same step as ever, for every name found on either side, directory by directory, with no lock
on the tree. It serves the initial copy, recovery, gaps, doubts and repair. Over several directories
it sweeps them all first (what is gone or elsewhere leaves, living objects to limbo) and creates
afterwards, so that renames stay renames. Records are applied in between; where a comparison is, and
goes on after a kill, is kept in `comparison`.
"""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from mirrorfs.journal.record import ObjectId, Place
from replicator import schedule
from replicator.comparison import At, Comparison
from replicator.escape import Sightings
from replicator.held import AheadError, DeferredError
from replicator.moves import Mode
from replicator.planner import Item, ObjectItem, PlaceItem, Position, ReconcileItem
from replicator.step import Step
from replicator.stores.base import Directory, SiteEntry, StoreError
from replicator.view import SourceChangedError, SourceError, SourceObject

_TOUCHED_MAX = 4096
_RECONCILING = Mode(trust=False, exact=True, reconciles=True)


@dataclass(slots=True)
class Reconciled:
    """What came of comparing.

    Attributes:
        failed: what could not be made true, and why: somebody must come back to it.
        made: roots that need no other try themselves.
    """

    failed: list[tuple[Item, Exception]] = field(default_factory=list)
    made: list[ReconcileItem] = field(default_factory=list)

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


def _mode(comparison: Comparison) -> Mode:
    return replace(
        _RECONCILING,
        keep=comparison.keep,
        adopt=comparison.adopt,
        descends=comparison.item.whole,
    )


class Reconciler:
    """Compares directories of one site. All methods raise StoreError and SourceError where going on
    would be of no use."""

    def __init__(self, step: Step, tick: Callable[[], None], names_max: int) -> None:
        """Reconcile by `step`, so many names at a time; `tick` may raise to stop."""
        self._step = step
        self._source = step.bench.source
        self._store = step.bench.store
        self._escape = step.bench.escape
        self._tick = tick
        self._names_max = names_max
        self._files = Sightings()
        self._outside = Sightings()

    # comparisons -------------------------------------------------------------------------------

    def advance(self, comparison: Comparison, done: Reconciled) -> bool:
        """Do the next part of it; whether there was one."""
        self._tick()
        if len(self._step.bench.touched) > _TOUCHED_MAX:
            self._step.finish()
        here = comparison.here()
        if here is not None:
            here.at_name = False
        try:
            return self._advance(comparison, done)
        except (DeferredError, SourceChangedError, StoreError, SourceError) as error:
            here, fatal = comparison.here(), isinstance(error, StoreError | SourceError)
            if here is None or (fatal and error.transient):  # type: ignore[union-attr]
                raise
            if comparison.creating:  # what fails when it is swept fails again when it is created
                done.failed.append((comparison.directory(), error))
            comparison.leave()
            return True

    def _advance(self, comparison: Comparison, done: Reconciled) -> bool:
        here = self._next(comparison, done)
        if here is None:
            return False
        mode, bench = _mode(comparison), self._step.bench
        source = self._source.open(here.directory)
        if source is None:
            self._leave(comparison, done)
            return True
        with source:
            directory: Directory | None = None
            if not stat.S_ISDIR(source.mode):
                self._follow(source.id, comparison, done)
            elif comparison.creating:
                directory = self._step.directory(source, mode)
            else:
                directory = bench.map.find(source.id)
            if directory is None:
                self._leave(comparison, done)
                return True
            if here.names is None:
                self._list(here, source, directory, comparison, done)
            visit = self._create if comparison.creating else self._sweep
            for name in list(islice(here.names or (), self._names_max)):
                here.at_name = True
                child = visit(source, directory, name, mode, comparison.position, done)
                here.at_name = False
                here.done(child if comparison.item.whole else None)
        if not here.names:
            self._names_done(here, comparison, done)
        return True

    def _next(self, comparison: Comparison, done: Reconciled) -> At | None:
        """The next directory with names to look at."""
        while True:
            here = comparison.here()
            if here is None:
                item = comparison.next_root()
                if item is None:
                    return None
                if self._is_done(item.directory, comparison):
                    done.made.append(item)
                    continue
                if comparison.creating and item.whole and not comparison.doubt:
                    self._step.bench.doubt.settled(item.directory)
                comparison.enter(item.directory)
            elif not here.below:
                return here
            else:
                self._go_on_below(here, comparison)

    def _go_on_below(self, here: At, comparison: Comparison) -> None:
        if here.children is None:
            here.found(self._directories(here))
        child = here.into()
        if child is not None:
            if not self._is_done(child, comparison):
                comparison.enter(child)
        elif here.children is not None:
            comparison.leave()
            if comparison.creating:
                self._escape.saw(here.directory)

    def _is_done(self, directory: ObjectId, comparison: Comparison) -> bool:
        """Whether another comparison was there, and in all below, since this one began."""
        return comparison.creating and self._escape.seen.since(directory, comparison.began)

    def _follow(self, identity: ObjectId, comparison: Comparison, done: Reconciled) -> None:
        """An object has left a directory, and may have changed before: make its other names
        true."""
        if comparison.creating:
            with done.unless_fatal(ObjectItem(identity, comparison.position)):
                if any(copy.place is not None for copy in self._step.bench.map.copies(identity)):
                    self._step.object(identity, _mode(comparison))

    def _leave(self, comparison: Comparison, done: Reconciled) -> None:
        """It is nowhere any more."""
        if comparison.creating and comparison.at_root:
            done.made.append(comparison.item)
        comparison.leave()

    def _names_done(self, here: At, comparison: Comparison, done: Reconciled) -> None:
        if comparison.creating:
            self._files.add(here.directory, self._escape.now())
            if comparison.at_root:
                done.made.append(comparison.item)
        if comparison.item.whole:
            here.go_below()
        else:
            comparison.leave()

    def _list(
        self,
        here: At,
        source: SourceObject,
        directory: Directory,
        comparison: Comparison,
        done: Reconciled,
    ) -> None:
        names = {*self._store.list(directory)}
        if comparison.creating:
            self._step.counters.directories_reconciled += 1
            with done.unless_fatal(ObjectItem(here.directory, comparison.position)):
                self._step.directory_attributes(source, _mode(comparison))
            names.update(self._source.list(source))
            if comparison.at_root:  # it may have been made before a kill, with those above it
                self._step.touch_above(source)
        here.list(names)

    def _directories(self, here: At) -> Iterator[tuple[bytes, ObjectId]]:
        """Directories that are still to be gone into: it was cut off, or there are many."""
        source = self._source.open(here.directory)
        if source is None:
            return
        with source:
            for name in here.still(self._source.list(source)):
                child = self._directory_at(source, name)
                if child is not None:
                    yield name, child

    def _directory_at(self, source: SourceObject, name: bytes) -> ObjectId | None:
        found = self._source.lookup(source, name)
        if found is None:
            return None
        with found:
            return found.id if stat.S_ISDIR(found.mode) else None

    # names -------------------------------------------------------------------------------------

    def _sweep(
        self,
        source: SourceObject,
        directory: Directory,
        name: bytes,
        mode: Mode,
        position: Position,
        done: Reconciled,
    ) -> ObjectId | None:
        """Take away what the source has not there; the directory, if it is one that stays."""
        with Reconciled().unless_fatal(PlaceItem(Place(source.id, name), position)):
            entry = self._store.lookup(directory, name)
            found = None if entry is None else self._source.lookup(source, name)
            place = Place(source.id, name)
            if entry is None:
                return None
            if found is None:
                self._note_leaving(entry, place)
                self._step.moves.vacate(directory, place, entry, mode)
                return None
            with found:
                if schedule.is_copy(found, entry):
                    return found.id if stat.S_ISDIR(found.mode) else None
                self._note_leaving(entry, place)
                self._displace(directory, place, entry, mode)
        return None

    def _note_leaving(self, entry: SiteEntry, place: Place) -> None:
        """It may have changed, and stand in others by further names, where nobody looks. (A
        directory has none.)"""
        bench = self._step.bench
        if entry.mark and not stat.S_ISDIR(entry.mode) and bench.alive(entry):
            copies = bench.map.copies(entry.mark.object)
            if any(copy.place not in (None, place) for copy in copies):
                bench.doubt.add(entry.mark.object)

    def _displace(self, directory: Directory, place: Place, entry: SiteEntry, mode: Mode) -> None:
        """Another object stands there now: what lives goes to limbo."""
        if stat.S_ISDIR(entry.mode):
            self._step.moves.vacate(directory, place, entry, mode)
        elif self._step.bench.alive(entry):
            self._step.moves.save(directory, place, entry, replace(mode, keep=False))

    def _create(
        self,
        source: SourceObject,
        directory: Directory,
        name: bytes,
        mode: Mode,
        position: Position,
        done: Reconciled,
    ) -> ObjectId | None:
        """Make a place true; the directory there."""
        place = Place(source.id, name)
        with done.unless_fatal(PlaceItem(place, position)):
            try:
                return self._step.place(place, mode)
            except AheadError as error:
                child = self._directory_at(source, name)
                if child is None:
                    raise
                done.failed.append((ReconcileItem(child, True, position, keep=mode.keep), error))
                return None
        return self._directory_at(source, name)

    # beside comparisons ------------------------------------------------------------------------

    def precede(
        self,
        identity: ObjectId,
        comparisons: Sequence[Comparison],
        mode: Mode,
        done: Reconciled,
    ) -> None:
        """A step of a record is about to be done in a directory. If a comparison is still to come
        there, compare its files now: what the record tells of must not appear before what it
        announces. Raises what `Step.directory` raises in that mode."""
        newest = max(comparison.began for comparison in comparisons)
        for known in (self._files, self._escape.seen, self._outside):
            if known.since(identity, newest):
                return
        source = self._source.open(identity)
        if source is None:
            return
        with source:
            way = self._source.ancestors(source) if stat.S_ISDIR(source.mode) else None
            if way is None:
                return
            above = {self._source.root.id, identity, *(child for _, _, child in way)}
            concerned = [each for each in comparisons if _concerns(each, identity, above)]
            began = max((each.began for each in concerned), default=None)
            if began is None:
                self._outside.add(identity, self._escape.now())
            elif not self._files.since(identity, began):
                self._compare_files(source, concerned[-1], mode, done)

    def _compare_files(
        self, source: SourceObject, comparison: Comparison, mode: Mode, done: Reconciled
    ) -> None:
        """Directories are left to the comparison: what they hold can wait, and may have moved."""
        directory = self._step.directory(source, mode)
        if directory is None:
            return
        self._step.counters.directories_reconciled += 1
        for name in sorted({*self._store.list(directory), *self._source.list(source)}):
            self._tick()
            place = Place(source.id, name)
            entry = self._store.lookup(directory, name)
            if entry is not None and stat.S_ISDIR(entry.mode):
                continue
            if self._directory_at(source, name) is None:
                with done.unless_fatal(PlaceItem(place, comparison.position)):
                    self._step.place(place, _mode(comparison))
        self._files.add(source.id, self._escape.now())


def _concerns(comparison: Comparison, directory: ObjectId, above: set[ObjectId]) -> bool:
    """Whether it is about that directory, which is below those."""
    return any(
        item.directory in above if item.whole else item.directory == directory
        for item in comparison.items
    )
