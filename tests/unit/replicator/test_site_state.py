"""A site's state as bytes and back, and the table of phases."""

from __future__ import annotations

import msgspec
import pytest

from mirrorfs.journal.record import SequenceNumber
from replicator.site_state import (
    TRANSITIONS,
    ComparisonState,
    HeldStep,
    Level,
    Phase,
    Root,
    SiteReport,
    SiteState,
    StateError,
    backoff_seconds,
    clean_cursor,
    decode_report,
    decode_state,
    encode_report,
    encode_state,
)

HELD = HeldStep(
    kind="place", directory=b"\x00\xff", name=b"n\xe9", sequence=5, since_ns=1, due_ns=2
)
STATE = SiteState(
    volume="00" * 16, site="a", journal="11" * 16, tag="2" * 16, working=9, clean=4, held=[HELD]
)
REPORT = SiteReport(
    site="a", url="file:///x", host="h", boot="b", pid=1, started_ns=0, updated_ns=1,
    phase="tailing", phase_ns=1, state=STATE,
)  # fmt: skip


def test_round_trips() -> None:
    assert decode_state(encode_state(STATE)) == STATE
    assert decode_report(encode_report(REPORT)) == REPORT


@pytest.mark.parametrize("data", [b"", b"{", b"[]", encode_state(STATE)[:40]])
def test_what_cannot_be_read_is_said(data: bytes) -> None:
    with pytest.raises(StateError, match="cannot be read"):
        decode_state(data)
    with pytest.raises(StateError, match="cannot be read"):
        decode_report(data)


def test_another_version_is_refused() -> None:
    with pytest.raises(StateError, match="version 3"):
        decode_state(encode_state(STATE).replace(b'"version": 1', b'"version": 3'))
    with pytest.raises(StateError, match="version 2"):
        decode_report(encode_report(REPORT).replace(b'"version": 1', b'"version": 2'))


def test_the_clean_cursor_stays_below_what_is_held() -> None:
    at = SequenceNumber(9)
    assert clean_cursor(at, [], initial=False) == 9
    assert clean_cursor(at, [HELD], initial=False) == 4
    assert clean_cursor(at, [HELD], initial=True) == -1


def test_what_is_compared_makes_a_state_that_earlier_versions_refuse() -> None:
    roots = [Root(directory=b"d\xff", whole=True, sequence=7)]
    way = [Level(directory=b"d\xff", below=True, after=b"\xfe")]
    comparing = [ComparisonState(roots=roots, way=way), ComparisonState(roots=roots, doubt=True)]
    state = msgspec.structs.replace(STATE, comparing=comparing)
    data = encode_state(state)
    assert decode_state(data) == state
    assert decode_state(data).version == 2
    assert clean_cursor(SequenceNumber(9), [], comparing[:1], initial=False) == 6
    assert clean_cursor(SequenceNumber(9), [], comparing[1:], initial=False) == 9


def test_two_held_steps_are_the_same_by_place_or_object() -> None:
    step = HeldStep(kind="object", object=b"x", sequence=1, since_ns=0, due_ns=0)
    assert step.key == ("object", b"", b"", b"x")
    assert HELD.key == ("place", b"\x00\xff", b"n\xe9", b"")


def test_backoff_doubles_up_to_a_minute() -> None:
    assert [backoff_seconds(tries, 0.0) for tries in (0, 1, 2, 3, 7, 50)] == [1, 1, 2, 4, 60, 60]
    assert backoff_seconds(3, 1.0) == 3


def test_every_phase_has_a_way_to_the_end() -> None:
    assert set(TRANSITIONS) == set(Phase)
    for phase, following in TRANSITIONS.items():
        assert phase is Phase.STOPPED or Phase.STOPPED in following
