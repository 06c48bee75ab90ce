"""The engine of one site: records in, steps done, cursors out. Synchronous, and without a clock of
its own.

It takes the items of the plan one after another, holds those that fail, retries them, and says what
may be saved. It neither reads the journal nor waits for anything; `site` does that.
"""

from __future__ import annotations

import contextlib
import logging
import stat
from collections import deque
from collections.abc import Iterable, Iterator

from mirrorfs.journal.record import Change, ObjectId, Place, Reconcile, Record, SequenceNumber, Tag
from replicator.commit_order import CommitOrder
from replicator.comparisons import Comparisons
from replicator.deletions import Deletions
from replicator.escape import Escape
from replicator.expiring import Expiring
from replicator.held import AheadError, DeferredError, DeletionError, HeldSteps, Key, key_of
from replicator.holding import Holding
from replicator.losses import Losses
from replicator.moves import NORMAL, Counters, Mode
from replicator.orders import Order
from replicator.planner import Item, ObjectItem, PlaceItem, Plan, ReconcileItem
from replicator.promises import Promises
from replicator.reconcile import Reconciled, Reconciler
from replicator.schedule import Incarnations
from replicator.site_state import STATE_FILE, HeldStep, SiteState, clean_cursor, encode_state
from replicator.staging import CopyingError
from replicator.step import Step
from replicator.stores.base import SiteStore, StoreError
from replicator.surroundings import Surroundings, TroubleError, again, describe, trouble
from replicator.turns import Turns
from replicator.view import SourceChangedError, SourceError, SourceTree

_log = logging.getLogger(__name__)

_BESIDE = 16
"""So many steps of records are done for one part of a comparison, which counts as many."""


