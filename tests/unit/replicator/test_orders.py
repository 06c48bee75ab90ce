"""Orders are files: given, taken once, answered; a pause is one that stays."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from replicator import orders
from replicator.orders import Order, Orders, answer_to, chosen, give, pause, read_pause, resume
from tests.support.reports import held

ORDER = Order(steps=("13cfd206",), skip=True, reason="gone for good", by=1000, time_ns=5)


@pytest.fixture
def desk(tmp_path: Path) -> Orders:
    return Orders(str(tmp_path), "backup")


def test_an_order_is_taken_and_answered(tmp_path: Path, desk: Orders) -> None:
    assert not desk.waiting
    path = give(str(tmp_path), "backup", ORDER)
    assert os.stat(os.path.dirname(path)).st_mode & 0o777 == 0o700
    assert desk.waiting
    assert desk.take() == [(path, ORDER)]
    assert desk.waiting, "it is there until it is answered: a kill must not lose it"
    desk.answer(path, "1 step skipped")
    assert not desk.waiting
    assert answer_to(path, 0) == "1 step skipped"
    assert answer_to(path, 0) is None


def test_nobody_answers(tmp_path: Path) -> None:
    waits: list[float] = []
    path = give(str(tmp_path), "backup", ORDER)
    assert answer_to(path, 0.05, waits.append) is None
    assert sum(waits) >= 0.05
    assert os.path.exists(path), "it holds all the same"


def test_an_order_nobody_understands_is_answered(tmp_path: Path, desk: Orders) -> None:
    path = Path(give(str(tmp_path), "backup", ORDER))
    path.write_text("{")
    assert desk.take() == []
    assert not desk.waiting
    assert str(answer_to(str(path), 0)).startswith("not understood: ")


def test_answers_that_nobody_waits_for_go(
    tmp_path: Path, desk: Orders, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (give(str(tmp_path), "backup", ORDER) for _ in range(2))
    desk.answer(first, "a")
    monkeypatch.setattr(orders, "_ANSWERS_KEPT_SECONDS", -1)
    desk.answer(second, "b")
    assert answer_to(first, 0) is None


def test_a_pause_stays_until_resume(tmp_path: Path, desk: Orders) -> None:
    assert desk.paused is None
    assert pause(str(tmp_path), "backup", "maintenance")
    assert not pause(str(tmp_path), "backup", "again")
    found = desk.paused
    assert found is not None
    assert (found.reason, found.by) == ("maintenance", os.getuid())
    assert resume(str(tmp_path), "backup")
    assert not resume(str(tmp_path), "backup")
    assert desk.paused is None


def test_a_pause_nobody_can_read_holds(tmp_path: Path) -> None:
    pause(str(tmp_path), "backup", "x")
    (tmp_path / "sites" / "backup.paused").write_text("{")
    found = read_pause(str(tmp_path), "backup")
    assert found is not None
    assert found.reason.endswith("backup.paused cannot be read")


def test_which_steps_are_meant() -> None:
    steps = [held(5, name=b"x"), held(6, name=b"y")]
    assert steps[0].id != steps[1].id
    assert chosen(steps, Order(time_ns=0)) == steps
    assert chosen(steps, Order(time_ns=0, steps=(steps[1].id,))) == steps[1:]
    assert chosen(steps, Order(time_ns=0, steps=())) == []
