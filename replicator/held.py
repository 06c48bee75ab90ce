"""The steps of a site that are held: those that failed, and those that wait for a writer.

They stay until they are done, across restarts: they are part of the site's state. When one is due
again is decided here; `engine` tries it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Subject:
    """What a step is about, as far as it is known: the records that tell will be forgotten.

    Attributes:
        object: of an object's step; or what the source has at the place of a place's step.
        place: of a place's step; or where records say that the object of an object's step stands.
        occupant: what the site has at the place.
    """

    object: ObjectId | None = None
    place: Place | None = None
    occupant: ObjectId | None = None


class HeldSteps:
    """The held steps of one site."""

    def __init__(self, steps: Iterable[HeldStep], random: Random) -> None:
        """Go on with these; `random` is for jitter."""
        self._random = random
        self._steps: dict[Key, HeldStep] = {}
        self._reconciles: set[Key] = set()
        self._keeping: set[Key] = set()
        self._about: dict[bytes, dict[Key, None]] = {}
        for step in steps:
            self._put(step)

    def __bool__(self) -> bool:
        return bool(self._steps)

    def all(self) -> list[HeldStep]:
        """Every step, the one held longest first."""
        return list(self._steps.values())

    def hold(
        self, item: Item, error: Exception, now_ns: int, subject: Subject, *, unsure: bool
    ) -> None:
        """Try it again later. `unsure`: see HeldStep."""
        key = key_of(item)
        before = self._steps.get(key)
        waiting = isinstance(error, DeferredError)
        tries = 0 if waiting else 1 + (before.tries if before is not None else 0)
        seconds = backoff_seconds(tries, self._random.random())
        writer = waiting and not isinstance(error, AheadError)
        if writer:
            seconds = WRITER_WAIT_SECONDS
        directory, name = key[1:3]
        if subject.place is not None:
            directory, name = subject.place.directory, subject.place.name
        elif before is not None:
            directory, name = before.directory, before.name
        step = HeldStep(
            kind=key[0],
            directory=directory,
            name=name,
            object=subject.object or b"",
            occupant=subject.occupant or b"",
            whole=isinstance(item, ReconcileItem)
            and (item.whole or (before is not None and before.whole)),
            keep=isinstance(item, ReconcileItem)
            and (item.keep or (before is not None and before.keep)),
            path=item.path if item.path is not None else name or None,
            sequence=min(item.position[0], before.sequence if before else item.position[0]),
            unsure=unsure or (before is not None and before.unsure),
            waiting=waiting,
            writer=writer,
            since_ns=before.since_ns if before else now_ns,
            due_ns=now_ns + int(seconds * 1e9),
            tries=tries,
            error=str(error),
            errno=getattr(error, "errno", 0),
        )
        if before is not None:
            self._forget_subject(before)
        self._put(step)

    def _put(self, step: HeldStep) -> None:
        self._steps[step.key] = step
        if step.kind == "reconcile":
            self._reconciles.add(step.key)
            if step.keep:
                self._keeping.add(step.key)
        for each in {step.object, step.occupant} - {b""}:
            self._about.setdefault(each, {})[step.key] = None

    def _drop(self, key: Key) -> None:
        step = self._steps.pop(key, None)
        if step is not None:
            self._reconciles.discard(key)
            self._keeping.discard(key)
            self._forget_subject(step)

    def _forget_subject(self, step: HeldStep) -> None:
        for each in {step.object, step.occupant} - {b""}:
            keys = self._about[each]
            del keys[step.key]
            if not keys:
                del self._about[each]

    def done(self, item: Item) -> None:
        """It was done, or need not be."""
        key = key_of(item)
        if isinstance(item, ReconcileItem) and not item.whole:
            step = self._steps.get(key)
            if step is not None and step.whole:
                return  # all below is still to be compared
        self._drop(key)

    def object_done(self, identity: ObjectId) -> None:
        """The object was made true on the way to something else."""
        self._drop(("object", b"", b"", identity))

    def object_waits(self, identity: ObjectId) -> bool:
        """Whether content or attributes of the object are still to be made true."""
        return ("object", b"", b"", identity) in self._steps

    def distrusts(self, identity: ObjectId) -> bool:
        """Whether the object's copies may be older than the records at hand tell."""
        steps = (self._steps[key] for key in self._about.get(identity, ()))
        return any(
            step.object == identity and (step.kind == "object" or step.unsure) for step in steps
        )

    def expects(self, identity: ObjectId) -> bool:
        """Whether a step waits for what a writer of that object says when it has done."""
        steps = (self._steps[key] for key in self._about.get(identity, ()))
        return any(step.object == identity and step.writer for step in steps)

    def writers_ended(self, sequence: SequenceNumber) -> None:
        """The source was mounted anew: what was open before was lost, no record will tell."""
        for step in self._steps.values():
            if step.writer and step.sequence < sequence:
                step.writer, step.due_ns = False, 0

    def failed(self, item: Item) -> bool:
        """Whether it was tried before and failed."""
        step = self._steps.get(key_of(item))
        return step is not None and step.tries > 0

    @property
    def reconciles(self) -> bool:
        """Whether some directory is still to be compared."""
        return bool(self._reconciles)

    @property
    def keeps(self) -> bool:
        """Whether what has gone from such a directory goes to `kept`."""
        return bool(self._keeping)

    def places(self, identity: ObjectId) -> Iterator[Place]:
        """Places of that object at source or site, as far as held steps know."""
        for key in self._about.get(identity, ()):
            step = self._steps[key]
            if step.directory:
                yield Place(ObjectId(step.directory), step.name)

    def due(self, now_ns: int, under_way: Collection[Key] = ()) -> Item | None:
        """One that is to be tried again now, and is not `under_way` already."""
        for key, step in self._steps.items():
            if step.due_ns <= now_ns and key not in under_way:
                step.tries = max(step.tries, 1)  # whatever it waited for: look closely now
                return _item(step)
        return None

    def next_due_ns(self) -> int | None:
        """When the next one is tried again."""
        return min((step.due_ns for step in self._steps.values()), default=None)


def key_of(item: Item) -> Key:
    """What makes two steps the same."""
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
    return ReconcileItem(ObjectId(step.directory), step.whole, position, step.path, step.keep)
