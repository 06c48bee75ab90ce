"""What jobs wait for at one site: which steps that asks for, and whether they are done.

A record is kept when what it touched has been made true after it was read, the directories above
stand where the source has them, and nothing of it is held. Whether that is on the disk is asked of
the store; who waits is not known here. Looks at source and site, changes neither, but for the times
of directories that jobs wait for.
"""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from mirrorfs.journal.awaiting import Awaited
from mirrorfs.journal.record import ObjectId, Place
from replicator.directory_times import set_times
from replicator.held import HeldSteps
from replicator.moves import NORMAL
from replicator.planner import Item
from replicator.schedule import ContentState
from replicator.step import Step
from replicator.stores.base import Directory, MarkFlag, StoreError, Syncing
from replicator.turns import Turns
from replicator.view import SourceError

_AT_ONCE = 64
"""So many share a sync at most: each has descriptors of its own until then."""
_HELD_NS = 1_000_000_000
"""What is held because a record is still to come, or a writer to close, is given that long."""


@dataclass(slots=True)
class Kept:
    """What became of records that jobs wait for.

    Attributes:
        done: what they touched is so at the site; `syncing` makes it durable.
        undone: it cannot be for the time being, and why. Each is told once, and kept all the same.
    """

    done: list[int] = field(default_factory=list)
    syncing: Syncing | None = None
    undone: list[tuple[int, str]] = field(default_factory=list)


@dataclass(slots=True)
class _Promise:
    """`held_ns`: since when it is known that something about it waits; 0: nothing does. `told`: it
    was said that it cannot be kept for the time being. `whole`: what a directory holds came with
    it."""

    sequence: int
    incarnation: int
    objects: tuple[ObjectId, ...]
    places: tuple[Place, ...]
    held_ns: int = 0
    told: bool = False
    whole: bool = False


