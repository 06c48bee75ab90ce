"""`guard=on`: what is changed behind a real mount is recorded, seen by jobs, equal at a site."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from mirrorfs.journal.control_client import ControlClient, Status
from mirrorfs.journal.record import Reconcile, Record
from tests.support import campaign
from tests.support.churn import Churn
from tests.support.mounting import MOUNTS, bindfs
from tests.support.mounts import Mounted, Mounting, mounting, run
from tests.support.replicating import Replicating, Replication, replicating, until
from tests.support.trees import differences, snapshot

__all__ = ["mounting", "replicating"]

pytestmark = pytest.mark.fuse


def reconciles(mounted: Mounted) -> list[Reconcile]:
    return [record.body for record in mounted.records() if isinstance(record.body, Reconcile)]


def same(mounted: Mounted, replication: Replication) -> None:
    replication.settle()
    expected = snapshot(mounted.source)
    for name, site in replication.sites.items():
        assert differences(expected, snapshot(site)) == [], name


def status(mounted: Mounted) -> Status:
    with ControlClient(str(mounted.journal)) as client:
        return client.status()


def base(at: Path) -> None:
    """Through the mount."""
    for path in ("kept", "moved/below", "gone", "other"):
        (at / path).mkdir(parents=True)
        for name in ("a", "b"):
            (at / path / name).write_text(f"{path} {name}")
    os.link(at / "kept" / "a", at / "other" / "linked")


def behind(at: Path, outside: Path) -> None:
    """Each kind of change."""
    (at / "kept" / "a").write_text("rewritten, and longer")
    (at / "kept" / "new").write_text("new")
    (at / "kept" / "b").chmod(0o601)
    os.chown(at / "other" / "a", 4711, 4712)
    os.setxattr(at / "other" / "b", "user.x", b"1")
    os.utime(at / "other", ns=(10**18, 10**18))
    os.link(at / "other" / "a", at / "kept" / "also")
    (at / "other" / "symlink").symlink_to("nowhere")
    (at / "moved").replace(at / "other" / "here")
    shutil.rmtree(at / "gone")
    (at / "deep" / "er").mkdir(parents=True)
    (at / "deep" / "er" / "file").write_text("deep")
    (outside / "tree" / "below").mkdir(parents=True)
    (outside / "tree" / "below" / "file").write_text("made before it came")
    (outside / "tree").replace(at / "came")
    (at / "other" / "b").replace(outside / "left")


def test_changes_behind_the_mount_reach_a_site(
    mounting: Mounting, replicating: Replicating, tmp_path: Path
) -> None:
    mounted = mounting("guard=on")
    replication = replicating(mounted.journal, "site")
    base(mounted.mountpoint)
    replication.settle()
    (tmp_path / "outside").mkdir()
    behind(mounted.source, tmp_path / "outside")
    site = replication.sites["site"]
    replication.expect((site / "came" / "below" / "file").exists, "what came is not there")
    told = status(mounted)
    assert told.guard == "on"
    assert told.foreign > 0
    mounted.umount()
    same(mounted, replication)
    found = reconciles(mounted)
    paths = {found.path for found in found}
    assert {b"kept", b"other", b"deep/er", b""} <= paths
    assert {found.path for found in found if found.whole} == {b"came", b"other/here"}
    assert all(found.path is not None for found in found)


@pytest.mark.parametrize("kind", ["ext4", "xfs", "tmpfs"])
def test_each_file_system_is_watched(mounting: Mounting, tmp_path: Path, kind: str) -> None:
    with MOUNTS[kind](tmp_path / "disk") as disk:
        mounted = mounting.prepare("guard=on")
        mounted.source = disk / "source"
        mounted.source.mkdir()
        mounted.mount()
        (mounted.mountpoint / "d").mkdir()
        (mounted.source / "d" / "f").write_text("text")
        mounted.umount()
        assert {found.path for found in reconciles(mounted)} == {b"d"}
        shutil.rmtree(mounted.source)


def test_churn_on_both_sides_of_the_mount(mounting: Mounting, replicating: Replicating) -> None:
    """Jobs and others in directories of their own; in a long campaign in the same ones, too, where
    a step may wait a minute for a writer who is none."""
    mounted = mounting("guard=on")
    replication = replicating(mounted.journal, "site")
    for place in (mounted.mountpoint / "jobs", mounted.mountpoint / "others"):
        place.mkdir()
    jobs = Churn(mounted.mountpoint / "jobs", campaign.FIRST_SEED)
    others = Churn(mounted.source / "others", campaign.FIRST_SEED + 1)
    both = Churn(mounted.source / "jobs", campaign.FIRST_SEED + 2)
    for _ in range(40):
        jobs.run(10)
        others.run(10)
    for _ in range(campaign.pick(0, 200)):
        jobs.run(5)
        both.run(5)
    mounted.umount()
    same(mounted, replication)
    assert not [found for found in reconciles(mounted) if found.path == b"" and found.whole]


def test_what_jobs_and_the_replicator_do_is_not_foreign(
    mounting: Mounting, replicating: Replicating
) -> None:
    """Nor what happens on the same disk outside the source; sites and journal are there."""
    mounted = mounting("guard=on", "noatime")
    replication = replicating(mounted.journal, "site")
    Churn(mounted.mountpoint, campaign.FIRST_SEED).run(400)
    replication.settle()
    (mounted.source.parent / "beside").write_text("text")
    (mounted.source / ".mirrorfs" / "note").write_text("an operator's")
    (mounted.source / ".mirrorfs" / "note").unlink()
    replication.stop()
    mounted.umount()
    assert reconciles(mounted) == []


def test_over_itself_others_can_pass_the_mount(mounting: Mounting, tmp_path: Path) -> None:
    """By a bind mount and by a descriptor, both from before."""
    mounted = mounting.prepare("guard=on", "force", over=True)
    (mounted.source / "d").mkdir()
    other = tmp_path / "bind"
    other.mkdir()
    subprocess.run(["mount", "--bind", mounted.source, other], check=True)
    try:
        with (mounted.source / "d" / "log").open("w") as stream:
            mounted.mount()
            stream.write("from before")
            stream.flush()
            (other / "here").write_text("by the bind mount")
            (mounted.mountpoint / "there").write_text("through the mount")
            mounted.umount()
    finally:
        subprocess.run(["umount", other], check=True)
    assert {found.path for found in reconciles(mounted)} == {b"", b"d"}


def test_jobs_see_what_is_changed_behind_the_mount(mounting: Mounting) -> None:
    """Though the kernel may keep everything for an hour."""
    mounted = mounting("guard=on")
    at, source = mounted.mountpoint, mounted.source

    def shows(what: str) -> None:
        until(lambda: (at / "f").exists() and (at / "f").read_text() == what, lambda: what)

    assert not (at / "f").exists()
    (source / "f").write_text("one")
    shows("one")
    (source / "f").write_text("two")
    shows("two")
    with (at / "f").open() as stream:
        (source / "f").chmod(0o600)
        until(lambda: os.fstat(stream.fileno()).st_mode & 0o777 == 0o600, lambda: "mode")
        os.link(source / "f", source / "g")
        until(lambda: os.fstat(stream.fileno()).st_nlink == 2, lambda: "links")
        (source / "new").write_text("another")
        (source / "new").replace(source / "f")
        shows("another")
        until(lambda: os.fstat(stream.fileno()).st_nlink == 1, lambda: "links")
    (source / "f").unlink()
    until(lambda: not (at / "f").exists(), lambda: "gone")


def test_more_than_can_be_told_has_the_tree_compared(
    mounting: Mounting, replicating: Replicating
) -> None:
    mounted = mounting("guard=on")
    replication = replicating(mounted.journal, "site")
    (mounted.mountpoint / "d").mkdir()
    os.kill(mounted.pid, signal.SIGSTOP)
    try:
        for number in range(int(Path("/proc/sys/fs/fanotify/max_queued_events").read_text())):
            os.mknod(mounted.source / "d" / f"{number}")
        shutil.rmtree(mounted.source / "d")
        (mounted.source / "last").write_text("unseen")
    finally:
        os.kill(mounted.pid, signal.SIGCONT)
    until(lambda: status(mounted).lost == 1, lambda: "not noticed")
    mounted.umount()
    whole = [found for found in reconciles(mounted) if found.whole]
    assert [found.path for found in whole] == [b""]
    assert "more at once than could be told" in whole[0].reason
    same(mounted, replication)


def test_a_directory_that_changes_all_the_time_is_recorded_once_a_second(
    mounting: Mounting,
) -> None:
    mounted = mounting("guard=on")
    (mounted.source / "log").write_text("")
    until(lambda: status(mounted).foreign > 0, lambda: "not noticed")
    begun = _records(mounted)
    with (mounted.source / "log").open("a") as stream:
        for number in range(20_000):
            stream.write(f"{number}\n")
            stream.flush()
    mounted.umount()
    made = [r for r in mounted.records()[begun:] if isinstance(r.body, Reconcile)]
    seconds = (made[-1].time_ns - made[0].time_ns) / 1e9
    assert 1 <= len(made) <= seconds + 2


def _records(mounted: Mounted) -> int:
    records: list[Record] = mounted.records()
    return len(records)


def test_what_cannot_be_watched_is_refused(mounting: Mounting) -> None:
    """A FUSE file system tells nothing that fanotify could use."""
    mounted = mounting.prepare()
    beneath = mounted.source.with_name("beneath")
    beneath.mkdir()
    with bindfs(beneath, mounted.source):
        options = f"journal={mounted.journal},guard=on"
        done = run("mount", mounted.source, mounted.mountpoint, "-o", options)
    assert done.returncode == 66, done.stderr
    assert done.stderr.count("\n") == 1
