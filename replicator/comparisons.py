"""The comparisons of one site under way, and what steps left in doubt: which goes on next.

The newest goes on first, and doubts before all. What they have done so far is saved with the
cursor.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mirrorfs.journal.record import ObjectId, SequenceNumber, Tag
from replicator.comparison import Comparison
from replicator.held import Key, key_of
from replicator.moves import Mode
from replicator.planner import Item, ObjectItem, PlaceItem, Position, ReconcileItem
from replicator.reconcile import Reconciled, Reconciler
from replicator.site_state import ComparisonState
from replicator.step import Step
from replicator.stores.base import StoreError
from replicator.view import SourceError


class Comparisons:
    """Those of one site."""

    def __init__(self, step: Step, reconciler: Reconciler) -> None:
        self._step = step
        self._reconciler = reconciler
        self._doubt = step.bench.doubt
        self._escape = step.bench.escape
        self._under_way: list[Comparison] = []

    def __bool__(self) -> bool:
        """Whether there is something to compare."""
        return bool(self._under_way) or bool(self._doubt)

    def restore(self, states: Iterable[ComparisonState]) -> None:
        """Go on with those that were saved. A doubt that was settled since needs nothing."""
        for state in states:
            root = ObjectId(state.roots[0].directory)
            if not state.doubt or self._doubt.since(root) is not None:
                made = Comparison.restored(state, self._escape.now())
                self._under_way.append(made)

    def owed(self) -> list[PlaceItem | ObjectItem]:
        """What they owe."""
        return [item for each in self._under_way for item in each.owed]

    def states(self) -> list[ComparisonState]:
        """What is to be saved."""
        return [each.state() for each in self._under_way]

    @property
    def ready(self) -> bool:
        """Whether something can be compared now, and does not wait for bytes."""
        return self._at_work is not None or self._may_take_doubt or bool(self._over)

    @property
    def _over(self) -> list[Comparison]:
        """Those that have come to their end, which could not be written down."""
        return [each for each in self._under_way if each.ended and not each.owed]

    @property
    def _at_work(self) -> Comparison | None:
        for each in reversed(self._under_way):
            if not each.ended:
                return None if each.owes_much else each
        return None

    @property
    def _may_take_doubt(self) -> bool:
        """What is in doubt may be found by a sweep, or be settled after it."""
        sweeping = any(each.doubt or not each.creating for each in self._under_way)
        return bool(self._doubt) and not sweeping

    @property
    def initial(self) -> bool:
        """Whether the initial copy is among them."""
        return any(each.initial for each in self._under_way)

    @property
    def item(self) -> Item | None:
        """What is being worked on, for people."""
        if self._under_way:
            return self._under_way[-1].subject()
        return next((ObjectItem(each, (SequenceNumber(0), 0)) for each in self._doubt), None)

    @property
    def told(self) -> str:
        """What is being compared, in words."""
        if not self._under_way:
            return ""
        item = self._under_way[-1].item
        if item.path is None:
            return "comparing a directory"
        return f"comparing /{item.path.decode(errors='backslashreplace')}"

    @property
    def keys(self) -> set[Key]:
        """The held steps they are about."""
        return {key_of(item) for each in self._under_way for item in each.items}

    def begin(
        self,
        items: Sequence[ReconcileItem],
        gap: tuple[Tag, SequenceNumber],
        *,
        initial: bool = False,
        adopt: bool = False,
        doubt: bool = False,
    ) -> None:
        """Compare those directories. One that compares the same begins anew with it."""
        made = Comparison(items, doubt=doubt, initial=initial, adopt=adopt)
        made.began = self._escape.begin(gap, keep=made.keep and not initial)
        if not doubt:
            self._under_way = [
                each for each in self._under_way if each.doubt or each.roots != made.roots
            ]
        self._under_way.append(made)

    def advance(
        self,
        done: Reconciled,
        gap: tuple[Tag, SequenceNumber],
        position: Position,
        *,
        keep: bool,
    ) -> None:
        """Do the next part; what came of it is put into `done`, whatever is raised. The rest is
        about what is in doubt now.

        Raises StoreError and SourceError where going on is of no use now: the rest of the part is
        to be tried again, or to be given up.
        """
        over = self._over
        for each in over:
            self._end(each)
        if over or self._take_doubt(gap, position, keep=keep):
            return
        at_work = self._at_work
        assert at_work is not None, "it is ready"
        try:
            more = self._reconciler.advance(at_work, done)
        except (StoreError, SourceError):
            at_work.tries += 1
            raise
        at_work.tries = 0
        at_work.ended = not more
        self._end(at_work)

    def _end(self, comparison: Comparison) -> None:
        """It may have come to its end."""
        if comparison.ended and not comparison.owed:
            if comparison.doubt:
                self._doubt.settled(comparison.item.directory, comparison.began)
            self._under_way.remove(comparison)
        if not self:
            self._escape.end()

    def _take_doubt(
        self, gap: tuple[Tag, SequenceNumber], position: Position, *, keep: bool
    ) -> bool:
        """Begin with what is in doubt; whether there was something."""
        if not self._may_take_doubt:
            return False
        identity = next(iter(self._doubt))
        since = self._doubt.since(identity)
        whole = not self._step.bench.source.partial  # else it may have moved while it was compared
        if whole and since is not None and self._escape.seen.since(identity, since):
            self._doubt.settled(identity)
            return True
        self.begin([ReconcileItem(identity, True, position, keep=keep)], gap, doubt=True)
        return True

    @property
    def tries(self) -> int:
        """How often the next part has failed."""
        return 0 if self._at_work is None else self._at_work.tries

    def give_up(self) -> Item | None:
        """Pass over what `advance` failed at; what is to be held for it."""
        at_work = self._at_work
        assert at_work is not None, "it has failed"
        item = at_work.subject() if at_work.creating else None
        at_work.give_up()
        at_work.tries = 0
        return item

    # bytes that are on their way ---------------------------------------------------------------

    def _owner(self, item: Item) -> Comparison | None:
        return next((each for each in self._under_way if item in each.owed), None)

    def owes(self, item: Item) -> bool:
        """Whether it is owed."""
        return self._owner(item) is not None

    def pay(self, item: PlaceItem | ObjectItem) -> Reconciled:
        """Do what is owed. Raises CopyingError if its bytes are not there, StoreError and
        SourceError."""
        done, owner = Reconciled(), self._owner(item)
        assert owner is not None, "it is owed"
        self._reconciler.pay(item, owner, done)
        return done

    def settled(self, item: Item) -> None:
        """If it was owed, it was done, or is held."""
        owner = self._owner(item)
        if owner is not None:
            del owner.owed[item]  # type: ignore[arg-type]
            self._end(owner)

    # records -----------------------------------------------------------------------------------

    def precede(self, item: PlaceItem | ObjectItem, mode: Mode) -> Reconciled:
        """See Reconciler: a step is about to be done because of a record."""
        done = Reconciled()
        if self._under_way:
            for directory in self.directories(item):
                self._reconciler.precede(directory, self._under_way, mode, done)
        return done

    def directories(self, item: PlaceItem | ObjectItem) -> Iterable[ObjectId]:
        """Those in which that step does something, as far as records tell."""
        if isinstance(item, PlaceItem):
            return [item.place.directory]
        places = self._step.bench.plan.hints(item.object).places
        return dict.fromkeys(place.directory for place in places)
