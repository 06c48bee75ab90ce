"""What may differ at a site: places and objects that records past its clean cursor touch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from mirrorfs.journal.reader import JournalReader
from mirrorfs.journal.record import Change, ObjectId, Reconcile, SequenceNumber, handle_id
from replicator import system_calls
from replicator.stores.attributes import MARK
from replicator.stores.base import Mark
from tests.support.trees import ROOT, Tree, differences, snapshot


def unexplained(source: Path, site: Path, journal: Path, clean: int) -> list[str]:
    """Differences, readable, that no record past the clean cursor explains. Nothing may move."""
    touched = Touched(journal, clean)
    if touched.everything:
        return []
    one, other = snapshot(source), snapshot(site)
    sides = [_Ids(touched.source_id(source)), _Ids(_site_id(site, touched.root))]
    for side in sides:
        touched.add_times(side)
    lines = []
    for path in sorted(one.keys() | other.keys()):
        if one.get(path) == other.get(path):
            continue
        names = {path, *_names(one, path), *_names(other, path)}  # other names move with theirs
        if not any(touched.covers(s) for side in sides for name in names for s in side.steps(name)):
            lines += differences(_only(one, path), _only(other, path))
    return lines


class Touched:
    """Places and objects of the records past a cursor.

    Attributes:
        everything: a reconcile is among them, or the initial copy is not complete.
        root: the source's root.
    """

    def __init__(self, journal: Path, clean: int) -> None:
        self._places: set[tuple[bytes, bytes]] = set()
        self._objects: set[bytes] = set()
        with JournalReader(str(journal)) as reader:
            self._epoch = reader.header.epoch
            self.root = reader.header.source.root
            self.everything = clean < 0
            for batch in reader.read(SequenceNumber(max(clean, 0) + 1)):
                for record in batch:
                    self._add(record.body)

    def _add(self, body: object) -> None:
        if isinstance(body, Reconcile):
            self.everything = True
        if isinstance(body, Change):
            self._places.update((place.directory, place.name) for place in body.places)
            self._objects.add(body.object)
            self._objects.update(place.directory for place in body.places)  # their times
            if body.other is not None:
                self._objects.add(body.other)

    def add_times(self, side: _Ids) -> None:
        """What is copied anew is put under all its names, which moves their directories' times."""
        self._objects.update([above for above, below in side.pairs() if below in self._objects])

    def covers(self, step: tuple[bytes, bytes, bytes, bool]) -> bool:
        """Whether a step on the way to a path (directory, name, object, whether it is the last)
        was touched."""
        directory, name, identity, last = step
        return (directory, name) in self._places or (last and identity in self._objects)

    def source_id(self, source: Path) -> dict[bytes, ObjectId]:
        """Object ids of the source by path."""
        found = {ROOT: self.root}
        for path in snapshot(source):
            descriptor = os.open(os.path.join(os.fsencode(source), path), os.O_PATH | os.O_NOFOLLOW)
            handle = system_calls.handle_of(descriptor)
            os.close(descriptor)
            found[path] = handle_id(self._epoch, handle.type, handle.handle)
        return found


def _site_id(site: Path, root: ObjectId) -> dict[bytes, ObjectId]:
    """Object ids of the site by path, as the marks say."""
    found = {ROOT: root}
    for path in snapshot(site):
        if path == ROOT:
            continue
        full = os.path.join(os.fsencode(site), path)
        mark = Mark.decode(os.getxattr(full, MARK, follow_symlinks=False))
        assert mark is not None, path
        found[path] = mark.object
    return found


class _Ids:
    """One side: the steps from its root to a path."""

    def __init__(self, ids: dict[bytes, ObjectId]) -> None:
        self._ids = ids

    def pairs(self) -> Iterator[tuple[ObjectId, ObjectId]]:
        """Directory and what is in it."""
        for path, identity in self._ids.items():
            if path != ROOT:
                yield self._ids[os.path.dirname(path) or ROOT], identity

    def steps(self, path: bytes) -> Iterator[tuple[bytes, bytes, bytes, bool]]:
        directory: bytes = self._ids[ROOT]
        names = [] if path == ROOT else path.split(b"/")
        if not names:
            yield b"", b"", directory, True
        for index, name in enumerate(names, 1):
            below: bytes = self._ids.get(b"/".join(names[:index]), ObjectId(b""))
            yield directory, name, below, index == len(names)
            directory = below


def _names(tree: Tree, path: bytes) -> tuple[bytes, ...]:
    return tree[path].names if path in tree else ()


def _only(tree: Tree, path: bytes) -> Tree:
    return {path: tree[path]} if path in tree else {}
