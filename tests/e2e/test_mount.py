"""Life cycle of real mounts: what is refused and how, starting, ending, crashing, degrading."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirrorfs import mountinfo
from mirrorfs.journal.control_client import ControlClient, NotRunningError
from mirrorfs.journal.reader import JournalReader
from mirrorfs.journal.record import (
    Change,
    Checkpoint,
    Kind,
    Mount,
    Reconcile,
    Record,
    SequenceNumber,
)
from tests.support.mounts import MIRRORFS, ROOT, Mounting, mounting, run

__all__ = ["mounting"]

pytestmark = pytest.mark.fuse


def kinds(records: list[Record]) -> list[str]:
    return [record.kind.label for record in records]


# Mounting and unmounting


@pytest.mark.parametrize("over", [False, True])
def test_mount_work_unmount(mounting: Mounting, over: bool) -> None:
    mounted = mounting(over=over)
    (mounted.mountpoint / "directory").mkdir()
    (mounted.mountpoint / "directory" / "file").write_text("text")
    mounted.umount()
    mounted.wait()
    assert (mounted.source / "directory" / "file").read_text() == "text"
    records = mounted.records()
    assert kinds(records) == ["mount", "mkdir", "create", "write", "unmount"]
    first = records[0].body
    assert isinstance(first, Mount)
    assert (first.clean, first.mountpoint) == (True, os.fsencode(mounted.mountpoint))
    assert not (mounted.journal / "control").exists()


def test_the_reserved_name_is_hidden(mounting: Mounting) -> None:
    mounted = mounting()
    assert os.listdir(mounted.mountpoint) == []
    assert os.listdir(mounted.source) == [".mirrorfs"]
    assert sorted(os.listdir(mounted.source / ".mirrorfs")) == ["activity", "spare", "volume"]


def test_an_incarnation_after_a_clean_one(mounting: Mounting) -> None:
    mounted = mounting()
    mounted.umount()
    mounted.mount()
    mounted.umount()
    records = mounted.records()
    assert kinds(records) == ["mount", "unmount"] * 2
    with JournalReader(str(mounted.journal)) as reader:
        assert reader.tag_of(SequenceNumber(2)) != reader.tag_of(SequenceNumber(3))


def test_foreground_ends_cleanly_at_a_signal(mounting: Mounting) -> None:
    mounted = mounting.prepare()
    options = f"journal={mounted.journal}"
    process = subprocess.Popen(
        [*MIRRORFS, "mount", "-f", mounted.source, mounted.mountpoint, "-o", options],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stderr is not None
    try:
        assert "mounted over" in process.stderr.readline()
        (mounted.mountpoint / "file").write_text("text")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert "unmounted" in process.stderr.read()
    finally:
        process.kill()
        process.stderr.close()
        process.wait()
    assert kinds(mounted.records()) == ["mount", "create", "write", "unmount"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_unmounts(mounting: Mounting, number: signal.Signals) -> None:
    mounted = mounting()
    os.kill(mounted.pid, number)
    mounted.wait()
    assert mountinfo.mounted_at(str(mounted.mountpoint)) is None
    assert kinds(mounted.records()) == ["mount", "unmount"]


def test_a_signal_while_in_use_waits_for_the_last_user(mounting: Mounting) -> None:
    mounted = mounting()
    with (mounted.mountpoint / "file").open("w") as stream:
        os.kill(mounted.pid, signal.SIGTERM)
        with ControlClient(str(mounted.journal)) as client:
            while mountinfo.mounted_at(str(mounted.mountpoint)) is not None:
                client.status()
        stream.write("the last words")
    mounted.wait()
    assert kinds(mounted.records()) == ["mount", "create", "write", "unmount"]
    assert (mounted.source / "file").read_text() == "the last words"


def test_umount_refuses_a_busy_mount(mounting: Mounting) -> None:
    mounted = mounting()
    with (mounted.mountpoint / "file").open("w") as stream:
        done = run("umount", mounted.mountpoint)
        assert done.returncode == 69
        assert done.stderr.count("\n") == 1
        assert "in use" in done.stderr
        stream.write("goes on")
    mounted.umount()
    assert kinds(mounted.records())[-1] == "unmount"


def test_lazy_umount_of_a_busy_mount(mounting: Mounting) -> None:
    mounted = mounting()
    with (mounted.mountpoint / "file").open("w") as stream:
        assert run("umount", "-l", mounted.mountpoint).returncode == 0
        assert mountinfo.mounted_at(str(mounted.mountpoint)) is None
        stream.write("recorded all the same")
    mounted.wait()
    last, end = mounted.records()[-2:]
    assert isinstance(last.body, Change)
    assert (last.kind, last.body.size, end.kind) == (Kind.WRITE, 21, Kind.UNMOUNT)


def test_kernel_options(mounting: Mounting) -> None:
    mounted = mounting("ro", "nosuid", "x-systemd.automount", "defaults")
    with pytest.raises(OSError, match="Read-only") as raised:
        (mounted.mountpoint / "file").touch()
    assert raised.value.errno == errno.EROFS
    line = next(
        line
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if f" {mounted.mountpoint} " in line
    )
    flags = line.split(" ")[5].split(",")
    assert "nosuid" in flags
    assert "nodev" not in flags
    assert f" fuse.mirrorfs {mounted.source} " in line


def test_it_allows_no_more_than_the_mount_of_the_source(
    mounting: Mounting, small_disk: Path
) -> None:
    subprocess.run(["mount", "-o", "remount,nosuid,nodev,noexec", small_disk], check=True)
    mounted = mounting.prepare()
    mounted.source = small_disk / "source"
    mounted.source.mkdir()
    mounted.mount()
    entry = next(
        line
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if f" {mounted.mountpoint} " in line
    )
    assert {"nosuid", "nodev", "noexec"} <= set(entry.split(" ")[5].split(","))
    mounted.umount()


def test_the_daemon_holds_nothing_of_its_caller(mounting: Mounting, tmp_path: Path) -> None:
    """A lock held by the script that mounts is free once the script has ended."""
    mounted = mounting.prepare()
    command = [*MIRRORFS, "mount", str(mounted.source), str(mounted.mountpoint)]
    script = f'exec 9>{tmp_path}/lock && flock 9 && "$@"'
    options = f"journal={mounted.journal}"
    done = subprocess.run(
        ["sh", "-c", script, "sh", *command, "-o", options], cwd=ROOT, check=False
    )
    try:
        assert done.returncode == 0
        subprocess.run(["flock", "-n", tmp_path / "lock", "true"], check=True)
    finally:
        mounted.umount()


def test_a_source_with_a_comma_and_a_newline(mounting: Mounting) -> None:
    mounted = mounting(name="a,b=\\c\nd")
    (mounted.mountpoint / "file").touch()
    mounted.umount()
    assert kinds(mounted.records()) == ["mount", "create", "write", "unmount"]


# Crashes


def test_a_dead_mount_is_named_and_removed(mounting: Mounting) -> None:
    mounted = mounting()
    mounted.die()
    assert run("status", mounted.mountpoint).returncode == 66
    done = run("umount", mounted.mountpoint)
    assert (done.returncode, done.stderr) == (0, "")
    assert "dead mount removed" in done.stdout
    mounted.mount()


def test_after_a_kill_what_was_being_changed_is_reconciled(mounting: Mounting) -> None:
    mounted = mounting()
    (mounted.mountpoint / "file").touch()
    mounted.kill()
    assert run("status", mounted.journal).returncode == 2
    mounted.mount()
    mounted.umount()
    records = mounted.records()
    compared = ("reconcile", "attributes")
    assert kinds(records) == ["mount", "create", "write", "mount", *compared, "unmount"]
    again, reconcile = records[3].body, records[4].body
    assert isinstance(again, Mount)
    assert not again.clean
    with JournalReader(str(mounted.journal)) as reader:
        root = reader.header.source.root
    assert reconcile == Reconcile(root, False, b"", "mirrorfs stopped without unmounting")


def test_without_an_activity_log_the_tree_is_reconciled(mounting: Mounting) -> None:
    mounted = mounting()
    mounted.kill()
    (mounted.journal / "activity").unlink()
    mounted.mount()
    mounted.umount()
    reconcile = mounted.records()[-3]
    assert isinstance(reconcile.body, Reconcile)
    assert (reconcile.body.path, reconcile.body.whole) == (b"", True)


def test_a_torn_tail_is_repaired_at_the_next_mount(mounting: Mounting) -> None:
    mounted = mounting()
    mounted.kill()
    (segment,) = mounted.journal.glob("*.seg")
    with segment.open("ab") as stream:
        stream.write(b"half a record")
    assert "13 bytes after the last record" in run("journal", "verify", mounted.journal).stdout
    mounted.mount()
    (copy,) = (mounted.journal / "torn").iterdir()
    assert copy.read_bytes() == b"half a record"
    assert "torn tail" in (mounted.journal / "mirrorfs.log").read_text()


# Degraded


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB for the journal."""
    disk = tmp_path / "small"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "mirrorfs-test", disk], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_journal_disk_fails_no_job_and_is_covered(
    mounting: Mounting, small_disk: Path
) -> None:
    mounted = mounting.prepare()
    mounted.journal = small_disk / "journal"
    mounted.mount()
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(bytes(4096))
    for number in range(100):
        (mounted.mountpoint / f"file{number}").write_text("text")
    assert (mounted.source / ".mirrorfs" / "degraded").exists()
    assert run("status", mounted.mountpoint).returncode == 1
    filler.unlink()
    with JournalReader(str(mounted.journal)) as reader:
        head = reader.head()
        while not [r for r in read_all(reader) if r.kind is Kind.RECONCILE]:
            assert select.select([reader.wake_fd], [], [], 60)[0]
            reader.drain_wake()
            reader.seek(head)
    (mounted.mountpoint / "after").touch()
    mounted.umount()
    assert not (mounted.source / ".mirrorfs" / "degraded").exists()
    records = mounted.records()
    covered = kinds(records).index("reconcile")
    assert kinds(records)[covered:] == ["reconcile", "create", "write", "unmount"]
    body = records[covered].body
    assert isinstance(body, Reconcile)
    assert (body.path, body.whole) == (b"", False)
    assert "No space left" in body.reason


