"""Three sites under load: one whose replicator is killed, one that is filled up, one that is away.

Readers look at each all the time: no file is torn, none goes back in time, and no flag file is seen
before the data it announces. Whenever a replicator is stopped, in the middle of whatever it does,
nothing differs at its site but what records beyond its clean cursor touch. At the end all are
equal.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from tests.support import campaign
from tests.support.load import Load, Moments, loaded
from tests.support.mounts import Mounted, Mounting, mounting
from tests.support.patient import PATIENT
from tests.support.power import Disk
from tests.support.replicating import Replicating, Replication, head, replicating
from tests.support.touched import unexplained
from tests.support.trees import differences, snapshot

pytestmark = [pytest.mark.fuse, pytest.mark.slow]

__all__ = ["mounting", "replicating"]

ROUNDS = campaign.pick(9, 120)
DIRECTORIES = 6
SIZES = (100, 5_000, 300_000, 2_500_000)
CHURNS = 2
SLOW = 8
KEPT = 60


def made(version: int, size: int) -> bytes:
    """Content that tells whether it is whole, and how old."""
    body = b"%012d" % version + bytes([version % 251]) * size
    return hashlib.sha256(body).digest() + body


def version_of(data: bytes) -> int:
    """Of whole content."""
    assert hashlib.sha256(data[32:]).digest() == data[:32], f"torn, {len(data)} bytes"
    return int(data[32:44])


class Jobs(threading.Thread):
    """Takes a flag away, writes data, and then its flag, again and again; and a file that stays as
    it is for a while. Now and then another is being written meanwhile, piece by piece.

    Attributes:
        working: held but between two of these.
    """

    def __init__(self, top: Path, seed: int) -> None:
        super().__init__(daemon=True)
        self.top = top
        self.random = Random(seed)
        self.working = threading.Lock()
        self.ending = threading.Event()

    def run(self) -> None:
        for version in itertools.count(1):
            with contextlib.ExitStack() as slow:
                if version % SLOW == 0:
                    file = slow.enter_context((self.top / f"slow-{version}").open("wb"))
                for piece in range(1 if version % SLOW else 5):
                    with self.working:
                        if version % SLOW == 0:
                            file.write(b"%d\n" % piece * 10_000)
                            file.flush()
                        self._work(version * SLOW + piece)
            if self.ending.is_set():
                return

    def _work(self, version: int) -> None:
        at = self.top / f"{self.random.randrange(DIRECTORIES)}"
        data = made(version, self.random.choice(SIZES))
        (at / "flag").unlink(missing_ok=True)
        if self.random.random() < 0.5:
            (at / "next").write_bytes(data)
            (at / "next").replace(at / "data")
        else:
            (at / "data").unlink(missing_ok=True)
            (at / "data").write_bytes(data)
        (at / "flag").write_bytes(made(version, 10))
        (self.top / f"once-{version}").write_bytes(made(version, 30_000))
        (self.top / f"once-{version - KEPT}").unlink(missing_ok=True)

    def end(self) -> None:
        self.ending.set()
        self.join()


class Reader(threading.Thread):
    """Looks at a site. `wrong`: what it must not have shown."""

    def __init__(self, site: Path) -> None:
        super().__init__(daemon=True)
        self.site = site
        self.ending = threading.Event()
        self.wrong: list[str] = []
        self.looks = 0
        self._seen: dict[Path, int] = {}

    def run(self) -> None:
        while not self.ending.wait(0.001) and not self.wrong:
            for number in range(DIRECTORIES):
                try:
                    self._look(self.site / f"{number}")
                except AssertionError as error:
                    self.wrong.append(f"{self.site}/{number}: {error}")
            self.looks += 1

    def _look(self, at: Path) -> None:
        flag, data = (self._version(at / name) for name in ("flag", "data"))
        if flag is not None and data is not None:
            assert data >= flag, f"flag {flag} before its data, {data}"

    def _version(self, path: Path) -> int | None:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            content = path.read_bytes()
            if not content:
                return None  # as it was in the source, between its create and its first write
            version = version_of(content)
            assert version >= self._seen.get(path, 0), f"{path} went back to {version}"
            self._seen[path] = version
            return version
        return None

    def end(self) -> None:
        self.ending.set()
        self.join()
        assert self.wrong == []


@contextlib.contextmanager
def reading(*sites: Path) -> Iterator[None]:
    readers = [Reader(site) for site in sites]
    for reader in readers:
        reader.start()
    yield
    for reader in readers:
        reader.end()


@dataclass
class Checks:
    """Of what sites have when their replicators stand still, or were killed.

    Attributes:
        made, in_flight: how many, and how many of them with work in flight.
    """

    mounted: Mounted
    each: dict[str, Replication]
    jobs: Jobs
    load: Load
    made: int = 0
    in_flight: int = 0

    def check(self, *names: str) -> None:
        """What records beyond its clean cursor do not touch is at each of these sites as it is in
        the source. Their replicators do nothing."""
        with self.jobs.working, self.load.paused():
            for name in names:
                (site,) = self.each[name].sites.values()
                clean = self.each[name].clean(name)
                assert clean >= 0
                journal = self.mounted.journal
                assert unexplained(self.mounted.source, site, journal, clean) == [], name
                self.made += 1
                self.in_flight += clean < head(journal)

    def stop_and_check(self, *names: str) -> None:
        """The same, wherever they are."""
        with contextlib.ExitStack() as stack:
            for name in names:
                stack.enter_context(self.each[name].standing_still())
            self.check(*names)


def fill(replication: Replication, disk: Disk, checks: Checks) -> None:
    """Until nothing fits, and the site says so; then there is room again."""
    replication.wait_for_reports()
    ballast = disk.where / "ballast"
    with ballast.open("wb") as file:
        for step in (1 << 20, 1 << 16, 1 << 12):
            with contextlib.suppress(OSError):
                while True:
                    os.posix_fallocate(file.fileno(), file.seek(0, 2), step)
    replication.expect(
        lambda: "waiting for space" in replication.report("full").reason, "it is not full"
    )
    checks.stop_and_check("full")
    ballast.unlink()


def cut(replication: Replication, disk: Disk, checks: Checks, moments: Moments) -> None:
    """Power, for a while."""
    disk.cut()
    disk.unmount()
    moments.wait(5, 20)
    with replication.standing_still():
        disk.mount()
        checks.check("away")


@pytest.mark.parametrize("seed", campaign.seeds(1, 1))
def test_three_sites_in_trouble(
    seed: int, mounting: Mounting, replicating: Replicating, tmp_path: Path
) -> None:
    mounted = mounting()
    disks = {
        name: Disk("ext4", tmp_path / f"{name}.image", tmp_path / name) for name in ("full", "away")
    }
    with contextlib.ExitStack() as stack:
        for disk in disks.values():
            stack.callback(disk.remove)
            disk.make()
        stack.callback(replicating.clean_up)
        sites = {
            "killed": tmp_path / "killed",
            **{name: disks[name].where / "site" for name in disks},
        }
        each: dict[str, Replication] = {}
        for name, site in sites.items():
            site.mkdir()
            each[name] = replicating.to(mounted.journal, {name: site}, start=False)
            each[name].command = PATIENT
            each[name].start()
        for number in range(DIRECTORIES):
            (mounted.mountpoint / f"{number}").mkdir()
        for replication in each.values():
            replication.settle()
        random, moments = Random(seed), Moments(mounted.journal, seed)
        (mounted.mountpoint / "churn").mkdir()
        load = stack.enter_context(loaded(mounted.mountpoint / "churn", seed, CHURNS))
        load.start()
        jobs = Jobs(mounted.mountpoint, seed)
        jobs.start()
        stack.callback(jobs.end)
        checks = Checks(mounted, each, jobs, load)
        kills = 0
        with reading(sites["killed"], sites["full"]):
            for trouble in range(ROUNDS):
                moments.wait(20, 120)
                checks.stop_and_check(*random.sample(list(sites), 2))
                if trouble % 9 == 3:
                    fill(each["full"], disks["full"], checks)
                elif trouble % 9 == 6:
                    with reading(sites["away"]):
                        moments.wait(20, 60)
                    cut(each["away"], disks["away"], checks, moments)
                else:
                    name = random.choice(["killed", "killed", "full"])
                    each[name].wait_for_reports()
                    each[name].kill()
                    checks.check(name)
                    each[name].start()
                    kills += 1
            jobs.end()
            load.stop()
            for replication in each.values():
                replication.settle()
        expected = snapshot(mounted.source)
        for name, site in sites.items():
            assert differences(expected, snapshot(site)) == [], name
            each[name].stop()
            assert each[name].state(name).held == []
        campaign.tally(kills=kills, in_flight=kills)
        assert checks.in_flight > checks.made // 2
