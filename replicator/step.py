"""One step: look at the source now, and make the site true at a place or for an object.

The rules are those of docs/design.md, "The step"; decisions that need no looking are in
`schedule`, taking things from their places is in `moves`. A step is idempotent and may be cut off
anywhere: what it leaves is found again by looking. It has no order of its own; the plan says which
step comes next.
"""

from __future__ import annotations

import stat
from collections.abc import Callable
from dataclasses import replace

from mirrorfs.journal.record import ObjectId, Place
from replicator import directory_times, schedule
from replicator.deletions import Deletions
from replicator.doubts import Doubts
from replicator.escape import Escape
from replicator.held import AheadError, DeferredError, HeldSteps
from replicator.linking import Linking
from replicator.moves import NORMAL, Bench, Counters, Mode, Moves
from replicator.names import NameTable
from replicator.observer import Observer
from replicator.planner import ObjectItem, PlaceItem, Plan, ReconcileItem
from replicator.ranking import ranked_copies
from replicator.removing import remove
from replicator.schedule import ContentState, Incarnations
from replicator.sitemap import Copy, SiteMap
from replicator.staging import Staging, Workers
from replicator.stores.base import (
    RESERVED,
    Directory,
    Mark,
    MarkFlag,
    SiteEntry,
    SiteStore,
)
from replicator.under_way import UnderWay
from replicator.used import used
from replicator.view import SourceChangedError, SourceObject, SourceTree

_WAY_TRIES = 16


