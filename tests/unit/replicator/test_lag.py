"""Windows of lag and rate: percentiles near the truth, memory that does not grow."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.lag import LagWindow, RateWindow, eta_seconds, lag_seconds

SECOND = 1_000_000_000
MINUTE = 60 * SECOND
START = 1_700_000_000 * SECOND


def test_an_empty_window_has_no_percentile() -> None:
    window = LagWindow()
    assert window.percentile(START, 0.5) is None
    assert RateWindow().rate(START) == 0.0


@given(
    st.lists(st.integers(1000, 10**16), min_size=1, max_size=200), st.floats(0, 1, allow_nan=False)
)
def test_percentiles_are_within_three_percent(lags: list[int], fraction: float) -> None:
    window = LagWindow()
    for number, lag in enumerate(lags):
        window.add(START + number * SECOND, lag)
    told = window.percentile(START + len(lags) * SECOND, fraction)
    exact = sorted(lags)[max(1, math.ceil(fraction * len(lags))) - 1] / SECOND
    assert told == pytest.approx(exact, rel=0.03)


def test_lags_below_a_microsecond_or_negative_are_small() -> None:
    window = LagWindow()
    for lag in (-(10**12), 0, 1, 999):
        window.add(START, lag)
    assert window.percentile(START, 1.0) == pytest.approx(1e-6, rel=0.03)


def test_what_is_older_than_an_hour_is_forgotten() -> None:
    window = LagWindow()
    window.add(START, 100 * SECOND)
    window.add(START + 30 * MINUTE, SECOND)
    assert window.percentile(START + 59 * MINUTE, 1.0) == pytest.approx(100, rel=0.03)
    assert window.percentile(START + 61 * MINUTE, 1.0) == pytest.approx(1, rel=0.03)
    assert window.percentile(START + 91 * MINUTE, 1.0) is None


def test_memory_is_bounded() -> None:
    window, rates = LagWindow(), RateWindow()
    for number in range(20_000):
        window.add(START + number * SECOND, number * number * 1000)
        rates.add(START + number * SECOND, 1)
    assert len(window._minutes) <= 60
    assert max(len(counts) for _, counts in window._minutes) <= 64 * 16
    assert len(rates._seconds) <= 60


def test_the_rate_is_that_of_the_last_minute() -> None:
    window = RateWindow()
    for second in range(300):
        window.add(START + second * SECOND, 5)
        window.add(START + second * SECOND + 1, 5)
    assert window.rate(START + 299 * SECOND) == pytest.approx(10)
    assert window.rate(START + 329 * SECOND) == pytest.approx(5, rel=0.05)
    assert window.rate(START + 400 * SECOND) == 0.0


def test_the_rate_of_a_young_window_is_over_its_life() -> None:
    window = RateWindow()
    window.add(START, 30)
    assert window.rate(START) == 30.0
    window.add(START + 10 * SECOND, 70)
    assert window.rate(START + 10 * SECOND) == 10.0


def test_a_clock_that_steps_back_does_no_lasting_harm() -> None:
    window, rates = LagWindow(), RateWindow()
    far = START + 10**9 * SECOND
    window.add(far, 100 * SECOND)
    rates.add(far, 1000)
    window.add(START, SECOND)
    rates.add(START, 10)
    assert window.percentile(START, 1.0) == pytest.approx(1, rel=0.03)
    assert rates.rate(START) == 10.0
    assert rates.rate(START + 20 * SECOND) == 0.5


def test_lag_now_and_when_it_will_be_over() -> None:
    assert lag_seconds(0, START) == 0.0
    assert lag_seconds(START - 2 * SECOND, START) == 2.0
    assert lag_seconds(START + SECOND, START) == 0.0
    assert eta_seconds(100, 20.0) == 5.0
    assert eta_seconds(0, 0.0) == 0.0
    assert eta_seconds(100, 0.0) is None
