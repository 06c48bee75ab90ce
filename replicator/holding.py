"""What a step that is held is about, where it is, and what operators order of those held.

Looks at source and site only as far as they answer: they may be why the step is held.
"""

from __future__ import annotations

import contextlib

from replicator.held import HeldSteps, Subject
from replicator.moves import Bench
from replicator.orders import Order, chosen
from replicator.planner import Item, ObjectItem, PlaceItem
from replicator.site_state import SkippedStep
from replicator.stores.base import StoreError
from replicator.view import SourceError
from replicator.wording import count


def path_of(bench: Bench, item: Item) -> bytes | None:
    """Where that is in the source now; None: nowhere. Raises SourceError."""
    if isinstance(item, PlaceItem):
        return bench.path(item.place)
    return bench.path_of(item.object if isinstance(item, ObjectItem) else item.directory)


def subject(bench: Bench, item: Item) -> Subject:
    """What that step is about."""
    if isinstance(item, ObjectItem):
        places = bench.plan.hints(item.object).places
        return Subject(item.object, max(places, key=places.__getitem__, default=None))
    if isinstance(item, PlaceItem):
        object = occupant = None
        with contextlib.suppress(SourceError, StoreError):
            occupant = bench.map.object_at(item.place)
            object = bench.object_at(item.place)
        return Subject(object, item.place, occupant)
    return Subject()


def obey(held: HeldSteps, order: Order) -> tuple[str, list[SkippedStep]]:
    """Do what an operator ordered: what came of it, in words, and the steps passed over."""
    steps = chosen(held.all(), order)
    if not steps:
        return "no such step is held", []
    if not order.skip:
        held.hurry(steps)
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
        held.skip(step)
    return f"{count(len(steps), 'step')} skipped", skipped
