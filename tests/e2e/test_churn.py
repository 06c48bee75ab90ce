"""Any mixture of changes beside a large tree that nobody touches: the sites end equal."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import campaign
from tests.support.churn import Churn
from tests.support.mounts import Mounting, mounting
from tests.support.replicating import Replicating, Replication, head, replicating
from tests.support.trees import differences, snapshot

pytestmark = pytest.mark.fuse

__all__ = ["mounting", "replicating"]

UNTOUCHED = campaign.pick(10_000, 50_000)
OPERATIONS = campaign.pick(1_000, 3_000)


def make_untouched(source: Path, files: int) -> None:
    """A hundred directories of files, most of them empty."""
    for number in range(files):
        if number % (files // 100) == 0:
            directory = source / "untouched" / f"{number:06}"
            directory.mkdir(parents=True)
        (directory / f"{number}").write_bytes(b"x" * (number % 7 == 0))


def assert_equal(source: Path, replication: Replication) -> None:
    """Every site equals the source, and nothing waits or was put aside there."""
    expected = snapshot(source)
    for name, site in replication.sites.items():
        assert differences(expected, snapshot(site)) == [], name
        state = replication.state(name)
        assert (state.held, replication.left_over(name)) == ([], []), name


@pytest.mark.slow
def test_churn_beside_a_large_tree(mounting: Mounting, replicating: Replicating) -> None:
    mounted = mounting.prepare()
    make_untouched(mounted.source, UNTOUCHED)
    work = mounted.source / "work"
    work.mkdir()
    mounted.mount()
    replication = replicating(mounted.journal, "one", "two")
    replication.settle()
    before = {name: _listed(replication, name) for name in replication.sites}
    first = head(mounted.journal)
    Churn(mounted.mountpoint / "work", campaign.FIRST_SEED).run(OPERATIONS)
    replication.settle()
    records = head(mounted.journal) - first
    replication.stop()
    for name in replication.sites:
        assert _listed(replication, name) - before[name] < records
    assert_equal(mounted.source, replication)


def _listed(replication: Replication, site: str) -> int:
    return replication.report(site).counters["directories_listed"]


@pytest.mark.parametrize("seed", campaign.seeds(6, 100))
def test_churn(seed: int, mounting: Mounting, replicating: Replicating) -> None:
    mounted = mounting()
    replication = replicating(mounted.journal, "one")
    replication.settle()
    churn = Churn(mounted.mountpoint, seed)
    churn.run(campaign.pick(700, 2000))
    replication.settle()
    replication.stop()
    assert_equal(mounted.source, replication)
