"""The steps of a site that are held: those that failed, and those that wait for a writer.

They stay until they are done, across restarts: they are part of the site's state. When one is due
again is decided here; `engine` tries it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from random import Random
from typing import TypeAlias

from mirrorfs.journal.record import ObjectId, Place, SequenceNumber
from replicator.planner import Item, ObjectItem, PlaceItem, ReconcileItem
from replicator.site_state import WRITER_WAIT_SECONDS, HeldStep, backoff_seconds

Key: TypeAlias = tuple[str, bytes, bytes, bytes]


class DeferredError(Exception):
    """The object is being written: a `write` record will say when it is worth copying."""


class AheadError(DeferredError):
    """The source is ahead of the records: the one that explains what was seen is still to come."""


class HeldSteps:
    """The held steps of one site."""

    def __init__(self, steps: Iterable[HeldStep], random: Random) -> None:
        """Go on with these; `random` is for jitter."""
        self._steps = {step.key: step for step in steps}
        self._reconciles = {key for key in self._steps if key[0] == "reconcile"}
        self._random = random

    def __bool__(self) -> bool:
        return bool(self._steps)

    def all(self) -> list[HeldStep]:
        """Every step, the one held longest first."""
        return list(self._steps.values())

    def hold(
        self,
        item: Item,
        error: Exception,
        now_ns: int,
        identity: ObjectId | None,
        place: Place | None,
    ) -> None:
        """Try it again later.

        `identity`, `place`: what stands at the item's place, and where its object stands, as far as
        they are known: the records that tell will be forgotten.
        """
        key = _key(item)
        before = self._steps.get(key)
        waiting = isinstance(error, DeferredError)
        tries = 0 if waiting else 1 + (before.tries if before is not None else 0)
        seconds = backoff_seconds(tries, self._random.random())
        if waiting and not isinstance(error, AheadError):
            seconds = WRITER_WAIT_SECONDS
        directory, name = key[1:3]
        if isinstance(item, ReconcileItem):
            self._reconciles.add(key)
        elif place is not None:
            directory, name = place.directory, place.name
        elif before is not None:
            directory, name = before.directory, before.name
        self._steps[key] = HeldStep(
            kind=key[0],
            directory=directory,
            name=name,
            object=identity or b"",
            whole=isinstance(item, ReconcileItem) and item.whole,
            path=item.path if item.path is not None else name or None,
            sequence=min(item.position[0], before.sequence if before else item.position[0]),
            waiting=waiting,
            since_ns=before.since_ns if before else now_ns,
            due_ns=now_ns + int(seconds * 1e9),
            tries=tries,
            error=str(error),
            errno=getattr(error, "errno", 0),
        )

    def done(self, item: Item) -> None:
        """It was done, or need not be."""
        key = _key(item)
        self._steps.pop(key, None)
        self._reconciles.discard(key)

    def object_done(self, identity: ObjectId) -> None:
        """The object was made true on the way to something else."""
        self._steps.pop(("object", b"", b"", identity), None)

    def object_waits(self, identity: ObjectId) -> bool:
        """Whether content or attributes of the object are still to be made true."""
        return ("object", b"", b"", identity) in self._steps

    def failed(self, item: Item) -> bool:
        """Whether it was tried before and failed."""
        step = self._steps.get(_key(item))
        return step is not None and step.tries > 0

    @property
    def reconciles(self) -> bool:
        """Whether some directory is still to be compared."""
        return bool(self._reconciles)

    def places(self, identity: ObjectId) -> Iterator[Place]:
        """Places of that object, as far as held steps know."""
        for step in self.all():
            if step.object == identity and step.directory:
                yield Place(ObjectId(step.directory), step.name)

    def due(self, now_ns: int) -> Item | None:
        """One that is to be tried again now."""
        for step in self._steps.values():
            if step.due_ns <= now_ns:
                step.tries = max(step.tries, 1)  # whatever it waited for: look closely now
                return _item(step)
        return None

    def next_due_ns(self) -> int | None:
        """When the next one is tried again."""
        return min((step.due_ns for step in self._steps.values()), default=None)


def _key(item: Item) -> Key:
    if isinstance(item, PlaceItem):
        return ("place", item.place.directory, item.place.name, b"")
    if isinstance(item, ObjectItem):
        return ("object", b"", b"", item.object)
    return ("reconcile", item.directory, b"", b"")


def _item(step: HeldStep) -> Item:
    position = (SequenceNumber(step.sequence), 0)
    if step.kind == "place":
        place = Place(ObjectId(step.directory), step.name)
        return PlaceItem(place, position, step.path)
    if step.kind == "object":
        return ObjectItem(ObjectId(step.object), position, step.path)
    return ReconcileItem(ObjectId(step.directory), step.whole, position, step.path)
