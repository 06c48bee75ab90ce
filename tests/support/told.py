"""What records alone tell: the names of a tree and the state of its objects, by ids, without paths.

`Told` takes records in their order, as operations on a model; each must fit what the ones before
it told. `Standing` is the truth to compare that with: the source as it is.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from mirrorfs.backing_tree import BackingTree
from mirrorfs.capture import RENAME_EXCHANGE, RESERVED
from mirrorfs.journal.record import Change, Kind, ObjectId, Place, Record

MAKING = (Kind.CREATE, Kind.MKDIR, Kind.MKNOD, Kind.SYMLINK, Kind.LINK)


@dataclass
class Standing:
    """A source tree at one moment, nobody changing it.

    Attributes:
        places: what stands where.  objects: attributes of everything.
    """

    places: dict[Place, ObjectId] = field(default_factory=dict)
    objects: dict[ObjectId, os.stat_result] = field(default_factory=dict)

    @classmethod
    def of(cls, tree: BackingTree) -> Standing:
        """Walk it."""
        standing = cls()
        standing._walk(tree, tree.root_directory)
        return standing

    def _walk(self, tree: BackingTree, directory: int) -> None:
        identity = tree.object_id(directory)
        self.objects[identity] = os.fstat(directory)
        for name in map(os.fsencode, os.listdir(directory)):
            if name == RESERVED and identity == tree.root_id:
                continue
            found = tree.object_id(directory, name)
            self.places[Place(identity, name)] = found
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            self.objects[found] = status
            if stat.S_ISDIR(status.st_mode):
                below = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=directory)
                try:
                    self._walk(tree, below)
                finally:
                    os.close(below)


class Told:
    """The same, as records tell it, from `start` on.

    Attributes:
        wrong: records that do not fit the ones before, or are not about changes; in words.
    """

    def __init__(self, start: Standing) -> None:
        self.places = dict(start.places)
        self.wrong: list[str] = []
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
        return found

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

    def _hear_rename(self, record: Record, change: Change) -> None:
        old, new = change.places
        self._expect(record, old, change.object)
        self._expect(record, new, change.other)
        self.places.pop(old, None)
        self.places[new] = change.object
        if change.rename_flags & RENAME_EXCHANGE and change.other is not None:
            self.places[old] = change.other

    def _hear_of_objects(self, record: Record, change: Change) -> None:
        self._modes[change.object] = change.mode
        self._links[change.object] = change.links
        self._ctimes[change.object] = change.ctime_ns
        if change.other is not None:
            self._links[change.other] = change.other_links
            self._ctimes[change.other] = change.other_ctime_ns
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
