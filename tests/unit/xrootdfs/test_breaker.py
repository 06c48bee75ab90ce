"""The states of a server."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xrootdfs.breaker import Health, State, told


@pytest.mark.parametrize(
    ("before", "answered", "after"),
    [
        (State.UP, True, State.UP),
        (State.UP, False, State.SUSPECT),
        (State.SUSPECT, True, State.UP),
        (State.SUSPECT, False, State.DOWN),
        (State.DOWN, True, State.UP),
        (State.DOWN, False, State.DOWN),
    ],
)
def test_the_table(before: State, answered: bool, after: State) -> None:
    assert told(Health(before, 1.0), answered, 2.0).state is after


def test_it_remembers_when_it_was_lost_and_why() -> None:
    health = told(Health(State.UP, 1.0), False, 5.0, "refused")
    health = told(health, False, 6.0, "refused again")
    health = told(health, False, 9.0, "no answer")
    assert health == Health(State.DOWN, since=6.0, lost_at=5.0, reason="no answer")
    assert told(health, True, 10.0) == Health(State.UP, 10.0)


@given(st.lists(st.booleans(), max_size=20))
def test_two_silences_in_a_row_and_only_they_take_it_down(answers: list[bool]) -> None:
    health = Health(State.UP, 0.0)
    for now, answered in enumerate(answers, 1):
        health = told(health, answered, float(now))
    silences = 0
    for answered in reversed(answers):
        if answered:
            break
        silences += 1
    expected = (State.UP, State.SUSPECT, State.DOWN)[min(silences, 2)]
    assert health.state is expected
    assert (health.lost_at is None) == (silences == 0)