class Step:
    """Carries out the steps of one site."""

    def __init__(
        self,
        source: SourceTree,
        store: SiteStore,
        plan: Plan,
        incarnations: Incarnations,
        escape: Escape,
        held: HeldSteps,
        under_way: UnderWay,
        deletions: Deletions,
        *,
        workers: Workers,
        inline_bytes: int,
        grown_bytes_min: int,
        deadline_ns: Callable[[bytes], int],
        sleep: Callable[[float], None],
        clock_ns: Callable[[], int],
        observer: Observer,
    ) -> None:
        """Step on `source`, `store` and `plan`.

        Args:
            incarnations: those of the journal.
            escape: what reconciles may have missed.
            held: the steps that failed or wait.
            under_way: see there.  deletions: how much may be removed.
            workers: where bytes move.
            inline_bytes, grown_bytes_min, deadline_ns: see Staging.
            sleep: waits that many seconds.  clock_ns: nanoseconds, to measure by.
            observer: is told what workers copy.
        """
        names = NameTable(store)
        self.bench = Bench(
            source,
            store,
            plan,
            incarnations,
            names,
            SiteMap(source, store, plan.hints, names, held),
            Doubts(store, escape.now),
            escape,
            held,
            under_way,
            deletions,
        )
        self.moves = Moves(self.bench)
        self._linking = Linking(self.bench, self.moves)
        self._source = source
        self._store = store
        self._plan = plan
        self._held = held
        self.staging = Staging(
            self.bench,
            workers,
            sleep,
            clock_ns,
            inline_bytes,
            grown_bytes_min,
            deadline_ns,
            observer,
        )

    @property
    def counters(self) -> Counters:
        """What was done so far."""
        return self.bench.counters

    # places ------------------------------------------------------------------------------------

    def place(
        self, place: Place, mode: Mode = NORMAL, item: PlaceItem | None = None
    ) -> ObjectId | None:
        """Make a place true; the directory that stands there. Raises DeferredError, StoreError,
        SourceError, SourceChangedError (the source changes faster than it can be copied)."""
        if place.name == RESERVED and place.directory == self._source.root.id:
            return None
        with self.bench.under_way.border(place):
            return self._place(place, mode, item)

    def _place(self, place: Place, mode: Mode, item: PlaceItem | None) -> ObjectId | None:
        parent = self._source.open(place.directory)
        if parent is None:
            return None  # its own disappearance is another place's business
        with parent:
            directory = self.directory(parent, mode)
            if directory is None:
                return None
            # even where nothing is left to do: what came and went again moved the times
            self.bench.touched.add(place.directory)
            self.bench.unsynced.add(place.directory)
            entry = self._store.lookup(directory, place.name)
            found = self._source.lookup(parent, place.name)
            if found is not None:
                with found:
                    if stat.S_ISSOCK(found.mode):
                        self._skip_socket(directory, place, entry, mode)
                        return None
                    if mode.reconciles and entry is None and self._plan.place(place) is not None:
                        return None  # its record brings it, in its turn
                    self._fill(found, directory, place, entry, mode, item)
                    return found.id if stat.S_ISDIR(found.mode) else None
            if entry is not None:
                remove(self.bench, self.moves, directory, place, entry, mode)
            return None

    def _skip_socket(
        self, directory: Directory, place: Place, entry: SiteEntry | None, mode: Mode
    ) -> None:
        """Whoever listens is here: elsewhere it means nothing. So nothing is there."""
        self.counters.sockets_skipped += 1
        if entry is not None and stat.S_ISSOCK(entry.mode):
            self._store.remove(directory, place.name)  # made by an earlier version
        elif entry is not None:
            self.moves.vacate(directory, place, entry, mode)

    def directory(self, source: SourceObject, mode: Mode = NORMAL) -> Directory | None:
        """The site's directory, wherever the site has it; made, with its ancestors, if it has not.

        None if it is not below the source's root any more. Raises AheadError where making it would
        copy what a record still to be read will move.
        """
        known = self.bench.map.find(source.id)
        if known is None:
            known = self._found_along(source)
        if known is not None:
            return known
        for _ in range(_WAY_TRIES):
            way = self.bench.map.resolve(source)
            if not isinstance(way, Place):
                return way
            descends = mode.descends and self._is_at(way, source)
            self.place(way, replace(mode, descends=descends, on_way=True))
        raise SourceChangedError("directories are renamed faster than they can be followed")

    def _found_along(self, directory: SourceObject) -> Directory | None:
        """Where the record being applied says that it was: by a record that is not read yet it may
        have gone elsewhere since."""
        item = self.staging.owner[0]
        if isinstance(item, ReconcileItem | None) or not item.path or b"/" not in item.path:
            return None
        return self.bench.map.find_along(directory.id, item.path.rpartition(b"/")[0])

    def touch_above(self, source: SourceObject) -> None:
        """Have the times set of all directories above that one."""
        self.bench.touched.update(step[0] for step in self._source.ancestors(source) or ())

    def _is_at(self, place: Place, directory: SourceObject) -> bool:
        """Whether that is where a directory stands, not one above it."""
        way = self._source.ancestors(directory)
        return bool(way) and place == Place(*way[-1][:2])  # type: ignore[index]

    def _fill(
        self,
        found: SourceObject,
        directory: Directory,
        place: Place,
        entry: SiteEntry | None,
        mode: Mode,
        item: PlaceItem | None,
    ) -> None:
        """The source has an object there."""
        if mode.on_way and not stat.S_ISDIR(found.mode):
            return  # what was on the way has gone elsewhere
        if mode.adopt and entry is not None and self._adopt(found, directory, place, entry):
            entry = self._store.lookup(directory, place.name)
        if entry is not None and schedule.is_copy(found, entry):
            self._refresh(found, Copy(directory, place.name, entry, place), place, mode)
            return
        came = None if item is None else schedule.absent_until(item, found.id)
        if item is not None and came is not None:
            if entry is not None:
                self.moves.vacate(directory, place, entry, mode)
            self._plan.postpone(item, came)
        elif mode.trust and not self._explained(found, place):
            if item is not None and schedule.is_empty(item) and entry is not None:
                self.moves.vacate(directory, place, entry, mode)
            raise AheadError("what stands there now came by a record that is still to come")
        elif stat.S_ISDIR(found.mode):
            self._bring_directory(found, directory, place, entry, mode)
        else:
            self._bring(found, directory, place, entry, mode)

    def _explained(self, found: SourceObject, place: Place) -> bool:
        """Whether it is known why that object stands there: a record told, or it is a directory
        that a comparison has not come to yet."""
        if place in self._plan.hints(found.id).places:
            return True
        escape = self.bench.escape
        return escape.under_way and stat.S_ISDIR(found.mode) and not self._is_ahead(found)

    def _is_ahead(self, found: SourceObject) -> bool:
        """Whether it may have come where it is by a record that is still to be read."""
        plan = self._plan
        return self.bench.escape.ahead(plan.known, plan.known_ns, found.ctime_ns)

    def _refresh(self, found: SourceObject, copy: Copy, place: Place, mode: Mode) -> None:
        """The place holds a copy of the right object: make content and attributes so."""
        mark, state = copy.entry.mark, ContentState.CURRENT
        assert mark is not None, "is_copy was asked"
        if stat.S_ISREG(found.mode):
            state = self.bench.content_state(mark, found, mode)
            if state is ContentState.STALE:
                self._replace_content(found, copy, place, mode)
                return
        self._set_attributes(found, copy, exact=mode.exact)
        names = found.links > 1 and not stat.S_ISDIR(found.mode)
        if names and state is not ContentState.COMING:  # else what others have never stood here
            self._linking.unify(found, copy, place, mode)
        self._object_done(found)
        if state is ContentState.COMING:
            raise DeferredError("open for writing")
        settled = self._plan.hints(found.id).settled_ctime_ns == found.ctime_ns
        told = mark.ctime_ns == found.ctime_ns and MarkFlag.AHEAD not in mark.flags
        if found.links <= 1:
            self._held.object_done(found.id)
            if settled or told:  # else a record about another name it had may still be to come
                self.bench.names.forget(found.id)
        if settled and not told and stat.S_ISREG(found.mode):
            # only names or attributes moved the change time: a later reconcile need not copy it
            self._store.set_mark(copy.directory, copy.name, self._mark(found, mark.saved))

    def _bring_directory(
        self,
        found: SourceObject,
        directory: Directory,
        place: Place,
        entry: SiteEntry | None,
        mode: Mode,
    ) -> None:
        """The site has something else there than this directory, or nothing."""
        copies = [c for c in self.bench.map.copies(found.id) if stat.S_ISDIR(c.entry.mode)]
        copy = max(copies, key=lambda c: c.entry.mark.ctime_ns if c.entry.mark else 0, default=None)
        if copy is not None:
            unsure = mode.reconciles or self.bench.escape.missed(found.id) or self._source.partial
            if unsure and not mode.descends:  # it may come from where all below is to be compared
                self.bench.doubt.add(found.id)
            self.moves.put_copy(copy, directory, place, entry, mode)
            self.counters.moved += 1
        else:
            self._must_be_found(found, mode)
            if mode.reconciles and self._is_ahead(found):
                raise AheadError("it may have come by a record that is still to be read")
            hints = self._plan.hints(found.id)
            stayed = not self._source.partial or len(hints.places) <= 1
            if hints.made and not hints.built and stayed:
                hints.built = True
                if not mode.reconciles:
                    self.bench.escape.made(found.id)
            elif not mode.descends:
                self.bench.doubt.add(found.id)  # what it holds has no records of its own to come
            staged = self._store.stage(found.attributes(), None, self._mark(found))
            self.bench.map.forget(found.id)
            self.moves.put_staged(staged, directory, place, entry, mode, is_directory=True)
            self.counters.made += 1
        self.bench.touched.add(found.id)
        made = self._store.lookup(directory, place.name)
        if made is not None and copy is not None:
            moved = Copy(directory, place.name, made, place)
            self._set_attributes(found, moved, exact=mode.exact)
        self._object_done(found)

    def _bring(
        self,
        found: SourceObject,
        directory: Directory,
        place: Place,
        entry: SiteEntry | None,
        mode: Mode,
    ) -> None:
        """The site has something else there than this file (symlink, device …), or nothing."""
        copies, state = ranked_copies(self.bench, found, mode, place if entry is None else None)
        if state is ContentState.COMING:
            raise DeferredError("open for writing")
        if found.links > 1:
            self._must_be_found(found, mode)
            self.bench.names.add(found.id, place)
        if state is ContentState.STALE:
            staged = self.staging.stage(found, place)
            with used(self._store, staged):
                for each in copies:
                    self.moves.keep_if_better(found, staged, each, place, mode)
                self.moves.put_staged(staged, directory, place, entry, mode, is_directory=False)
            self._linking.replace_others(found, directory, place, copies)
            return
        copy = copies[0]
        if copy.place is not None and self.bench.stands(copy.place, found.id):
            self.bench.names.add(found.id, copy.place)
            self.moves.save(directory, place, entry, mode)
            self._linking.link(copy, directory, place, entry, mode)
        else:
            self.moves.put_copy(copy, directory, place, entry, mode)
            self.counters.moved += 1
        made = self._store.lookup(directory, place.name)
        if made is not None and schedule.is_copy(found, made):
            self._refresh(found, Copy(directory, place.name, made, place), place, mode)

    # objects -----------------------------------------------------------------------------------

    def object(self, identity: ObjectId, mode: Mode = NORMAL) -> set[Place]:
        """Make an object true under every name the site has for it; the places made so.

        Raises what `place` raises.
        """
        with self.bench.under_way.border(identity):
            return self._object(identity, mode)

    def _object(self, identity: ObjectId, mode: Mode) -> set[Place]:
        found = self._source.open(identity)
        if found is None:
            # what came in its place since must be seen before what the records tell of next
            self._places_left(list(self.bench.map.copies(identity)), set(), mode)
            return set()
        with found:
            if stat.S_ISDIR(found.mode):
                self.directory_attributes(found, mode)
                return set()
            places = {*self._plan.hints(found.id).places, *self._held.places(found.id)}
            copies = list(self.bench.map.copies(found.id))
            places |= {copy.place for copy in copies if copy.place is not None}
            standing = {place for place in places if self.bench.stands(place, found.id)}
            for copy in copies:
                if copy.place not in standing:
                    self.bench.leaves(copy.directory, copy.name, copy.entry, mode)
        for place in sorted(standing, key=lambda each: (each.directory, each.name)):
            self.place(place, mode)
        if standing:
            self._places_left(copies, standing, mode)
        if not standing and not copies and not self._source.hides(identity, places):
            if mode.trust:
                raise AheadError("the record that says where it stands now is still to come")
            if not places:  # look everywhere
                self.bench.doubt.add(self._source.root.id)
            # else the step that brought it elsewhere, while this one was held, has looked closely
        return standing

    def _places_left(self, copies: list[Copy], standing: set[Place], mode: Mode) -> None:
        """Make places true at which the site shows what does not stand there any more."""
        for copy in copies:
            if copy.place is not None and copy.place not in standing:
                self.place(copy.place, mode)

    def directory_attributes(self, found: SourceObject, mode: Mode = NORMAL) -> None:
        """Owner, mode, ACL and xattrs of a directory; its times come with `finish`."""
        self.bench.touched.add(found.id)
        self._directory_attributes(found, mode)
        if not mode.wait:  # it was held, and may have been for its times
            directory_times.set_times(self.bench, found.id)

    def _directory_attributes(self, found: SourceObject, mode: Mode) -> None:
        if found.id == self._source.root.id:
            self._store.set_root_attributes(found.attributes(), self._mark(found))
            return
        if self.directory(found, mode) is None:
            return
        self.bench.map.resolve(found)  # if it stands at its place, it is known to
        copies = [c for c in self.bench.map.copies(found.id) if stat.S_ISDIR(c.entry.mode)]
        for copy in copies:  # wherever the site has it: its way there is another step's business
            self._set_attributes(found, copy, exact=True)
        if not copies:
            raise AheadError("it stands at the site where no record has it")

    def _set_attributes(self, found: SourceObject, copy: Copy, *, exact: bool) -> None:
        """Make them so if they differ. `exact`: look at xattrs even if no record speaks of them."""
        wanted, mark = found.attributes(), copy.entry.mark
        assert mark is not None, "it is a copy"
        owed = MarkFlag.OWED in mark.flags
        paid = replace(mark, flags=mark.flags & ~MarkFlag.OWED)
        differ = schedule.attributes_differ(wanted, copy.entry)
        if not differ and (exact or owed or self.bench.object_waits(found.id)):
            differ = dict(wanted.xattrs) != self._store.xattrs(copy.directory, copy.name)
        if not differ:
            if owed:
                self._store.set_mark(copy.directory, copy.name, paid)
            return
        self._store.set_attributes(copy.directory, copy.name, wanted, paid)
        self.counters.attributes_set += 1
        if stat.S_ISDIR(found.mode):
            self.bench.touched.add(found.id)

    def _object_done(self, found: SourceObject) -> None:
        """With one name, what was done at a place was done for the object."""
        if stat.S_ISDIR(found.mode):
            self.bench.touched.add(found.id)  # the record may be about its times
        else:
            self.moves.leave_limbo(found.id)
        if found.links <= 1 or stat.S_ISDIR(found.mode):
            self._plan.object_done(found.id)

    # content -----------------------------------------------------------------------------------

    def prefetch(self, item: PlaceItem | ObjectItem, mode: Mode) -> None:
        """Begin to copy what that step, whose turn has not come, is going to need. A guess: what
        is copied is looked at again when the step is done. Raises SourceError, StoreError."""
        identity = self.bench.object_at(item.place) if isinstance(item, PlaceItem) else item.object
        found = None if identity is None else self._source.open(identity)
        if found is None:
            return
        with found:
            if stat.S_ISREG(found.mode):
                copies, state = ranked_copies(self.bench, found, mode)
                if state is ContentState.STALE:
                    base = self.staging.base(found, copies[0]) if len(copies) == 1 else None
                    self.staging.prefetch(found, base)

    def _mark(self, found: SourceObject, saved: int | None = None) -> Mark:
        """`saved`: that of the copy, if its content is there already."""
        known, saved = self._plan.known, self.bench.saved if saved is None else saved
        return Mark(found.id, self._plan.known_tag, known, found.ctime_ns, saved=saved)

    def _replace_content(self, found: SourceObject, copy: Copy, place: Place, mode: Mode) -> None:
        """Stage the object anew and put it under each of its names at the site."""
        if found.links > 1:
            self._must_be_found(found, mode)
            self.bench.names.add(found.id, place)
        base = self.staging.base(found, copy)
        several = found.links > 1 or copy.entry.links > 1
        copies = list(self.bench.map.copies(found.id)) if several else []
        staged = self.staging.stage(found, place, base)
        if self._store.is_tail(staged):
            # what stands there is the beginning of it: nothing of it is lost
            if self._store.extend(staged, copy.directory, copy.name):
                self.counters.extended += 1
                return
            self._store.discard(staged)
            staged = self.staging.stage(found, place)
        with used(self._store, staged):
            for each in {copy.place: copy, **{each.place: each for each in copies}}.values():
                self.moves.keep_if_better(found, staged, each, place, mode)
            self._store.commit(staged, copy.directory, copy.name)
        self.bench.touched.add(place.directory)
        self._linking.replace_others(found, copy.directory, place, copies)

    def _must_be_found(self, found: SourceObject, mode: Mode) -> None:
        """Raises AheadError if the site may have the object in a directory it does not find now."""
        if mode.trust and self.bench.map.hidden(found.id):
            raise AheadError("it was in a directory that moved by a record that is still to come")

    def _adopt(
        self, found: SourceObject, directory: Directory, place: Place, entry: SiteEntry
    ) -> bool:
        """Take what was there before us as a copy, if type, size and time say so."""
        if entry.mark is not None or not schedule.looks_like(found, entry):
            return False
        self._store.set_attributes(directory, place.name, found.attributes(), self._mark(found))
        self.counters.adopted += 1
        return True

    # ends --------------------------------------------------------------------------------------

    def finish(self) -> None:
        """See `directory_times`."""
        directory_times.finish(self.bench)
