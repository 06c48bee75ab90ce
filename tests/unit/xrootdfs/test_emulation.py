"""The words of docs/xattrs.md, both ways."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xrootdfs import emulation
from xrootdfs.emulation import NOTHING, Emulated, Times
from xrootdfs.values import Kind, Stat

FILE = Stat(Kind.FILE, size=5, mode=0o634, mtime=100, ctime=100, atime=100)
DIRECTORY = Stat(Kind.DIRECTORY, size=4096, mode=0o731, mtime=100, ctime=100, atime=100)

CASES = [
    (NOTHING, {}),
    (Emulated(mode=0o644), {"mirrorfs.mode": "0644"}),
    (Emulated(mode=0o6755), {"mirrorfs.mode": "6755"}),
    (Emulated(owner=(0, 4294967294)), {"mirrorfs.owner": "0:4294967294"}),
    (
        Emulated(times=Times(1_500_000_000_000_000_001, 0, 100, 5)),
        {"mirrorfs.times": "1500000000.000000001 0.000000000 100 5"},
    ),
    (
        Emulated(times=Times(-1, -1_000_000_000, 100, None)),
        {"mirrorfs.times": "-1.999999999 -1.000000000 100 -"},
    ),
    (Emulated(link=b"../a b%\xff"), {"mirrorfs.link": "../a%20b%25%FF"}),
]


@pytest.mark.parametrize(("emulated", "texts"), CASES)
def test_both_ways(emulated: Emulated, texts: dict[str, str]) -> None:
    assert emulation.encode(emulated) == texts
    assert emulation.decode(texts) == emulated


@given(st.binary())
def test_texts_both_ways(value: bytes) -> None:
    text = emulation.escape(value)
    assert text.isascii()
    assert text.isprintable()
    assert " " not in text
    assert emulation.unescape(text) == value


def test_texts_of_others() -> None:
    assert emulation.unescape("100% of it, 5%, %zz") == b"100% of it, 5%, %zz"
    assert emulation.unescape("bär") == "bär".encode()


@pytest.mark.parametrize(
    "texts",
    [
        {"mirrorfs.mode": "9"},
        {"mirrorfs.mode": "77777"},
        {"mirrorfs.mode": ""},
        {"mirrorfs.owner": "1"},
        {"mirrorfs.owner": "1:"},
        {"mirrorfs.owner": "a:1"},
        {"mirrorfs.owner": "-1:1"},
        {"mirrorfs.owner": "12345678901:1"},
        {"mirrorfs.times": "1.0 1.0 1 1"},
        {"mirrorfs.times": "1.000000000 1.000000000 1"},
        {"mirrorfs.times": "1.000000000 x 1 1"},
        {"mirrorfs.times": "1.000000000 1.000000000 x 1"},
        {"mirrorfs.times": "1.000000000 1.000000000 1 x"},
        {"mirrorfs.link": ""},
        {"other": "1"},
    ],
)
def test_what_does_not_parse_is_absent(texts: dict[str, str]) -> None:
    assert emulation.decode(texts) == NOTHING


def test_the_mark() -> None:
    for mode in range(0o10000):
        if emulation.needs_mark(mode):
            shown = emulation.marked(mode)
            assert emulation.is_marked(shown)
            assert not shown & ~0o775  # servers give what they are asked for
            assert shown & 0o705 == mode & 0o705
        else:
            assert not emulation.is_marked(mode)
            assert not mode & ~0o775


def test_times_hold_until_the_content_changes() -> None:
    times = Times(1, 1, server=100, size=5)
    assert times.hold(FILE)
    assert not Times(1, 1, server=99, size=5).hold(FILE)
    assert not Times(1, 1, server=100, size=6).hold(FILE)
    assert not Times(1, 1, server=100, size=4096).hold(DIRECTORY)
    assert Times(1, 1, server=100, size=None).hold(DIRECTORY)
