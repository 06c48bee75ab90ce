"""What answers and silences mean: absent, there, or in doubt."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xrootdfs.errors import CallError, Origin
from xrootdfs.namespace import (
    Degraded,
    Silence,
    absence,
    merge,
    merge_listings,
    merge_stats,
    silence,
)
from xrootdfs.values import Kind, Server, Stat

A, B, C = (Server(f"{name}:1094") for name in "abc")
SERVERS = (A, B, C)
NO = CallError(errno.ENOENT, "no", Origin.ANSWERED)
NOT_DIRECTORY = CallError(errno.ENOTDIR, "not a directory", Origin.ANSWERED)
FORBIDDEN = CallError(errno.EACCES, "forbidden", Origin.ANSWERED)
REFUSED = CallError(errno.EHOSTUNREACH, "refused", Origin.UNREACHABLE)
LATE = CallError(errno.ETIMEDOUT, "late", Origin.LATE)
STRICT = Degraded()
LENIENT = Degraded(absent=True, grace_seconds=60.0)


def stat(size: int = 1, mtime: int = 1, kind: Kind = Kind.FILE) -> Stat:
    return Stat(kind, size, 0o644, mtime, mtime, mtime)


def nobody(_server: Server, _lost_at: float) -> bool:
    return False


def everybody(_server: Server, _lost_at: float) -> bool:
    return True


@pytest.mark.parametrize(
    ("answers", "lost", "now", "degraded", "expected"),
    [
        ({A: NO, B: NO, C: NO}, {}, 100.0, STRICT, errno.ENOENT),
        ({A: NO, B: NOT_DIRECTORY}, {}, 100.0, STRICT, errno.ENOENT),
        ({A: NO, B: NO}, {C: 99.0}, 100.0, STRICT, errno.EIO),
        ({A: NO, B: NO}, {C: 0.0}, 1000.0, STRICT, errno.EIO),
        ({A: NO, B: REFUSED}, {}, 100.0, STRICT, errno.EIO),
        ({A: NO, B: LATE}, {}, 100.0, STRICT, errno.ETIMEDOUT),
        ({A: NO, B: FORBIDDEN}, {C: 0.0}, 100.0, STRICT, errno.EACCES),
        ({A: NO, B: NO}, {C: 50.0}, 100.0, LENIENT, errno.EIO),
        ({A: NO, B: NO}, {C: 40.0}, 100.0, LENIENT, errno.ENOENT),
        ({A: NO, B: REFUSED}, {C: 40.0}, 100.0, LENIENT, errno.EIO),
        ({}, {A: 0.0, B: 0.0}, 100.0, STRICT, errno.EIO),
        ({}, {}, 100.0, STRICT, errno.ENOENT),
    ],
)
def test_what_a_name_is_that_nobody_said_to_have(
    answers: dict[Server, Stat | CallError],
    lost: dict[Server, float],
    now: float,
    degraded: Degraded,
    expected: int,
) -> None:
    silent = silence(answers, lost, now)
    assert absence(answers, silent, degraded, nobody).errno == expected
    excluded = absence(answers, silent, degraded, everybody).errno
    assert excluded in (errno.ENOENT, errno.EACCES)


answers_strategy = st.dictionaries(
    st.sampled_from(SERVERS), st.sampled_from([stat(), NO, NOT_DIRECTORY, FORBIDDEN, REFUSED, LATE])
)


@given(answers_strategy, st.sets(st.sampled_from(SERVERS)))
def test_absent_only_if_every_possible_holder_said_so(
    answers: dict[Server, Stat | CallError], down: set[Server]
) -> None:
    lost = dict.fromkeys(down - answers.keys(), 0.0)
    if merge_stats(answers) is not None:
        return
    error = absence(answers, silence(answers, lost, 1.0), STRICT, nobody)
    all_said = not lost and all(isinstance(a, CallError) and a.missing for a in answers.values())
    assert (error.errno == errno.ENOENT) == all_said


@given(answers_strategy, st.sets(st.sampled_from(SERVERS)))
def test_whom_silence_counts(answers: dict[Server, Stat | CallError], down: set[Server]) -> None:
    silent = silence(answers, dict.fromkeys(down, 0.0), 100.0)
    late = {s for s, a in answers.items() if a in (REFUSED, LATE)}
    assert set(silent.counting(STRICT)) == late | (down - answers.keys())
    assert silent.passed_over(STRICT) == ()
    assert set(silent.counting(LENIENT)) == late
    assert set(silent.passed_over(LENIENT)) == down - answers.keys()


def test_doubt_is_named() -> None:
    assert Silence({}, {}, 0.0).doubt(STRICT, nobody) is None
    doubt = Silence({B: 0.0}, {}, 1.0).doubt(STRICT, nobody)
    assert doubt is not None
    assert "b:1094" in doubt.reason
    assert doubt.silent


def test_silence_of_those_who_cannot_hold_it_is_harmless() -> None:
    assert Silence({}, {}, 0.0).harmless(nobody)
    silent = Silence({B: 3.0}, {C: LATE}, 9.0)
    assert silent.harmless(everybody)
    assert not silent.harmless(lambda server, lost_at: (server, lost_at) == (B, 3.0))
    assert silent.harmless(lambda server, lost_at: (server, lost_at) in ((B, 3.0), (C, 9.0)))


def test_one_copy() -> None:
    found = merge({B: stat()})
    assert (found.holders, found.current, found.contrary, found.differing) == (
        (B,),
        (B,),
        (),
        False,
    )


def test_the_newest_copy_is_served() -> None:
    found = merge({A: stat(1, mtime=5), B: stat(2, mtime=6), C: stat(2, mtime=5)})
    assert found.stat == stat(2, mtime=6)
    assert found.holders == (B, A, C)
    assert found.current == (B, C)
    assert found.differing


def test_equal_copies_do_not_differ() -> None:
    found = merge({C: stat(7, 5), A: stat(7, 5), B: stat(7, 4)})
    assert set(found.holders) == set(found.current) == {A, B, C}
    assert found.holders[0] in (A, C)
    assert not found.differing


def test_directories_are_one_whatever_their_sizes() -> None:
    found = merge({A: stat(1, 1, Kind.DIRECTORY), B: stat(9, 2, Kind.DIRECTORY)})
    assert found.current == found.holders == (B, A)
    assert found.is_directory


def test_a_directory_here_and_a_file_there() -> None:
    found = merge({A: stat(1, 1, Kind.DIRECTORY), B: stat(1, 2)})
    assert (found.holders, found.contrary) == ((B,), (A,))
    assert found.differing


@given(
    st.dictionaries(
        st.sampled_from(SERVERS),
        st.builds(
            stat, st.integers(0, 2), st.integers(0, 2), st.sampled_from([Kind.FILE, Kind.DIRECTORY])
        ),
        min_size=1,
    )
)
def test_every_copy_is_accounted_for(stats: dict[Server, Stat]) -> None:
    found = merge(stats)
    assert sorted((*found.holders, *found.contrary)) == sorted(stats)
    assert set(found.current) <= set(found.holders)
    assert found.stat == stats[found.holders[0]]
    assert found.stat.mtime == max(each.mtime for each in stats.values())
    assert found.current[0] == found.holders[0]


def test_listings_are_merged_by_name() -> None:
    listing = merge_listings(
        {A: {b"z": stat(1), b"a": stat(1)}, B: {b"a": stat(1)}, C: NO},
        silence({}, {}, 0.0),
        STRICT,
        nobody,
    )
    assert list(listing.entries) == [b"a", b"z"]
    assert set(listing.entries[b"a"].holders) == {A, B}
    assert listing.holders == (A, B)
    assert listing.complete


@pytest.mark.parametrize(
    ("answer", "lost", "silent", "passed_over"),
    [
        (REFUSED, {}, (B,), ()),
        (LATE, {C: 0.0}, (B,), (C,)),
        (FORBIDDEN, {}, (B,), ()),
        (NO, {C: 0.0}, (), (C,)),
        (NOT_DIRECTORY, {C: 90.0}, (C,), ()),
    ],
)
def test_a_listing_says_who_is_missing(
    answer: CallError,
    lost: dict[Server, float],
    silent: tuple[Server, ...],
    passed_over: tuple[Server, ...],
) -> None:
    answers: dict[Server, dict[bytes, Stat] | CallError] = {A: {b"a": stat()}, B: answer}
    listing = merge_listings(answers, silence(answers, lost, 100.0), LENIENT, nobody)
    assert (listing.silent, listing.passed_over) == (silent, passed_over)
    assert listing.complete == (not silent)


def test_who_is_known_not_to_have_the_directory_is_not_missed() -> None:
    answers: dict[Server, dict[bytes, Stat] | CallError] = {A: {}, B: REFUSED}
    listing = merge_listings(answers, silence(answers, {C: 0.0}, 1.0), STRICT, everybody)
    assert listing.complete


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({A: NO, B: NO}, errno.ENOENT),
        ({A: NO, B: NOT_DIRECTORY}, errno.ENOTDIR),
        ({A: NO, B: REFUSED}, errno.EIO),
        ({A: NO, B: FORBIDDEN}, errno.EACCES),
    ],
)
def test_a_directory_that_nobody_has(answers: dict[Server, CallError], expected: int) -> None:
    with pytest.raises(CallError) as caught:
        merge_listings(answers, silence(answers, {}, 0.0), STRICT, nobody)
    assert caught.value.errno == expected
