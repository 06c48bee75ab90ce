"""kill -9 of the replicator and of mirrorfs under load, again and again: nothing is lost.

The moments are chosen by the number of records made. How many of them had work in flight is counted
and printed: a kill of something idle shows nothing.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from random import Random

import pytest

from mirrorfs import prospect
from mirrorfs.journal.reader import JournalReader
from mirrorfs.journal.record import Reconcile, SequenceNumber
from tests.support import campaign
from tests.support.listings import listings
from tests.support.load import Load, Moments, loaded
from tests.support.mounts import Mounted, Mounting, mounting
from tests.support.replicating import Replicating, Replication, head, replicating
from tests.support.touched import unexplained
from tests.support.trees import differences, snapshot

pytestmark = [pytest.mark.fuse, pytest.mark.slow]

__all__ = ["mounting", "replicating"]

KILLS = campaign.pick(9, 320)
REPLICATOR_KILLS = campaign.pick(7, 200)
JOBS = campaign.pick(3, 8)
COMPARE_EVERY = 5
STILL_DIRECTORIES = campaign.pick(200, 2000)
FILES_EACH = campaign.pick(10, 100)
IN_FLIGHT_MIN = 0.8


def compare(mounted: Mounted, replication: Replication, below: str = ".") -> None:
    """With the load standing still: every site comes to equal the source."""
    replication.settle()
    expected = snapshot(mounted.source / below)
    for name, site in replication.sites.items():
        assert differences(expected, snapshot(site / below)) == [], name


def nothing_else_differs(mounted: Mounted, replication: Replication) -> None:
    """With load and replicator standing still: what records beyond the clean cursor do not touch is
    as it is in the source."""
    for name, site in replication.sites.items():
        clean = replication.clean(name)
        assert unexplained(mounted.source, site, mounted.journal, clean) == [], name


def conclude(kills: int, in_flight: int, capfd: pytest.CaptureFixture[str]) -> None:
    with capfd.disabled():
        print(f"\n{kills} kills ({in_flight} with work in flight), 0 lost")  # noqa: T201
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
        for kill in range(1, REPLICATOR_KILLS + 1):
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
    conclude(REPLICATOR_KILLS, in_flight, capfd)


def make_still(at: Path) -> None:
    """A tree that nobody touches."""
    for number in range(STILL_DIRECTORIES):
        directory = at / f"{number % 40}" / f"{number}"
        directory.mkdir(parents=True)
        for name in range(FILES_EACH):
            descriptor = os.open(directory / f"{name}", os.O_WRONLY | os.O_CREAT)
            if name == 0:
                os.write(descriptor, b"%d" % number)
            os.close(descriptor)


def kill_mirrorfs(mounted: Mounted, load: Load) -> bool:
    """And mount it again: what the activity log names is compared, as it was foreseen, and nothing
    else. Whether jobs were waiting for an answer."""
    os.kill(mounted.pid, signal.SIGSTOP)
    waiting = load.waiting() > 0
    mounted.kill()
    load.lose_mount()
    before = prospect.look(prospect.named(str(mounted.journal)))
    mounted.mount()
    with JournalReader(str(mounted.journal)) as reader:
        start = SequenceNumber(before.head + 1)
        records = [record for batch in reader.read(start) for record in batch]
    found = [record.body for record in records if isinstance(record.body, Reconcile)]
    foreseen = {(each.object, each.whole) for each in before.compared if not each.is_object}
    assert {(body.directory, body.whole) for body in found} == foreseen
    for body in found:
        assert not body.whole
        assert body.path is not None
        assert body.path.split(b"/")[0] == b"busy"
    return waiting


@pytest.mark.parametrize("seed", campaign.seeds(1, 1))
def test_mirrorfs_the_replicator_or_both_are_killed(
    seed: int, mounting: Mounting, replicating: Replicating, capfd: pytest.CaptureFixture[str]
) -> None:
    """Beside a large tree, of which no directory is listed again, at the source or at the site."""
    mounted = mounting.prepare()
    make_still(mounted.source / "still")
    (mounted.source / "busy").mkdir()
    mounted.mount()
    replication = replicating(mounted.journal, "one")
    replication.settle()
    still = [at / "still" for at in (mounted.source, replication.sites["one"])]
    moments, random, in_flight = Moments(mounted.journal, seed), Random(seed), 0
    with listings(*still) as watched, loaded(mounted.mountpoint / "busy", seed, JOBS) as load:
        for kill in range(1, KILLS + 1):
            if not load.running:
                load.start()
            moments.wait(20, 150)
            which = random.choice(("mirrorfs", "mirrorfs", "replicator", "both"))
            if which != "mirrorfs":
                in_flight += replication.clean("one") < head(mounted.journal)
                replication.kill()
            if which == "both":
                moments.wait(1, 50)
            if which != "replicator":
                waiting = kill_mirrorfs(mounted, load)
                in_flight += waiting and which == "mirrorfs"
            if which != "mirrorfs":
                replication.start()
            if kill % COMPARE_EVERY == 0 or kill == KILLS:
                with load.paused():
                    compare(mounted, replication, "busy")
                    assert watched.listed() == set()
        assert len(watched) > 2 * STILL_DIRECTORIES
        with load.paused():
            compare(mounted, replication)
    replication.stop()
    conclude(KILLS, in_flight, capfd)
