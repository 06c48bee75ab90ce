"""Write-through and the site's power: what was answered is on its disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.e2e.test_through import PATIENT, XATTR, wait_until_it_follows
from tests.support import campaign
from tests.support.power import NO_FLUSH, Plant, plant
from tests.support.replicating import until

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


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
@pytest.mark.parametrize("renamed", [False, True], ids=["rewritten", "renamed"])
def test_what_was_answered_outlives_what_came_in_its_place(
    renamed: bool, kind: str, tmp_path: Path
) -> None:
    """Nobody waits for what is written next. It may be lost, but not what it replaces with it."""
    with plant(tmp_path, kind, 1, apart=True, options=("write-through=site", PATIENT)) as at:
        for name in ("f", "g"):
            (at.mounted.source / name).mkdir()
        at.mounted.mount()
        at.replication.start()
        at.replication.settle()
        wait_until_it_follows(at.mounted)
        top, first, second = at.mounted.mountpoint, b"first" * 5000, b"second" * 5000
        (top / "f/f").write_bytes(first)
        os.setxattr(top / "f", XATTR, b"off")
        (top / ("f/new" if renamed else "f/f")).write_bytes(second)
        if renamed:
            until(lambda: (at.site / "f/new").exists(), lambda: "it does not come")
            (top / "f/new").rename(top / "f/f")
        until(lambda: (at.site / "f/f").read_bytes() == second, lambda: "it does not come")
        (top / "g/g").write_bytes(first)  # the names that the site has are durable with it
        at.disks["site"].cut(NO_FLUSH)
        at.replication.kill()
        at.disks["site"].unmount()
        at.disks["site"].mount()
        assert (at.site / "g/g").read_bytes() == first
        found = (at.site / "f/f").read_bytes()
        assert found in (first, second), f"{len(found)} bytes, {found[:9]!r}"
