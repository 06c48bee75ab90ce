"""Holding steps: why, and until when; and what operators order of those that are held."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable

from mirrorfs.journal.record import ObjectId, SequenceNumber
from replicator.held import AheadError, DeferredError, Subject
from replicator.moves import Bench
from replicator.orders import Order, chosen
from replicator.planner import Item, ObjectItem, PlaceItem
from replicator.site_state import SkippedStep
from replicator.stores.base import StoreError
from replicator.subjects import path_of, subject_of
from replicator.surroundings import Surroundings, describe
from replicator.under_way import InternalError
from replicator.view import SourceChangedError, SourceError
from replicator.wording import count

_log = logging.getLogger(__name__)


class Holding:
    """Puts the steps of one site among those that are held."""

    def __init__(self, site: str, bench: Bench, world: Surroundings) -> None:
        self._site = site
        self._bench = bench
        self._held = bench.held
        self._world = world

    def hold(self, item: Item, error: Exception, *, unsure: bool) -> None:
        """Try it again later; `unsure`: see HeldStep. A mistake of ours is logged once. Of very
        many that wait for records their directory is held."""
        now_ns = self._world.clock_ns()
        if isinstance(error, InternalError) and self._held.told(item) != str(error):
            told = self._site, describe(item), error
            _log.error("%s: %s: %s", *told, exc_info=error.__cause__)
        gathered = item
        if isinstance(error, AheadError):
            gathered = self._held.gathered(item, self._bench.source.root.id, self._world.window)
        if gathered is item:
            self._held.hold(item, error, now_ns, subject_of(self._bench, item), unsure=unsure)
        else:
            error = AheadError("much in it waits for records that are still to come")
            later = isinstance(item, PlaceItem) and not unsure
            self._held.hold(gathered, error, now_ns, Subject(), unsure=unsure, later=later)

    def hold_failed(self, failed: Iterable[tuple[Item, Exception]]) -> None:
        """The same for what could not be compared."""
        for item, error in failed:
            with contextlib.suppress(SourceError):  # it may be why the step is held
                item.path = path_of(self._bench, item)
            self.hold(item, error, unsure=True)

    def hold_timeless(self, clean: int, *, unsure: bool) -> None:
        """The same for directories whose times could not be set. `clean`: the clean cursor."""
        position = SequenceNumber(max(0, clean) + 1)  # of a comparison, maybe: working has passed
        for identity, error in self._bench.timeless.items():
            item = ObjectItem(identity, (position, 0), self._bench.path_of(identity))
            self.hold(item, error, unsure=unsure)
        self._bench.timeless.clear()

    def follows(
        self,
        item: PlaceItem | ObjectItem,
        directories: Iterable[ObjectId],
        do: Callable[[PlaceItem | ObjectItem], None],
        waits: Callable[[Item, ObjectId], bool],
    ) -> bool:
        """Do what is held in its directories and comes before it; whether it waits for that, if it
        still cannot be done. A flag file must not appear before the data it announces."""
        for directory in directories:
            for before in self._held.soon(directory, item):
                if self._comes_later(before):
                    continue
                try:
                    do(before)
                    self._held.done(before)
                except (DeferredError, SourceChangedError) as error:
                    # a record that was lost will not come: the comparison that is to come tells
                    lost = isinstance(error, DeferredError) and self._bench.plan.reconciles > 0
                    if not lost and waits(item, directory):
                        return True
                except (StoreError, SourceError) as error:
                    if isinstance(error, StoreError) and error.no_space:
                        raise
                    self.hold(before, error, unsure=False)  # it is tried again in its time
        return False

    def _comes_later(self, item: PlaceItem | ObjectItem) -> bool:
        """Whether another record of it waits for its turn."""
        plan = self._bench.plan
        if isinstance(item, PlaceItem):
            return plan.place(item.place) is not None
        return plan.object(item.object) is not None

    def obey(self, order: Order) -> tuple[str, list[SkippedStep]]:
        """Do what an operator ordered: what came of it, in words, and the steps passed over."""
        steps = chosen(self._held.all(), order)
        if not steps:
            return "no such step is held", []
        if not order.skip:
            self._held.hurry(steps)
            return f"{count(len(steps), 'step')} will be tried again now", []
        skipped = [
            SkippedStep(
                kind=step.kind,
                path=step.path,
                sequence=step.sequence,
                error=step.error,
                reason=order.reason,
                by=order.by,
                time_ns=order.time_ns,
            )
            for step in steps
        ]
        for step in steps:
            self._held.skip(step)
        return f"{count(len(steps), 'step')} skipped", skipped
