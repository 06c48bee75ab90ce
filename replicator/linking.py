"""Names of one object are names of one file at the site.

Where two copies of an object meet, the one that was read last wins, under all its names.
"""

from __future__ import annotations

import stat

from mirrorfs.journal.record import Place
from replicator import schedule
from replicator.held import AheadError
from replicator.moves import Bench, Mode, Moves
from replicator.sitemap import Copy
from replicator.stores.base import Directory, SiteEntry
from replicator.view import SourceObject


class Linking:
    """Gives the objects of one site their other names."""

    def __init__(self, bench: Bench, moves: Moves) -> None:
        self._bench = bench
        self._moves = moves

    def replace_others(
        self, found: SourceObject, directory: Directory, place: Place, copies: list[Copy]
    ) -> None:
        """The place holds a new copy: the object's other names become names of it, or go."""
        for copy in copies:
            if copy.place == place:
                continue
            if copy.place is not None:
                self._bench.touched.add(copy.place.directory)
            if copy.place is not None and self._bench.stands(copy.place, found.id):
                self._bench.names.add(found.id, copy.place)
                self._bench.names.add(found.id, place)
                self._bench.store.link(directory, place.name, copy.directory, copy.name)
            else:
                self._bench.store.remove(copy.directory, copy.name)
                if copy.place is not None:
                    self._bench.names.discard(found.id, copy.place)
        self._moves.leave_limbo(found.id)
        self._bench.plan.object_done(found.id)
        self._bench.held.object_done(found.id)

    def unify(self, found: SourceObject, copy: Copy, place: Place, mode: Mode) -> None:
        """Names of one object must be one object at the site: all names of the newest copy."""
        self._bench.names.add(found.id, place)
        names = {place: copy}
        for other in self._bench.map.copies(found.id):
            if other.place is not None and self._bench.stands(other.place, found.id):
                names[other.place] = other
        newest = max(
            names.values(), key=lambda each: schedule.recency(each.entry.mark, found.ctime_ns)
        )
        for at, each in names.items():
            # even if nothing is left to do: we may have been killed before the times were set
            self._bench.touched.add(at.directory)
            if each.entry.identity != newest.entry.identity:
                if not self._bench.may_arrive(found, newest, mode):
                    raise AheadError("its newest content came by a record that is still to come")
                self._bench.names.add(found.id, at)
                self._bench.store.link(newest.directory, newest.name, each.directory, each.name)
                self._bench.counters.linked += 1

    def link(
        self,
        copy: Copy,
        directory: Directory,
        place: Place,
        entry: SiteEntry | None,
        mode: Mode,
    ) -> None:
        """Another name for what the site has."""
        if entry is not None and stat.S_ISDIR(entry.mode):
            self._moves.vacate(directory, place, entry, mode)
        self._bench.store.link(copy.directory, copy.name, directory, place.name)
        self._bench.touched.add(place.directory)
        self._bench.counters.linked += 1
