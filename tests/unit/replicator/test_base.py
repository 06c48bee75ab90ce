"""Marks come back as they were written; errors say whether waiting helps."""

from __future__ import annotations

import errno

import pytest

from mirrorfs.journal.record import ObjectId, SequenceNumber, Tag
from replicator.stores.base import Mark, MarkFlag, StoreError

MARKS = [
    Mark(ObjectId(b"\1" * 17), Tag(1), SequenceNumber(0), 0),
    Mark(ObjectId(b"x"), Tag(2**64 - 1), SequenceNumber(2**64 - 1), -(2**63), MarkFlag(0)),
    Mark(ObjectId(bytes(range(128))), Tag(7), SequenceNumber(9), 2**63 - 1, MarkFlag.CONTENT),
]


@pytest.mark.parametrize("mark", MARKS)
def test_a_mark_comes_back(mark: Mark) -> None:
    assert Mark.decode(mark.encode()) == mark


@pytest.mark.parametrize("cut", range(27))
def test_a_short_mark_is_none(cut: int) -> None:
    assert Mark.decode(MARKS[1].encode()[:cut]) is None


def test_a_mark_of_another_version_is_none() -> None:
    assert Mark.decode(b"\3" + MARKS[0].encode()[1:]) is None


@pytest.mark.parametrize(
    ("code", "transient", "no_space"),
    [
        (errno.EIO, True, False),
        (errno.ESTALE, True, False),
        (errno.EROFS, True, False),
        (errno.EBUSY, True, False),
        (errno.ETIMEDOUT, True, False),
        (errno.ENOSPC, True, True),
        (errno.EDQUOT, True, True),
        (errno.ENAMETOOLONG, False, False),
        (errno.EINVAL, False, False),
        (errno.EPERM, False, False),
        (errno.ENOTEMPTY, False, False),
        (errno.EMLINK, False, False),
        (errno.EXDEV, False, False),
    ],
)
def test_an_error_says_whether_waiting_helps(code: int, transient: bool, no_space: bool) -> None:
    error = StoreError.of("cannot do it", code)
    assert (error.errno, error.transient, error.no_space) == (code, transient, no_space)
    assert str(error) == "cannot do it"