def read_all(reader: JournalReader) -> list[Record]:
    return [record for batch in reader.read() for record in batch]


def test_a_kill_while_degraded_is_known_from_the_source_alone(
    mounting: Mounting, small_disk: Path
) -> None:
    mounted = mounting()
    mounted.umount()
    (mounted.source / ".mirrorfs" / "degraded").write_text("as a killed mirrorfs left it")
    mounted.mount()
    assert kinds(mounted.records()) == ["mount", "unmount", "mount", "reconcile"]
    assert not (mounted.source / ".mirrorfs" / "degraded").exists()


# The control socket


def test_control(mounting: Mounting) -> None:
    mounted = mounting()
    (mounted.mountpoint / "a" / "b").mkdir(parents=True)
    (mounted.mountpoint / "link").symlink_to("a")
    assert (mounted.journal / "control").stat().st_mode & 0o777 == 0o600
    with ControlClient(str(mounted.journal)) as client:
        header, root = client.root()
        try:
            assert os.path.samestat(os.fstat(root), mounted.source.stat())
            assert sorted(os.listdir(root)) == [".mirrorfs", "a", "link"]
        finally:
            os.close(root)
        with JournalReader(str(mounted.journal)) as reader:
            assert header == reader.header
        checkpoint = client.checkpoint("cycle 00")
        reconcile = client.reconcile(b"a/b", whole=False, reason="by hand")
        for path in (b"missing", b"../x", b"a/./b", b".mirrorfs", b"link/b"):
            with pytest.raises(Exception, match=r"No such|Invalid|Not a directory"):
                client.reconcile(path, whole=True, reason="")
        status = client.status()
        assert status.head == reconcile == checkpoint + 1
        assert status.degraded is None
        assert status.mountpoint == os.fsencode(mounted.mountpoint)
    records = mounted.records()
    assert records[checkpoint - 1].body == Checkpoint("cycle 00")
    made = next(r.body for r in records if r.kind is Kind.MKDIR and r.body.path == b"a/b")  # type: ignore[union-attr]
    assert records[reconcile - 1].body == Reconcile(made.object, False, b"a/b", "by hand")  # type: ignore[union-attr]


def test_control_deep_below(mounting: Mounting, tmp_path: Path) -> None:
    """A journal directory whose socket path is longer than a socket address may be."""
    mounted = mounting.prepare()
    mounted.journal = tmp_path / ("d" * 100) / ("e" * 100)
    mounted.mount()
    with ControlClient(str(mounted.journal)) as client:
        assert client.status().pid == mounted.pid
    mounted.umount()
    with pytest.raises(NotRunningError):
        ControlClient(str(mounted.journal))
