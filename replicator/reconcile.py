"""Reconcile: compare a directory with the site and apply the difference.

The same step as ever, for every name found on either side, directory by directory, with no lock
on the tree. It serves the initial copy, recovery, gaps and repair. Over several directories it
sweeps them all first (what is gone or elsewhere leaves, living objects to limbo) and creates
afterwards, so that renames stay renames.
"""

from __future__ import annotations

import stat
from collections.abc import Callable

from mirrorfs.journal.record import ObjectId, Place
from replicator import schedule
from replicator.moves import NORMAL, Mode
from replicator.staging import DeferredError
from replicator.step import Step
from replicator.stores.base import StoreError
from replicator.view import SourceChangedError, SourceError

_TOUCHED_MAX = 4096


class Reconciler:
    """Reconciles directories of one site."""

    def __init__(self, step: Step, tick: Callable[[], None]) -> None:
        """Reconcile by `step`; `tick` is called for every directory and may raise to stop."""
        self._step = step
        self._source = step.bench.source
        self._store = step.bench.store
        self._tick = tick

    def reconcile(
        self, directory: ObjectId, *, whole: bool, adopt: bool = False, keep: bool = True
    ) -> list[tuple[Place, Exception]]:
        """Make a directory true, its own attributes included; `whole`: and all below it.

        `keep`: what has gone from the source goes to `kept`.
        Returns the places that could not be made true, with the reason: somebody must come back
        to them. Raises StoreError and SourceError where going on would be of no use.
        """
        mode = Mode(trust=False, keep=keep, exact=True, adopt=adopt)
        failed: list[tuple[Place, Exception]] = []
        if not adopt:
            self._walk(directory, whole, lambda at: self._sweep(at, mode))
        self._walk(directory, whole, lambda at: self._create(at, mode, failed))
        return failed

    def settle_doubts(self, *, keep: bool) -> list[tuple[Place, Exception]]:
        """Reconcile, whole depth, what the steps left in doubt. Raises what `reconcile` raises."""
        doubt = self._step.bench.doubt
        failed: list[tuple[Place, Exception]] = []
        while (identity := doubt.next()) is not None:
            failed += self.reconcile(identity, whole=True, keep=keep)
            doubt.settled(identity)
        return failed

    def _walk(
        self, start: ObjectId, whole: bool, visit: Callable[[ObjectId], list[ObjectId]]
    ) -> None:
        waiting = [start]
        while waiting:
            self._tick()
            children = visit(waiting.pop())
            if whole:
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
        self, identity: ObjectId, mode: Mode, failed: list[tuple[Place, Exception]]
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
            self._step.directory_attributes(source, mode)
            names = {*self._store.list(directory), *self._source.list(source)}
            for name in sorted(names):
                place = Place(identity, name)
                try:
                    self._step.place(place, mode)
                except (DeferredError, SourceChangedError) as error:
                    failed.append((place, error))
                except (StoreError, SourceError) as error:
                    if error.transient:
                        raise
                    failed.append((place, error))
            return self._directories(identity, names)

    def _directories(self, identity: ObjectId, names: set[bytes]) -> list[ObjectId]:
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
