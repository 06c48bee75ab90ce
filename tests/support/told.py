"""What records alone tell: the names of a tree and the state of its objects.

`Told` takes records in their order, as operations on two models: one knows places by directory id
and name and looks at no path; the other knows paths. Each record must fit what the ones before it
told. `Standing` is the truth to compare that with: the source as it is.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

from mirrorfs.backing_tree import BackingTree
from mirrorfs.capture import RENAME_EXCHANGE, RESERVED
from mirrorfs.journal.record import Change, Kind, ObjectId, Place, Record

Xattrs: TypeAlias = dict[bytes, bytes]

MAKING = (Kind.CREATE, Kind.MKDIR, Kind.MKNOD, Kind.SYMLINK, Kind.LINK)


@dataclass
class Standing:
    """A source tree at one moment, nobody changing it.

    Attributes:
        places: what stands where.  paths: the same by path, the root being the empty one.
        objects: attributes of everything.  xattrs: extended attributes and ACLs, likewise.
    """

    places: dict[Place, ObjectId] = field(default_factory=dict)
    paths: dict[bytes, ObjectId] = field(default_factory=dict)
    objects: dict[ObjectId, os.stat_result] = field(default_factory=dict)
    xattrs: dict[ObjectId, Xattrs] = field(default_factory=dict)

    @classmethod
    def of(cls, tree: BackingTree) -> Standing:
        """Walk it."""
        standing = cls()
        standing._add(tree, b"", tree.root_id, tree.root)
        standing._walk(tree, b"", tree.root_directory)
        return standing

    def _walk(self, tree: BackingTree, path: bytes, directory: int) -> None:
        identity = tree.object_id(directory)
        for name in map(os.fsencode, os.listdir(directory)):
            if name == RESERVED and identity == tree.root_id:
                continue
            found = tree.object_id(directory, name)
            self.places[Place(identity, name)] = found
            descriptor = tree.find(directory, name)
            try:
                below = path + b"/" + name if path else name
                self._add(tree, below, found, descriptor)
                if stat.S_ISDIR(self.objects[found].st_mode):
                    listed = tree.open_directory(descriptor)
                    try:
                        self._walk(tree, below, listed)
                    finally:
                        os.close(listed)
            finally:
                os.close(descriptor)

    def _add(self, tree: BackingTree, path: bytes, identity: ObjectId, descriptor: int) -> None:
        self.paths[path] = identity
        self.objects[identity] = os.fstat(descriptor)
        names = [name for name in tree.xattrs(descriptor) if b".mirrorfs." not in name]
        self.xattrs[identity] = {name: tree.xattr(descriptor, name) for name in sorted(names)}


class Told:
    """The same, as records tell it, from `start` on.

    Attributes:
        wrong: records that do not fit the ones before, or are not about changes; in words.
        pathless: records without a path. What they tell is not in the model of paths.
    """

    def __init__(self, start: Standing) -> None:
        self.places = dict(start.places)
        self.paths = dict(start.paths)
        self.wrong: list[str] = []
        self.pathless = 0
        self._before = start
        self._attributes_told: set[ObjectId] = set()
        self._ways = {
            identity: path
            for path, identity in start.paths.items()
            if stat.S_ISDIR(start.objects[identity].st_mode)
        }
        self._ctimes = {identity: at.st_ctime_ns for identity, at in start.objects.items()}
        self._modes = {identity: at.st_mode for identity, at in start.objects.items()}
        self._links = {identity: at.st_nlink for identity, at in start.objects.items()}
        self._contents: dict[ObjectId, tuple[int, int]] = {}

    def hear(self, records: Iterable[Record]) -> None:
        """Take further records."""
        for record in records:
            if isinstance(record.body, Change):
                self._hear(record, record.body)
            else:
                self.wrong.append(f"{record.sequence} {record.kind.label}")

    def differences(self, standing: Standing, compared: Collection[ObjectId] = ()) -> list[str]:
        """Where the truth is not what was told, but for what a look at these directories tells."""
        found = [] if compared else list(self.wrong)
        seen = {at for place, at in standing.places.items() if place.directory in compared}
        if not compared:
            found += self._path_differences(standing)
        for place in self.places.keys() | standing.places.keys():
            if place.directory in compared:
                continue
            if self.places.get(place) != standing.places.get(place):
                told, true = self.places.get(place), standing.places.get(place)
                found.append(f"{place.name!r}: told {told!r}, is {true!r}")
        for identity, at in standing.objects.items():
            if identity in compared or identity in seen:
                continue
            found += self._object_differences(identity, at)
            if identity in self._before.objects and identity not in self._attributes_told:
                found += self._untold(identity, at, standing)
        self._before = standing
        self._attributes_told.clear()
        return found

    def _path_differences(self, standing: Standing) -> list[str]:
        found = []
        for path in self.paths.keys() | standing.paths.keys():
            if self.paths.get(path) != standing.paths.get(path):
                told, true = self.paths.get(path), standing.paths.get(path)
                found.append(f"{path!r}: told {told!r}, is {true!r}")
        return found

    def _untold(self, identity: ObjectId, at: os.stat_result, now: Standing) -> list[str]:
        """What records only say has changed (of directories, which no change time gives away)."""
        before = self._before.objects[identity]
        was = (before.st_uid, before.st_gid, self._before.xattrs[identity])
        now_is = (at.st_uid, at.st_gid, now.xattrs[identity])
        return [] if was == now_is else [f"{identity!r}: not told: was {was}, is {now_is}"]

    def _object_differences(self, identity: ObjectId, at: os.stat_result) -> list[str]:
        found = []
        if self._modes.get(identity) != at.st_mode:
            found.append(f"{identity!r}: told mode {self._modes.get(identity)!r}, is {at.st_mode}")
        if stat.S_ISDIR(at.st_mode):  # its times and links change with what is in it
            return found
        if self._ctimes.get(identity) != at.st_ctime_ns:
            found.append(
                f"{identity!r}: told changed at {self._ctimes.get(identity)}, was {at.st_ctime_ns}"
            )
        if self._links.get(identity) != at.st_nlink:
            found.append(f"{identity!r}: told {self._links.get(identity)} links, has {at.st_nlink}")
        size, mtime_ns = self._contents.get(identity, (at.st_size, 0))
        if size != at.st_size or mtime_ns not in (0, at.st_mtime_ns):
            found.append(
                f"{identity!r}: told {size} bytes of {mtime_ns},"
                f" has {at.st_size} of {at.st_mtime_ns}"
            )
        return found

    def _hear(self, record: Record, change: Change) -> None:
        if record.kind in MAKING:
            self._expect(record, change.places[0], None)
            for place in change.places[1:]:
                self._expect(record, place, change.object)
            self.places[change.places[0]] = change.object
        elif record.kind in (Kind.UNLINK, Kind.RMDIR):
            self._expect(record, change.places[0], change.object)
            self.places.pop(change.places[0], None)
        elif record.kind is Kind.RENAME:
            self._hear_rename(record, change)
        else:
            for place in change.places:
                self._expect(record, place, change.object)
        self._hear_of_objects(record, change)
        if change.path is None:
            self.pathless += 1
        else:
            self._hear_path(record, change, change.path)

    def _hear_rename(self, record: Record, change: Change) -> None:
        old, new = change.places
        self._expect(record, old, change.object)
        self._expect(record, new, change.other)
        self.places.pop(old, None)
        self.places[new] = change.object
        if change.rename_flags & RENAME_EXCHANGE and change.other is not None:
            self.places[old] = change.other

    def _hear_path(self, record: Record, change: Change, path: bytes) -> None:
        """The same operation on the model of paths."""
        if record.kind in MAKING:
            self._fits(record, self._path(change.places[0]), path)
            self._fits(record, self.paths.get(path), None)
            self.paths[path] = change.object
            if record.kind is Kind.MKDIR:
                self._ways[change.object] = path
        elif record.kind in (Kind.UNLINK, Kind.RMDIR):
            self._fits(record, self._path(change.places[0]), path)
            self._fits(record, self.paths.pop(path, None), change.object)
        elif record.kind is Kind.RENAME:
            self._fits(record, self._path(change.places[1]), path)
            old = self._path(change.places[0])
            if old is None:
                return
            moving = self._take(old)
            displaced = self._take(path)
            self._fits(record, moving.get(b""), change.object)
            self._fits(record, displaced.get(b""), change.other)
            self._put(path, moving)
            if change.rename_flags & RENAME_EXCHANGE:
                self._put(old, displaced)
        else:
            self._fits(record, self.paths.get(path), change.object)

    def _path(self, place: Place) -> bytes | None:
        way = self._ways.get(place.directory)
        return None if way is None else way + b"/" + place.name if way else place.name

    def _take(self, path: bytes) -> dict[bytes, ObjectId]:
        """Out of the model: what is at and below a path, by the rest of the paths."""
        below = path + b"/"
        taken = {at: i for at, i in self.paths.items() if at == path or at.startswith(below)}
        for at in taken:
            del self.paths[at]
        return {at[len(path) :]: identity for at, identity in taken.items()}

    def _put(self, path: bytes, things: dict[bytes, ObjectId]) -> None:
        for rest, identity in things.items():
            self.paths[path + rest] = identity
            if identity in self._ways:
                self._ways[identity] = path + rest

    def _fits(self, record: Record, told: object, said: object) -> None:
        if told != said:
            self.wrong.append(f"{record.sequence} {record.kind.label}: {said!r}, told was {told!r}")

    def _hear_of_objects(self, record: Record, change: Change) -> None:
        self._modes[change.object] = change.mode
        self._links[change.object] = change.links
        self._ctimes[change.object] = change.ctime_ns
        if change.other is not None:
            self._links[change.other] = change.other_links
            self._ctimes[change.other] = change.other_ctime_ns
        if record.kind not in (Kind.UNLINK, Kind.RMDIR, Kind.LINK, Kind.RENAME):
            self._attributes_told.add(change.object)
        if record.kind is Kind.WRITE:
            self._contents[change.object] = change.size, change.mtime_ns
        elif record.kind is Kind.ATTRIBUTES and change.object in self._contents:
            size, _ = self._contents[change.object]
            self._contents[change.object] = size, 0  # its time may have been set
        elif record.kind is Kind.CREATE:
            self._contents[change.object] = 0, 0

    def _expect(self, record: Record, place: Place, identity: ObjectId | None) -> None:
        told = self.places.get(place)
        if told != identity:
            self.wrong.append(
                f"{record.sequence} {record.kind.label} {place.name!r}:"
                f" {identity!r} there, told was {told!r}"
            )
