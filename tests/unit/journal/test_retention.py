"""What may be removed: never what somebody needs, never what is young, nothing in doubt."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorfs.journal.record import SequenceNumber, Tag
from mirrorfs.journal.retention import (
    Holder,
    Limits,
    Need,
    Retention,
    RetentionError,
    Sealed,
    decode_retention,
    encode_retention,
    held_bytes,
    removable,
)
from mirrorfs.journal.segment import Incarnation
from mirrorfs.journal.site_cursor import (
    SiteCursor,
    SiteCursorError,
    Unknown,
    decode_cursor,
    encode_cursor,
    resolve_cursor,
)

NOW = 1_000_000 * 10**9
LIMITS = Limits(keep_seconds=100, detached_keep_seconds=1000, detached_bytes=500)


def sealed(*ages: int | None, size: int = 100) -> list[Sealed]:
    """Segments of ten records, sealed so many seconds ago."""
    return [
        Sealed(
            f"s{number}",
            SequenceNumber(10 * number + 10),
            size,
            None if age is None else NOW - age * 10**9,
        )
        for number, age in enumerate(ages)
    ]


def names(segments: list[Sealed], *needs: Need, limits: Limits = LIMITS) -> list[str]:
    return [each.name for each in removable(segments, 50, needs, limits, NOW)[0]]


def need(cursor: int, detached_for: int | None = None, site: str = "a") -> Need:
    since = None if detached_for is None else NOW - detached_for * 10**9
    return Need(site, SequenceNumber(cursor), since)


def test_only_what_is_old() -> None:
    assert names(sealed(300, 200, 101, 100, 99)) == ["s0", "s1", "s2"]
    assert names(sealed(300, None, 300)) == ["s0"]
    assert names(sealed(300, 50, 300)) == ["s0"]  # no gaps
    assert names(sealed(-5)) == []  # the clock went back


def test_only_what_every_site_has_passed() -> None:
    old = sealed(900, 900, 900)
    assert names(old, need(30)) == ["s0", "s1", "s2"]
    assert names(old, need(29)) == ["s0", "s1"]
    assert names(old, need(30), need(10)) == ["s0"]
    assert names(old, need(9), need(30)) == []
    _, holders = removable(
        old, 50, [need(9, site="x"), need(8, 1, site="y"), need(30)], LIMITS, NOW
    )
    assert holders == [Holder("x", "attached"), Holder("y", "detached")]
    assert removable(sealed(50), 50, [need(0)], LIMITS, NOW) == ([], [])  # it is young anyway


def test_a_detached_site_has_a_budget() -> None:
    old = sealed(9000, 9000, 9000)
    assert names(old, need(10, 1000)) == ["s0"]
    assert names(old, need(10, 1001)) == ["s0", "s1", "s2"]
    assert names(sealed(9000, 9000, 9000, size=225), need(10, 10)) == ["s0"]
    assert names(sealed(9000, 9000, 9000, size=226), need(10, 10)) == ["s0", "s1", "s2"]
    assert names(old, need(10, 5000), need(20)) == ["s0", "s1"]  # the attached one still holds
    assert held_bytes(SequenceNumber(20), old, 7) == 107


@given(
    st.lists(st.integers(-10, 1000), max_size=8),
    st.lists(st.tuples(st.integers(0, 90), st.none() | st.integers(0, 2000)), max_size=4),
)
def test_nothing_that_is_needed_goes(ages: list[int], sites: list[tuple[int, int | None]]) -> None:
    segments = sealed(*ages)
    needs = [need(cursor, detached) for cursor, detached in sites]
    removed, holders = removable(segments, 50, needs, LIMITS, NOW)
    assert removed == segments[: len(removed)]
    assert all(age > LIMITS.keep_seconds for age in ages[: len(removed)])
    attached = [cursor for cursor, detached in sites if detached is None]
    assert all(segment.last <= min(attached, default=1 << 60) for segment in removed)
    rest = segments[len(removed) :]
    if rest and not holders:  # then it is young
        age_ns = NOW - (rest[0].sealed_ns or 0)
        assert age_ns <= LIMITS.keep_seconds * 10**9


# Files

CURSOR = SiteCursor(
    site="a", status="attached", volume="00", journal="0a" * 16, tag="07", sequence=8, since_ns=9
)


def test_cursor_files() -> None:
    assert decode_cursor(encode_cursor(CURSOR)) == CURSOR


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"{", b""),
        (b'"sequence": 8', b'"sequence": "8"'),
        (b"attached", b"elsewhere"),
        (b'"0a', b'"0g'),
        (b'"tag": "07"', b'"tag": "x"'),
        (b'"version": 1', b'"version": 2'),
    ],
)
def test_a_cursor_file_that_cannot_be_read(old: bytes, new: bytes) -> None:
    data = encode_cursor(CURSOR)
    assert old in data
    with pytest.raises(SiteCursorError):
        decode_cursor(data.replace(old, new))
    with pytest.raises(SiteCursorError):
        decode_cursor(b"")


def test_what_the_writer_remembers() -> None:
    value = Retention(time_ns=5, sites=("a", "b"), holders=(Holder("a", "attached"),))
    data = encode_retention(value)
    assert decode_retention(data) == value
    for bad in (b"", data.replace(b'"version": 1', b'"version": 3'), data[:-5]):
        with pytest.raises(RetentionError):
            decode_retention(bad)


@pytest.mark.parametrize(
    ("journal", "tag", "sequence", "first", "found"),
    [
        ("0a" * 16, "07", 8, 1, 8),
        ("0a" * 16, "07", 8, 9, 8),
        ("0a" * 16, "07", 8, 10, Unknown("record 9 is no longer in the journal")),
        ("0a" * 16, "07", 12, 1, 10),  # a power cut took the records after 10
        ("0a" * 16, "07", 12, 12, Unknown("record 11 is no longer in the journal")),
        ("0a" * 16, "09", 12, 1, 12),
        ("0a" * 16, "0b", 8, 1, Unknown("the journal does not know the cursor's incarnation")),
        ("0b" * 16, "07", 8, 1, Unknown("the cursor belongs to another journal")),
    ],
)
def test_what_a_cursor_means(
    journal: str, tag: str, sequence: int, first: int, found: object
) -> None:
    known = [
        Incarnation(Tag(7), SequenceNumber(1), SequenceNumber(10)),
        Incarnation(Tag(9), SequenceNumber(11), SequenceNumber(20)),
    ]
    cursor = SiteCursor(
        site="a",
        status="attached",
        volume="",
        journal=journal,
        tag=tag,
        sequence=sequence,
        since_ns=0,
    )
    assert resolve_cursor(b"\x0a" * 16, known, SequenceNumber(first), cursor) == found
