"""Random jobs on a mounted federation whose data servers fail at random moments, also around the
deadlines of what is in flight: what was done without an error is there, through every mount.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import campaign
from tests.support.federated_jobs import RandomJob
from tests.support.federation import Federation
from tests.support.federation_mounts import mounted
from tests.support.federation_node import Server
from tests.support.inflight import working

pytestmark = [pytest.mark.xrootd, pytest.mark.fuse, pytest.mark.slow]

_JOBS = 3
_KINDS = ("append", "create", "read", "rename", "unlink", "write")
_PATIENCE_SECONDS = 60.0
# Short deadlines, so that many pass in a short time.
_OPTIONS = ("metadata-deadline=1", "data-deadline=2", "operation-deadline=6", "attr-timeout=1",
            "negative-timeout=1", "listing-timeout=1")  # fmt: skip

_FAULTS: tuple[tuple[Callable[[Server], None], Callable[[Server], None]], ...] = (
    (Server.kill, Server.start),
    (Server.stop, Server.start),
    (Server.pause, Server.resume),
    (Server.stall, Server.unstall),
    (Server.reset_connections, lambda server: None),
)


@pytest.mark.timeout(0 if campaign.LONG else 300)
@pytest.mark.parametrize("seed", campaign.seeds(1, 40))
def test_what_was_done_is_done(
    seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    choice = random.Random(seed)
    with (
        Federation(proxied=True) as federation,
        mounted(federation, tmp_path / "mount", *_OPTIONS) as mount,
    ):
        jobs = []
        for number in range(_JOBS):
            directory = mount.mountpoint / f"job{number}"
            directory.mkdir()
            jobs.append(RandomJob(directory, seed * 100 + number))
        with working(jobs, mount.clean_up):
            for _ in range(campaign.pick(6, 20)):
                inflict, lift = choice.choice(_FAULTS)
                server = choice.choice(federation.servers)
                inflict(server)
                # How long a fault lasts is what varies: some end before a deadline, some after.
                time.sleep(choice.uniform(0, 5))
                lift(server)
                _await_whole(mount.mountpoint)
        federation.wait_ready()
        done = sum((job.done for job in jobs), Counter())
        with capsys.disabled():
            sys.stdout.write(f"\nseed {seed}: {dict(sorted(done.items()))}\n")
        assert [line for job in jobs for line in job.wrong] == [], f"seed {seed}"
        for job in jobs:
            assert all(job.done[kind] for kind in _KINDS), f"seed {seed}: {job.done}"
        assert sum(done[f"{kind} failed"] for kind in _KINDS), f"seed {seed}: no fault was felt"
        with mounted(federation, tmp_path / "other") as other:
            for number, job in enumerate(jobs):
                assert job.check(job.directory) == [], f"seed {seed}"
                assert job.check(other.mountpoint / f"job{number}") == [], f"seed {seed}"


def _await_whole(mountpoint: Path) -> None:
    """Until the mount misses no server."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while os.getxattr(mountpoint, "user.xrootd.partial"):
        assert time.monotonic() < deadline, "a server that is back is not noticed"
        time.sleep(0.05)
