"""Write-through: what a job has closed, renamed, removed or made is at the site when it goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.mounts import Mounting, mounting
from tests.support.replicating import Replicating, replicating

pytestmark = pytest.mark.fuse

__all__ = ["mounting", "replicating"]


def test_what_was_closed_is_at_the_site(mounting: Mounting, replicating: Replicating) -> None:
    mounted = mounting("write-through=site")
    replication = replicating(mounted.journal, "site")
    replication.settle()
    there = replication.sites["site"]
    import time

    ts = []
    for number in range(100):
        t = time.perf_counter()
        (mounted.mountpoint / f"f{number}").write_bytes(b"%d" % number * 100)
        ts.append(time.perf_counter() - t)
        assert (there / f"f{number}").read_bytes() == b"%d" % number * 100
    ts.sort()
    print(ts[50], ts[-2])
    (mounted.mountpoint / "d").mkdir()
    assert (there / "d").is_dir()
    (mounted.mountpoint / "f1").rename(mounted.mountpoint / "d/f")
    assert not (there / "f1").exists()
    assert (there / "d/f").read_bytes() == b"1" * 100
    (mounted.mountpoint / "d/f").unlink()
    assert not (there / "d/f").exists()
    assert mounted.look().through[0].passed == 0
    from tests.support.mounts import run

    print(run("status", mounted.mountpoint))
