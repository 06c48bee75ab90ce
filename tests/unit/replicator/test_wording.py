"""Values as people read them."""

from __future__ import annotations

import pytest

from replicator.wording import count, escaped, lag, moment, size, span


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"a b/\xc3\xa9", "a b/é"),
        (b"\xff\n\\", "\\xff\\x0a\\x5c"),
        ("\u202e".encode(), "\\xe2\\x80\\xae"),
        (b"", ""),
    ],
)
def test_names_are_shown_without_loss_and_on_one_line(name: bytes, text: str) -> None:
    assert escaped(name) == text


def test_counts() -> None:
    assert [count(n, "step") for n in (0, 1, 2, 12345)] == [
        "0 steps",
        "1 step",
        "2 steps",
        "12,345 steps",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.0, "0 s"),
        (0.00412, "4.12 ms"),
        (0.9994, "999 ms"),
        (1.04, "1.0 s"),
        (59.94, "59.9 s"),
        (61.0, "1 min 1 s"),
    ],
)
def test_lags(seconds: float | None, text: str) -> None:
    assert lag(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0 s"),
        (0.4, "0 s"),
        (59, "59 s"),
        (60, "1 min"),
        (61, "1 min 1 s"),
        (3600, "1 h"),
        (3605, "1 h"),
        (3660, "1 h 1 min"),
        (90061, "1 d 1 h"),
        (86400 + 61, "1 d"),
    ],
)
def test_spans(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_moments() -> None:
    assert moment(0) == "never"
    assert moment(1_700_000_000_999_999_999) == "2023-11-14T22:13:20Z"
    assert moment(10**30) == f"{10**30} ns"


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (4096, "4.1 kB"),
        (999_499, "999 kB"),
        (999_500, "1 MB"),
        (3_100_000_000, "3.1 GB"),
        (16_000_000_000_000, "16 TB"),
        (2**63, "9,223 PB"),
    ],
)
def test_size(number: int, text: str) -> None:
    assert size(number) == text
