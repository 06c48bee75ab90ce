"""Staging: a complete copy of an object as it is now, not torn, not moved away meanwhile.

Small files are copied on the spot. The bytes of all others move on workers: a step that needs them
is cut off by CopyingError, and done again from its first look when they are there. What was staged
then counts only if the object is still as it was when it was read. Knows nothing of what stands at
the site; where the copy goes is decided in `step`.
"""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from mirrorfs.journal.record import ObjectId, Place, SequenceNumber, Tag
from replicator.held import AheadError
from replicator.moves import Bench
from replicator.observer import Observer
from replicator.planner import Item, ObjectItem
from replicator.sitemap import Copy
from replicator.stores.base import (
    Base,
    Content,
    Mark,
    MarkFlag,
    SiteStore,
    Staged,
    Version,
)
from replicator.under_way import CutOffError
from replicator.view import SourceChangedError, SourceObject, SourceStat, SourceTree

_STAGE_TRIES = 3
_SETTLE_TRIES = 5
_SETTLE_SECONDS_MAX = 0.002
_SLOW_NS = 1_500_000
_SLOW_TIMES = 8
"""So many small files one after the other have to take that long before workers copy them, too: a
machine that is busy takes long now and then, a site that is far away always."""
_TRY_AGAIN = 200
_HOT = "hot: it changes while it is read"


class CopyingError(CutOffError):
    """The bytes of an object are being copied: the step is to be done again when they are there.

    Attributes:
        object: that object.
    """

    def __init__(self, object: ObjectId) -> None:
        super().__init__("is being copied")
        self.object = object


