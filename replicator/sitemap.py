"""Where the site holds what: open directories by object id, copies of an object.

Looks, never changes anything at the site. What it remembers is only a shortcut: every answer can be
found again from the source, the hints of recent records, held steps, the table of names and limbo.
"""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mirrorfs.journal.record import ObjectId, Place
from replicator.held import HeldSteps
from replicator.limbo import Limbo, limbo_name
from replicator.names import NameTable
from replicator.planner import Hints
from replicator.stores.base import Directory, SiteEntry, SiteStore
from replicator.view import SourceObject, SourceTree

_OPEN_MAX = 2048


@contextlib.contextmanager
def inside_of(store: SiteStore, directory: Directory, name: bytes) -> Iterator[Directory | None]:
    """The directory there, open for a while; None: there is none."""
    opened = store.open_directory(directory, name)
    try:
        yield opened
    finally:
        if opened is not None:
            store.close_directory(opened)


@dataclass(slots=True)
class _Open:
    directory: Directory
    place: Place | None
    path_key: bytes | None


@dataclass(frozen=True, slots=True)
class Copy:
    """One name the site has for an object. `place` is None in limbo."""

    directory: Directory
    name: bytes
    entry: SiteEntry
    place: Place | None


class SiteMap:
    """Finds directories and copies at the site."""

    def __init__(
        self,
        source: SourceTree,
        store: SiteStore,
        hints: Callable[[ObjectId], Hints],
        names: NameTable,
        held: HeldSteps,
    ) -> None:
        self._source = source
        self._store = store
        self._hints = hints
        self._names = names
        self._held = held
        self._root = source.root.id
        self._open: dict[ObjectId, _Open] = {}
        self.limbo = Limbo(store)

    def resolve(self, directory: SourceObject) -> Directory | Place | None:
        """The site's directory at the path the source has it at now.

        Otherwise the first place on the way that does not hold what the source holds there; None
        if the directory is not below the source's root any more.
        """
        if directory.id == self._root:
            return self._store.root()
        key = self._source.path_key(directory)
        known = self._open.get(directory.id)
        if known is not None and key is not None and known.path_key == key:
            return known.directory
        way = self._source.ancestors(directory)
        if way is None:
            return None
        at = self._store.root()
        for parent, name, child in way:
            entry = self._store.lookup(at, name)
            if entry is None or entry.mark is None or entry.mark.object != child:
                return Place(parent, name)
            opened = self._opened(child, at, name, Place(parent, name))
            if opened is None:
                return Place(parent, name)
            at = opened
        if way and way[-1][2] == directory.id:
            self._open[directory.id].path_key = key
            return at
        return None

    def _opened(
        self, identity: ObjectId, parent: Directory, name: bytes, place: Place | None
    ) -> Directory | None:
        """The directory of that object, which stands at that name: open from before, or now."""
        known = self._open.get(identity)
        if known is not None:
            known.place = place
            return known.directory
        opened = self._store.open_directory(parent, name)
        if opened is not None:
            self._open[identity] = _Open(opened, place, None)
        return opened

    def find_along(self, identity: ObjectId, path: bytes) -> Directory | None:
        """The site's directory of that object, if it stands where that path leads at the site."""
        at, parent = self._store.root(), self._root
        for name in path.split(b"/"):
            entry = self._store.lookup(at, name)
            if entry is None or entry.mark is None or not stat.S_ISDIR(entry.mode):
                return None
            opened = self._opened(entry.mark.object, at, name, Place(parent, name))
            if opened is None:
                return None
            at, parent = opened, entry.mark.object
        return at if parent == identity else None

    def find(self, identity: ObjectId) -> Directory | None:
        """The site's directory of that object, wherever the site has it."""
        return self._find(identity, set())

    def _find(self, identity: ObjectId, tried: set[ObjectId]) -> Directory | None:
        """`tried`: directories that were not found, or are being looked for."""
        if identity == self._root:
            return self._store.root()
        known = self._open.get(identity)
        if known is not None:
            return known.directory
        if identity in tried:
            return None
        tried.add(identity)
        places = dict.fromkeys(self._told(identity))
        source = self._source.open(identity)
        if source is not None:
            with source:
                found = self.resolve(source)
                way = self._source.ancestors(source)
            if found is not None and not isinstance(found, Place):
                return found
            if way:  # perhaps it has not moved, only what is above it
                places[Place(way[-1][0], way[-1][1])] = None
        for place in places:
            parent = self._find(place.directory, tried)
            if parent is not None and self._holds(parent, place.name, identity):
                tried.clear()  # what was not found may be below this one
                return self._opened(identity, parent, place.name, place)
        if self.limbo.lookup(identity) is not None:
            tried.clear()
            return self._opened(identity, self.limbo.directory, limbo_name(identity), None)
        return None

    def _told(self, identity: ObjectId) -> Iterator[Place]:
        """Places where that object is or was, by the records at hand and what is remembered."""
        yield from self._hints(identity).places
        yield from self._names.places(identity)
        yield from self._held.places(identity)

    def object_at(self, place: Place) -> ObjectId | None:
        """What object the site has a copy of at that place."""
        directory = self.find(place.directory)
        entry = None if directory is None else self._store.lookup(directory, place.name)
        return None if entry is None or entry.mark is None else entry.mark.object

    def hidden(self, identity: ObjectId) -> bool:
        """Whether the site may have that object in a directory that cannot be found, because what
        the source did with it is not among the records read so far."""
        waiting, seen = [identity], {identity}
        while waiting:
            for place in self._told(waiting.pop()):
                at = place.directory
                if at in seen or self.find(at) is not None:
                    continue
                seen.add(at)
                source = self._source.open(at)
                if source is None:
                    continue
                with source:
                    way = self._source.ancestors(source)
                if way and Place(way[-1][0], way[-1][1]) not in self._hints(at).places:
                    return True
                waiting.append(at)
        return False

    def _holds(self, directory: Directory, name: bytes, identity: ObjectId) -> bool:
        entry = self._store.lookup(directory, name)
        return entry is not None and entry.mark is not None and entry.mark.object == identity

    def copies(self, identity: ObjectId, empty: Place | None = None) -> Iterator[Copy]:
        """Every name the site is known to have for an object: limbo, then places.

        `empty`: nothing stands there, as was seen just now.
        """
        entry = self.limbo.lookup(identity)
        if entry is not None:
            yield Copy(self.limbo.directory, limbo_name(identity), entry, None)
        places: dict[Place, None] = dict.fromkeys(self._told(identity))
        known = self._open.get(identity)
        if known is not None and known.place is not None:
            places[known.place] = None
        for place in places:
            directory = None if place == empty else self.find(place.directory)
            if directory is None:
                continue
            entry = self._store.lookup(directory, place.name)
            if entry is not None and entry.mark is not None and entry.mark.object == identity:
                yield Copy(directory, place.name, entry, place)

    def moved(self) -> None:
        """A directory changed its place at the site: paths below it are other directories now."""
        for known in self._open.values():
            known.path_key = None

    def placed(self, identity: ObjectId, place: Place) -> None:
        """That directory was given this place."""
        known = self._open.get(identity)
        if known is not None:
            known.place = place

    def forget(self, identity: ObjectId) -> None:
        """The site's copy of that directory is being taken apart or away."""
        known = self._open.pop(identity, None)
        if known is not None:
            self._store.close_directory(known.directory)

    def trim(self) -> None:
        """Close the directories opened longest ago; only between steps."""
        while len(self._open) > _OPEN_MAX:
            self.forget(next(iter(self._open)))

    def close(self) -> None:
        """Close all directories."""
        for identity in list(self._open):
            self.forget(identity)
