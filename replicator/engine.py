"""The engine of one site: records in, steps done, cursors out. Synchronous, and without a clock of
its own.

It takes the items of the plan one after another, holds those that fail, retries them, and says what
may be saved. It neither reads the journal nor waits for anything; `site` does that.
"""

from __future__ import annotations

import contextlib
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from random import Random

from mirrorfs.journal.record import (
    Change,
    Mount,
    ObjectId,
    Place,
    Reconcile,
    Record,
    SequenceNumber,
    Tag,
)
from replicator.comparisons import Comparisons
from replicator.escape import Escape
from replicator.held import DeferredError, HeldSteps, Subject
from replicator.losses import Losses
from replicator.moves import NORMAL, Counters, Mode
from replicator.planner import Item, ObjectItem, PlaceItem, Plan, ReconcileItem
from replicator.reconcile import Reconciled, Reconciler
from replicator.schedule import Incarnations
from replicator.site_state import (
    STATE_FILE,
    HeldStep,
    SiteState,
    clean_cursor,
    encode_state,
)
from replicator.step import Step
from replicator.stores.base import SiteStore, StoreError, UnsyncedError
from replicator.view import SourceChangedError, SourceError, SourceTree

_TRIES_MAX = 5
_BESIDE = 16
"""So many steps of records are done for one part of a comparison, which counts as many."""
_LIMBO_NS = 10_000_000_000


