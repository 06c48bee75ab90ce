"""Which parts of a large file are copied."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorfs.journal.record import ObjectId, Tag
from replicator.extents import Extents
from replicator.stores.base import Version

VERSION = Version(ObjectId(b"\1object"), Tag(7), 1000, -5, 9)
BOOT = bytes(range(16))


@given(st.integers(1, 10**15), st.integers(1, 1 << 30), st.sets(st.integers(0, 8191)))
def test_all_bytes_once_and_what_is_done_comes_back(size: int, each: int, done: set[int]) -> None:
    version = replace(VERSION, size=size)
    extents = Extents.of(version, BOOT, each)
    missing = extents.missing()
    assert missing[0][1] == 0
    assert missing[-1][2] == size
    assert [end for _, _, end in missing[:-1]] == [start for _, start, _ in missing[1:]]
    for number in done & set(range(extents.count)):
        extents.finish(number)
    data = extents.encode()
    assert len(data) < 1200
    fresh = Extents.of(version, BOOT, each)
    assert fresh.resume(data)
    assert fresh == extents
    assert [each[0] for each in fresh.missing()] == sorted(set(range(extents.count)) - done)
    fresh.finish_all()
    assert fresh.missing() == []


@pytest.mark.parametrize(
    "other",
    [
        Extents.of(replace(VERSION, size=1001), BOOT, 100),
        Extents.of(replace(VERSION, mtime_ns=1), BOOT, 100),
        Extents.of(replace(VERSION, ctime_ns=1), BOOT, 100),
        Extents.of(replace(VERSION, tag=Tag(8)), BOOT, 100),
        Extents.of(replace(VERSION, object=ObjectId(b"\1objecu")), BOOT, 100),
        Extents.of(VERSION, bytes(16), 100),
        Extents.of(VERSION, BOOT, 101),
    ],
)
def test_of_anything_else_nothing_is_taken_over(other: Extents) -> None:
    other.finish_all()
    mine = Extents.of(VERSION, BOOT, 100)
    assert not mine.resume(other.encode())
    assert mine.done == 0


def test_garbage_is_not_taken_over() -> None:
    mine = Extents.of(replace(VERSION, size=950), BOOT, 100)
    mine.finish(3)
    data = mine.encode()
    for bad in (b"", data[:-1], data + b"\0", b"\2" + data[1:], data[:-1] + b"\xff"):
        assert not Extents.of(mine.version, BOOT, 100).resume(bad)
