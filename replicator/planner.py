"""The plan: records become dirty places and dirty objects, coalesced, in journal order.

Pure. A record says where to look; so the plan holds *what to look at*, each place and object once
however often it changed, at the position of its first record that has not been applied. Beside the
items it keeps hints: what the records that are not yet behind the saved cursor say of each object,
above all the places where the site may still hold it. It never looks at source or site.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

from mirrorfs.journal.record import (
    Change,
    Kind,
    Mount,
    ObjectId,
    Place,
    Reconcile,
    Record,
    SequenceNumber,
    Tag,
)
from replicator.window import Window

_ARRIVALS = frozenset({Kind.CREATE, Kind.MKDIR, Kind.MKNOD, Kind.SYMLINK, Kind.LINK, Kind.RENAME})
_ABOUT_OBJECT = frozenset({Kind.WRITE, Kind.ATTRIBUTES, Kind.XATTR})
_EXCHANGE = 2  # RENAME_EXCHANGE of renameat2(2)
_OBJECTS_MAX = 8

Position: TypeAlias = tuple[SequenceNumber, int]
"""Where an item stands in the plan: sequence, and order within the record."""


@dataclass(slots=True, eq=False)
class PlaceItem:
    """Make this place true.

    Attributes:
        position: of its first record.
        vacated: sequences of pending records after which the place was empty: the first and last.
        arrived: the newest pending record that brought an object here, and that object.
        objects: those the pending records are about.
        time_ns: of the first record; 0 if unknown.
        first: its sequence, also when the item was postponed since; 0 if unknown.
    """

    place: Place
    position: Position
    path: bytes | None = None
    vacated: list[SequenceNumber] = field(default_factory=list)
    arrived: tuple[SequenceNumber, ObjectId] | None = None
    objects: tuple[ObjectId, ...] = ()
    time_ns: int = 0
    first: int = 0


@dataclass(slots=True, eq=False)
class ObjectItem:
    """Make this object true under every name the site has for it."""

    object: ObjectId
    position: Position
    path: bytes | None = None
    time_ns: int = 0


@dataclass(slots=True, eq=False)
class ReconcileItem:
    """Compare a directory with the site.

    Attributes:
        keep: what has gone from the source goes to `kept`: no record may have told that it would.
    """

    directory: ObjectId
    whole: bool
    position: Position
    path: bytes | None = None
    keep: bool = True


Item: TypeAlias = PlaceItem | ObjectItem | ReconcileItem


@dataclass(slots=True)
class Hints:
    """What recent records say of one object.

    Attributes:
        newest: sequence of the newest record that names it.
        places: where records say it was or is.
        write: newest record that said its content changed (tag, sequence).
        made: a `mkdir` of it is among the records: everything in it has records of its own.
        built: the site was given that directory since; to make it again, look into it.
        unsettled: its newest record left a content change unrecorded: a `write` will follow.
        settled_ctime_ns: change time it had when the newest record was made and nothing was
            unrecorded; 0 if unknown.
    """

    newest: SequenceNumber
    places: dict[Place, SequenceNumber] = field(default_factory=dict)
    write: tuple[Tag, SequenceNumber] | None = None
    made: bool = False
    built: bool = False
    unsettled: bool = False
    settled_ctime_ns: int = 0


NO_HINTS = Hints(SequenceNumber(0))


class Plan:
    """Dirty places and objects of one site, in journal order."""

    def __init__(self, after: SequenceNumber, tag: Tag) -> None:
        """Args: after: sequence of the last record that needs no work. tag: its incarnation."""
        self.known: SequenceNumber = after
        self.known_tag: Tag = tag
        self.known_ns = 0  # when that record was made
        self._heap: list[tuple[Position, int, Item]] = []
        self._fresh: list[tuple[Position, int, Item]] = []
        self._places: dict[Place, PlaceItem] = {}
        self._objects: dict[ObjectId, ObjectItem] = {}
        self._reconciles: set[int] = set()
        self._hints: dict[ObjectId, Hints] = {}
        self._order: deque[tuple[SequenceNumber, ObjectId]] = deque()
        self._serial = 0
        self._forgotten = after

    def __len__(self) -> int:
        """How many items wait."""
        return len(self._places) + len(self._objects) + len(self._reconciles)

    @property
    def remembered(self) -> int:
        """Of how many objects there are hints (or what takes as much memory)."""
        return max(len(self._hints), len(self._order) // 4)

    def room(self, window: Window) -> int:
        """How many more records may be taken in."""
        records = self.known - self.working()
        return window.room(items=len(self), hints=self.remembered, records=records)

    def hints(self, identity: ObjectId) -> Hints:
        """What is known of an object from records that are not yet behind the saved cursor."""
        return self._hints.get(identity, NO_HINTS)

    def add(self, record: Record, tag: Tag) -> None:
        """Take in the next record of the journal."""
        self.known, self.known_tag, self.known_ns = record.sequence, tag, record.time_ns
        body = record.body
        if isinstance(body, Reconcile):
            position = (record.sequence, 0)
            self.add_reconcile(ReconcileItem(body.directory, body.whole, position, body.path))
        elif isinstance(body, Change):
            self._add_change(record, body, tag)
        elif isinstance(body, Mount):
            for hints in self._hints.values():
                hints.unsettled = False  # the writers ended with the mount before

    @property
    def reconciles(self) -> int:
        """How many directories wait to be compared: until then records do not tell everything."""
        return len(self._reconciles)

    def add_reconcile(self, item: ReconcileItem) -> None:
        """Compare a directory with the site at that position."""
        self._reconciles.add(id(item))
        self._push(item)

    def _add_change(self, record: Record, body: Change, tag: Tag) -> None:
        self._note(record, body, tag)
        if record.kind in _ABOUT_OBJECT:
            self._add_object(body, record.sequence, record.time_ns)
            return
        exchanged = record.kind is Kind.RENAME and bool(body.rename_flags & _EXCHANGE)
        # the new place first: then an object moves there in one step and never waits in limbo
        places = body.places[:1] if record.kind is Kind.LINK else body.places[::-1]
        for index, place in enumerate(places):
            item = self._add_place(place, (record.sequence, index), body, record.time_ns)
            arrived = body.object if index == 0 else body.other
            if record.kind in _ARRIVALS and (index == 0 or exchanged) and arrived is not None:
                item.arrived = (record.sequence, arrived)
            else:
                item.vacated[1:] = [record.sequence]  # the first and the last are all it takes

    def _note(self, record: Record, body: Change, tag: Tag) -> None:
        """Keep what the record says of its objects."""
        hints = self._hint(body.object, record.sequence)
        hints.places.update(dict.fromkeys(body.places, record.sequence))
        if record.kind is Kind.WRITE:
            hints.write = (tag, record.sequence)
        elif record.kind is Kind.MKDIR:
            hints.made = True
        hints.settled_ctime_ns = body.ctime_ns if record.settled else 0
        hints.unsettled = not record.settled
        if body.other is not None:
            forgotten = body.other not in self._hints
            other = self._hint(body.other, record.sequence)
            if forgotten:
                other.unsettled = body.other_links > 0 and body.other_ctime_ns == 0
            other.places.update(dict.fromkeys(body.places, record.sequence))
            other.settled_ctime_ns = body.other_ctime_ns

    def _hint(self, identity: ObjectId, sequence: SequenceNumber) -> Hints:
        hints = self._hints.get(identity)
        if hints is None:
            hints = self._hints[identity] = Hints(sequence)
        hints.newest = sequence
        self._order.append((sequence, identity))
        return hints

    def _add_place(self, place: Place, position: Position, body: Change, time_ns: int) -> PlaceItem:
        objects = (body.object,) if body.other is None else (body.object, body.other)
        item = self._places.get(place)
        if item is None:
            item = PlaceItem(place, position, body.path, objects=objects, time_ns=time_ns)
            item.first = position[0]
            self._places[place] = item
            self._push(item)
        elif len(item.objects) < _OBJECTS_MAX:
            item.objects += tuple(each for each in objects if each not in item.objects)
        return item

    def _add_object(self, body: Change, sequence: SequenceNumber, time_ns: int) -> None:
        if body.object not in self._objects:
            item = ObjectItem(body.object, (sequence, 0), body.path, time_ns)
            self._objects[body.object] = item
            self._push(item)

    def _push(self, item: Item) -> None:
        self._serial += 1
        entry = (item.position, self._serial, item)
        heapq.heappush(self._heap, entry)
        heapq.heappush(self._fresh, entry)

    def waits(self, item: Item) -> bool:
        """Whether it is still to be done."""
        if isinstance(item, PlaceItem):
            return self._places.get(item.place) is item
        if isinstance(item, ObjectItem):
            return self._objects.get(item.object) is item
        return id(item) in self._reconciles

    def next(self) -> Item | None:
        """The first item; it stays in the plan until `done`."""
        return self._first(self._heap)

    def fresh(self) -> Item | None:
        """The first item that was not taken; what was postponed since counts as not taken."""
        return self._first(self._fresh)

    def take(self) -> None:
        """What `fresh` tells is being worked on; it stays in the plan until `done`."""
        heapq.heappop(self._fresh)

    def _first(self, heap: list[tuple[Position, int, Item]]) -> Item | None:
        while heap:
            position, _, item = heap[0]
            if self.waits(item) and item.position == position:
                return item
            heapq.heappop(heap)
        return None

    def place(self, place: Place) -> PlaceItem | None:
        """What is to be done there."""
        return self._places.get(place)

    def object(self, identity: ObjectId) -> ObjectItem | None:
        """What is to be done for that object itself."""
        return self._objects.get(identity)

    def waiting(self) -> Iterable[Item]:
        """Every item, in no order."""
        yield from self._places.values()
        yield from self._objects.values()
        yield from (entry[2] for entry in self._heap if id(entry[2]) in self._reconciles)

    def adjoining(self, item: ReconcileItem) -> list[ReconcileItem]:
        """That directory and those that wait to be compared by the records next to its own.

        What moved from one to another without a record moves only if they are compared together.
        """
        found = [item]
        if self.waits(item):
            waiting = {entry[0]: entry[2] for entry in self._heap if self.waits(entry[2])}
            at = item.position[0]
            while isinstance(following := waiting.get((SequenceNumber(at + 1), 0)), ReconcileItem):
                found.append(following)
                at = following.position[0]
        return found

    def done(self, item: Item) -> None:
        """It needs no more work: applied, or remembered elsewhere as failed."""
        if not self.waits(item):
            return
        if isinstance(item, PlaceItem):
            del self._places[item.place]
        elif isinstance(item, ObjectItem):
            del self._objects[item.object]
        else:
            self._reconciles.discard(id(item))

    def object_waits(self, identity: ObjectId) -> bool:
        """Whether content or attributes of the object are still to be made true."""
        return identity in self._objects

    def object_done(self, identity: ObjectId) -> None:
        """The object was made true under all its names on the way."""
        self._objects.pop(identity, None)

    def postpone(self, item: PlaceItem, sequence: SequenceNumber) -> None:
        """The place is empty now, as it was once; what came to it later comes at that record."""
        item.position = (sequence, 0)
        item.vacated = [at for at in item.vacated if at >= sequence]
        self._push(item)

    def working(self) -> SequenceNumber:
        """The working cursor: every record up to it has been worked on."""
        item = self.next()
        return self.known if item is None else SequenceNumber(item.position[0] - 1)

    @property
    def may_forget(self) -> bool:
        """Whether the working cursor has passed records whose hints are still kept."""
        return self.working() > self._forgotten

    def forget(self, floor: SequenceNumber) -> None:
        """Drop the hints of records up to `floor`: the saved cursor is past them."""
        self._forgotten = floor
        order = self._order
        while order and order[0][0] <= floor:
            _, identity = order.popleft()
            hints = self._hints.get(identity)
            if hints is not None and hints.newest <= floor:
                del self._hints[identity]
