"""How long steps wait for one that is held in the same directory."""

from __future__ import annotations

import pytest

from mirrorfs.journal.record import ObjectId, SequenceNumber
from replicator import patience
from replicator.patience import Patience
from replicator.planner import ObjectItem

SECOND = 1_000_000_000
HERE, THERE = ObjectId(b"here"), ObjectId(b"there")


def step(number: int) -> ObjectItem:
    return ObjectItem(ObjectId(b"%d" % number), (SequenceNumber(number), 0))


def test_a_step_waits_some_seconds_and_never_again() -> None:
    patient, one = Patience(), step(1)
    assert patient.wait(one, HERE, 0)
    assert (len(patient), patient.items(), patient.due_ns()) == (1, [one], [5 * SECOND])
    assert patient.wait(one, HERE, 5 * SECOND - 1)
    assert not patient.wait(one, HERE, 5 * SECOND)
    assert not patient.wait(one, HERE, 500 * SECOND)
    assert (len(patient), patient.items(), patient.due_ns()) == (0, [], [])
    patient.leave(one, 500 * SECOND)
    assert patient.wait(one, HERE, 500 * SECOND)


def test_those_of_a_directory_share_what_there_is_in_a_minute() -> None:
    patient, steps = Patience(), [step(number) for number in range(4)]
    assert patient.wait(steps[0], HERE, 0)
    patient.leave(steps[0], 3 * SECOND)
    assert patient.wait(steps[1], HERE, 10 * SECOND)
    assert patient.due_ns() == [12 * SECOND]
    assert not patient.wait(steps[1], HERE, 12 * SECOND)
    assert not patient.wait(steps[2], HERE, 20 * SECOND)
    assert patient.wait(steps[2], THERE, 20 * SECOND) is False  # it does not wait again
    assert patient.wait(steps[3], THERE, 20 * SECOND)
    assert patient.wait(step(5), HERE, 60 * SECOND)


def test_what_was_used_long_ago_is_forgotten() -> None:
    patient = Patience()
    assert patient.wait(step(1), HERE, 0)
    patient.end(step(1), SECOND)  # another one, which does not wait
    for at in (0, 100):
        one = step(at)
        assert patient.wait(one, THERE, at * SECOND)
        patient.end(one, (at + 2) * SECOND)
    assert patient.wait(step(9), THERE, 103 * SECOND)
    assert patient.due_ns()[-1] == 106 * SECOND


def test_directories_known_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_KNOWN_MAX", 1)
    patient = Patience()
    for directory in (HERE, THERE):
        one = step(1)
        assert patient.wait(one, directory, 0)
        patient.end(one, 5 * SECOND)
    assert patient.wait(step(2), HERE, 6 * SECOND)
    assert not patient.wait(step(3), THERE, 6 * SECOND)
