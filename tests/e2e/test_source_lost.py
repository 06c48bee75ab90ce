"""A source that is not the one it was, is not there, or goes away; a mount that was detached."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mirrorfs import lookback, mountinfo
from mirrorfs.journal.control_client import ControlClient
from mirrorfs.journal.record import Kind, Reconcile
from tests.support.mounting import ext4, shut_down
from tests.support.mounts import ROOT, Mounted, Mounting, mounting, run
from tests.support.replicating import Replicating, replicating
from tests.support.trees import differences, snapshot

__all__ = ["mounting", "replicating"]

pytestmark = pytest.mark.fuse


def refusal(mounted: Mounted, before: str = "pass") -> str:
    """What the command says; `before` is run in it first."""
    code = f"{before}; from mirrorfs.cli import main; main()"
    options = f"journal={mounted.journal}"
    done = subprocess.run(
        [sys.executable, "-c", code, "mount", mounted.source, mounted.mountpoint, "-o", options],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=ROOT,
    )
    assert done.returncode == 69, done.stderr
    assert done.stderr.count("\n") == 1
    return done.stderr


def on_disk(mounting: Mounting, disk: Path) -> Mounted:
    """Over the root of a file system."""
    mounted = mounting.prepare(over=True)
    mounted.source = mounted.mountpoint = disk
    return mounted


def system_of(disk: Path) -> str:
    """UUID of an ext4."""
    found = subprocess.run(
        ["blkid", "-o", "value", "-s", "UUID", disk.with_suffix(".image")],
        capture_output=True,
        text=True,
        check=True,
    )
    return found.stdout.strip()


def test_a_disk_that_is_not_mounted(mounting: Mounting, tmp_path: Path) -> None:
    """Its mount point is an empty directory of another file system."""
    with ext4(tmp_path / "disk") as disk:
        mounted = on_disk(mounting, disk)
        mounted.mount()
        (mounted.mountpoint / "file").write_text("text")
        mounted.umount()
        subprocess.run(["umount", disk], check=True)
        said = refusal(mounted)
        assert f"{disk} has no .mirrorfs/volume: is its file system mounted? " in said
        assert f"expected file system {system_of(disk)}, root " in said
        assert ", found file system " in said
        assert os.listdir(disk) == []
        subprocess.run(["mount", "-o", "loop", disk.with_suffix(".image"), disk], check=True)
        mounted.mount()
        assert (mounted.mountpoint / "file").read_text() == "text"
        mounted.umount()


def test_a_source_on_another_disk(
    mounting: Mounting, replicating: Replicating, tmp_path: Path
) -> None:
    """Restored from a backup, with what names its volume: its journal is refused, by name of both;
    with a new one the site becomes equal."""
    with ext4(tmp_path / "disk") as disk, ext4(tmp_path / "other") as other:
        mounted = on_disk(mounting, disk)
        mounted.mount()
        (mounted.mountpoint / "d").mkdir()
        (mounted.mountpoint / "d" / "file").write_text("text")
        replication = replicating(mounted.journal, "site")
        replication.settle()
        mounted.umount()
        replication.stop()
        (disk / "lost+found").rmdir()
        (other / "lost+found").rmdir()
        subprocess.run(["cp", "-a", f"{disk}/.", other], check=True)
        mounted.source = mounted.mountpoint = other
        said = refusal(mounted)
        assert "it is another file system: expected file system " in said
        assert f"expected file system {system_of(disk)}, root " in said
        assert f"found file system {system_of(other)}, root " in said
        assert "use a new journal" in said
        mounted.journal = tmp_path / "new"
        mounted.mount()
        (mounted.mountpoint / "d" / "new").write_text("text")
        again = replicating.to(mounted.journal, replication.sites)
        again.settle()
        mounted.umount()
        again.stop()
        assert differences(snapshot(other), snapshot(again.sites["site"])) == []


def test_a_disk_that_dies_below_the_mount(
    mounting: Mounting, replicating: Replicating, tmp_path: Path
) -> None:
    """Jobs get its errors, mirrorfs lives, and nothing is removed from the site."""
    with ext4(tmp_path / "disk") as disk:
        mounted = on_disk(mounting, disk)
        mounted.mount()
        for number in range(20):
            directory = mounted.mountpoint / f"d{number}"
            directory.mkdir()
            (directory / "file").write_text("text")
        os.sync()
        replication = replicating(mounted.journal, "site")
        replication.settle()
        site = replication.sites["site"]
        before = sorted(path.name for path in site.rglob("*") if ".mirrorfs" not in path.parts)
        shut_down_beneath(mounted)
        for number in range(20):
            with contextlib.suppress(OSError):
                (mounted.mountpoint / f"d{number}" / "file").write_text("changed")
            with contextlib.suppress(OSError):
                (mounted.mountpoint / f"d{number}" / "file").unlink()
        assert run("status", mounted.journal).returncode < 2
        told = mounted.look()
        assert told.restarts == 0
        with ControlClient(str(mounted.journal)) as client:
            client.reconcile(b"", whole=True, reason="while the disk is dead")
        replication.expect(
            lambda: (
                bool(replication.report("site").state.held)
                or replication.report("site").phase in ("backing off", "halted")
            ),
            "it does not notice",
        )
        after = sorted(path.name for path in site.rglob("*") if ".mirrorfs" not in path.parts)
        assert after == before
        replication.kill()
        run("umount", "-l", mounted.mountpoint)
        mounted.wait()


def shut_down_beneath(mounted: Mounted) -> None:
    """The disk of a source that a mount covers."""
    with ControlClient(str(mounted.journal)) as client:
        _, root = client.root()
    try:
        shut_down(Path(f"/proc/self/fd/{root}"))
    finally:
        os.close(root)


def test_a_disk_that_is_unmounted_beneath(mounting: Mounting, tmp_path: Path) -> None:
    """Lazily: mirrorfs has its root, and jobs notice nothing."""
    with ext4(tmp_path / "disk") as disk:
        mounted = mounting.prepare()
        mounted.source = disk
        mounted.mount()
        (mounted.mountpoint / "file").write_text("text")
        subprocess.run(["umount", "-l", disk], check=True)
        (mounted.mountpoint / "more").write_text("text")
        assert sorted(os.listdir(mounted.mountpoint)) == ["file", "lost+found", "more"]
        mounted.umount()
        subprocess.run(["mount", "-o", "loop", disk.with_suffix(".image"), disk], check=True)
        assert (disk / "more").read_text() == "text"
        mounted.mount()
        mounted.umount()
    found = [record.body for record in mounted.records() if isinstance(record.body, Reconcile)]
    assert {body.reason for body in found} == {lookback.RESTARTED}
    assert not any(body.whole for body in found), "the last directories to be changed, no more"


def test_a_detached_mount_with_a_writer(mounting: Mounting, replicating: Replicating) -> None:
    """What he writes until his last close is recorded; who mounts meanwhile is told who he is."""
    mounted = mounting(over=True)
    replication = replicating(mounted.journal, "site")
    with (mounted.mountpoint / "file").open("w") as stream:
        stream.write("before\n")
        stream.flush()
        os.mkdir(mounted.mountpoint / "d")
        assert run("umount", "-l", mounted.mountpoint).returncode == 0
        assert mountinfo.mounted_at(str(mounted.mountpoint)) is None
        stream.write("after\n")
        stream.flush()
        impatient = "from mirrorfs import predecessor; predecessor._PATIENCE_SECONDS = 0.2"
        said = refusal(mounted, impatient)
        name = Path("/proc/self/comm").read_text().strip()
        assert "the mount before this one was detached and still serves its last users" in said
        assert f"used by {os.getpid()} ({name})" in said
        stream.write("the last\n")
    mounted.wait()
    assert mounted.records()[-1].kind is Kind.UNMOUNT
    mounted.mount()
    replication.settle()
    mounted.umount()
    replication.stop()
    site = replication.sites["site"]
    assert (site / "file").read_text() == "before\nafter\nthe last\n"
    assert differences(snapshot(mounted.source), snapshot(site)) == []
    assert not [record for record in mounted.records() if record.kind is Kind.RECONCILE]
