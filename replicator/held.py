"""The steps of a site that are held: those that failed, and those that wait for a writer.

They stay until they are done, across restarts: they are part of the site's state. When one is due
again is decided here; `engine` tries it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from random import Random
from typing import TypeAlias

from mirrorfs.journal.record import Change, Kind, Mount, ObjectId, Place, Record, SequenceNumber
from replicator.planner import Item, ObjectItem, PlaceItem, ReconcileItem
from replicator.site_state import NEVER_NS, WRITER_WAIT_SECONDS, HeldStep, backoff_seconds
from replicator.stores.base import StoreError
from replicator.view import SourceChangedError
from replicator.window import Window

Key: TypeAlias = tuple[str, bytes, bytes, bytes]


class DeferredError(Exception):
    """The object is being written: a `write` record will say when it is worth copying."""


class AheadError(DeferredError):
    """The source is ahead of the records: the one that explains what was seen is still to come."""


class PausedStepError(StoreError):
    """The step is not to be done now, though nothing has failed.

    Attributes:
        pause_seconds: when it is tried again; None: when an operator says so.
    """

    def __init__(self, message: str, pause_seconds: float | None = None) -> None:
        super().__init__(message, 0, transient=False)
        self.pause_seconds = pause_seconds


class DeletionError(PausedStepError):
    """Too much would be removed: an operator is asked before."""


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
        self._unexplained: set[Key] = set()
        self._deletions: set[Key] = set()
        self._about: dict[bytes, dict[Key, None]] = {}
        self._soon: dict[bytes, dict[Key, None]] = {}
        for step in steps:
            self._put(step)
            if step.tries > 0:
                self._unexplained.add(step.key)

    def __len__(self) -> int:
        return len(self._steps)

    def all(self) -> list[HeldStep]:
        """Every step, the one held longest first."""
        return list(self._steps.values())

    def __contains__(self, item: Item) -> bool:
        return key_of(item) in self._steps

    def gathered(self, item: Item, root: ObjectId, window: Window) -> Item:
        """What to hold for a step that waits for a record: very many of them are one comparison."""
        if len(self) < window.held or item in self or isinstance(item, ReconcileItem):
            return item
        if isinstance(item, PlaceItem) and len(self) < 2 * window.held:
            return ReconcileItem(item.place.directory, False, item.position)
        return ReconcileItem(root, True, item.position, b"")

    def hold(
        self,
        item: Item,
        error: Exception,
        now_ns: int,
        subject: Subject,
        *,
        unsure: bool,
        later: bool = False,
    ) -> None:
        """Try it again later. `unsure`, `later`: see HeldStep."""
        key = key_of(item)
        before = self._steps.get(key)
        waiting = isinstance(error, DeferredError)
        tries = 0 if waiting else 1 + (before.tries if before is not None else 0)
        seconds = backoff_seconds(tries, self._random.random())
        writer = waiting and not isinstance(error, AheadError)
        if writer:
            seconds = WRITER_WAIT_SECONDS
        elif before is not None and before.object == (subject.object or b""):
            writer = not waiting and self._is_waited_out(before)
        due_ns = now_ns + int(seconds * 1e9)
        if isinstance(error, PausedStepError):
            pause = error.pause_seconds
            due_ns = NEVER_NS if pause is None else now_ns + int(pause * 1e9)
            if before is not None and before.error == str(error) and before.due_ns > now_ns:
                due_ns = before.due_ns  # another record of it makes it wait no longer
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
            later=later and (before is None or before.later),
            since_ns=before.since_ns if before else now_ns,
            due_ns=due_ns,
            deletion=isinstance(error, DeletionError),
            tries=tries,
            error=str(error),
            errno=getattr(error, "errno", 0),
        )
        if before is not None:
            self._forget_subject(before)
        self._put(step)
        written = isinstance(error, DeferredError | SourceChangedError)
        if isinstance(error, AheadError) or not written:
            self._unexplained.add(key)

    def _put(self, step: HeldStep) -> None:
        self._steps[step.key] = step
        if step.kind == "reconcile" and not step.later:
            self._reconciles.add(step.key)
            if step.keep:
                self._keeping.add(step.key)
        if step.deletion:
            self._deletions.add(step.key)
        else:
            self._deletions.discard(step.key)
        for each in {step.object, step.occupant} - {b""}:
            self._about.setdefault(each, {})[step.key] = None
        if step.kind != "reconcile" and (step.waiting or step.error.startswith("hot")):
            self._soon.setdefault(step.directory, {})[step.key] = None

    def _drop(self, key: Key) -> None:
        step = self._steps.pop(key, None)
        if step is not None:
            self._reconciles.discard(key)
            self._keeping.discard(key)
            self._unexplained.discard(key)
            self._deletions.discard(key)
            self._forget_subject(step)

    def _forget_subject(self, step: HeldStep) -> None:
        for each in {step.object, step.occupant} - {b""}:
            keys = self._about[each]
            del keys[step.key]
            if not keys:
                del self._about[each]
        soon = self._soon.get(step.directory, {})
        if soon.pop(step.key, b"") is None and not soon:
            del self._soon[step.directory]

    def done(self, item: Item) -> None:
        """It was done, or need not be."""
        key = key_of(item)
        if isinstance(item, ReconcileItem) and not item.whole:
            step = self._steps.get(key)
            if step is not None and step.whole:
                return  # all below is still to be compared
        self._drop(key)

    def hurry(self, steps: Iterable[HeldStep]) -> None:
        """These are due now."""
        for step in steps:
            self._steps[step.key].due_ns = 0

    def skip(self, step: HeldStep) -> None:
        """An operator passes over it."""
        self._drop(step.key)

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

    def waited_out(self, identity: ObjectId) -> bool:
        """Whether a writer of that object was waited for long enough."""
        steps = (self._steps[key] for key in self._about.get(identity, ()))
        return any(step.object == identity and self._is_waited_out(step) for step in steps)

    @staticmethod
    def _is_waited_out(step: HeldStep) -> bool:
        return step.writer and step.tries > 0

    def about(self, objects: Iterable[ObjectId], places: Iterable[Place]) -> Iterator[HeldStep]:
        """The steps about one of these."""
        keys: dict[Key, None] = {}
        for identity in objects:
            keys.update(dict.fromkeys(self._about.get(identity, ())))
        keys.update(dict.fromkeys(("place", at.directory, at.name, b"") for at in places))
        for key in keys:
            if key in self._steps:
                yield self._steps[key]

    def soon(self, directory: ObjectId, item: Item) -> list[PlaceItem | ObjectItem]:
        """The steps in that directory that come before `item` and wait for a writer, or for records
        that will explain what was seen."""
        own, found = key_of(item), []
        for key in self._soon.get(directory, ()):
            step = self._steps[key]
            before = _item(step)
            earlier = key != own and step.sequence < item.position[0]
            if earlier and isinstance(before, PlaceItem | ObjectItem):
                found.append(before)
        return found

    def fed(self, record: Record) -> None:
        """A record was read: a mount ends all writers, no other record will tell of them; and what
        tells of one is not waited for any more."""
        body = record.body
        if isinstance(body, Change) and record.kind is Kind.WRITE and record.settled:
            for key in self._about.get(body.object, ()):
                if self._steps[key].object == body.object:
                    self._steps[key].writer = False
        if isinstance(record.body, Mount):
            for step in self._steps.values():
                if step.writer and step.sequence < record.sequence:
                    step.writer, step.due_ns = False, 0

    def failed(self, item: Item) -> bool:
        """Whether it was tried before and failed."""
        step = self._steps.get(key_of(item))
        return step is not None and step.tries > 0

    @property
    def deletions(self) -> int:
        """How many wait for an operator to let things be removed."""
        return len(self._deletions)

    def told(self, item: Item) -> str:
        """Why it is held; "" if it is not."""
        step = self._steps.get(key_of(item))
        return "" if step is None else step.error

    def is_due(self, item: Item, now_ns: int) -> bool:
        """Whether it is held, and is to be tried again now."""
        step = self._steps.get(key_of(item))
        return step is not None and step.due_ns <= now_ns

    def is_ordered(self, item: Item) -> bool:
        """Whether it is held, and an operator wants it to be tried again."""
        step = self._steps.get(key_of(item))
        return step is not None and step.due_ns == 0

    @property
    def lets_delete(self) -> bool:
        """Whether an operator wants some of those to go on."""
        return any(self._steps[key].due_ns == 0 for key in self._deletions)

    @property
    def reconciles(self) -> bool:
        """Whether some directory is still to be compared."""
        return bool(self._reconciles)

    @property
    def keeps(self) -> bool:
        """Whether what has gone from such a directory goes to `kept`."""
        return bool(self._keeping)

    @property
    def unexplained(self) -> bool:
        """Whether one has failed, or has waited for a record in vain: others may depend on it."""
        return bool(self._unexplained)

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
