"""Journal disks that are full, fail or hang, under load: real file systems, real jobs, real kills.

With `degrade` no job sees an error, and afterwards the site is equal although only the directories
that were touched were listed. With `block` and `readonly` nothing changes without a record.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirrorfs import lookback
from mirrorfs.journal.control_client import ControlClient, Status
from mirrorfs.journal.record import Kind, Reconcile
from mirrorfs.marks import decode
from tests.support.mounting import ext4, fill, frozen, shut_down
from tests.support.mounts import Mounted, Mounting, mounting, run
from tests.support.replicating import Replicating, Replication, replicating, until
from tests.support.trees import differences, snapshot

pytestmark = pytest.mark.fuse

__all__ = ["mounting", "replicating"]

DIRECTORIES = 400
DISK_BYTES = 16 << 20
WRITER = """
import os, sys
for number in range(int(sys.argv[2])):
    path = os.path.join(sys.argv[1], f"out{number % 7}")
    descriptor = os.open(path + ".tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for piece in range(3):
        assert os.write(descriptor, b"%d %d" % (number, piece) * 100) > 0
    os.fsync(descriptor)
    os.close(descriptor)
    os.replace(path + ".tmp", path)
    if number % 5 == 4:
        os.unlink(path)
"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 MiB for the journal."""
    with ext4(tmp_path / "disk", DISK_BYTES) as where:
        yield where


def status(mounted: Mounted) -> Status:
    with ControlClient(str(mounted.journal)) as client:
        return client.status()


def prepare(mounting: Mounting, disk: Path, *options: str) -> Mounted:
    """A mount with its journal there, of a tree with many directories."""
    mounted = mounting.prepare(*options)
    mounted.journal = disk / "journal"
    for number in range(DIRECTORIES):
        directory = mounted.source / f"group{number % 20}" / f"d{number}"
        directory.mkdir(parents=True)
        (directory / "file").write_text(f"{number}")
    mounted.mount()
    return mounted


def writing(mounted: Mounted, count: int) -> list[str | Path]:
    """A command that writes so many files, and looks at every answer."""
    return [sys.executable, "-c", WRITER, mounted.mountpoint / "group6", str(count)]


def until_degraded(mounted: Mounted) -> None:
    """Change something until the disk is noticed to be full."""
    at = mounted.mountpoint / "group1" / "d1"

    def noticed() -> bool:
        with contextlib.suppress(OSError):
            (at / "probe").mkdir()
            (at / "probe").rmdir()
        return status(mounted).degraded is not None

    until(noticed, lambda: "the full disk is not noticed")


def until_recording(mounted: Mounted) -> None:
    until(lambda: status(mounted).degraded is None, lambda: f"still {status(mounted)}")


def reconciled(mounted: Mounted, start: int = 0) -> list[Reconcile]:
    bodies = [record.body for record in mounted.records()[start:]]
    return [body for body in bodies if isinstance(body, Reconcile)]


def by_reason(found: list[Reconcile]) -> tuple[list[Reconcile], list[Reconcile]]:
    """What the unclean end needs, and what was marked."""
    active = [body for body in found if body.reason == lookback.UNCLEAN]
    return active, [body for body in found if body.reason != lookback.UNCLEAN]


def work(top: Path, source_archive: Path) -> None:
    """What jobs do: each return code and each answer is looked at."""
    git = ("git", "-c", "user.name=test", "-c", "user.email=test@localhost", "-C", top / "git")
    (top / "git").mkdir()
    commands: tuple[tuple[str | Path, ...], ...] = (
        ("tar", "-x", "-f", source_archive, "-C", top),
        (*git, "init", "--quiet"),
        ("cp", "-a", top / "packed", top / "git" / "packed"),
        (*git, "add", "."),
        (*git, "commit", "--quiet", "-m", "all"),
        (*git, "gc", "--quiet", "--prune=now"),
        (*git, "fsck", "--full", "--strict"),
        (sys.executable, "-c", WRITER, top, "60"),
        ("rm", "-r", top / "packed" / "b"),
        ("mv", top / "packed" / "c", top / "git" / "moved"),
        ("mv", top / "group3" / "d3", top / "group5" / "moved here"),
        ("ln", top / "group7" / "d7" / "file", top / "group8" / "linked"),
        ("chmod", "700", top / "group9" / "d9"),
        ("setfattr", "-n", "user.a", "-v", "1", top / "group10" / "d10" / "file"),
    )
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), command
    with (top / "group8" / "linked").open("a") as stream:
        stream.write("more, by the other name")
    (top / "group8" / "linked").unlink()


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A tar archive of some directories."""
    tree = tmp_path / "packed"
    for name in ("a/deep/er", "b/1", "b/2", "c/x/y"):
        (tree / name).mkdir(parents=True)
        for number in range(5):
            (tree / name / f"f{number}").write_text(f"{name} {number}\n" * 50)
    path = tmp_path / "packed.tar"
    subprocess.run(["tar", "-c", "-f", path, "-C", tmp_path, "packed"], check=True)
    return path


def listed(replication: Replication) -> int:
    return replication.report("site").counters["directories_listed"]


def assert_equal(mounted: Mounted, replication: Replication) -> None:
    """The site has all there is now."""
    replication.settle()
    replication.stop()
    assert differences(snapshot(mounted.source), snapshot(replication.sites["site"])) == []


# degrade


def test_jobs_go_on_over_a_full_disk_and_only_what_they_touched_is_listed(
    mounting: Mounting, replicating: Replicating, disk: Path, archive: Path
) -> None:
    mounted = prepare(mounting, disk)
    replication = replicating(mounted.journal, "site")
    replication.settle()
    replication.stop()
    replication.start()
    replication.wait_for_reports()
    before = listed(replication)
    filler = fill(disk)
    until_degraded(mounted)
    work(mounted.mountpoint, archive)
    told = status(mounted)
    assert told.marks > 5
    assert not told.everything
    done = run("status", mounted.mountpoint)
    assert done.returncode == 1
    assert f"{told.marks} directories marked to be compared" in done.stdout
    assert "No space left on device: changes go on without records" in done.stdout
    noted = decode((mounted.source / ".mirrorfs" / "degraded").read_bytes())
    assert noted is not None
    marked = {mark.directory for mark in noted.marks}
    assert len(marked) == told.marks
    start = len(mounted.records())
    filler.unlink()
    until_recording(mounted)
    found = reconciled(mounted, start)
    assert {body.directory for body in found} >= marked
    assert len(found) == told.marks
    assert not (mounted.source / ".mirrorfs" / "degraded").exists()
    (mounted.mountpoint / "group2" / "after").write_text("with a record")
    replication.settle()
    replication.expect(lambda: listed(replication) > before, "nothing was listed")
    made = sum(1 for _, directories, _ in os.walk(mounted.mountpoint / "git") for _ in directories)
    assert listed(replication) - before < 2 * (told.marks + made) < 2 * DIRECTORIES
    assert_equal(mounted, replication)
    assert run("status", mounted.mountpoint).returncode == 0


def test_a_kill_while_degraded(
    mounting: Mounting, replicating: Replicating, disk: Path, archive: Path
) -> None:
    """The disk stays full: the marks are read, and their reconciles have room."""
    mounted = prepare(mounting, disk)
    replication = replicating(mounted.journal, "site")
    replication.settle()
    filler = fill(disk)
    until_degraded(mounted)
    work(mounted.mountpoint, archive)
    mounted.kill()
    noted = decode((mounted.source / ".mirrorfs" / "degraded").read_bytes())
    assert noted is not None
    start = len(mounted.records())
    mounted.mount()
    records = mounted.records()[start:]
    assert [record.kind for record in records[:2]] == [Kind.MOUNT, Kind.RECONCILE]
    active, marks = by_reason(reconciled(mounted, start))
    assert active, "what the unclean end needs"
    assert not any(body.whole and body.path == b"" for body in active)
    assert [(body.directory, body.whole) for body in marks] == [
        (mark.directory, mark.whole) for mark in noted.marks
    ]
    assert not (mounted.source / ".mirrorfs" / "degraded").exists()
    assert status(mounted).degraded is not None, "the disk is still full"
    (mounted.mountpoint / "group3" / "again").write_text("without a record")
    mounted.kill()
    start = len(mounted.records())
    mounted.mount()
    active, marks = by_reason(reconciled(mounted, start))
    assert not any(body.whole and body.path == b"" for body in active), "it had an activity log"
    assert b"group3" in [body.path for body in marks]
    filler.unlink()
    until_recording(mounted)
    assert_equal(mounted, replication)


def test_an_unmount_over_a_full_disk_is_clean(mounting: Mounting, disk: Path) -> None:
    mounted = prepare(mounting, disk)
    filler = fill(disk)
    until_degraded(mounted)
    (mounted.mountpoint / "group4" / "new").mkdir()
    mounted.umount()
    kinds = [record.kind for record in mounted.records()]
    assert kinds[-1] is Kind.UNMOUNT
    assert not (mounted.source / ".mirrorfs" / "degraded").exists()
    at = (mounted.source / "group4").stat()
    start = len(kinds)
    mounted.mount()
    assert [record.kind for record in mounted.records()[start:]] == [Kind.MOUNT]
    assert stat.S_ISDIR(at.st_mode)
    assert status(mounted).degraded is not None
    filler.unlink()
    until_recording(mounted)
    mounted.umount()
    assert not any(body.whole and not body.path for body in reconciled(mounted))


@pytest.mark.parametrize("how", ["EIO", "read-only"])
def test_a_disk_that_dies(
    mounting: Mounting, replicating: Replicating, tmp_path: Path, archive: Path, how: str
) -> None:
    with ext4(tmp_path / "disk", DISK_BYTES) as disk:
        mounted = prepare(mounting, disk)
        replication = replicating(mounted.journal, "site")
        replication.settle()
        replication.stop()
        if how == "EIO":
            shut_down(disk)
        else:
            subprocess.run(["mount", "-o", "remount,abort", disk], check=False)
        until_degraded(mounted)
        work(mounted.mountpoint, archive)
        noted = decode((mounted.source / ".mirrorfs" / "degraded").read_bytes())
        assert noted is not None
        assert run("status", mounted.mountpoint).returncode == 1
        mounted.kill()
        subprocess.run(["umount", "-l", disk], check=True)
        image = disk.with_suffix(".image")
        subprocess.run(["fsck.ext4", "-y", image], capture_output=True, check=False)
        subprocess.run(["mount", "-o", "loop", image, disk], check=True)
        mounted.mount()
        _, *marks = reconciled(mounted)
        assert {body.directory for body in marks} == {mark.directory for mark in noted.marks}
        replication.start()
        assert_equal(mounted, replication)
        mounted.clean_up()


def test_a_disk_that_hangs_holds_the_mount_and_nothing_is_lost(
    mounting: Mounting, replicating: Replicating, disk: Path
) -> None:
    mounted = prepare(mounting, disk)
    replication = replicating(mounted.journal, "site")
    replication.settle()
    command = writing(mounted, 20)
    with frozen(disk):
        writer = subprocess.Popen(command)
        stack = Path(f"/proc/{mounted.pid}/stack")
        until(lambda: "percpu_rwsem" in stack.read_text() or "wait" in stack.read_text(), str)
        assert writer.poll() is None
    assert writer.wait(60) == 0
    assert status(mounted).degraded is None
    assert reconciled(mounted) == []
    assert_equal(mounted, replication)


# block, readonly


def changes(top: Path) -> Iterator[tuple[str, ...]]:
    """Commands that each change something."""
    file, new = str(top / "group1" / "d1" / "file"), str(top / "group1" / "new")
    yield ("touch", file)
    yield ("touch", new)
    yield ("mkdir", new)
    yield ("rm", "-f", file)
    yield ("mv", file, new)
    yield ("ln", file, new)
    yield ("ln", "-s", "x", new)
    yield ("mkfifo", new)
    yield ("rmdir", str(top / "group1" / "empty"))
    yield ("truncate", "-s", "1", file)
    yield ("chmod", "600", file)
    yield ("setfattr", "-n", "user.a", "-v", "1", file)
    yield ("sh", "-c", f"echo more >> {file}")
    yield ("sh", "-c", f"echo other > {file}")


def test_readonly_refuses_all_changes_before_they_are_made(
    mounting: Mounting, replicating: Replicating, disk: Path
) -> None:
    mounted = prepare(mounting, disk, "journal-full=readonly")
    replication = replicating(mounted.journal, "site")
    replication.wait_for_reports()  # a full journal takes no new site
    (mounted.mountpoint / "group1" / "empty").mkdir()
    with (mounted.mountpoint / "group1" / "open").open("wb", buffering=0) as stream:
        stream.write(b"before")
        filler = fill(disk)
        until_degraded(mounted)
        before = snapshot(mounted.source)
        for command in changes(mounted.mountpoint):
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode != 0, command
            assert "Read-only file system" in done.stderr, command
        for call in (lambda: stream.write(b"more"), lambda: os.ftruncate(stream.fileno(), 0)):
            with pytest.raises(OSError, match="Read-only") as caught:
                call()
            assert caught.value.errno == errno.EROFS
        assert differences(before, snapshot(mounted.source)) == []
        assert (mounted.mountpoint / "group1" / "d1" / "file").read_text() == "1"
    assert not (mounted.source / ".mirrorfs" / "degraded").exists()
    assert "changes are refused" in run("status", mounted.mountpoint).stdout
    filler.unlink()
    until_recording(mounted)
    (mounted.mountpoint / "group1" / "after").touch()
    assert reconciled(mounted) == [], "the reserve had room for what had been changed"
    assert_equal(mounted, replication)


def waiting(process: subprocess.Popen[bytes]) -> bool:
    """It waits for an answer of the mount."""
    assert process.poll() is None, "it does not wait"
    return "fuse" in Path(f"/proc/{process.pid}/stack").read_text()


def test_block_holds_changes_and_nothing_else(
    mounting: Mounting, replicating: Replicating, disk: Path
) -> None:
    mounted = prepare(mounting, disk, "journal-full=block")
    replication = replicating(mounted.journal, "site")
    top = mounted.mountpoint
    (top / "group1" / "empty").mkdir()
    stream = (top / "group1" / "open").open("wb", buffering=0)
    filler = fill(disk)
    start = len(mounted.records())
    loop = subprocess.Popen(writing(mounted, 100_000), stderr=subprocess.DEVNULL)
    jobs: list[subprocess.Popen[bytes]] = []
    try:
        until(lambda: status(mounted).degraded is not None, lambda: "it is not noticed")
        until(lambda: waiting(loop), lambda: "the loop does not wait")
        before = snapshot(mounted.source)
        killed = subprocess.Popen(["mkdir", top / "group2" / "never"])
        until(lambda: waiting(killed), lambda: "mkdir does not wait")
        killed.kill()
        assert killed.wait(60) == -signal.SIGKILL
        for number in range(120):  # more than a few requests may wait
            where = top / f"group{number % 20}" / f"d{number}"
            jobs.append(subprocess.Popen(["mkdir", where / "made"]))
        until(lambda: all(map(waiting, jobs)), lambda: "mkdir does not wait")
        assert (top / "group19" / "d399" / "file").read_text() == "399", "reads go on"
        assert len(os.listdir(top / "group18")) == DIRECTORIES // 20
        assert differences(before, snapshot(mounted.source)) == [], "nothing was changed"
        assert not (mounted.source / ".mirrorfs" / "degraded").exists()
        assert "changes wait" in run("status", mounted.mountpoint).stdout
        filler.unlink()
        for job in jobs:
            assert job.wait(60) == 0
    finally:
        for process in (loop, *jobs):
            process.kill()
        filler.unlink(missing_ok=True)
        for process in (loop, *jobs):
            process.wait(60)
        stream.close()
    until_recording(mounted)
    assert reconciled(mounted, start) == []
    assert_equal(mounted, replication)


@pytest.mark.parametrize("when_full", ["block", "readonly"])
def test_a_kill_while_changes_wait_or_are_refused(
    mounting: Mounting, replicating: Replicating, disk: Path, when_full: str
) -> None:
    mounted = prepare(mounting, disk, f"journal-full={when_full}")
    replication = replicating(mounted.journal, "site")
    filler = fill(disk)
    loop = subprocess.Popen(writing(mounted, 100_000), stderr=subprocess.DEVNULL)
    until(lambda: status(mounted).degraded is not None, lambda: "it is not noticed")
    if when_full == "block":
        until(lambda: waiting(loop), lambda: "the loop does not wait")
    mounted.kill()
    assert loop.wait(60) != 0
    start = len(mounted.records())
    mounted.mount()
    active, marks = by_reason(reconciled(mounted, start))
    assert active, "what the unclean end needs"
    assert not any(body.whole and body.path == b"" for body in active)
    assert marks == []
    filler.unlink()
    until_recording(mounted)
    (mounted.mountpoint / "group1" / "after").touch()
    assert_equal(mounted, replication)


def test_told_twice_to_end_nobody_waits_any_longer(mounting: Mounting, disk: Path) -> None:
    mounted = prepare(mounting, disk, "journal-full=block")
    filler = fill(disk)
    loop = subprocess.Popen(writing(mounted, 100_000), stderr=subprocess.DEVNULL)
    until(lambda: status(mounted).degraded is not None, lambda: "it is not noticed")
    until(lambda: waiting(loop), lambda: "it does not wait")
    log = mounted.journal / "mirrorfs.log"
    os.kill(mounted.pid, signal.SIGTERM)
    until(lambda: "detached" in log.read_text(), lambda: "it does not detach")
    os.kill(mounted.pid, signal.SIGTERM)
    mounted.wait()
    assert loop.wait(60) != 0
    assert mounted.records()[-1].kind is Kind.UNMOUNT
    filler.unlink()
