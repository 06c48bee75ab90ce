"""mirrorfs dies at every system call of every kind of change: nothing is lost, little is compared.

Before each call that changes something (of the source, the journal, the activity log), in the
middle of each append, and after the last one. Each operation has a directory of its own, in which
nothing was changed before. Beside these lies a tree that nobody touches: it is never looked at.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest

from mirrorfs import prospect
from mirrorfs.journal.reader import JournalReader
from mirrorfs.journal.record import ObjectId, Reconcile
from mirrorfs.prospect import Prospect, Why
from tests.support import campaign
from tests.support.crashing import Crashing
from tests.support.listings import listings
from tests.support.mounts import Mounting, mounting
from tests.support.replicating import Replicating, Replication, head, replicating
from tests.support.single_steps import OPERATIONS, prepare
from tests.support.trees import differences, snapshot

pytestmark = [pytest.mark.fuse, pytest.mark.slow]

__all__ = ["mounting", "replicating"]

POINTS = campaign.pick(36, 1 << 30)
COMPARE_EVERY = campaign.pick(9, 5)
STILL = 300
"""Directories that nobody touches."""


class Point(NamedTuple):
    """Where a daemon dies: at which call of which operation."""

    operation: Callable[[Path], None]
    before: int = 0
    after: int = 0
    within: int = 0

    @property
    def directory(self) -> str:
        """Its own."""
        return f"{self.operation.__name__}-{self.before}-{self.after}-{self.within}"


@pytest.fixture
def crashing(mounting: Mounting, tmp_path: Path) -> Iterator[Callable[[str], Crashing]]:
    """Makes volumes to be mounted."""
    with contextlib.ExitStack() as stack:

        def make(name: str) -> Crashing:
            at = mounting.prepare(name=name)
            page = tmp_path / f"{name}-page"
            made = Crashing(at.source, at.mountpoint, at.journal, page_file=page)
            stack.callback(made.clean_up)
            return made

        yield make


def calls(crashing: Crashing) -> list[tuple[Callable[[Path], None], list[str]]]:
    """What each operation makes the daemon call, from the first request to the answer."""
    found = []
    for operation in OPERATIONS:
        prepare(crashing.source / operation.__name__)
    crashing.mount()
    for operation in OPERATIONS:
        crashing.page.arm()
        operation(crashing.mountpoint / operation.__name__)
        found.append((operation, crashing.page.disarm()))
    crashing.umount()
    return found


def points_of(operation: Callable[[Path], None], names: list[str]) -> Iterator[Point]:
    for number, name in enumerate(names, start=1):
        yield Point(operation, before=number)
        if name == "write":
            yield Point(operation, within=number)
    yield Point(operation, after=len(names))


def chosen(found: list[tuple[Callable[[Path], None], list[str]]], seed: int) -> list[Point]:
    """All crash points, or some of every operation; in any order."""
    random = Random(seed)
    every = [list(points_of(*each)) for each in found]
    for points in every:
        random.shuffle(points)
    some = [point for points in every for point in points[:1]]
    random.shuffle(some)
    more = [point for points in every for point in points[1:]]
    random.shuffle(more)
    return [*some, *more][:POINTS]


def compare(crashing: Crashing, replication: Replication) -> None:
    replication.settle()
    wanted = snapshot(crashing.source, sockets=False)
    assert differences(wanted, snapshot(replication.sites["site"])) == []


def foreseen(prospected: Prospect) -> set[tuple[ObjectId, bool]]:
    assert not any(each.why is Why.EVERYTHING for each in prospected.compared)
    return {(each.object, each.whole) for each in prospected.compared if not each.is_object}


def reconciled(crashing: Crashing, after: int) -> list[Reconcile]:
    with JournalReader(str(crashing.journal)) as reader:
        records = [record for batch in reader.read() for record in batch]
    bodies = [record.body for record in records if record.sequence > after]
    return [body for body in bodies if isinstance(body, Reconcile)]


def remounted(volume: Crashing, *, torn: bool) -> list[Reconcile]:
    """Mounted again: what is compared, as it was foreseen."""
    last = head(volume.journal)
    before = prospect.look(prospect.named(str(volume.journal)))
    assert bool(before.torn_bytes) == torn
    volume.mount()
    found = reconciled(volume, last)
    assert {(body.directory, body.whole) for body in found} == foreseen(before)
    return found


def crashed(volume: Crashing, point: Point, touched: set[bytes]) -> bool:
    """Go there; whether it has died there. Then it is mounted again, and only directories in
    those that were touched are compared."""
    volume.page.arm(before=point.before, after=point.after, within=point.within)
    with contextlib.suppress(OSError):
        point.operation(volume.mountpoint / point.directory)
    names = volume.page.disarm()
    if not volume.died():
        return False
    volume.kill()
    for body in remounted(volume, torn=bool(point.within)):
        assert body.path is not None
        assert body.path.split(b"/")[0] in touched, (point, names, body)
    return True


@pytest.mark.timeout(0 if campaign.LONG else 300)
@pytest.mark.parametrize("seed", campaign.seeds(1, 1))
def test_every_step_of_every_operation(
    seed: int,
    crashing: Callable[[str], Crashing],
    replicating: Replicating,
    capfd: pytest.CaptureFixture[str],
) -> None:
    points = chosen(calls(crashing("counted")), seed)
    wanted = len(points)
    volume = crashing("volume")
    for point in points:
        prepare(volume.source / point.directory)
    for number in range(STILL):
        (volume.source / "still" / f"{number % 20}" / f"{number}").mkdir(parents=True)
    volume.mount()
    replication = replicating(volume.journal, "site")
    compare(volume, replication)
    still = (volume.source / "still", replication.sites["site"] / "still")
    killed = 0
    touched = set[bytes]()
    while points:
        some, points = points[:COMPARE_EVERY], points[COMPARE_EVERY:]
        with listings(*still) as watched:
            for point in some:
                touched.add(point.directory.encode())
                killed += crashed(volume, point, touched)
            replication.settle()
            assert watched.listed() == set(), some
        compare(volume, replication)
    replication.stop()
    assert killed >= 0.9 * wanted
    with capfd.disabled():
        print(f"\n{killed} crash points, 0 differences")  # noqa: T201
