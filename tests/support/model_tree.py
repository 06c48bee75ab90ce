"""A source tree in memory that journals itself: the model every rule is checked against.

It answers what `replicator.view.SourceTree` asks, makes the records mirrorfs would make, and
remembers everything it ever was, so that a test can ask whether a site shows something the source
never had.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from mirrorfs.journal.record import (
    SETTLED,
    Body,
    Change,
    Kind,
    Mount,
    ObjectId,
    Place,
    Reconcile,
    Record,
    SequenceNumber,
    Tag,
    handle_id,
)
from mirrorfs.journal.segment import Incarnation
from mirrorfs.marks import Marks
from replicator.schedule import Incarnations
from replicator.stores.base import Attributes, Version
from replicator.view import SourceStat

EXCHANGE = 2


@dataclass(eq=False)
class Thing:
    """One object of the model."""

    id: ObjectId
    mode: int
    changed: int
    content: bytes = b""
    target: bytes | None = None
    uid: int = 0
    mtime: int = 0
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    names: dict[bytes, Thing] = field(default_factory=dict)
    places: list[Place] = field(default_factory=list)
    dirty: bool = False
    coming: bytes | None = None
    contents: list[tuple[int, bytes]] = field(default_factory=list)

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def links(self) -> int:
        return 2 if self.is_directory else len(self.places)


class ModelContent:
    """The content of a file, as `Content`."""

    def __init__(self, data: bytes) -> None:
        self.version: Version | None = None
        self._data = data

    def fileno(self) -> int:
        raise AssertionError("the model has no descriptors")

    def read(self) -> bytes:
        return self._data

    def check(self, count: int) -> int:
        return count

    def share(self, parts: Sequence[Callable[[], None]]) -> None:
        raise AssertionError("the model is read at once")


class ModelObject:
    """A `SourceObject`: fields of the moment it was opened."""

    def __init__(self, tree: ModelTree, thing: Thing) -> None:
        self._tree = tree
        self.thing = thing
        self.id = thing.id
        self._seen = self.stat()
        self.__dict__.update(self._seen._asdict())

    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    atime_ns: int
    ctime_ns: int
    rdev: int
    links: int

    def seen(self) -> SourceStat:
        return self._seen

    def stat(self) -> SourceStat:
        thing = self.thing
        size = len(thing.target if thing.target is not None else thing.content)
        return SourceStat(
            thing.mode, thing.uid, 0, size, thing.mtime, 0, thing.changed, 0, thing.links
        )

    def xattrs(self) -> dict[bytes, bytes]:
        return dict(self.thing.xattrs)

    def target(self) -> bytes:
        assert self.thing.target is not None
        return self.thing.target

    def attributes(self, now: SourceStat | None = None) -> Attributes:
        thing = self.thing
        return Attributes(
            thing.mode, thing.uid, 0, 0, thing.mtime, 0, dict(thing.xattrs), thing.target
        )

    @contextmanager
    def content(self) -> Iterator[ModelContent]:
        data, changed = self.thing.content, self.thing.changed
        self._tree.meanwhile()
        torn = self.thing.content != data and self.thing.changed != changed
        yield ModelContent(data + b"|" + self.thing.content if torn else data)

    def close(self) -> None: ...

    def __enter__(self) -> ModelObject:
        return self

    def __exit__(self, *_: object) -> None: ...


class ModelTree:
    """The source. `meanwhile` is called in the middle of looking: tests change things there.
    `appends`: whether the next write appends; else it replaces all by `width` digits or more."""

    def __init__(self) -> None:
        self.clock = 1
        self.records: list[tuple[Record, Tag]] = []
        self.ended: list[Incarnation] = []
        self.tag = Tag(1)
        self.first = SequenceNumber(1)
        self._serial = 1
        self.things: dict[ObjectId, Thing] = {}
        self.history: dict[Place, list[tuple[int, ObjectId | None]]] = {}
        self.root_thing = self._make(stat.S_IFDIR | 0o755)
        self.marks: Marks | None = None
        self.meanwhile: Callable[[], None] = lambda: None
        self.width = 1
        self.appends: Callable[[], bool] = lambda: False

    # journal -----------------------------------------------------------------------------------

    @property
    def head(self) -> SequenceNumber:
        return self.records[-1][0].sequence if self.records else SequenceNumber(0)

    def _log(self, kind: Kind, body: Body, *, settled: bool = True) -> None:
        sequence = SequenceNumber(self.head + 1)
        flags = SETTLED if settled else 0
        self.records.append((Record(sequence, self.clock, kind, flags, body), self.tag))

    def _log_change(self, kind: Kind, thing: Thing, *places: Place, **more: Any) -> None:
        path = self.path(places[0 if kind is Kind.LINK else -1]) if places else None
        body = Change(
            thing.id, places, path, thing.mode, thing.links, ctime_ns=thing.changed, **more
        )
        if self.marks is not None:
            self._mark(kind, body)
            return
        self._log(kind, body, settled=not thing.dirty)

    def degrade(self, most: int) -> None:
        """From now on no records: what is changed is marked, with at most so many marks."""
        self.marks = Marks(self.root_thing.id, self._way, most)
        for thing in list(self.things.values()):
            if thing.dirty and thing.places:
                self.marks.add(thing.places[0].directory, None)

    def path(self, place: Place) -> bytes | None:
        """From the root on; None: its directory is gone."""
        way = self._way(place.directory)
        return (
            None if way is None else b"/".join([*(name or b"" for _, name in way[1:]), place.name])
        )

    def _mark(self, kind: Kind, body: Change) -> None:
        assert self.marks is not None
        if kind in (Kind.WRITE, Kind.ATTRIBUTES) and not body.links:
            return  # it has no name, and never gets one again
        self.marks.change(kind, body)
        if self.marks.too_many:
            self.marks.collapse()

    def _way(self, id: ObjectId) -> list[tuple[ObjectId, bytes | None]] | None:
        thing = self.things[id]
        if not thing.is_directory or not self.living(thing):
            return None
        way = self.ancestors(ModelObject(self, thing))
        if way is None:
            return None
        return [(self.root_thing.id, b""), *((child, name) for _, name, child in way)]

    def resume(self) -> None:
        """Records again; first of all those that cover what was marked."""
        if self.marks is not None:
            for mark in self.marks:
                self._log(Kind.RECONCILE, Reconcile(mark.directory, mark.whole, None, "marked"))
            self.marks = None

    def incarnations(self) -> Incarnations:
        return Incarnations(self.ended, self.tag)

    def lose_tail(self, keep: SequenceNumber) -> None:
        """A power cut: the records after `keep` are gone; the next incarnation reconciles."""
        self.records = [pair for pair in self.records if pair[0].sequence <= keep]
        self.restart()
        self.resume()
        self.reconcile(self.root_thing, whole=True)

    def reconcile(self, thing: Thing, *, whole: bool) -> None:
        """A record that asks for a comparison."""
        path = b"" if thing is self.root_thing else None
        self._log(Kind.RECONCILE, Reconcile(thing.id, whole=whole, path=path, reason="test"))

    def restart(self) -> None:
        """A new incarnation of the writer: what jobs had open with the last one is closed."""
        self.ended.append(Incarnation(self.tag, self.first, self.head))
        self.tag = Tag(self.tag + 1)
        self.first = SequenceNumber(self.head + 1)
        for thing in self.things.values():
            self.end_write(thing)
            thing.dirty = False
        self._log(Kind.MOUNT, Mount("host", 1, "0", b"/mnt", clean=False))

    # changes -----------------------------------------------------------------------------------

    def _tick(self) -> int:
        self.clock += 1
        return self.clock

    def _make(self, mode: int, **more: Any) -> Thing:
        identity = handle_id(1, 1, self._serial.to_bytes(4, "little"))
        self._serial += 1
        now = self._tick()
        thing = Thing(identity, mode, now, mtime=now, **more)
        thing.contents.append((now, thing.content))
        self.things[identity] = thing
        return thing

    def _enter(self, thing: Thing, parent: Thing, name: bytes) -> Place:
        place = Place(parent.id, name)
        now = self._tick()
        parent.names[name] = thing
        thing.places.append(place)
        self.history.setdefault(place, []).append((now, thing.id))
        parent.mtime = parent.changed = thing.changed = now
        return place

    def _leave(self, parent: Thing, name: bytes, *, gap: bool = True) -> Place:
        place = Place(parent.id, name)
        thing = parent.names.pop(name)
        thing.places.remove(place)
        now = self._tick()
        if gap:
            self.history[place].append((now, None))
        parent.mtime = parent.changed = thing.changed = now
        return place

    def create(self, parent: Thing, name: bytes, mode: int = stat.S_IFREG | 0o644) -> Thing:
        """A new file, open for writing until `flush`; anything else is complete at once."""
        target = b"to-%d" % self._serial if stat.S_ISLNK(mode) else None
        thing = self._make(mode, target=target)
        place = self._enter(thing, parent, name)
        thing.dirty = stat.S_ISREG(mode)
        kinds = {stat.S_IFREG: Kind.CREATE, stat.S_IFDIR: Kind.MKDIR, stat.S_IFLNK: Kind.SYMLINK}
        self._log_change(kinds.get(stat.S_IFMT(mode), Kind.MKNOD), thing, place)
        return thing

    def write(self, thing: Thing) -> None:
        """Change content without closing: no record yet."""
        self.begin_write(thing)
        self.end_write(thing)

    def begin_write(self, thing: Thing) -> None:
        """A write(2) moves the times first, the content later."""
        self.end_write(thing)
        now = self._tick()
        appends = thing.content and self.appends()
        thing.coming = thing.content + b",%d" % now if appends else b"%0*d" % (self.width, now)
        thing.changed = thing.mtime = now
        thing.dirty = True
        if self.marks is not None and thing.places:
            self.marks.add(thing.places[0].directory, None)

    def end_write(self, thing: Thing) -> None:
        """The content of the write that was begun, if one was."""
        if thing.coming is not None:
            thing.content, thing.coming = thing.coming, None
            thing.contents.append((self._tick(), thing.content))

    def flush(self, thing: Thing) -> None:
        """Close after write."""
        self.end_write(thing)
        if thing.dirty:
            thing.dirty = False
            self._log_change(Kind.WRITE, thing, *thing.places[:1])

    def attributes(self, thing: Thing) -> None:
        """chmod, chown and setxattr at once, or setxattr alone."""
        now = self._tick()
        if now % 2:
            thing.mode ^= 0o020
            thing.uid = now
        thing.xattrs[b"user.n"] = b"%d" % now
        thing.changed = now
        self._log_change(Kind.ATTRIBUTES, thing, *thing.places[:1])

    def unlink(self, parent: Thing, name: bytes) -> None:
        thing = parent.names[name]
        place = self._leave(parent, name)
        self._log_change(Kind.RMDIR if thing.is_directory else Kind.UNLINK, thing, place)

    def link(self, thing: Thing, parent: Thing, name: bytes) -> None:
        known = thing.places[0]
        place = self._enter(thing, parent, name)
        self._log_change(Kind.LINK, thing, place, known)

    def rename(self, parent: Thing, name: bytes, to: Thing, to_name: bytes) -> None:
        thing = parent.names[name]
        other = to.names.get(to_name)
        if other is not None:
            self._leave(to, to_name, gap=False)
        old = self._leave(parent, name)
        new = self._enter(thing, to, to_name)
        self._log_change(Kind.RENAME, thing, old, new, **_told_of(other))

    def exchange(self, parent: Thing, name: bytes, to: Thing, to_name: bytes) -> None:
        thing, other = parent.names[name], to.names[to_name]
        old = self._leave(parent, name, gap=False)
        self._leave(to, to_name, gap=False)
        new = self._enter(thing, to, to_name)
        self._enter(other, parent, name)
        self._log_change(
            Kind.RENAME,
            thing,
            old,
            new,
            rename_flags=EXCHANGE,
            **_told_of(other),
        )

    # looking (replicator.view.SourceTree) ------------------------------------------------------

    @property
    def root(self) -> ModelObject:
        return ModelObject(self, self.root_thing)

    def living(self, thing: Thing) -> bool:
        return thing is self.root_thing or bool(thing.places)

    def open(self, id: ObjectId) -> ModelObject | None:
        self.meanwhile()
        thing = self.things.get(id)
        return ModelObject(self, thing) if thing is not None and self.living(thing) else None

    def lookup(self, directory: ModelObject, name: bytes) -> ModelObject | None:
        self.meanwhile()
        thing = directory.thing.names.get(name)
        return None if thing is None else ModelObject(self, thing)

    def ancestors(self, directory: ModelObject) -> list[tuple[ObjectId, bytes, ObjectId]] | None:
        way: list[tuple[ObjectId, bytes, ObjectId]] = []
        thing = directory.thing
        while thing is not self.root_thing:
            if not thing.places:
                return None
            place = thing.places[0]
            way.append((place.directory, place.name, thing.id))
            thing = self.things[place.directory]
        return way[::-1]

    def path_key(self, directory: ModelObject) -> bytes | None:
        way = self.ancestors(directory)
        return None if way is None else b"/".join(name for _, name, _ in way)

    def settle_delay(self, ctime_ns: int) -> float:
        return 0.0

    @property
    def partial(self) -> bool:
        return False

    def hides(self, _id: ObjectId, _places: object) -> bool:
        return False

    def is_quiet(self, ctime_ns: int) -> bool:
        return False

    def list(self, directory: ModelObject) -> list[bytes]:
        self.meanwhile()
        return list(directory.thing.names)

    # what it was -------------------------------------------------------------------------------

    def had(
        self, place: Place, identity: ObjectId, content: bytes, since: int, *, begun: bool = False
    ) -> int | None:
        """The earliest moment from `since` on at which the object, with that content, stood there.
        `begun`: it may have had more than that. None: never.
        """
        standing = [*self.history.get(place, ()), (self.clock + 1, None)]
        contents = [*self.things[identity].contents, (self.clock + 1, b"")]
        for (begin, there), (end, _) in pairwise(standing):
            if there != identity or end <= since:
                continue
            for (first, data), (last, _) in pairwise(contents):
                start: int = max(begin, first, since)
                fits = data.startswith(content) if begun else data == content
                if fits and start < min(end, last):
                    return start
        return None


def _told_of(other: Thing | None) -> dict[str, Any]:
    """What the record of a rename says of what stood there."""
    if other is None:
        return {}
    changed = 0 if other.dirty else other.changed
    links = other.links if other.places else 0
    return {"other": other.id, "other_links": links, "other_ctime_ns": changed}
