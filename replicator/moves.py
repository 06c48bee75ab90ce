"""Giving places to objects and taking them away, so that nothing living is lost on the way.

What leaves a place goes to limbo while its object lives in the source, else for ever, or to `kept`
when the caller does not trust what it knows. Which object belongs where is decided in `step`.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass, field, replace

from mirrorfs.journal.record import ObjectId, Place, SequenceNumber, Tag
from replicator import schedule
from replicator.deletions import Deletions
from replicator.doubts import Doubts
from replicator.escape import Escape
from replicator.held import HeldSteps
from replicator.limbo import limbo_name
from replicator.losses import Losses
from replicator.names import NameTable
from replicator.planner import Plan
from replicator.schedule import ContentState, Incarnations
from replicator.sitemap import Copy, SiteMap, inside_of
from replicator.stores.base import Directory, Mark, MarkFlag, SiteEntry, SiteStore, Staged
from replicator.under_way import UnderWay
from replicator.used import used
from replicator.view import SourceObject, SourceTree


@dataclass(slots=True)
class Counters:
    """What the steps of a site did since it was opened."""

    files_copied: int = 0
    extended: int = 0
    made: int = 0
    moved: int = 0
    linked: int = 0
    removed: int = 0
    kept: int = 0
    adopted: int = 0
    attributes_set: int = 0
    directories_reconciled: int = 0
    sockets_skipped: int = 0


@dataclass(frozen=True, slots=True)
class Mode:
    """How a place is looked at.

    Attributes:
        trust: records tell everything that has changed.
        wait: what is being written waits for its `write` record.
        gap: they may not tell what has changed of copies read before that record; None: they do.
        reconciles: a directory is being compared.
        descends: whoever asks looks into every directory that is made there.
        keep: what is removed goes to `kept`, but for what the records since the gap tell of.
        adopt: what bears no mark but looks the same is taken as a copy.
        exact: compare extended attributes too.
        on_way: only a directory is made there: something below it is asked for.
    """

    trust: bool = True
    wait: bool = True
    gap: tuple[Tag, SequenceNumber] | None = None
    reconciles: bool = False
    descends: bool = False
    keep: bool = False
    adopt: bool = False
    exact: bool = False
    on_way: bool = False


NORMAL = Mode()


@dataclass(slots=True)
class Bench:
    """What all steps of one site share.

    Attributes:
        incarnations: those of the journal.
        doubt: what must be compared, whatever records say.
        escape: what reconciles may have missed.
        held: the steps that failed or wait.
        touched: directories whose times must be set.
        unsynced: directories in which places were made true since the last state was saved.
        timeless: directories whose times could not be set, and why: to be tried again.
        losses: what power cuts may have taken from site and source.
        under_way: what is being done, for after a death.
        deletions: how much may be removed.
        saved: the number of the state that is saved at the site.
    """

    source: SourceTree
    store: SiteStore
    plan: Plan
    incarnations: Incarnations
    names: NameTable
    map: SiteMap
    doubt: Doubts
    escape: Escape
    held: HeldSteps
    under_way: UnderWay
    deletions: Deletions
    losses: Losses = field(default_factory=Losses)
    saved: int = 0
    counters: Counters = field(default_factory=Counters)
    touched: set[ObjectId] = field(default_factory=set)
    unsynced: set[ObjectId] = field(default_factory=set)
    timeless: dict[ObjectId, Exception] = field(default_factory=dict)

    def content_state(
        self, mark: Mark | None, found: SourceObject, mode: Mode, *, arriving: bool = False
    ) -> ContentState:
        """See `schedule.content_state`."""
        hints = self.plan.hints(found.id)
        forgotten = mode.reconciles or not hints.newest
        if forgotten and self.held.expects(found.id):
            hints = replace(hints, unsettled=True)  # the record that told is forgotten
        return schedule.content_state(
            mark,
            found.ctime_ns,
            hints,
            self.incarnations,
            trust=self._trusts(mark, mode),
            wait=mode.wait or not self.held.waited_out(found.id),
            arriving=arriving,
            lost=mark is not None and self.losses.of_site(mark),
            unproven=mark is not None and self.may_be_better(mark, found.ctime_ns),
        )

    def may_be_better(self, mark: Mark, ctime_ns: int) -> bool:
        """Whether the source object, which has that change time now, may have lost content that
        the copy still has."""
        return self.losses.of_source(mark, ctime_ns, self.incarnations)

    def _trusts(self, mark: Mark | None, mode: Mode) -> bool:
        """Whether the records tell every change of that copy's content."""
        if mark is None or not mode.trust or self.held.distrusts(mark.object):
            return False
        return mode.gap is None or self.incarnations.covers(mark, mode.gap)

    def may_arrive(self, found: SourceObject, copy: Copy, mode: Mode) -> bool:
        """Whether that copy may be shown at another place."""
        if not stat.S_ISREG(found.mode):
            return True
        state = self.content_state(copy.entry.mark, found, mode, arriving=True)
        return state is ContentState.CURRENT or not mode.trust

    def object_at(self, place: Place) -> ObjectId | None:
        """The object the source has there now. Raises SourceError."""
        parent = self.source.open(place.directory)
        if parent is None:
            return None
        with parent:
            found = self.source.lookup(parent, place.name)
            if found is None:
                return None
            with found:
                return found.id

    def stands(self, place: Place, identity: ObjectId) -> bool:
        """Whether the source has that object at that place now. Raises SourceError."""
        return self.object_at(place) == identity

    def alive(self, entry: SiteEntry) -> bool:
        """Whether the object that is a copy of still exists in the source."""
        found = None if entry.mark is None else self.source.open(entry.mark.object)
        if found is None:
            return False
        with found:
            return schedule.same_kind(found, entry)

    def leaves(self, directory: Directory, name: bytes, entry: SiteEntry, mode: Mode) -> None:
        """A copy waits for its place: the records that its content or its attributes changed may
        be forgotten before it comes there. Then it must not be taken for current."""
        mark = entry.mark
        if mark is None:
            return
        write = self.plan.hints(mark.object).write
        told = write is not None and not self.incarnations.covers(mark, write)
        wanted, trusted = mark, self._trusts(mark, mode)
        if not trusted or self.object_waits(mark.object):
            wanted = replace(mark, flags=mark.flags | MarkFlag.OWED)
        if stat.S_ISREG(entry.mode) and (told or not trusted):
            wanted = replace(wanted, flags=wanted.flags & ~MarkFlag.CONTENT)
        if wanted != mark:
            self.store.set_mark(directory, name, wanted)

    def object_waits(self, identity: ObjectId) -> bool:
        """Whether a record about its content or attributes is still to be applied, or is held."""
        return self.plan.object_waits(identity) or self.held.object_waits(identity)

    def path_of(self, directory: ObjectId) -> bytes | None:
        """A directory's path as the source has it now; for people. Raises SourceError."""
        found = self.source.open(directory)
        if found is None:
            return None
        with found:
            way = self.source.ancestors(found) if stat.S_ISDIR(found.mode) else None
        return None if way is None else b"/".join(name for _, name, _ in way)

    def path(self, place: Place) -> bytes:
        """A place's path as the source has its directory now, or the name alone; for people."""
        parent = self.source.open(place.directory) if place.directory else None
        if parent is None:
            return place.name
        with parent:
            way = self.source.ancestors(parent) or []
        return b"/".join([*(name for _, name, _ in way), place.name])


