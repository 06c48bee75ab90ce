"""Handles, while inodes are given to new objects all the time."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

import pytest

from mirrorfs import system_calls


@pytest.fixture
def failures(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What open_by_handle_at(2) fails with, call by call, before it works."""
    coming: list[int] = []
    real = system_calls._open_by_handle_at

    def open_by_handle_at(*arguments: object) -> int:
        if coming:
            ctypes.set_errno(coming.pop(0))
            return -1
        result: int = real(*arguments)
        return result

    monkeypatch.setattr(system_calls, "_open_by_handle_at", open_by_handle_at)
    return coming


def reopen(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        kind, handle = system_calls.file_handle(descriptor)
        os.close(system_calls.open_by_handle(descriptor, kind, handle, os.O_PATH))
    finally:
        os.close(descriptor)


def test_an_inode_that_is_being_given_away_is_asked_for_again(
    tmp_path: Path, failures: list[int]
) -> None:
    failures[:] = [errno.ENOMEM] * 5
    reopen(tmp_path)
    assert failures == []


@pytest.mark.parametrize("code", [errno.ESTALE, errno.ENOMEM])
def test_other_failures_are_told(tmp_path: Path, failures: list[int], code: int) -> None:
    failures[:] = [code] * 100
    with pytest.raises(OSError, match=os.strerror(code)) as caught:
        reopen(tmp_path)
    assert caught.value.errno == code
