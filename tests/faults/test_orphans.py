"""Jobs that outlive the daemon: nothing they still hold leads to the source any more.

So a recovery need not wait for them, and what it has compared stays as it is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.mounts import ROOT, Mounting, mounting
from tests.support.trees import differences, snapshot

pytestmark = pytest.mark.fuse

__all__ = ["mounting"]


@contextmanager
def orphan(directory: Path) -> Iterator[subprocess.Popen[str]]:
    words = (sys.executable, "-m", "tests.support.orphan", directory)
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as job:
        try:
            assert job.stdout is not None
            assert job.stdout.readline() == "ready\n"
            yield job
        finally:
            job.kill()


def possible(job: subprocess.Popen[str]) -> list[str]:
    """The ways to change something that it found open."""
    assert job.stdin is not None
    assert job.stdout is not None
    job.stdin.write("try\n")
    job.stdin.flush()
    found: list[str] = json.loads(job.stdout.readline())
    return found


@pytest.mark.parametrize("io", ["inline", "threads"])
@pytest.mark.parametrize("over", [False, True])
def test_nothing_they_hold_changes_the_source(mounting: Mounting, io: str, over: bool) -> None:
    mounted = mounting(f"io={io}", over=over)
    with orphan(mounted.mountpoint) as job:
        mounted.kill()
        os.sync()
        before = snapshot(mounted.source)
        assert possible(job) == []
        mounted.mount()
        assert possible(job) == []
        mounted.umount()
        os.sync()
        assert differences(before, snapshot(mounted.source)) == []


def test_all_of_them_are_ways(mounting: Mounting) -> None:
    """While the daemon lives."""
    mounted = mounting()
    with orphan(mounted.mountpoint) as job:
        found = possible(job)
    assert len(found) >= 18, found
