"""Power cuts under load: what was not synced is gone, at the source, the journal, the site, or all.

The moments are chosen by the number of records made. After each cut everything is started again;
the site must come to equal the source without a walk of the tree, and nothing that only the site
still has may be thrown away.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mirrorfs.journal.reader import JournalReader
from mirrorfs.journal.record import Change, Kind, Mount, Reconcile
from tests.support import campaign
from tests.support.load import Moments
from tests.support.power import FLUSH_LOG, NO_FLUSH, Plant, plant
from tests.support.replicating import head
from tests.support.trees import differences, snapshot

pytestmark = [pytest.mark.fuse, pytest.mark.slow]

UNTOUCHED = 400
IN_FLIGHT_MIN = 0.8
ALL = ("source", "journal", "site")
KINDS = ("ext4", "xfs")
SYNCED = (("ext4", "always"), ("xfs", "group"), ("ext4", "group"), ("xfs", "always"))


@contextmanager
def at_work(
    directory: Path, kind: str, seed: int, *, apart: bool = True, sync: str = "group"
) -> Iterator[Plant]:
    """A plant with a tree, mounted, whose site is equal."""
    with plant(directory, kind, seed, apart=apart, options=(f"journal-sync={sync}",)) as made:
        source = made.mounted.source
        for name in ("work", "sworn", *(f"quiet/{n % 20}/{n}" for n in range(UNTOUCHED))):
            (source / name).mkdir(parents=True)
        made.disks["source"].sync()
        made.mounted.mount()
        made.replication.start()
        made.replication.settle()
        yield made


class Cuts:
    """Cuts one plant again and again.

    Attributes:
        made, in_flight: how many, and how many of them with work in flight.
    """

    def __init__(self, at: Plant, seed: int, sync: str = "group") -> None:
        self.at = at
        self.made = self.in_flight = 0
        self._moments = Moments(at.mounted.journal, seed)
        self._sync = sync

    def begin(self) -> None:
        """The load is at work for a while."""
        self.at.load.start()
        self.at.oaths.start()
        self._moments.wait(40, 400)

    def freeze(self) -> None:
        """Everything stands still; some of it in the middle of something."""
        at = self.at
        at.stop([at.mounted.pid, at.replication.pid])
        waiting = at.load.waiting() > 0
        at.stop([*at.load.pids, *at.oaths.pids])
        self.made += 1
        self.in_flight += waiting or at.replication.clean("site") < head(at.mounted.journal)

    def end(self, *, replicator: bool = True) -> None:
        """Nothing runs any more."""
        at = self.at
        at.mounted.kill()
        if replicator:
            at.replication.kill()
        at.load.clean_up()
        at.oaths.end()

    def resume(self, *, walks: bool = False) -> None:
        """Start everything again; the site comes to equal the source."""
        at = self.at
        at.mounted.mount()
        at.replication.start()
        self.check(walks=walks)

    def check(self, *, walks: bool = False) -> None:
        """Everything is as it must be."""
        at = self.at
        at.replication.settle()
        assert differences(snapshot(at.mounted.source), snapshot(at.site)) == []
        for tree in (at.mounted.source, at.site):
            assert at.oaths.broken(tree / "sworn") == [], tree
        if self._sync == "always":
            assert unrecorded(at) == []
        if not walks:
            assert [each.path for each in reconciled(at) if each.whole or is_quiet(each)] == []
            assert at.replication.report("site").counters["directories_reconciled"] < UNTOUCHED

    def how(self) -> int:
        """With the file system's log, or without."""
        return self.at.random.choice((FLUSH_LOG, NO_FLUSH))

    def conclude(self, capfd: pytest.CaptureFixture[str]) -> None:
        with capfd.disabled():
            print(  # noqa: T201
                f"\n{self.made} power cuts ({self.in_flight} with work in flight), 0 lost"
            )
        campaign.tally(power_cuts=self.made)
        assert self.in_flight >= IN_FLIGHT_MIN * self.made


