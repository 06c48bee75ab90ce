"""The part of a source that one site is to have: what the operator excludes is not there.

Stands for a source tree. Steps look at it as ever, so that what is excluded leaves the site as if
it were gone from the source, and what comes from there is new. Patterns are about the path an
object has now; where a directory was moved, other things in it may be wanted than before.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from typing import Final

from mirrorfs.journal.record import ObjectId, Place
from replicator.patterns import Wanted
from replicator.site_state import SiteState
from replicator.view import SourceObject, SourceTree, Steps

_KNOWN_MAX: Final = 4096


class Subset:
    """A SourceTree that shows only what is wanted.

    Attributes:
        partial: there is more than it shows.
    """

    partial = True

    def __init__(self, inner: SourceTree, wanted: Wanted) -> None:
        self._inner = inner
        self._wanted = wanted
        self._paths: dict[bytes, tuple[ObjectId, bytes | None]] = {}

    @property
    def root(self) -> SourceObject:
        """See SourceTree."""
        return self._inner.root

    def open(self, id: ObjectId) -> SourceObject | None:
        """See SourceTree. A file is known by its id, whatever its path."""
        found = self._inner.open(id)
        if found is None or not stat.S_ISDIR(found.mode):
            return found
        shown = False
        try:
            shown = self._path(found) is not None
        finally:
            if not shown:
                found.close()
        return found if shown else None

    def lookup(self, directory: SourceObject, name: bytes) -> SourceObject | None:
        """See SourceTree."""
        above = self._path(directory)
        found = None if above is None else self._inner.lookup(directory, name)
        if found is None or above is None:
            return None
        if self._wanted(_join(above, name), directory=stat.S_ISDIR(found.mode)):
            return found
        found.close()
        return None

    def ancestors(self, directory: SourceObject) -> Steps | None:
        """See SourceTree."""
        way = self._inner.ancestors(directory)
        if way is None or not self._all_wanted([name for _, name, _ in way]):
            return None
        return way

    def path_key(self, directory: SourceObject) -> bytes | None:
        """See SourceTree."""
        return self._inner.path_key(directory)

    def settle_delay(self, ctime_ns: int) -> float:
        """See SourceTree."""
        return self._inner.settle_delay(ctime_ns)

    def is_quiet(self, ctime_ns: int) -> bool:
        """See SourceTree."""
        return self._inner.is_quiet(ctime_ns)

    def list(self, directory: SourceObject) -> list[bytes]:
        """See SourceTree. There may be names that lead to nothing."""
        return self._inner.list(directory)

    def hides(self, id: ObjectId, places: Iterable[Place]) -> bool:
        """See SourceTree."""
        for place in places:
            parent = self._inner.open(place.directory)
            if parent is None:
                continue
            with parent:
                found = self._inner.lookup(parent, place.name)
                if found is None:
                    continue
                with found:
                    if found.id == id:
                        return True
        return False

    def _path(self, directory: SourceObject) -> bytes | None:
        """From the root on; None: it is not shown, or nowhere."""
        key = self._inner.path_key(directory)
        if key is not None:
            known = self._paths.get(key)
            if known is not None and known[0] == directory.id:
                return known[1]
        way = self._inner.ancestors(directory)
        names = None if way is None else [name for _, name, _ in way]
        path = b"/".join(names) if names is not None and self._all_wanted(names) else None
        if key is not None and key == self._inner.path_key(directory):
            if len(self._paths) >= _KNOWN_MAX:
                self._paths.clear()
            self._paths[key] = directory.id, path
        return path

    def _all_wanted(self, names: Iterable[bytes]) -> bool:
        path = b""
        for name in names:
            path = _join(path, name)
            if not self._wanted(path, directory=True):
                return False
        return True


def _join(above: bytes, name: bytes) -> bytes:
    return above + b"/" + name if above else name


def part_of(source: SourceTree, wanted: Wanted, state: SiteState) -> tuple[SourceTree, bool]:
    """What a site in that state is to have of the source, and whether it was another part before.
    The state remembers it."""
    before = state.include, state.exclude
    state.include, state.exclude = list(wanted.include), list(wanted.exclude)
    anew = before != (state.include, state.exclude)
    return (Subset(source, wanted) if wanted else source), anew
