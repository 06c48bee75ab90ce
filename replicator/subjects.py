"""What a step is about, and where that is: for those that are held, and for people."""

from __future__ import annotations

import contextlib

from replicator.held import Subject
from replicator.moves import Bench
from replicator.planner import Item, ObjectItem, PlaceItem
from replicator.stores.base import StoreError
from replicator.view import SourceError


def path_of(bench: Bench, item: Item) -> bytes | None:
    """The path as the source has it now. Raises SourceError."""
    if isinstance(item, PlaceItem):
        return bench.path(item.place)
    return bench.path_of(item.object if isinstance(item, ObjectItem) else item.directory)


def subject_of(bench: Bench, item: Item) -> Subject:
    """What is to be remembered of it while it is held."""
    if isinstance(item, ObjectItem):
        places = bench.plan.hints(item.object).places
        return Subject(item.object, max(places, key=places.__getitem__, default=None))
    if isinstance(item, PlaceItem):
        object = occupant = None
        with contextlib.suppress(SourceError, StoreError):  # it may be why the step is held
            occupant = bench.map.object_at(item.place)
            object = bench.object_at(item.place)
        return Subject(object, item.place, occupant)
    return Subject()
