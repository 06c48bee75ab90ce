"""Write-through and the site's power: what was answered is on its disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.e2e.test_through import PATIENT, wait_until_it_follows
from tests.support import campaign
from tests.support.power import NO_FLUSH, Plant, plant

pytestmark = [pytest.mark.fuse, pytest.mark.slow]

ROUNDS = campaign.pick(2, 20)


def change(at: Plant, number: int) -> None:
    """One of each kind, the last one is answered a moment ago."""
    top = at.mounted.mountpoint
    kind = number % 5
    if kind == 0:
        (top / f"d/e/{number}").write_bytes(b"%d" % number * 5000)
    elif kind == 1:
        (top / f"d/e/{number - 1}").rename(top / f"d/{number}")
    elif kind == 2:
        (top / f"d/{number - 1}").unlink()
    elif kind == 3:
        os.makedirs(top / f"d/{number}/x")
    else:
        (top / f"d/{number - 1}/x/{number}").write_bytes(b"%d" % number * 50_000)


def shown(top: Path) -> dict[str, bytes | None]:
    """Every name below, with the content of files."""
    return {
        os.path.relpath(path, top): path.read_bytes() if path.is_file() else None
        for path in (top / "d").rglob("*")
    }


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_what_was_answered_survives_a_power_cut_of_the_site(kind: str, tmp_path: Path) -> None:
    with plant(tmp_path, kind, 1, apart=True, options=("write-through=site", PATIENT)) as at:
        (at.mounted.source / "d/e").mkdir(parents=True)
        at.mounted.mount()
        at.replication.start()
        at.replication.settle()
        for number in range(5 * ROUNDS):
            wait_until_it_follows(at.mounted)
            change(at, number)
            at.disks["site"].cut(NO_FLUSH)
            at.replication.kill()
            at.disks["site"].unmount()
            at.disks["site"].mount()
            assert shown(at.site) == shown(at.mounted.source), number
            at.replication.start()
            at.replication.settle()
