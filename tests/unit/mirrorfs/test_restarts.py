"""How soon an engine that died is started again, and when no more."""

from __future__ import annotations

from mirrorfs.restarts import PAUSES_SECONDS, WINDOW_SECONDS, Restarts


def test_the_first_is_started_again_at_once_and_the_others_later_and_later() -> None:
    restarts = Restarts()
    pauses = [restarts.died(float(at)) for at in range(len(PAUSES_SECONDS) + 1)]
    assert pauses == [*PAUSES_SECONDS, None]
    assert pauses[0] == 0
    assert list(PAUSES_SECONDS) == sorted(PAUSES_SECONDS)
    assert restarts.number == len(PAUSES_SECONDS) + 1


def test_deaths_of_long_ago_do_not_count() -> None:
    restarts = Restarts()
    for number in range(3 * len(PAUSES_SECONDS)):
        assert restarts.died(number * WINDOW_SECONDS) == 0
    assert restarts.number == 1