@dataclass(slots=True, eq=False)
class Copying:
    """One file whose bytes are copied, or wait for it.

    Attributes:
        object, size: which, how large it was.  since_ns: time of the record it is copied for.
        deadline_ns: so long after that it is late.
        known: the newest record taken in before it was read.
        settled_ctime_ns: its change time if records account for it (see Hints).
        item: the first step that wanted it.
        base: the site's file that it may be the continuation of.
        here: by the thread that decides, which waits for no bandwidth.
        wanted: by these steps; by none: the copy is given up.
        looks: how often it was looked whether to go on: bytes move.
        landed: it has ended, with `staged`, `stat` and `mark` or with `error`.
    """

    object: ObjectId
    size: int
    since_ns: int
    known: tuple[Tag, SequenceNumber]
    settled_ctime_ns: int
    item: Item
    deadline_ns: int = 0
    base: Base | None = None
    here: bool = False
    wanted: dict[Item | None, None] = field(default_factory=dict)
    looks: int = 0
    landed: bool = False
    staged: Staged | None = None
    stat: SourceStat | None = None
    mark: Mark | None = None
    error: Exception | None = None

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for it."""
        return not self.wanted


class Workers(Protocol):
    """Where bytes move. All calls but the first two come from the thread that decides."""

    def share(self, parts: Sequence[Callable[[], None]]) -> None:
        """Do all these, with workers that have nothing else to do: see Content."""

    def allow(self, count: int, go_on: Callable[[], None] | None) -> int:
        """Of so many bytes to be read, how many may be, when the bandwidth has them; `go_on` is
        called before and while it waits, and may raise. None: all are read now."""

    def idle(self, size: int) -> bool:
        """Whether so many bytes could be read without waiting for bandwidth."""

    def begin(self, copying: Copying, run: Callable[[Copying], None]) -> None:
        """Have `run` called with it as soon as there is a worker for it."""

    def landed(self) -> Iterable[Copying]:
        """Those whose `run` has returned, each once."""

    def wait(self) -> None:
        """Until there is one for `landed` to tell, or for a moment: who waits may be stopped."""


class _Watched:
    """Content that is not read any further when nobody waits for it any more."""

    def __init__(
        self, content: Content, copying: Copying, version: Version | None, workers: Workers
    ) -> None:
        self.version = version
        self.fileno, self.read, self.share = content.fileno, content.read, workers.share
        self._copying = copying
        self._workers = workers

    def check(self, count: int) -> int:
        """See Content."""
        self._copying.looks += 1
        return self._workers.allow(count, None if self._copying.here else self._go_on)

    def _go_on(self) -> None:
        if self._copying.cancelled:
            raise SourceChangedError("nobody waits for it any more")


def copy_object(
    source: SourceTree,
    store: SiteStore,
    found: SourceObject,
    copying: Copying,
    workers: Workers,
    sleep: Callable[[float], None],
    tries: int,
    saved: Callable[[], int],
) -> tuple[Staged, SourceStat]:
    """A complete copy, and the object as it was before and after it was read.

    `saved`: the number of the state that is saved now (see Mark). What was written before it was
    asked will be on the disk with the next.

    Raises SourceChangedError, SourceError, StoreError. Any thread may call it.
    """
    for _ in range(tries):
        before = _settled(source, found, sleep)
        mark = copying.mark = _read_mark(source, copying, before.ctime_ns)

        def complete(mark: Mark = mark) -> Mark:
            known = mark.tag, mark.sequence, mark.ctime_ns, mark.flags
            return Mark(mark.object, *known, saved())

        attributes = found.attributes(before)
        if not stat.S_ISREG(before.mode):
            return store.stage(attributes, None, complete), before
        try:
            with found.content() as content:
                watched = _Watched(content, copying, _version(mark, before), workers)
                staged = store.stage(attributes, watched, complete, copying.base)
        except SourceChangedError:
            continue
        if _same(found.stat(), before):
            return staged, before
        store.discard(staged)
    raise SourceChangedError(_HOT)


def _version(mark: Mark, now: SourceStat) -> Version | None:
    """Which content is read, if its times tell."""
    if MarkFlag.AHEAD in mark.flags:
        return None
    return Version(mark.object, mark.tag, now.size, now.mtime_ns, now.ctime_ns)


def _same(one: SourceStat | SourceObject, other: SourceStat) -> bool:
    return (one.size, one.mtime_ns, one.ctime_ns) == (other.size, other.mtime_ns, other.ctime_ns)


def _settled(source: SourceTree, found: SourceObject, sleep: Callable[[float], None]) -> SourceStat:
    """The object as it is, when any later change will show in its change time."""
    now = found.seen()
    for _ in range(_SETTLE_TRIES):
        delay = source.settle_delay(now.ctime_ns)
        if delay <= 0:
            return now
        sleep(delay)
        now = found.stat()
    raise SourceChangedError("hot: it keeps changing")


def _read_mark(source: SourceTree, copying: Copying, ctime_ns: int) -> Mark:
    """The mark of a copy that is read now, at that change time."""
    flags = MarkFlag.CONTENT
    if copying.settled_ctime_ns != ctime_ns and not source.is_quiet(ctime_ns):
        flags |= MarkFlag.AHEAD
    return Mark(copying.object, *copying.known, ctime_ns, flags)


class Staging:
    """Stages copies for one site.

    Attributes:
        inline_bytes: files up to this size are copied on the spot, while the site is quick.
        owner: the step that is being done, and the time of its record.
        arrived: steps that may go on: their bytes are there, or there is room to copy them.
        narrow: copy one file at a time: there may be no space for more.
    """

    def __init__(
        self,
        bench: Bench,
        workers: Workers,
        sleep: Callable[[float], None],
        clock_ns: Callable[[], int],
        inline_bytes: int,
        grown_bytes_min: int,
        deadline_ns: Callable[[bytes], int],
        observer: Observer,
    ) -> None:
        """Stage on `bench`. `sleep` waits that many seconds; `clock_ns` only measures.
        `grown_bytes_min`: a copy of so many bytes may be appended to. `deadline_ns`: how long after
        its record a file of that path is late. `observer` is told what workers copy."""
        self.inline_bytes = inline_bytes
        self._grown_bytes_min = grown_bytes_min
        self._deadline_ns = deadline_ns
        self.owner: tuple[Item | None, int] = (None, 0)
        self.arrived: list[Item | None] = []
        self.narrow = False
        self._bench = bench
        self._workers = workers
        self._sleep = sleep
        self._clock_ns = clock_ns
        self._observer = observer
        self._slow = 0
        self._passed = 0
        self._copying: dict[ObjectId, Copying] = {}
        self._wanted: dict[Item | None, dict[ObjectId, None]] = {}
        self._tries: dict[Item | None, int] = {}
        self._crowd: list[Item | None] = []

    def __len__(self) -> int:
        """How many files are being copied, wait for it, or for their step."""
        return len(self._copying)

    @property
    def under_way(self) -> bool:
        """Whether bytes are still to arrive."""
        return any(not each.landed for each in self._copying.values())

    def moving(self) -> list[Copying]:
        """The files whose bytes are still to arrive. Any thread may ask."""
        with contextlib.suppress(RuntimeError):  # it changed meanwhile: whoever asks, asks again
            return [each for each in self._copying.values() if not each.landed]
        return []

    # for the step ------------------------------------------------------------------------------

    def stage(self, found: SourceObject, place: Place, base: Base | None = None) -> Staged:
        """A complete copy of the object as it is now, not torn, and still of that place; or, if
        `base` is its beginning, the rest (see SiteStore).

        Raises CopyingError, SourceChangedError, AheadError, SourceError, StoreError.
        """
        staged = self._arrived(found, base)
        if staged is not None:
            return staged
        if self._here(found):
            return self._stage_here(found, place, base)
        self._begin(found, base)
        raise CopyingError(found.id)

    def base(self, found: SourceObject, copy: Copy) -> Base | None:
        """The site's copy, if the object may be the same and something more, for `stage`."""
        entry = copy.entry
        if found.links > 1 or entry.links > 1 or not stat.S_ISREG(entry.mode):
            return None
        if entry.mark is None or self._bench.losses.of_site(entry.mark):
            return None  # what is read of it may be in memory only
        if not self._grown_bytes_min <= entry.size < found.size <= 2 * entry.size:
            return None
        return self._bench.store.base(copy.directory, copy.name)

    def _stage_here(self, found: SourceObject, place: Place, base: Base | None) -> Staged:
        began = self._clock_ns()
        copying = self._copying_of(found, base)
        copying.wanted[self.owner[0]] = None
        copying.here = True
        source, store = self._bench.source, self._bench.store
        with self._bench.under_way.suspected(found.id):
            staged, before = copy_object(
                source, store, found, copying, self._workers, self._sleep, _STAGE_TRIES, self._saved
            )
        if stat.S_ISREG(before.mode):
            self._slow = self._slow + 1 if self._clock_ns() - began > _SLOW_NS else 0
            self._bench.counters.files_copied += 1
        else:
            self._bench.counters.made += 1
        # leaving the place moves the change time, so an unchanged one needs no second look
        if before.ctime_ns != found.ctime_ns and not self._bench.stands(place, found.id):
            self._bench.store.discard(staged)
            raise AheadError("it was moved while it was copied; that record is still to come")
        return staged

    def _saved(self) -> int:
        return self._bench.saved

    def _here(self, found: SourceObject) -> bool:
        """Whether it is copied on the spot. What the replicator may have died of is, so that
        nothing else is under way if it does again."""
        if not stat.S_ISREG(found.mode) or self._bench.under_way.wary:
            return True
        if found.size > self.inline_bytes or not self._workers.idle(found.size):
            return False
        if self._slow >= _SLOW_TIMES:
            self._passed += 1
            if self._passed % _TRY_AGAIN:
                return False
        return self._bench.source.settle_delay(found.ctime_ns) <= _SETTLE_SECONDS_MAX

    def _copying_of(self, found: SourceObject, base: Base | None = None) -> Copying:
        plan, (item, since_ns) = self._bench.plan, self.owner
        return Copying(
            found.id,
            found.size,
            since_ns,
            (plan.known_tag, plan.known),
            plan.hints(found.id).settled_ctime_ns,
            self.owner[0] or ObjectItem(found.id, (plan.known, 0)),
            self._deadline_ns((item.path if item is not None else None) or b""),
            base,
        )

    def _arrived(self, found: SourceObject, base: Base | None) -> Staged | None:
        """What a worker has staged of it, if that is what it is now."""
        copying = self._copying.get(found.id)
        if copying is None:
            return None
        if not copying.landed:
            self._want(copying)
            raise CopyingError(found.id)
        self._forget(copying)
        if copying.staged is not None and copying.stat is not None:
            fits = copying.base == base or not self._bench.store.is_tail(copying.staged)
            if fits and _same(found, copying.stat) and self._complete(copying):
                self._bench.counters.files_copied += 1
                return copying.staged
            self._bench.store.discard(copying.staged)
        if copying.error is not None and not isinstance(copying.error, SourceChangedError):
            self._tries.pop(self.owner[0], None)  # it does not change too often
            raise copying.error
        return None

    def _complete(self, copying: Copying) -> bool:
        """Whether no write was under way when it was read: that would have moved the change time
        before, and the content after."""
        hints = self._bench.plan.hints(copying.object)
        if copying.mark is None or MarkFlag.AHEAD not in copying.mark.flags or hints.write is None:
            return True
        return self._bench.incarnations.covers(copying.mark, hints.write)

    @property
    def _narrow(self) -> bool:
        return self.narrow or self._bench.under_way.wary

    # copies under way --------------------------------------------------------------------------

    def prefetch(self, found: SourceObject, base: Base | None) -> None:
        """A step whose turn has not come yet will need its bytes."""
        if not self._narrow and found.id not in self._copying and not self._here(found):
            self._begin(found, base)

    def _begin(self, found: SourceObject, base: Base | None) -> None:
        """Copy it, for the step being done; it may be begun a few times only."""
        owner = self.owner[0]
        self._bench.under_way.check(found.id)
        if self._narrow and self.under_way:
            self._crowd.append(owner)
            raise CopyingError(found.id)
        tries = self._tries[owner] = self._tries.get(owner, 0) + 1
        if tries > _STAGE_TRIES:
            self.release(owner)
            raise SourceChangedError(_HOT)
        copying = self._copying[found.id] = self._copying_of(found, base)
        self._want(copying)
        self._workers.begin(copying, self._run)

    def _want(self, copying: Copying) -> None:
        """For the step being done; another object that it wanted before is not there any more."""
        owner = self.owner[0]
        wanted = self._wanted.setdefault(owner, {})
        for other in [each for each in wanted if each != copying.object]:
            self._give_up(owner, other)
        wanted[copying.object] = None
        copying.wanted[owner] = None

    def _run(self, copying: Copying) -> None:
        """On a worker."""
        if copying.cancelled:
            return
        self._observer.copying(copying.item)
        slot = self._bench.under_way.copying(copying.object)
        try:
            found = self._bench.source.open(copying.object)
            if found is None:
                raise SourceChangedError("it is gone")
            with found:
                source, store = self._bench.source, self._bench.store
                copying.staged, copying.stat = copy_object(
                    source, store, found, copying, self._workers, self._sleep, 1, self._saved
                )
        except Exception as error:  # noqa: BLE001 - the step that needs the bytes raises it
            copying.error = error
        finally:
            self._bench.under_way.copied(copying.object, slot)
            self._observer.copied(copying.item)

    def land(self) -> None:
        """Take in what has been copied."""
        for copying in self._workers.landed():
            copying.landed = True
            self.arrived += copying.wanted
            self.arrived += self._crowd
            self._crowd.clear()
            if copying.cancelled and copying.staged is not None:
                staged, copying.staged = copying.staged, None
                self._bench.store.discard(staged)

    def wait(self) -> None:
        """Until some bytes have arrived, or for a moment."""
        self._workers.wait()
        self.land()

    def abandon(self) -> None:
        """Nobody waits for anything any more."""
        for copying in self._copying.values():
            copying.wanted.clear()

    def make_room(self) -> None:
        """There is no space: what was copied before its time goes, and then one after the other."""
        self.narrow = True
        for copying in [each for each in self._copying.values() if each.landed]:
            self.arrived += copying.wanted
            self._forget(copying)
            if copying.staged is not None:
                self._bench.store.discard(copying.staged)
        self._bench.store.forget_unfinished()

    def renounce(self, owner: Item, newest: ObjectId | None) -> bool:
        """That step does not want what is not the newest; whether there was something."""
        old = [each for each in self._wanted.get(owner, ()) if each != newest]
        for identity in old:
            self._give_up(owner, identity)
        return bool(old)

    def release(self, owner: Item | None) -> None:
        """That step is done, or given up."""
        self._tries.pop(owner, None)
        for identity in list(self._wanted.get(owner, ())):
            self._give_up(owner, identity)
        self._wanted.pop(owner, None)

    def _give_up(self, owner: Item | None, identity: ObjectId) -> None:
        copying = self._copying[identity]
        del copying.wanted[owner], self._wanted[owner][identity]
        if copying.cancelled:
            del self._copying[identity]
            if copying.landed and copying.staged is not None:
                self._bench.store.discard(copying.staged)

    def _forget(self, copying: Copying) -> None:
        del self._copying[copying.object]
        for owner in copying.wanted:
            self._wanted[owner].pop(copying.object, None)
        copying.wanted.clear()
