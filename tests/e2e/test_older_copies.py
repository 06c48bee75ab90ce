"""A journal, or a whole machine, that is an older copy of itself: nothing is passed over.

What the journal does not know any more is compared, and what is newer at a site is kept there.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from mirrorfs.journal.activity_header import (
    HEADER_BYTES,
    ActivityHeader,
    decode_activity_header,
)
from mirrorfs.journal.record import Mount, Reconcile
from tests.support.mounts import Mounted, Mounting, mounting
from tests.support.power import Disk, Plant, plant
from tests.support.replicating import Replicating, Replication, replicating, until
from tests.support.trees import differences, snapshot

pytestmark = pytest.mark.fuse

__all__ = ["mounting", "replicating"]


def write(mounted: Mounted, *names: str) -> None:
    """Each in a directory that nobody has changed before."""
    for name in names:
        (mounted.mountpoint / name / "new").write_text(f"{name}, changed")


def directories(mounted: Mounted, *names: str) -> None:
    for name in names:
        (mounted.source / name).mkdir(parents=True)
        (mounted.source / name / "old").write_text("as ever")


def same(mounted: Mounted, replication: Replication) -> None:
    replication.settle()
    assert differences(snapshot(mounted.source), snapshot(replication.sites["site"])) == []


def reconciled(mounted: Mounted) -> list[Reconcile]:
    """What the newest mount has had compared."""
    bodies = [record.body for record in mounted.records()]
    newest = max(index for index, body in enumerate(bodies) if isinstance(body, Mount))
    return [body for body in bodies[newest:] if isinstance(body, Reconcile)]


@pytest.mark.parametrize(
    ("end", "behind"),
    [("unmounted", True), ("killed", False), ("mounted again", True)],
)
def test_a_journal_from_a_backup(
    mounting: Mounting, replicating: Replicating, tmp_path: Path, end: str, behind: bool
) -> None:
    mounted = mounting.prepare()
    directories(mounted, "before", "seen", "unseen")
    mounted.mount()
    replication = replicating(mounted.journal, "site")
    write(mounted, "before")
    replication.settle()
    backup = tmp_path / "backup"
    subprocess.run(["cp", "-a", mounted.journal, backup], check=True)
    write(mounted, "seen")
    if behind:
        replication.settle()
        replication.kill()
    write(mounted, "unseen")
    if not behind:
        replication.settle()
        replication.kill()
    if end == "mounted again":
        mounted.umount()
        mounted.wait()
        mounted.mount()
    if end == "killed":
        mounted.kill()
    else:
        mounted.umount()
        mounted.wait()
    shutil.rmtree(mounted.journal)
    subprocess.run(["cp", "-a", backup, mounted.journal], check=True)
    mounted.mount()
    replication.start()
    same(mounted, replication)
    assert [(each.path, each.whole) for each in reconciled(mounted)] == [(b"", True)]
    mounted.umount()
    mounted.wait()
    mounted.mount()  # that was that
    assert reconciled(mounted) == []


def log_of(mounted: Mounted) -> ActivityHeader:
    found = decode_activity_header((mounted.journal / "activity").read_bytes()[:HEADER_BYTES])
    assert found is not None
    return found[0]


def stand_still(at: Plant, *disks: Disk) -> None:
    """Copy these disks while nothing happens."""
    at.stop([at.mounted.pid, at.replication.pid])
    for disk in disks:
        disk.sync()
        copy = disk.image.with_suffix(".copy")
        subprocess.run(["cp", "--sparse=always", disk.image, copy], check=True)
    at.go_on()


@pytest.mark.parametrize(
    ("kind", "again", "parts"),
    [
        ("ext4", False, ["source", "journal"]),
        ("xfs", True, ["source", "journal"]),
        ("ext4", False, ["source"]),
    ],
)
def test_a_machine_from_a_backup(tmp_path: Path, kind: str, again: bool, parts: list[str]) -> None:
    """Source and journal, or the source alone, are older than the site."""
    with plant(tmp_path, kind, 1, apart=True) as at:
        disks = [at.disks[part] for part in parts]
        directories(at.mounted, "before", "after", "last")
        at.mounted.mount()
        at.replication.start()
        write(at.mounted, "before")
        at.replication.settle()
        stand_still(at, *disks)
        then = log_of(at.mounted).generation
        if again:
            at.mounted.umount()
            at.mounted.wait()
            at.mounted.mount()
        write(at.mounted, "after")
        (at.mounted.mountpoint / "last" / "old").write_text("newer than the backup")
        at.replication.settle()
        if parts == ["source"]:  # a power cut may take what is not durable there
            until(lambda: log_of(at.mounted).witnessed > then, lambda: "nothing becomes durable")
        at.replication.kill()
        at.mounted.kill()
        for disk in disks:
            disk.unmount()
            disk.image.with_suffix(".copy").replace(disk.image)
            disk.mount()
        at.mounted.mount()
        at.replication.start()
        same(at.mounted, at.replication)
        assert not (at.mounted.source / "after" / "new").exists()
        kept = snapshot(at.site / ".mirrorfs" / "kept")
        names = {b"/".join(path.split(b"/")[1:]) for path in kept}
        assert {b"after/new", b"last/old"} <= names


def test_a_start_that_was_cut_off_does_not_lead_to_a_walk(
    mounting: Mounting, replicating: Replicating, tmp_path: Path
) -> None:
    """Killed after its first records, before anything could be changed through it."""
    mounted = mounting.prepare()
    directories(mounted, "quiet", "busy")
    mounted.mount()
    replication = replicating(mounted.journal, "site")
    write(mounted, "busy")
    log = (mounted.journal / "activity").read_bytes()
    mounted.kill()
    witness = (mounted.source / ".mirrorfs" / "activity").read_bytes()
    mounted.mount()
    mounted.kill()
    (mounted.journal / "activity").write_bytes(log)  # as it was then
    (mounted.source / ".mirrorfs" / "activity").write_bytes(witness)
    mounted.mount()
    same(mounted, replication)
    assert {each.path for each in reconciled(mounted)} == {b"busy"}
