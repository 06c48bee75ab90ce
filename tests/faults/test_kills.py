"""kill -9 of the replicator and of mirrorfs under load, again and again: nothing is lost.

The moments are chosen by the number of records made. How many of them had work in flight is counted
and printed: a kill of something idle shows nothing.
"""

from __future__ import annotations

import os
import signal
from random import Random

import pytest

from tests.support import campaign
from tests.support.load import Load, Moments, loaded
from tests.support.mounts import Mounted, Mounting, mounting
from tests.support.replicating import Replicating, Replication, head, replicating
from tests.support.touched import unexplained
from tests.support.trees import differences, snapshot

pytestmark = [pytest.mark.fuse, pytest.mark.slow]

__all__ = ["mounting", "replicating"]

KILLS = campaign.pick(20, 200)
COMPARE_EVERY = 5
IN_FLIGHT_MIN = 0.8


def compare(mounted: Mounted, replication: Replication) -> None:
    """With the load standing still: every site comes to equal the source."""
    replication.settle()
    expected = snapshot(mounted.source)
    for name, site in replication.sites.items():
        assert differences(expected, snapshot(site)) == [], name


def nothing_else_differs(mounted: Mounted, replication: Replication) -> None:
    """With load and replicator standing still: what records beyond the clean cursor do not touch is
    as it is in the source."""
    for name, site in replication.sites.items():
        clean = replication.clean(name)
        assert unexplained(mounted.source, site, mounted.journal, clean) == [], name


def conclude(kills: int, in_flight: int, capfd: pytest.CaptureFixture[str]) -> None:
    with capfd.disabled():
        print(f"\n{kills} kills ({in_flight} with work in flight), 0 differences")  # noqa: T201
    campaign.tally(kills=kills, in_flight=in_flight)
    assert in_flight >= IN_FLIGHT_MIN * kills


def end_replicator(replication: Replication, load: Load, how: int) -> None:
    """SIGKILL; or SIGTERM twice: no more work, but a saved cursor; or SIGTERM: all work done."""
    if how == 0:
        replication.wait_for_reports()
        replication.signal(signal.SIGTERM)
        replication.signal(signal.SIGTERM)
        # the second may meet a process that is done and no longer listens
        assert replication.wait() in (0, -signal.SIGTERM), replication.said()
        load.pause()
    elif how == 1:
        load.pause()
        replication.stop()
    else:
        replication.kill()
        load.pause()


@pytest.mark.parametrize("seed", campaign.seeds(1, 3))
def test_the_replicator_is_killed(
    seed: int, mounting: Mounting, replicating: Replicating, capfd: pytest.CaptureFixture[str]
) -> None:
    mounted = mounting()
    replication = replicating(mounted.journal, "one", "two")
    replication.settle()
    moments, random, in_flight = Moments(mounted.journal, seed), Random(seed), 0
    with loaded(mounted.mountpoint, seed) as load:
        load.start()
        for kill in range(1, KILLS + 1):
            reached = moments.wait(20, 250)
            in_flight += any(replication.state(name).working < reached for name in ("one", "two"))
            end_replicator(replication, load, random.randrange(6))
            nothing_else_differs(mounted, replication)
            replication.start()
            if kill % COMPARE_EVERY == 0:
                compare(mounted, replication)
            load.resume()
        load.stop()
    compare(mounted, replication)
    replication.stop()
    for name in replication.sites:
        assert replication.left_over(name) == [], name
    conclude(KILLS, in_flight, capfd)


@pytest.mark.parametrize("seed", campaign.seeds(1, 3))
def test_mirrorfs_is_killed(
    seed: int, mounting: Mounting, replicating: Replicating, capfd: pytest.CaptureFixture[str]
) -> None:
    mounted = mounting()
    replication = replicating(mounted.journal, "one")
    replication.settle()
    moments, in_flight = Moments(mounted.journal, seed), 0
    with loaded(mounted.mountpoint, seed) as load:
        for kill in range(1, KILLS + 1):
            load.start()
            moments.wait(20, 150)
            os.kill(mounted.pid, signal.SIGSTOP)
            in_flight += load.waiting() > 0
            mounted.kill()
            load.lose_mount()
            mounted.mount()
            if kill % COMPARE_EVERY == 0:
                compare(mounted, replication)
    compare(mounted, replication)
    replication.stop()
    conclude(KILLS, in_flight, capfd)


@pytest.mark.parametrize("seed", campaign.seeds(1, 3))
def test_both_are_killed(
    seed: int, mounting: Mounting, replicating: Replicating, capfd: pytest.CaptureFixture[str]
) -> None:
    """The replicator while it recovers from the death of mirrorfs, above all."""
    mounted = mounting()
    replication = replicating(mounted.journal, "one")
    replication.settle()
    moments, in_flight = Moments(mounted.journal, seed), 0
    with loaded(mounted.mountpoint, seed) as load:
        for kill in range(1, KILLS // 2 + 1):
            load.start()
            moments.wait(20, 150)
            in_flight += replication.clean("one") < head(mounted.journal)
            replication.kill()
            moments.wait(1, 50)
            os.kill(mounted.pid, signal.SIGSTOP)
            in_flight += load.waiting() > 0
            mounted.kill()
            load.lose_mount()
            mounted.mount()
            replication.start()
            if kill % COMPARE_EVERY == 0:
                compare(mounted, replication)
    compare(mounted, replication)
    replication.stop()
    conclude(KILLS // 2 * 2, in_flight, capfd)
