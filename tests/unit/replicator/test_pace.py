"""How fast bytes may be copied, by a clock that is given."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from replicator.pace import NS, Pace

MIB = 1 << 20


def copied_until(pace: Pace, end_ns: int, hungry: Random, now_ns: int = NS) -> int:
    """What somebody who always wants more gets until then."""
    total = 0
    while now_ns < end_ns:
        allowed, wait_ns = pace.take(hungry.randint(1, 64 * MIB), now_ns)
        assert (allowed == 0) == (wait_ns > 0)
        total += allowed
        now_ns += wait_ns
    return total


@given(st.integers(1000, 10**11), st.integers(2, 60), st.integers(0, 99))
def test_no_more_than_the_rate_and_hardly_less(rate: int, seconds: int, seed: int) -> None:
    total = copied_until(Pace(rate), (1 + seconds) * NS, Random(seed))
    piece = max(64 << 10, rate // 10)
    assert total <= rate * (seconds + 1) + piece  # the bucket was full
    assert total >= rate * (seconds - 1)


def test_a_large_piece_is_not_given_at_once() -> None:
    pace = Pace(10 * MIB)
    assert pace.take(64 * MIB, NS) == (MIB, 0)
    assert pace.take(100, NS) == (100, 0)
    assert Pace(1000).take(MIB, NS) == (64 << 10, 0)


def test_what_is_overdrawn_is_paid_back() -> None:
    pace = Pace(MIB)
    pace.spend(3 * MIB, NS)
    allowed, wait_ns = pace.take(1, NS)
    assert allowed == 0
    assert 2 * NS < wait_ns < 2.001 * NS
    assert pace.take(1, NS + wait_ns) == (1, 0)


def test_who_does_not_wait_looks_first() -> None:
    pace = Pace(MIB)
    assert pace.has(MIB, NS)
    pace.spend(MIB, NS)
    assert not pace.has(1, NS)
    assert pace.has(MIB // 2, NS + NS // 2)


def test_a_clock_that_goes_back_changes_nothing() -> None:
    pace = Pace(MIB)
    pace.spend(MIB, 5 * NS)
    assert not pace.has(1, 2 * NS)
    assert pace.has(MIB // 2, 2 * NS + NS // 2)
    assert not pace.has(MIB, 2 * NS + NS // 2)
