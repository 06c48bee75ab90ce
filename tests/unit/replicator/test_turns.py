"""Whose turn it is, where steps of the plan meet what comparisons owe."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from mirrorfs.journal.record import ObjectId, Place, SequenceNumber
from replicator import turns
from replicator.commit_order import CommitOrder
from replicator.planner import Item, PlaceItem, Plan, ReconcileItem
from replicator.step import Step
from replicator.surroundings import Surroundings
from replicator.turns import Turns

HERE, ELSEWHERE = ObjectId(b"here"), ObjectId(b"elsewhere")


class Waiting:
    """A plan with just these items, which have no hints."""

    def __init__(self, items: list[Item]) -> None:
        self.items = items
        self.taken: list[Item] = []

    def fresh(self) -> Item | None:
        return next((each for each in self.items if each not in self.taken), None)

    def take(self) -> None:
        self.taken.append(cast(Item, self.fresh()))

    def waits(self, item: Item) -> bool:
        return item in self.items

    def hints(self, _: ObjectId) -> Any:
        return SimpleNamespace(places=())


def made(items: list[Item]) -> tuple[Turns, Waiting]:
    plan = Waiting(items)
    staging = SimpleNamespace(arrived=[], release=lambda _: None)
    names = SimpleNamespace(places=lambda _: ())
    step = SimpleNamespace(bench=SimpleNamespace(names=names), staging=staging)
    world = SimpleNamespace(clock_ns=lambda: 0, commit_order=CommitOrder.DIRECTORY)
    return Turns(cast(Plan, plan), cast(Step, step), cast(Surroundings, world)), plan


def place(directory: ObjectId, name: bytes, sequence: int) -> PlaceItem:
    return PlaceItem(Place(directory, name), (SequenceNumber(sequence), 0))


def reconcile(sequence: int) -> ReconcileItem:
    return ReconcileItem(HERE, True, (SequenceNumber(sequence), 0))


def test_a_reconcile_waits_for_what_was_before_it_even_if_something_later_is_owed() -> None:
    step, later = place(HERE, b"a", 9), place(ELSEWHERE, b"b", 12)
    whose, plan = made([step, reconcile(10)])
    whose.owe([later])
    assert whose.next() is step
    whose.wait(step)
    assert whose.next() is None  # nothing passes the reconcile
    plan.items.remove(step)
    whose.leave(step)
    assert isinstance(whose.next(), ReconcileItem)  # it passes what is owed


def test_what_is_owed_comes_before_the_records_of_its_directory() -> None:
    step, owed = place(HERE, b"flag", 9), place(HERE, b"data", 3)
    whose, _ = made([step])
    assert whose.next() is step
    whose.owe([owed])
    assert not whose.has(step)
    assert whose.next() is None
    whose.leave(owed)
    assert whose.next() is step


def test_no_more_are_under_way_than_is_bearable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "_UNDER_WAY_MAX", 2)
    steps = [place(ObjectId(b"%d" % number), b"x", number) for number in (5, 6, 7, 8)]
    whose, plan = made(list(steps))
    for each in steps[:2]:
        assert whose.next() is each
        whose.wait(each)
    assert whose.next() is None
    plan.items.remove(steps[0])
    whose.leave(steps[0])
    earlier = place(ELSEWHERE, b"y", 4)
    plan.items.insert(0, earlier)  # postponed, say
    assert whose.next() is earlier