class Moves:
    """Puts objects to places, and takes away what stands there."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._store = bench.store
        self._names = bench.names
        self._map = bench.map
        self._limbo = bench.map.limbo

    def put_copy(
        self,
        copy: Copy,
        directory: Directory,
        place: Place,
        entry: SiteEntry | None,
        mode: Mode,
    ) -> None:
        """Move what the site has elsewhere to its place; `entry`, which stood there, leaves."""
        if copy.place is not None:
            self._bench.touched.add(copy.place.directory)
        self._bench.touched.add(place.directory)
        if entry is None or not (stat.S_ISDIR(entry.mode) or stat.S_ISDIR(copy.entry.mode)):
            self.save(directory, place, entry, mode)
            self._store.move(copy.directory, copy.name, directory, place.name)
            if copy.place is None:
                self._limbo.gone(copy.name)
        elif copy.place is not None and self._exchanged(copy.place, entry, mode):
            self._store.exchange(copy.directory, copy.name, directory, place.name)
            self._forget_name(entry, place)
        else:
            # by way of limbo: what leaves must not show where the other came from
            limbo, slot = self._limbo.directory, self._limbo.slot()
            self._store.move(copy.directory, copy.name, limbo, slot)
            self._store.exchange(limbo, slot, directory, place.name)
            self._forget_name(entry, place)
            self._take(limbo, slot, place, entry, mode)
            self._limbo.gone(slot)
        if copy.place is not None:
            self._forget_name(copy.entry, copy.place)
        if stat.S_ISDIR(copy.entry.mode) and copy.entry.mark is not None:
            self._map.placed(copy.entry.mark.object, place)
        if stat.S_ISDIR(copy.entry.mode) or (entry is not None and stat.S_ISDIR(entry.mode)):
            self._map.moved()

    def _exchanged(self, place: Place, entry: SiteEntry, mode: Mode) -> bool:
        """Whether what stands at the other place may be shown where the copy came from."""
        if entry.mark is None or (parent := self._bench.source.open(place.directory)) is None:
            return False
        with parent:
            found = self._bench.source.lookup(parent, place.name)
            if found is None:
                return False
            with found:
                if not schedule.is_copy(found, entry):
                    return False
                state = ContentState.CURRENT
                if stat.S_ISREG(found.mode):
                    state = self._bench.content_state(entry.mark, found, mode, arriving=True)
                return state is ContentState.CURRENT

    def put_staged(
        self,
        staged: Staged,
        directory: Directory,
        place: Place,
        entry: SiteEntry | None,
        mode: Mode,
        *,
        is_directory: bool,
    ) -> None:
        """Give a staged object its place; `entry`, which stood there, leaves."""
        self._bench.touched.add(place.directory)
        if entry is None or not (is_directory or stat.S_ISDIR(entry.mode)):
            with used(self._store, staged):
                self.save(directory, place, entry, mode)
                self._store.commit(staged, directory, place.name)
            return
        limbo, slot = self._limbo.directory, self._limbo.slot()
        with used(self._store, staged):
            self._store.commit(staged, limbo, slot)
        self._store.exchange(limbo, slot, directory, place.name)
        self._map.moved()
        self._forget_name(entry, place)
        self._take(limbo, slot, place, entry, mode)
        self._limbo.gone(slot)

    def save(self, directory: Directory, place: Place, entry: SiteEntry | None, mode: Mode) -> None:
        """Before a non-directory at a place is replaced: what must survive gets another name."""
        if entry is None:
            return
        self._forget_name(entry, place)
        if entry.mark is not None and self._bench.alive(entry):
            identity = entry.mark.object
            if not self._held_elsewhere(identity, place, entry):
                name = self._limbo.place_for(identity)
                self._bench.leaves(directory, place.name, entry, mode)
                self._store.link(directory, place.name, self._limbo.directory, name)
        elif entry.mark is None or self._keeps(entry, mode):
            self.keep_version(directory, place.name, place)

    def keep_if_better(
        self, found: SourceObject, staged: Staged, copy: Copy, place: Place, mode: Mode
    ) -> None:
        """A copy is about to be replaced. If the source went back in time, or lost content, the
        site's version must not be lost."""
        mark = copy.entry.mark
        if mark is None or not stat.S_ISREG(copy.entry.mode):
            return
        ctime_ns = found.stat().ctime_ns
        newer = not mode.trust and mark.ctime_ns > ctime_ns
        if not newer and not self._bench.may_be_better(mark, ctime_ns):
            return
        if not self._store.is_alike(staged, copy.directory, copy.name):
            self.keep_version(copy.directory, copy.name, copy.place or place)

    def keep_version(self, directory: Directory, name: bytes, place: Place) -> None:
        """Keep the non-directory that stands there, and belongs to that place: it is about to be
        replaced."""
        limbo, slot = self._limbo.directory, self._limbo.slot()
        self._store.link(directory, name, limbo, slot)
        self._store.keep(limbo, slot, self._bench.path(place))
        self._limbo.gone(slot)
        self._bench.counters.kept += 1

    def vacate(self, directory: Directory, place: Place, entry: SiteEntry, mode: Mode) -> None:
        """The source has nothing at that place, or what it has comes later."""
        self._forget_name(entry, place)
        self._bench.touched.add(place.directory)
        self._take(directory, place.name, place, entry, mode)

    def expire(self, name: bytes, *, living: bool) -> None:
        """What is dead leaves limbo for ever; `living`: what lives goes to `kept`."""
        limbo = self._limbo.directory
        entry = self._store.lookup(limbo, name)
        alive = entry is not None and self._bench.alive(entry)
        if entry is not None and entry.links > 1 and not stat.S_ISDIR(entry.mode):
            self._store.remove(limbo, name)  # nothing is lost: it has another name
            self._limbo.gone(name)
            return
        if entry is not None and entry.mark is not None and self._stands_elsewhere(entry):
            self._bench.doubt.add(entry.mark.object)
            self._empty(limbo, name, entry, keep=False)
            self._store.remove(limbo, name)
            self._limbo.gone(name)
            return
        if alive and not living:
            return
        self._limbo.gone(name)
        if entry is None:
            return
        if alive and self._bench.source.partial and not stat.S_ISDIR(entry.mode):
            self._store.remove(limbo, name)  # the source still has it, where it is not shown
        elif alive:
            self._map.close()
            self._store.keep(limbo, name, b"limbo/" + name)
            self._bench.counters.kept += 1
        else:
            self._take(limbo, name, Place(ObjectId(b""), name), entry, NORMAL)

    def _stands_elsewhere(self, entry: SiteEntry) -> bool:
        """Whether the site has that living directory, which waits in limbo, at its place, too."""
        if entry.mark is None or not stat.S_ISDIR(entry.mode):
            return False
        self._map.close()  # what is open may be the one in limbo
        source = self._bench.source.open(entry.mark.object)
        if source is None:
            return False
        with source:
            way = self._map.resolve(source)
        return way is not None and not isinstance(way, Place)

    def leave_limbo(self, identity: ObjectId) -> None:
        """A file that has its place needs no other copy in limbo."""
        if self._limbo.lookup(identity) is not None:
            self._store.remove(self._limbo.directory, limbo_name(identity))
            self._limbo.gone(limbo_name(identity))

    def _forget_name(self, entry: SiteEntry, place: Place) -> None:
        if entry.mark is not None:
            self._names.discard(entry.mark.object, place)

    def _take(
        self, directory: Directory, name: bytes, place: Place, entry: SiteEntry, mode: Mode
    ) -> None:
        """Take an object away from where it stands; `place` is where it belonged."""
        alive = self._bench.alive(entry)
        if alive and entry.mark is not None:
            identity = entry.mark.object
            self._drop_older(identity, entry)
            if not self._second_copy(identity, place, entry):
                waiting = self._limbo.place_for(identity)
                self._bench.leaves(directory, name, entry, mode)
                self._store.move(directory, name, self._limbo.directory, waiting)
                if stat.S_ISDIR(entry.mode):
                    self._map.moved()
                return
            if stat.S_ISDIR(entry.mode):
                self._bench.doubt.add(identity)
        keep = entry.mark is None or (not alive and self._keeps(entry, mode))
        if stat.S_ISDIR(entry.mode):
            self._map.moved()
            self._empty(directory, name, entry, keep=keep, mode=mode)
        if keep:
            self._store.keep(directory, name, self._bench.path(place))
            self._bench.counters.kept += 1
        else:
            self._store.remove(directory, name)
            self._bench.counters.removed += 1

    def _keeps(self, entry: SiteEntry, mode: Mode) -> bool:
        """Whether what is dead is kept: records do not tell of it."""
        if not mode.keep or entry.mark is None:
            return mode.keep
        gap = self._bench.escape.gap
        return gap is None or self._bench.plan.hints(entry.mark.object).newest <= gap[1]

    def _empty(
        self,
        directory: Directory,
        name: bytes,
        entry: SiteEntry,
        *,
        keep: bool,
        mode: Mode = NORMAL,
    ) -> None:
        """Save what lives below a directory that goes; without `keep`, take away the rest. What it
        held when it was compared has records."""
        identity = entry.mark.object if entry.mark is not None else ObjectId(b"")
        with inside_of(self._store, directory, name) as opened:
            if opened is None:
                return
            below = replace(NORMAL, keep=mode.keep and not self._bench.escape.compared(identity))
            for child in self._store.list(opened):
                inside = self._store.lookup(opened, child)
                if inside is None:
                    continue
                place = Place(identity, child)
                self._forget_name(inside, place)
                if not keep or self._bench.alive(inside):
                    self._take(opened, child, place, inside, below)
                elif stat.S_ISDIR(inside.mode):
                    self._empty(opened, child, inside, keep=True, mode=below)
        self._map.forget(identity)
        self._bench.touched.discard(identity)

    def _drop_older(self, identity: ObjectId, entry: SiteEntry) -> None:
        """Of two copies of a directory the one that was made last is the better one: the other
        could not be found then, and was not followed since."""
        waiting = self._limbo.lookup(identity) if stat.S_ISDIR(entry.mode) else None
        if waiting is None or waiting.mark is None or entry.mark is None:
            return
        if waiting.identity != entry.identity and waiting.mark.ctime_ns < entry.mark.ctime_ns:
            limbo, name = self._limbo.directory, limbo_name(identity)
            self._bench.doubt.add(identity)
            self._empty(limbo, name, waiting, keep=False)
            self._store.remove(limbo, name)
            self._limbo.gone(name)

    def _held_elsewhere(self, identity: ObjectId, place: Place, entry: SiteEntry) -> bool:
        """Whether the site has that object under another name, limbo included."""
        return any(
            copy.place != place and stat.S_IFMT(copy.entry.mode) == stat.S_IFMT(entry.mode)
            for copy in self._map.copies(identity)
        )

    def _second_copy(self, identity: ObjectId, place: Place, entry: SiteEntry) -> bool:
        """Whether the site has the object elsewhere, so that this one need not be saved."""
        if not stat.S_ISDIR(entry.mode):
            return self._held_elsewhere(identity, place, entry)
        waiting = self._limbo.lookup(identity)
        if waiting is not None:
            return waiting.identity != entry.identity
        if (source := self._bench.source.open(identity)) is None:
            return False
        with source:
            way = self._bench.source.ancestors(source)
        if not way:
            return False
        parent = self._map.find(way[-1][0])
        standing = None if parent is None else self._store.lookup(parent, way[-1][1])
        return (
            standing is not None
            and standing.mark is not None
            and standing.mark.object == identity
            and standing.identity != entry.identity
        )