def unrecorded(at: Plant) -> list[int]:
    """Durable files of which the journal does not tell."""
    with JournalReader(str(at.mounted.journal)) as reader:
        bodies = [(each.kind, each.body) for batch in reader.read() for each in batch]
    told = {(kind, body.path) for kind, body in bodies if isinstance(body, Change)}
    return [
        number
        for number in at.oaths.sworn
        for kind in (Kind.CREATE, Kind.WRITE)
        if (kind, b"sworn/sworn-%d" % number) not in told
    ]


def reconciled(at: Plant) -> list[Reconcile]:
    """What the newest mount has had compared."""
    bodies = [record.body for record in at.mounted.records()]
    newest = max(index for index, body in enumerate(bodies) if isinstance(body, Mount))
    return [body for body in bodies[newest:] if isinstance(body, Reconcile)]


def is_quiet(record: Reconcile) -> bool:
    """Of a part of the tree where nobody has changed anything."""
    return record.path is not None and record.path.split(b"/")[0] == b"quiet"


def contents(top: Path) -> dict[str, bytes]:
    """Digest of every file that holds something: its path."""
    return {
        str(each.content): path
        for path, each in snapshot(top).items()
        if each.type == "file" and each.size
    }


@pytest.mark.parametrize("seed", campaign.seeds(1, 2))
@pytest.mark.parametrize(("kind", "sync"), campaign.pick(SYNCED[:2], SYNCED))
def test_all_disks_lose_power(
    kind: str, sync: str, seed: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with at_work(tmp_path, kind, seed, sync=sync) as at:
        cuts = Cuts(at, seed, sync)
        for _ in range(campaign.pick(1, 10)):
            cuts.begin()
            cuts.freeze()
            at.cut(*ALL, how=cuts.how())
            cuts.end()
            at.repair(*ALL)
            cuts.resume()
        cuts.conclude(capfd)


@pytest.mark.parametrize("seed", campaign.seeds(1, 2))
@pytest.mark.parametrize("kind", KINDS)
def test_one_disk_with_everything_loses_power(
    kind: str, seed: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with at_work(tmp_path, kind, seed, apart=False) as at:
        cuts = Cuts(at, seed)
        for _ in range(campaign.pick(1, 10)):
            cuts.begin()
            cuts.freeze()
            at.cut(*ALL, how=cuts.how())
            cuts.end()
            at.repair(*ALL)
            cuts.resume()
        cuts.conclude(capfd)


@pytest.mark.parametrize("seed", campaign.seeds(1, 2))
@pytest.mark.parametrize("kind", KINDS)
def test_the_source_alone_loses_power(
    kind: str, seed: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with at_work(tmp_path, kind, seed) as at:
        cuts = Cuts(at, seed)
        for _ in range(campaign.pick(1, 10)):
            cuts.begin()
            cuts.freeze()
            at.cut("source", how=cuts.how())
            cuts.end()
            at.repair("source")
            cuts.resume()
        cuts.conclude(capfd)


@pytest.mark.parametrize("seed", campaign.seeds(1, 2))
@pytest.mark.parametrize("kind", KINDS)
def test_what_only_the_site_still_has_is_kept(kind: str, seed: int, tmp_path: Path) -> None:
    """The source loses what the site has got already."""
    with at_work(tmp_path, kind, seed) as at:
        cuts = Cuts(at, seed)
        for _ in range(campaign.pick(1, 10)):
            cuts.begin()
            at.load.pause()
            at.oaths.end()
            at.replication.settle()
            cuts.freeze()
            at.cut("source", how=cuts.how())
            cuts.end()
            before = contents(at.site)
            at.repair("source")
            cuts.resume()
            missing = before.keys() - contents(at.mounted.source).keys()
            assert missing, "the source has lost nothing"
            kept = contents(at.site / ".mirrorfs" / "kept")
            assert [before[each] for each in missing - kept.keys()] == []
        campaign.tally(power_cuts=cuts.made)


@pytest.mark.parametrize("seed", campaign.seeds(1, 2))
@pytest.mark.parametrize("kind", KINDS)
def test_the_journal_alone_loses_power(
    kind: str, seed: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Jobs go on without noticing; what they do is marked in the source."""
    with at_work(tmp_path, kind, seed) as at:
        cuts = Cuts(at, seed)
        for cut in range(campaign.pick(1, 10)):
            cuts.begin()
            cuts.freeze()
            at.cut("journal", how=cuts.how())
            at.go_on()
            at.oaths.wait(20)
            if cut % 2 == (kind == "xfs"):
                at.load.pause()
                at.load.stop()
                at.oaths.end()
                at.mounted.umount()
                at.mounted.wait()
                at.replication.kill()
            else:
                cuts.end()
            at.repair("journal")
            cuts.resume(walks=True)
        cuts.conclude(capfd)


@pytest.mark.parametrize("seed", campaign.seeds(1, 2))
@pytest.mark.parametrize("kind", KINDS)
def test_the_site_alone_loses_power(
    kind: str, seed: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The source and its jobs go on."""
    with at_work(tmp_path, kind, seed) as at:
        cuts = Cuts(at, seed)
        for cut in range(campaign.pick(1, 10)):
            cuts.begin()
            cuts.freeze()
            at.cut("site", how=cuts.how())
            if cut % 2 == (kind == "xfs"):  # it is at work for a while
                at.go_on()
                at.replication.expect(
                    lambda: at.replication.report("site").phase == "backing off", "it does not see"
                )
            at.replication.kill()
            at.go_on_with_jobs()
            at.repair("site")
            at.replication.start()
            at.load.pause()
            at.load.stop()
            at.oaths.end()
            cuts.check()
            assert reconciled(at) == []
        cuts.conclude(capfd)


def lose_source(at: Plant) -> None:
    """Names and inodes are as they were; content is not."""
    at.stop([at.mounted.pid, at.replication.pid])
    at.disks["source"].cut(FLUSH_LOG)
    at.replication.kill()
    at.mounted.kill()
    at.repair("source")


def settle(at: Plant) -> None:
    at.replication.settle()
    assert differences(snapshot(at.mounted.source), snapshot(at.site)) == []


@pytest.mark.parametrize("kind", KINDS)
def test_content_that_was_lost_under_its_change_time(kind: str, tmp_path: Path) -> None:
    """The site has what the source says it has, and has not any more."""
    with at_work(tmp_path, kind, 1) as at:
        job, source = at.mounted.mountpoint / "work", at.mounted.source / "work"
        (job / "old").write_bytes(b"old" * 4000)
        (job / "moved").write_bytes(b"moved" * 4000)
        at.disks["source"].sync()
        with (job / "old").open("r+b") as stream:
            stream.write(b"new" * 4000)
        with (job / "moved").open("r+b") as stream:
            stream.write(b"other" * 4000)
        os.replace(job / "moved", job / "here")
        (job / "made").write_bytes(b"made" * 4000)
        settle(at)
        before = {path.name: path.stat().st_ctime_ns for path in source.iterdir()}
        had = contents(at.site)
        lose_source(at)
        lost = [
            path.name for path in source.iterdir() if path.stat().st_ctime_ns in before.values()
        ]
        assert {"old", "here"} <= set(lost)
        assert (source / "old").read_bytes() == b"old" * 4000
        assert (source / "here").read_bytes() == b"moved" * 4000
        at.mounted.mount()
        at.replication.start()
        settle(at)
        kept = contents(at.site / ".mirrorfs" / "kept")
        assert had.keys() - contents(at.site).keys() <= kept.keys()
        assert len(kept) >= 2
        stat = (job / "old").stat()
        with (job / "old").open("r+b") as stream:  # and written again, with the same size and time
            stream.write(b"yet" * 4000)
        os.utime(job / "old", ns=(stat.st_atime_ns, stat.st_mtime_ns))
        settle(at)
        assert (at.site / "work" / "old").read_bytes() == b"yet" * 4000


@pytest.mark.parametrize("kind", campaign.pick(KINDS[:1], KINDS))
def test_equal_content_is_not_kept_after_a_power_cut(kind: str, tmp_path: Path) -> None:
    with at_work(tmp_path, kind, 1) as at:
        (at.mounted.mountpoint / "work" / "safe").write_bytes(b"safe" * 4000)
        settle(at)
        at.disks["source"].sync()
        lose_source(at)
        at.mounted.mount()
        at.replication.start()
        settle(at)
        assert contents(at.site / ".mirrorfs" / "kept") == {}
        assert (at.mounted.source / "work" / "safe").read_bytes() == b"safe" * 4000
