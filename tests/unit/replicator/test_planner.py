"""The plan: what is looked at, in which order, and what is remembered of objects."""

from __future__ import annotations

from mirrorfs.journal.record import (
    SETTLED,
    Body,
    Change,
    Checkpoint,
    Kind,
    Mount,
    ObjectId,
    Place,
    Reconcile,
    Record,
    SequenceNumber,
    Tag,
)
from replicator.planner import NO_HINTS, Item, ObjectItem, PlaceItem, Plan, ReconcileItem

ROOT, X, Y = ObjectId(b"root"), ObjectId(b"x"), ObjectId(b"y")
A, B, C = (Place(ROOT, name) for name in (b"a", b"b", b"c"))
TAG = Tag(7)


class Journal:
    """Feeds a plan with records."""

    def __init__(self) -> None:
        self.plan = Plan(SequenceNumber(0), TAG)

    def add(self, kind: Kind, body: Body, *, settled: bool = True) -> None:
        sequence = SequenceNumber(self.plan.known + 1)
        self.plan.add(Record(sequence, 0, kind, SETTLED if settled else 0, body), TAG)

    def change(
        self,
        kind: Kind,
        identity: ObjectId,
        *places: Place,
        settled: bool = True,
        ctime_ns: int = 0,
    ) -> None:
        self.add(kind, Change(identity, places, b"p", 0o100644, 1, ctime_ns), settled=settled)

    def drain(self) -> list[Item]:
        items = []
        while (item := self.plan.next()) is not None:
            items.append(item)
            self.plan.done(item)
        return items


def shown(items: list[Item]) -> list[object]:
    return [
        item.place
        if isinstance(item, PlaceItem)
        else item.object
        if isinstance(item, ObjectItem)
        else (item.directory, item.whole)
        for item in items
    ]


def test_places_and_objects_come_once_in_journal_order() -> None:
    journal = Journal()
    journal.change(Kind.CREATE, X, A)
    journal.change(Kind.WRITE, X, A)
    journal.change(Kind.CREATE, Y, B)
    journal.change(Kind.ATTRIBUTES, X, A)
    journal.change(Kind.UNLINK, X, A)
    assert len(journal.plan) == 3
    assert {type(item) for item in journal.plan.waiting()} == {PlaceItem, ObjectItem}
    assert shown(journal.drain()) == [A, X, B]
    assert len(journal.plan) == 0


def test_the_new_place_of_a_rename_comes_before_the_old_one() -> None:
    journal = Journal()
    journal.change(Kind.RENAME, X, A, B)
    items = journal.drain()
    assert shown(items) == [B, A]
    new, old = items
    assert isinstance(new, PlaceItem)
    assert isinstance(old, PlaceItem)
    assert (new.arrived, new.vacated) == ((1, X), [])
    assert (old.arrived, old.vacated) == (None, [1])


def test_an_exchange_fills_both_places() -> None:
    journal = Journal()
    journal.add(
        Kind.RENAME,
        Change(X, (A, B), b"b", 0o100644, 1, other=Y, other_ctime_ns=5, rename_flags=2),
    )
    new, old = journal.drain()
    assert isinstance(new, PlaceItem)
    assert isinstance(old, PlaceItem)
    assert (new.arrived, old.arrived) == ((1, X), (1, Y))
    assert journal.plan.hints(Y).settled_ctime_ns == 5
    assert set(journal.plan.hints(Y).places) == {A, B}


def test_a_link_touches_its_new_place_only_but_hints_at_the_other() -> None:
    journal = Journal()
    journal.change(Kind.LINK, X, B, A)
    assert shown(journal.drain()) == [B]
    assert set(journal.plan.hints(X).places) == {A, B}


def test_the_working_cursor_stays_below_what_waits() -> None:
    journal = Journal()
    journal.change(Kind.CREATE, X, A)
    journal.add(Kind.CHECKPOINT, Checkpoint("c"))
    journal.change(Kind.CREATE, Y, B)
    plan = journal.plan
    assert plan.working() == 0
    first = plan.next()
    assert first is not None
    plan.done(first)
    assert plan.working() == 2
    plan.done(first)  # the second time nothing happens
    second = plan.next()
    assert second is not None
    plan.done(second)
    assert plan.working() == plan.known == 3


def test_a_reconcile_is_an_item_of_its_own() -> None:
    journal = Journal()
    journal.add(Kind.RECONCILE, Reconcile(ROOT, True, b"", "test"))
    assert journal.plan.reconciles == 1
    assert {type(item) for item in journal.plan.waiting()} == {ReconcileItem}
    assert shown(journal.drain()) == [(ROOT, True)]
    assert journal.plan.reconciles == 0


def test_a_postponed_place_comes_back_at_the_record_that_filled_it() -> None:
    journal = Journal()
    journal.change(Kind.UNLINK, X, A)
    journal.change(Kind.CREATE, Y, B)
    journal.change(Kind.CREATE, Y, A)
    plan = journal.plan
    item = plan.next()
    assert isinstance(item, PlaceItem)
    plan.postpone(item, SequenceNumber(3))
    assert item.vacated == []
    assert shown(journal.drain()) == [B, A]


def test_only_the_first_and_the_last_time_a_place_was_empty_are_kept() -> None:
    journal = Journal()
    for _ in range(5):
        journal.change(Kind.CREATE, X, A)
        journal.change(Kind.UNLINK, X, A)
    item = journal.plan.next()
    assert isinstance(item, PlaceItem)
    assert item.vacated == [2, 10]


def test_what_was_done_on_the_way_needs_no_item() -> None:
    journal = Journal()
    journal.change(Kind.WRITE, X, A)
    assert journal.plan.object_waits(X)
    journal.plan.object_done(X)
    journal.plan.object_done(Y)
    assert not journal.plan.object_waits(X)
    assert journal.plan.next() is None


def test_hints_tell_the_newest_and_go_with_the_saved_cursor() -> None:
    journal = Journal()
    journal.change(Kind.MKDIR, X, A, ctime_ns=3)
    assert journal.plan.hints(X).made
    assert journal.plan.hints(X).settled_ctime_ns == 3
    journal.change(Kind.WRITE, X, A, settled=False, ctime_ns=4)
    hints = journal.plan.hints(X)
    assert hints.write == (TAG, 2)
    assert hints.unsettled
    assert hints.settled_ctime_ns == 0
    journal.plan.forget(SequenceNumber(1))
    assert journal.plan.hints(X) is hints
    journal.plan.forget(SequenceNumber(2))
    journal.plan.forget(SequenceNumber(2))
    assert journal.plan.hints(X) is NO_HINTS


def test_writers_end_with_their_mount() -> None:
    journal = Journal()
    journal.change(Kind.CREATE, X, A, settled=False)
    assert journal.plan.hints(X).unsettled
    journal.add(Kind.MOUNT, Mount("host", 1, "0", b"/m", clean=False))
    assert not journal.plan.hints(X).unsettled


def test_hints_of_one_object_named_twice_by_a_record_go_once() -> None:
    journal = Journal()
    journal.add(Kind.RENAME, Change(X, (A, C), b"c", 0o100644, 1, other=X))
    journal.plan.forget(SequenceNumber(1))
    assert journal.plan.hints(X) is NO_HINTS