class Promises:
    """The records of one site that jobs wait for."""

    def __init__(
        self,
        step: Step,
        turns: Turns,
        held: HeldSteps,
        unsure: Callable[[], bool],
        clock_ns: Callable[[], int],
    ) -> None:
        """`unsure`: directories may stand elsewhere at the site, and no step would say so."""
        self._step = step
        self._bench = step.bench
        self._plan = step.bench.plan
        self._turns = turns
        self._held = held
        self._unsure = unsure
        self._clock_ns = clock_ns
        self._waiting: dict[int, _Promise] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def replace(self, awaited: Iterable[Awaited]) -> None:
        """These, and no others."""
        old, self._waiting = self._waiting, {}
        for each in awaited:
            places = tuple(Place(ObjectId(at), name) for at, name in each.places)
            objects = tuple(ObjectId(identity) for identity in each.objects)
            made = _Promise(each.sequence, each.incarnation, objects, places)
            self._waiting[each.sequence] = old.get(each.sequence, made)

    def look(self) -> Kept:
        """What became of them; what is told is forgotten. Steps that they ask for are hurried."""
        kept = Kept()
        wanted: dict[tuple[Directory, bytes | None], None] = {}
        whole = False
        for promise in list(self._waiting.values()):
            if len(kept.done) == _AT_ONCE:
                break
            try:
                reason = self._reason(promise)
                if reason == "":
                    wanted.update(dict.fromkeys(self._touched(promise)))
                    kept.done.append(promise.sequence)
                    whole = whole or promise.whole
                elif reason is not None and not promise.told:
                    promise.told = True  # and it is looked at again: one day it may be done
                    kept.undone.append((promise.sequence, reason))
                    continue
                else:
                    continue
            except (SourceError, StoreError):
                continue  # the next step finds out what that is
            del self._waiting[promise.sequence]
        if kept.done:
            kept.syncing = self._bench.store.syncing(wanted, whole=whole)
        return kept

    def _reason(self, promise: _Promise) -> str | None:
        """Why it is not kept; None: it is not yet; "": it is."""
        plan = self._plan
        if plan.known_tag != promise.incarnation or plan.known < promise.sequence:
            return None
        items = list(self._items(promise))
        if items:
            promise.held_ns = 0
            self._turns.hurry(items, plan.known)
            return None
        held = list(self._held.about(promise.objects, promise.places))
        failed = next((step for step in held if not step.waiting), None)
        if failed is not None:
            return failed.error
        if held:
            return held[0].error if self._late(promise) else None
        stand = [self._stands(place.directory, promise) for place in promise.places]
        shown = all(stand) and all(self._shows(place, promise) for place in promise.places)
        if shown:
            return self._reason_below(promise)
        return "it is being changed" if self._late(promise) else None

    def _reason_below(self, promise: _Promise) -> str | None:
        """The same for what directories hold that stand at its places. Nearly always their records
        came before. But where the site did not have them (it has a part, say), no record tells of
        what came with them: they are in doubt, and are compared."""
        bench = self._bench
        for place in promise.places:
            identity = bench.object_at(place)
            found = None if identity is None else bench.source.open(identity)
            if found is None:
                continue
            with found:
                if not stat.S_ISDIR(found.mode):
                    continue
            moved = len(promise.places) > 1 and bench.source.partial
            promise.whole = promise.whole or moved
            if any(self._is_below(each, found.id) for each in bench.doubt):
                promise.whole = True
                return None
            if moved and self._plan.working() < promise.sequence:
                return None  # what was to be left out until then
            if moved and not self._is_seen(found.id):
                return "what it holds is still to be compared" if self._late(promise) else None
        return ""

    def _is_seen(self, directory: ObjectId) -> bool:
        """Whether no comparison is still to come there."""
        return not self._unsure() or self._bench.escape.compared(directory)

    def _is_below(self, identity: ObjectId, directory: ObjectId) -> bool:
        """Whether that object is that directory, or a directory below it. (Files are in doubt
        because of their other names.)"""
        if identity == directory:
            return True
        found = self._bench.source.open(identity)
        if found is None:
            return False
        with found:
            way = self._bench.source.ancestors(found) if stat.S_ISDIR(found.mode) else None
        return any(parent == directory for parent, _, _ in way or [])

    def _late(self, promise: _Promise) -> bool:
        """It could be kept only if something else happened. Whether that takes long."""
        promise.held_ns = promise.held_ns or self._clock_ns()
        return self._clock_ns() - promise.held_ns >= _HELD_NS

    def _shows(self, place: Place, promise: _Promise) -> bool:
        """Whether the site shows what stands there, as far as can be seen. That the step was done
        does not say so: the source may have been ahead of the records, and another step leads on;
        and with comparisons still to come it may not have been a step's business."""
        bench = self._bench
        directory = bench.map.find(place.directory)
        entry = None if directory is None else bench.store.lookup(directory, place.name)
        parent = bench.source.open(place.directory)
        if parent is None:
            return True
        with parent:
            found = bench.source.lookup(parent, place.name)
        if directory is None:
            if found is not None:
                found.close()
            return False  # it is where it was moved from by a record still to be read
        if found is None:
            return entry is None
        with found:
            if entry is None:
                return stat.S_ISSOCK(found.mode)  # these have no copies
            mark = entry.mark
            if mark is None or mark.object != found.id:
                # About to be replaced. The step of what was there may have left that to its place.
                return (
                    self._plan.place(place) is not None
                    and mark is not None
                    and not bench.losses.of_site(mark)
                    and MarkFlag.CONTENT in mark.flags
                    and mark.tag == promise.incarnation
                    and mark.sequence >= promise.sequence
                )
            if not stat.S_ISREG(found.mode):
                return True
            copied = mark.ctime_ns == found.ctime_ns and MarkFlag.CONTENT in mark.flags
            told = bench.plan.hints(found.id).settled_ctime_ns == found.ctime_ns
            if not copied and (self._unsure() or not told):
                return False
            return bench.content_state(mark, found, NORMAL) is ContentState.CURRENT

    def _items(self, promise: _Promise) -> Iterator[Item]:
        """What is still to be done for it."""
        for identity in promise.objects:
            about = self._plan.object(identity)
            if about is not None and about.position[0] <= promise.sequence:
                yield about
        for place in promise.places:
            item = self._plan.place(place)
            # If it was postponed it is empty, as it was once before: what came later is awaited.
            if item is not None and item.first <= promise.sequence:
                yield item

    def _stands(self, directory: ObjectId, promise: _Promise) -> bool:
        """Whether the site has that directory where the source has it, as far as it has to."""
        source = self._bench.source.open(directory)
        if source is None:
            return True  # it is gone, and what was in it
        with source:
            way = self._bench.map.resolve(source)
        if not isinstance(way, Place):
            return True
        item = self._plan.place(way)
        if item is None:
            return not self._unsure()  # a record that came later moves what is above it
        if item.first > promise.sequence:
            return True
        self._turns.hurry([item], self._plan.known)
        return False

    def _touched(self, promise: _Promise) -> Iterator[tuple[Directory, bytes | None]]:
        """What has to be synced for it: objects first, then the directories that name them."""
        directories = {place.directory for place in promise.places}
        for place in promise.places:
            at = self._bench.map.find(place.directory)
            entry = None if at is None else self._bench.store.lookup(at, place.name)
            if at is not None and entry is not None:
                yield at, place.name  # perhaps what came there later: it has taken the place of it
        for identity in promise.objects:
            if identity in self._bench.touched:
                set_times(self._bench, identity)
            for copy in list(self._bench.map.copies(identity)):
                yield copy.directory, copy.name
                if copy.place is not None:
                    directories.add(copy.place.directory)
        for identity in directories:
            yield from self._above(identity)

    def _above(self, identity: ObjectId) -> Iterator[tuple[Directory, bytes | None]]:
        """A directory, and those above it in which something was done lately."""
        above = [identity]
        source = self._bench.source.open(identity)
        if source is not None:
            with source:
                way = self._bench.source.ancestors(source) or []
            above += [parent for parent, _, _ in way if parent in self._bench.unsynced]
        for each in above:
            directory = self._bench.map.find(each)
            if directory is not None:
                yield directory, None


def close(kept: Kept) -> None:
    """Nobody makes it durable."""
    if kept.syncing is not None:
        with contextlib.suppress(StoreError):
            kept.syncing.close()