class TroubleError(Exception):
    """The site or the source cannot be worked with now; try again later.

    Attributes:
        no_space: the site is full.
        item: what was tried, in words.
    """

    def __init__(self, reason: str, item: str, *, no_space: bool) -> None:
        super().__init__(reason)
        self.item = item
        self.no_space = no_space


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the engine needs of the world.

    Attributes:
        clock_ns: nanoseconds since 1970.  sleep: waits so many seconds.
        head: the newest record of the journal.
        tick: called now and then during long steps; may raise to stop them.
        boot: id of this boot of the host.
        mount: which mount of the site's file system this is; 0 if that is not known.
        log: the activity log of the journal: the incarnation it tells of, and the generation that
            is surely on its disk.
        unsynced: the site could not be synced: what was copied since the saved state may be lost.
        random: for jitter.
        names_max: so many names are compared before records are looked at again.
    """

    clock_ns: Callable[[], int]
    head: Callable[[], SequenceNumber]
    sleep: Callable[[float], None]
    tick: Callable[[], None]
    boot: str
    random: Random
    mount: int = 1
    log: Callable[[], tuple[Tag, int]] = lambda: (Tag(0), 0)
    unsynced: bool = False
    names_max: int = 64


class Engine:
    """Applies one journal to one site."""

    def __init__(
        self,
        source: SourceTree,
        store: SiteStore,
        state: SiteState,
        incarnations: Incarnations,
        world: Surroundings,
    ) -> None:
        """Go on from `state`."""
        self.state = state
        self.store = store
        self._world = world
        working = SequenceNumber(state.working)
        self.plan = Plan(working, Tag(int(state.tag, 16)))
        self._held = HeldSteps(state.held, world.random)
        self._escape = Escape(world.clock_ns, world.head)
        self.step = Step(
            source,
            store,
            self.plan,
            incarnations,
            self._escape,
            self._held,
            sleep=world.sleep,
        )
        reconciler = Reconciler(self.step, world.tick, world.names_max)
        self._comparisons = Comparisons(self.step, reconciler)
        self._beside = 0
        self._tags = [(working, self.plan.known_tag)]
        self._names: deque[tuple[ObjectId, Place]] = deque()
        self._tries = 0
        self._limbo: dict[bytes, int] = {}
        self._cut = False
        self._take_up_losses()
        self._unsaved = True
        self._root = source.root.id
        self._restore()

    def _restore(self) -> None:
        """What was under way; which directories were seen is forgotten."""
        state = self.state
        working = SequenceNumber(state.working)
        if state.escaping or state.comparing:
            self._escape.begin(self._gap(), keep=state.keeping)
        self._comparisons.restore(state.comparing)
        if state.initial and not self._comparisons.initial:
            self._begin([ReconcileItem(self._root, True, (working, 0), b"")], initial=True)
        if state.escaping and not self._comparisons:
            self._escape.end()

    def _take_up_losses(self) -> None:
        """What may be lost of what was copied, and of what it was copied from."""
        state, world = self.state, self._world
        source = [(Tag(int(tag, 16)), since_ns) for tag, since_ns in state.source_cuts]
        losses = self.step.bench.losses = Losses(state.site_cuts, source)
        stood = state.boot == world.boot and state.mount == world.mount != 0
        if world.unsynced or not (state.stopped or stood or not state.boot):
            state.saves = losses.site_cut(state.saves)
            self._cut = True
        self.step.bench.saved = state.saves

    # records -----------------------------------------------------------------------------------

    def set_incarnations(self, incarnations: Incarnations) -> None:
        """The journal has a new incarnation."""
        self.step.bench.incarnations = incarnations

    def feed(self, records: Iterable[tuple[Record, Tag]]) -> None:
        """Take in the next records of the journal. Touches nothing: it cannot fail halfway."""
        for record, tag in records:
            if tag != self._tags[-1][1]:
                self._tags.append((record.sequence, tag))
            self.plan.add(record, tag)
            body = record.body
            if isinstance(body, Reconcile) and body.since_ns:
                self.step.bench.losses.source_cut(tag, body.since_ns)
            elif isinstance(body, Mount):
                self._held.writers_ended(record.sequence)
            if isinstance(body, Change) and body.links > 1 and not stat.S_ISDIR(body.mode):
                self._names.extend((body.object, place) for place in body.places)

    # work --------------------------------------------------------------------------------------

    def work(self, steps: int) -> int:
        """Do up to so many steps; how many were done (0: there is nothing to do now).

        Raises TroubleError when going on is of no use now: what was being tried stays to do.
        """
        done = 0
        with _trouble("the table of names"):
            self._write_names()
        if self._cut:
            self._save_cut()
        while done < steps:
            item = self.plan.next() or self._due()
            compares = bool(self._comparisons) and (item is None or self._beside >= _BESIDE)
            if compares:
                item = self._comparisons.item
            if item is None:
                break
            try:
                if compares:
                    self._compare()
                else:
                    self._apply(item)
            except (StoreError, SourceError) as error:
                no_space = isinstance(error, StoreError) and error.no_space
                if no_space:
                    self._make_room()
                raise TroubleError(str(error), describe(item), no_space=no_space) from error
            done += _BESIDE if compares else 1
            self._beside = 0 if compares else self._beside + 1
        self._escape.passed(self.plan.working())
        return done

    def _make_room(self) -> None:
        """The site is full: what the source has no more goes before its turn."""
        failures = (DeferredError, SourceChangedError, StoreError, SourceError)
        for item in sorted(self.plan.waiting(), key=lambda each: each.position):
            if isinstance(item, PlaceItem):
                with contextlib.suppress(*failures):
                    if self.step.bench.object_at(item.place) is None:
                        self.step.place(item.place, self._mode(item), item)
                        self.plan.done(item)

    def _save_cut(self) -> None:
        """What may be lost must be known at the site before anything is copied again."""
        try:
            self.save()
        except StoreError as error:
            if error.no_space:
                self._make_room()
            raise TroubleError(str(error), "the state", no_space=error.no_space) from error

    def _write_names(self) -> None:
        """Hints are forgotten with the saved cursor; which names are one object must not be."""
        while self._names:
            self.step.bench.names.add(*self._names[0])
            self._names.popleft()

    def _compare(self) -> None:
        """The next part of a comparison."""
        self._unsaved = True
        comparisons = self._comparisons
        position = (SequenceNumber(max(1, self.plan.working())), 0)
        try:
            self.step.bench.map.limbo.tidy()
            with self._comparing() as done:
                comparisons.advance(self._gap(), position, done, keep=self._keeps)
        except (StoreError, SourceError) as error:
            if not comparisons.tries or _again(error, comparisons.tries):
                raise
            given_up = comparisons.give_up()
            if given_up is not None:
                self._hold_failed(Reconciled([(given_up, error)]))

    @contextlib.contextmanager
    def _comparing(self) -> Iterator[Reconciled]:
        """What came of names that were compared counts, though another one ended it."""
        done = Reconciled()
        try:
            yield done
        finally:
            for root in done.made:
                self._held.done(root)
            self._hold_failed(done)
            if self.state.initial and not self._comparisons.initial:
                self.state.initial = self.state.adopt = False

    def _apply(self, item: Item) -> None:
        position = item.position
        self._unsaved = True
        try:
            self.step.bench.map.limbo.tidy()
            self._carry_out(item)
        except (DeferredError, SourceChangedError) as error:
            self._hold(item, error, unsure=self._unsure)
        except (StoreError, SourceError) as error:
            self._failed(item, error)
            return
        else:
            if item.position == position and not isinstance(item, ReconcileItem):
                self._held.done(item)
        self._tries = 0
        if item.position == position:
            self.plan.done(item)

    def _carry_out(self, item: Item) -> None:
        if isinstance(item, ReconcileItem):
            self._reconcile(item)
            return
        mode = self._mode(item)
        with self._comparing() as done:
            self._comparisons.precede(item, mode, done)
        if isinstance(item, PlaceItem):
            self.step.place(item.place, mode, item)
        else:
            for place in self.step.object(item.object, mode):
                self._held.done(PlaceItem(place, item.position))

    def _reconcile(self, item: ReconcileItem) -> None:
        """Records do not tell what happened before that item. From now on it is remembered with
        the comparisons."""
        initial = self.state.initial and item.whole and item.directory == self._root
        items = [item] if initial else self.plan.adjoining(item)
        self._begin(items, initial=initial)
        for each in items:
            self.plan.done(each)

    def _begin(self, items: list[ReconcileItem], *, initial: bool) -> None:
        gap, adopt = (self.plan.known_tag, items[-1].position[0]), initial and self.state.adopt
        self._comparisons.begin(items, gap, initial=initial, adopt=adopt)

    def _gap(self) -> tuple[Tag, SequenceNumber]:
        """A gap no copy the site has is newer than."""
        return self.plan.known_tag, SequenceNumber(self.plan.known + 1)

    @property
    def _keeps(self) -> bool:
        """Whether something may have gone from the source that no record tells of."""
        return self.plan.reconciles > 0 or self._held.keeps or self._escape.keep

    @property
    def _unsure(self) -> bool:
        """Whether records may not tell everything now."""
        return self.plan.reconciles > 0 or self._held.reconciles or self._escape.gap is not None

    def _mode(self, item: Item) -> Mode:
        if self._held.failed(item):
            return Mode(trust=False, wait=False, exact=True)
        if self.plan.reconciles or self._held.reconciles:
            return Mode(gap=self._gap(), keep=self._keeps)
        if self._escape.open:
            return Mode(gap=self._escape.gap, keep=self._escape.keep)
        return NORMAL

    def _failed(self, item: Item, error: StoreError | SourceError) -> None:
        """A step failed: try again a few times if that may help, then hold it and go on."""
        self._tries += 1
        if _again(error, self._tries):
            raise error
        self._tries = 0
        self._hold(item, error, unsure=self._unsure)
        self.plan.done(item)

    # held steps --------------------------------------------------------------------------------

    @property
    def held(self) -> list[HeldStep]:
        """The failed set, and the steps that wait for a writer."""
        return self._held.all()

    def _hold(self, item: Item, error: Exception, *, unsure: bool) -> None:
        now_ns, subject = self._world.clock_ns(), self._subject(item)
        self._held.hold(item, error, now_ns, subject, unsure=unsure)

    def _hold_failed(self, done: Reconciled) -> None:
        for item, error in done.failed:
            with contextlib.suppress(SourceError):  # it may be why the step is held
                item.path = self._path_of(item)
            self._hold(item, error, unsure=True)

    def _path_of(self, item: Item) -> bytes | None:
        if isinstance(item, PlaceItem):
            return self.step.bench.path(item.place)
        directory = item.object if isinstance(item, ObjectItem) else item.directory
        return self.step.bench.path_of(directory)

    def _hold_timeless(self) -> None:
        timeless, position = self.step.bench.timeless, SequenceNumber(self.state.working + 1)
        for identity, error in timeless.items():
            path = self.step.bench.path_of(identity)
            item = ObjectItem(identity, (position, 0), path)
            self._hold(item, error, unsure=self._unsure)
        timeless.clear()

    def _subject(self, item: Item) -> Subject:
        bench = self.step.bench
        if isinstance(item, ObjectItem):
            places = self.plan.hints(item.object).places
            return Subject(item.object, max(places, key=places.__getitem__, default=None))
        if isinstance(item, PlaceItem):
            object = occupant = None
            with contextlib.suppress(SourceError, StoreError):  # it may be why the step is held
                occupant = bench.map.object_at(item.place)
                object = bench.object_at(item.place)
            return Subject(object, item.place, occupant)
        return Subject()

    def _due(self) -> Item | None:
        """A held step to try again now."""
        if self.plan.known < self._world.head():
            return None  # what is seen now may be explained by records still to be read
        return self._held.due(self._world.clock_ns(), self._comparisons.keys)

    def next_due_ns(self) -> int | None:
        """When the next held step is tried again."""
        return self._held.next_due_ns()

    # cursors -----------------------------------------------------------------------------------

    @property
    def counters(self) -> Counters:
        """What was done."""
        return self.step.counters

    @property
    def comparing(self) -> str:
        """What is being compared, in words; "": nothing is."""
        return self._comparisons.told

    @property
    def idle(self) -> bool:
        """Nothing waits but held steps."""
        return self.plan.next() is None and not self._comparisons

    @property
    def unsaved(self) -> bool:
        """Something was done since the last `save`."""
        return self._unsaved or self.plan.working() != self.state.working

    def save(self, *, stopped: bool = False) -> None:
        """Directory times, then everything to disk, then the cursors. Raises StoreError."""
        self._write_names()
        self.step.finish()
        self._hold_timeless()
        if self.idle and self.plan.known >= self._world.head():
            self._expire_limbo()
        state, working = self.state, self.plan.working()
        state.working = working
        while len(self._tags) > 1 and self._tags[1][0] <= working:
            del self._tags[0]
        state.tag = f"{self._tags[0][1]:016x}"
        state.held = self.held
        state.escaping, state.keeping = self._escape.open, self._escape.keep
        state.comparing = self._comparisons.states()
        clean = clean_cursor(working, state.held, state.comparing, initial=state.initial)
        state.clean = min(clean, state.clean) if self.step.bench.doubt else clean
        state.boot, state.mount = self._world.boot, self._world.mount
        state.stopped = stopped
        log_tag, state.generation = self._world.log()
        state.log_tag = f"{log_tag:016x}"
        state.saved_ns = self._world.clock_ns()
        losses = self.step.bench.losses
        state.site_cuts = losses.site
        state.source_cuts = [(f"{tag:016x}", since_ns) for tag, since_ns in losses.source]
        state.saves += 1
        self.step.bench.saved = state.saves  # whether or not it comes to the disk
        self.store.write_file(STATE_FILE, encode_state(state))
        self.plan.forget(working)
        self._unsaved = self._cut = False

    def _expire_limbo(self) -> None:
        """Nothing is pending: nobody will claim what is dead, nor, after a while, what lives."""
        if self._held:
            return
        now = self._world.clock_ns()
        limbo = {name: self._limbo.get(name, now) for name in self.step.bench.map.limbo.names}
        for name, since in limbo.items():
            self.step.moves.expire(name, living=now - since > _LIMBO_NS)
        self._limbo = limbo


def _again(error: StoreError | SourceError, tries: int) -> bool:
    """Whether to try the same again, after so many tries, before it is given up."""
    if isinstance(error, StoreError) and (error.no_space or isinstance(error, UnsyncedError)):
        return True
    return error.transient and tries < _TRIES_MAX


@contextlib.contextmanager
def _trouble(what: str) -> Iterator[None]:
    """Errors of site and source that get here are trouble: what was tried stays to do."""
    try:
        yield
    except (StoreError, SourceError) as error:
        no_space = isinstance(error, StoreError) and error.no_space
        raise TroubleError(str(error), what, no_space=no_space) from error


def describe(item: Item) -> str:
    """An item in words, for people."""
    path = item.path
    if path is None and isinstance(item, PlaceItem):
        path = item.place.name
    shown = "?" if path is None else "/" + path.decode(errors="backslashreplace")
    return f"reconcile {shown}" if isinstance(item, ReconcileItem) else shown
