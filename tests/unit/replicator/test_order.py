"""Which steps may be done now, and which bytes are copied next."""

from __future__ import annotations

import pytest

from mirrorfs.journal.record import ObjectId, Place, SequenceNumber
from replicator.commit_order import CommitOrder
from replicator.order import SMALL_BYTES, CopyQueue, Order, claims
from replicator.planner import Item, ObjectItem, PlaceItem, ReconcileItem

ROOT, X = ObjectId(b"root"), ObjectId(b"x")
A = Place(ROOT, b"a")


def place(number: int, name: bytes = b"n") -> PlaceItem:
    return PlaceItem(Place(ROOT, name), (SequenceNumber(number), 0), objects=(X,))


@pytest.mark.parametrize(
    ("order", "of_place", "of_object"),
    [
        (CommitOrder.ANY, (A, X), (X,)),
        (CommitOrder.DIRECTORY, (ROOT, X), (X, ROOT)),
        (CommitOrder.JOURNAL, (None,), (None,)),
    ],
)
def test_what_a_step_claims(order: CommitOrder, of_place: object, of_object: object) -> None:
    def places(identity: ObjectId) -> list[Place]:
        assert identity == X
        return [A, Place(ROOT, b"b")]

    at = (SequenceNumber(1), 0)
    assert claims(PlaceItem(A, at, objects=(X,)), order, places) == of_place
    assert claims(ObjectItem(X, at), order, places) == of_object


def test_a_reconcile_claims_nothing() -> None:
    item = ReconcileItem(ROOT, True, (SequenceNumber(1), 0))
    assert claims(item, CommitOrder.DIRECTORY, lambda _: ()) == ()


def test_what_is_urgent_goes_before_the_others_with_all_that_comes_before_it() -> None:
    order, (one, two, three, four, five) = Order(), [place(number) for number in range(1, 6)]
    order.enter(one, ("a",))
    order.enter(two, ("b",))
    order.enter(three, ("b", "c"))
    order.enter(four, ("c", "d"))
    order.hurry(five)  # it is not here
    order.hurry(four)
    order.hurry(four)
    assert order.urgent == 3
    order.enter(five, ("d",))
    done = []
    while (item := order.ready()) is not None:
        order.leave(item)
        done.append(item)
    assert done == [two, three, four, one, five]
    assert order.urgent == 0


def test_what_comes_before_something_urgent_later_on_is_urgent_too() -> None:
    order, (one, two, three) = Order(), [place(number) for number in (1, 2, 3)]
    order.enter(one, ("a",))
    order.enter(three, ("b",))
    order.wait(three)
    order.hurry(three)
    order.enter(two, ("b",))  # it was postponed, or held
    assert order.urgent == 2
    assert order.ready() is two
    order.leave(two)
    assert order.ready() is one
    order.resume(three)
    assert order.ready() is three


def test_steps_with_a_claim_in_common_are_done_in_order() -> None:
    order, (one, two, three) = Order(), [place(number) for number in (1, 2, 3)]
    assert order.enter(one, ("d",))
    assert not order.enter(two, ("d", "e"))
    assert order.enter(three, ("f",))
    assert order.last == three.position
    assert order.ready() is one
    order.wait(one)
    assert order.waits(one)
    assert order.ready() is three
    order.leave(three)
    assert order.ready() is None
    order.resume(one)
    order.resume(one)  # it does no harm
    order.resume(three)
    assert order.ready() is one
    order.leave(one)
    order.leave(one)
    assert not order.waits(one)
    assert order.ready() is two
    assert two in order
    order.leave(two)
    assert len(order) == 0
    assert order.last is None


def test_what_was_postponed_goes_before_what_came_later() -> None:
    order, (one, two, late) = Order(), [place(number) for number in (1, 9, 5)]
    order.enter(one, ("d",))
    order.enter(two, ("d",))
    assert not order.enter(late, ("d",))
    order.leave(one)
    assert order.ready() is late
    early = place(2)
    assert order.enter(early, ("d",))
    assert order.ready() is early
    order.wait(early)
    assert order.ready() is None
    order.leave(late)  # it was in the middle
    order.wait(two)
    order.leave(early)
    assert order.ready() is None
    order.resume(two)
    assert order.ready() is two


def test_what_waits_and_is_not_first_is_not_ready_when_it_goes_on() -> None:
    order, (one, early) = Order(), [place(number) for number in (5, 1)]
    order.enter(one, ("d",))
    order.wait(one)
    order.enter(early, ("d",))
    order.resume(one)
    assert order.ready() is early
    order.leave(early)
    assert order.ready() is one


def test_small_files_and_late_ones_do_not_wait_for_large_ones() -> None:
    queue: CopyQueue[str] = CopyQueue(workers=4)
    for number in range(4):
        queue.add(f"large {number}", SMALL_BYTES + 1, number, 100)
    queue.add("small", SMALL_BYTES, 50, 100)
    assert len(queue) == 5
    assert [queue.take(60) for _ in range(4)] == [
        ("large 0", True),
        ("large 1", True),
        ("large 2", True),
        ("small", False),
    ]
    assert queue.take(60) is None  # the last worker is kept for small ones
    assert queue.take(103) == ("large 3", False)  # and for those that are late
    queue.add("large 4", SMALL_BYTES + 1, 200, 100)
    assert queue.take(200) is None
    queue.done(False)
    assert queue.take(200) is None
    queue.done(True)
    assert queue.take(200) == ("large 4", True)
    queue.add("large 5", SMALL_BYTES + 1, 400, 100)
    queue.add("older", 1, 300, 100)
    queue.done(True)
    assert queue.take(400) == ("older", False)
    assert queue.take(400) == ("large 5", True)


def test_what_is_late_goes_first_each_by_its_own_deadline() -> None:
    queue: CopyQueue[str] = CopyQueue(workers=2)
    queue.add("old", 1, 0, 1000)
    queue.add("old and large", SMALL_BYTES + 1, 1, 1000)
    queue.add("urgent", SMALL_BYTES + 1, 50, 10)
    queue.add("more urgent", 1, 51, 5)
    assert len(queue) == 4
    assert queue.take(57) == ("more urgent", False)
    assert queue.take(57) == ("old", False)
    assert queue.take(61) == ("urgent", True)
    assert queue.take(61) is None
    assert queue.take(1001) == ("old and large", False)
    assert len(queue) == 0
    assert queue.take(9999) is None


def test_who_helps_takes_a_place_of_the_large_files() -> None:
    queue: CopyQueue[str] = CopyQueue(workers=3)
    assert [queue.lend(), queue.lend(), queue.lend()] == [True, True, False]
    queue.add("large", SMALL_BYTES + 1, 1, 100)
    assert queue.take(2) is None
    queue.done(True)
    assert queue.take(2) == ("large", True)


def test_one_worker_copies_everything() -> None:
    queue: CopyQueue[str] = CopyQueue(workers=1)
    queue.add("large", SMALL_BYTES + 1, 1, 100)
    assert queue.take(2) == ("large", True)


def test_items_are_things_of_their_own() -> None:
    one, other = place(1), place(1)
    order = Order()
    items: list[Item] = [one, other]
    for item in items:
        order.enter(item, ("d",))
    assert len(order) == 2