class Engine:
    """Applies one journal to one site.

    Attributes:
        doing: what is being done, or was done last; None: the state is saved.
        worked: how many steps were begun.
    """

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
        self._under_way = world.under_way
        self.doing: Item | None = None
        self.worked = 0
        working = SequenceNumber(state.working)
        self.plan = Plan(working, Tag(int(state.tag, 16)))
        self._held = HeldSteps(state.held, world.random)
        self._escape = Escape(world.clock_ns, world.head)
        most, before = world.deletes_max, state.deletions
        self._deletions = Deletions(most, self._held, world.clock_ns, before)
        self.step = Step(
            source,
            store,
            self.plan,
            incarnations,
            self._escape,
            self._held,
            world.under_way,
            self._deletions,
            workers=world.workers,
            inline_bytes=world.inline_bytes,
            grown_bytes_min=world.grown_bytes_min,
            deadline_ns=world.deadline_ns,
            sleep=world.sleep,
            clock_ns=world.clock_ns,
            observer=world.observer,
        )
        self._holding = Holding(state.site, self.step.bench, world)
        self._turns = Turns(self.plan, self.step, world)
        reconciler = Reconciler(self.step, world.tick, world.names_max)
        self._comparisons = Comparisons(self.step, reconciler)
        self.promises = Promises(
            self.step, self._turns, self._held, lambda: self._lags, world.clock_ns
        )
        self._beside = 0
        self._tags = [(working, self.plan.known_tag)]
        self._names: deque[tuple[ObjectId, Place]] = deque()
        self._tries: dict[Key, int] = {}
        self._expiring = Expiring(self.step.bench, self.step.moves)
        self._cut = False
        self._take_up_losses()
        self._unsaved = True
        self._root = source.root.id
        self._restore()

    def _restore(self) -> None:
        """What was under way; which directories were seen is forgotten."""
        state = self.state
        if state.escaping or state.comparing:
            self._escape.begin(self._gap(), keep=state.keeping)
        self._comparisons.restore(state.comparing)
        self._turns.owe(self._comparisons.owed(), begun=False)
        if self._world.anew or (state.initial and not self._comparisons.initial):
            # what is not wanted any more goes: the source still has it
            position, keep = (SequenceNumber(state.working), 0), not self._world.anew
            whole = ReconcileItem(self._root, True, position, b"", keep)
            self._begin([whole], initial=state.initial)
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
        world = self._world
        for record, tag in records:
            if tag != self._tags[-1][1]:
                self._tags.append((record.sequence, tag))
            self.plan.add(record, tag)
            self._held.fed(record)
            world.observer.fed(record)
            body = record.body
            if isinstance(body, Reconcile) and body.since_ns:
                self.step.bench.losses.source_cut(tag, body.since_ns)
            if isinstance(body, Change):
                self._turns.told(body)
                if body.links > 1 and not stat.S_ISDIR(body.mode):
                    self._names.extend((body.object, place) for place in body.places)
        self._turns.read()

    def room(self) -> int:
        """How many records may be fed now."""
        return self.plan.room(self._world.window)

    @property
    def crowded(self) -> bool:
        """Whether `save` would make room for records."""
        return self.plan.remembered >= self._world.window.hints and self.plan.may_forget

    # work --------------------------------------------------------------------------------------

    def work(self, steps: int) -> int:
        """Do up to so many steps; how many were done (0: there is nothing to do now).

        Raises TroubleError when going on is of no use now: what was being tried stays to do.
        """
        done, observer = 0, self._world.observer
        with trouble("the stage"):
            self.step.staging.land()
        with trouble("the table of names"):
            self._write_names()
        if self._cut:
            self._save_cut()
        while done < steps:
            hurried, item = self._turns.hurried, self._next()
            compares = self._comparisons.ready and (item is None or self._beside >= _BESIDE)
            if compares:
                item = self._comparisons.item
            if item is None:
                break
            observer.begun(item)
            self.doing = item
            self.worked += 1
            self._under_way.lenient = self._held.is_due(item, self._world.clock_ns())
            try:
                if compares:
                    self._compare()
                    observer.dropped(item)
                else:
                    self._apply(item)
            except (StoreError, SourceError) as error:
                observer.dropped(item)
                no_space = isinstance(error, StoreError) and error.no_space
                if no_space:
                    self._make_room()
                raise TroubleError(str(error), describe(item), no_space=no_space) from error
            done += _BESIDE if compares else 1
            self._beside = 0 if compares else self._beside + 1
            if hurried and not self._turns.hurried:
                break  # jobs wait to hear of it
        self._escape.passed(self.plan.working())
        return done

    @property
    def waiting(self) -> bool:
        """Whether bytes, or records, are on their way: there will be more to do."""
        return self._turns.waiting

    def _next(self) -> Item | None:
        if (item := self._turns.next()) is not None:
            return item
        self._turns.prefetch(self._prefetch)
        return self._due()

    def _prefetch(self, item: PlaceItem | ObjectItem) -> None:
        subject = item.place if isinstance(item, PlaceItem) else item.object
        self._under_way.lenient = False
        failures = contextlib.suppress(StoreError, SourceError, SourceChangedError)
        with failures, self._under_way.border(subject):
            self.step.prefetch(item, self._mode(item))

    def _make_room(self) -> None:
        """The site is full: what the source has no more goes before its turn."""
        with contextlib.suppress(StoreError):
            self.step.staging.make_room()
        failures = (DeferredError, SourceChangedError, StoreError, SourceError, CopyingError)
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
        if self._deletions.too_many:
            raise self._deletions.refuse()
        self._unsaved = True
        self.step.bench.map.limbo.tidy()
        position = (SequenceNumber(max(1, self.plan.working())), 0)
        with self._comparing() as done:
            self._comparisons.advance(self._gap(), position, done, keep=self._keeps)

    @contextlib.contextmanager
    def _comparing(self) -> Iterator[Reconciled]:
        """What came of names that were compared counts, though another one ended it."""
        done = Reconciled()
        try:
            yield done
        finally:
            for root in done.made:
                self._held.done(root)
            self._holding.hold_failed(done.failed)
            self._turns.owe(done.owed)
            self._look_whether_initial()

    def _look_whether_initial(self) -> None:
        if self.state.initial and not self._comparisons.initial:
            self.state.initial = self.state.adopt = False

    def _apply(self, item: Item) -> None:
        position, observer = item.position, self._world.observer
        owed, told = self._comparisons.owes(item), observer.dropped
        self._unsaved = True
        try:
            self.step.bench.map.limbo.tidy()
            ended = self._carry_out(item)
        except CopyingError:
            self._turns.wait(item)
            ended = False
        except (DeferredError, SourceChangedError) as error:
            ended = not (isinstance(error, AheadError) and self._comes(item))
            if ended:
                self._holding.hold(item, error, unsure=self._unsure)
                told = observer.held
        except (StoreError, SourceError) as error:
            self._failed(item, error)
            return
        else:
            if ended and not owed and item.position == position:
                told = observer.done
        if ended:
            self._leave(item)  # if it was postponed, it comes again in its turn
            if item.position == position:
                self.plan.done(item)
        told(item)

    def _comes(self, item: Item) -> bool:
        """Whether the record that explains what the step saw may come in a moment."""
        return not (self._unsure or self._held.unexplained) and self._turns.comes(item)

    def _leave(self, item: Item) -> None:
        self._tries.pop(key_of(item), None)
        self.step.staging.narrow = False
        self._turns.leave(item)
        self._comparisons.settled(item)
        self._look_whether_initial()

    def _carry_out(self, item: Item) -> bool:
        """False: something came up that is to be done before."""
        if isinstance(item, ReconcileItem):
            self._reconcile(item)
            return True
        staging, position, mode = self.step.staging, item.position, self._mode(item)
        if self._comparisons.owes(item):
            staging.owner = (item, 0)
            with self._comparing() as done:
                self._comparisons.pay(item, done)
            return True
        with self._comparing() as done:
            self._comparisons.precede(item, mode, done)
        if not self._turns.has(item):
            return False
        staging.owner = (item, item.time_ns)
        if self._world.commit_order is not CommitOrder.ANY:
            directories = self._comparisons.directories(item)
            if self._holding.follows(item, directories, self._do, self._turns.follows):
                return False
        self._do(item, mode)
        if item.position == position:
            self._held.done(item)
        return True

    def _do(self, item: PlaceItem | ObjectItem, mode: Mode | None = None) -> None:
        """Without `mode` as if it had never failed: who follows it does not make it hurry."""
        mode = mode or self._usual_mode()
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

    @property
    def _lags(self) -> bool:
        """Whether directories may stand elsewhere at the site, and no step in the plan says so."""
        return self._unsure or bool(self._held) or bool(self._comparisons)

    def _mode(self, item: Item) -> Mode:
        if self._held.failed(item):
            return Mode(trust=False, wait=False, exact=True)
        return self._usual_mode()

    def _usual_mode(self) -> Mode:
        if self.plan.reconciles or self._held.reconciles:
            return Mode(gap=self._gap(), keep=self._keeps)
        if self._escape.open:
            return Mode(gap=self._escape.gap, keep=self._escape.keep)
        return NORMAL

    def _failed(self, item: Item, error: StoreError | SourceError) -> None:
        """A step failed: try again a few times if that may help, then hold it and go on."""
        key = key_of(item)
        tries = self._tries[key] = self._tries.get(key, 0) + 1
        if again(error, tries) or (self._deletions.too_many and isinstance(error, DeletionError)):
            raise error
        self._holding.hold(item, error, unsure=self._unsure)
        self._leave(item)
        self.plan.done(item)
        self._world.observer.held(item)

    # held steps --------------------------------------------------------------------------------

    @property
    def held(self) -> list[HeldStep]:
        """The failed set, and the steps that wait for a writer."""
        return self._held.all()

    def _due(self) -> Item | None:
        """A held step to try again now."""
        if self.plan.known < self._world.head() or self.plan.next() is not None:
            return None  # records still to be read, or done, may explain what is seen now
        under_way = self._comparisons.keys | self._turns.retries
        item = self._held.due(self._world.clock_ns(), under_way)
        if isinstance(item, PlaceItem | ObjectItem) and not self._turns.retry(item):
            return None
        return item

    def obey(self, order: Order) -> str:
        """Do what an operator ordered; what came of it, in words. To be saved."""
        told, skipped = self._holding.obey(order)
        self.state.skipped += skipped
        self._unsaved = self._unsaved or bool(skipped)
        return told

    def next_due_ns(self) -> int | None:
        """When the next held step is tried again, or one that waits for records is held."""
        due_ns, held_ns = self._turns.due_ns, self._held.next_due_ns()
        return min(due_ns if held_ns is None else [*due_ns, held_ns], default=None)

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
        self.doing = None
        self._write_names()
        self.step.finish()
        self._holding.hold_timeless(self.state.clean, unsure=self._unsure)
        if self.idle and self.plan.known >= self._world.head() and not self._held:
            self._expiring.look(self._world.clock_ns())
            self.store.forget_unfinished()
        state, working = self.state, self.plan.working()
        state.working = working
        while len(self._tags) > 1 and self._tags[1][0] <= working:
            del self._tags[0]
        state.tag = f"{self._tags[0][1]:016x}"
        state.held, state.deletions = self.held, self._deletions.state()
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
        self.step.bench.unsynced.clear()
        self.plan.forget(working)
        self._unsaved = self._cut = False
