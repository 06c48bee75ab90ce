"""The process beside the engine: it starts one that died again, and ends with one that ended."""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mirrorfs import mountinfo
from mirrorfs.journal.record import Kind, Reconcile
from mirrorfs.session import version
from tests.support.hammering import hammered
from tests.support.mounts import MIRRORFS, ROOT, Mounted, Mounting, mounting, run
from tests.support.replicating import Replicating, replicating
from tests.support.trees import differences, snapshot

__all__ = ["mounting", "replicating"]

pytestmark = pytest.mark.fuse

DEAD = (errno.ENOTCONN, errno.ECONNABORTED)


def mount_with(pauses: str, mounted: Mounted) -> None:
    """With other pauses before an engine is started again."""
    options = ",".join((f"journal={mounted.journal}", *mounted.options))
    code = (
        f"from mirrorfs import restarts; restarts.PAUSES_SECONDS = ({pauses});"
        " from mirrorfs.cli import main; main()"
    )
    arguments = ("mount", mounted.source, mounted.mountpoint, "-o", options)
    subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, check=True, timeout=60)
    mounted.look()


def log(mounted: Mounted) -> str:
    return (mounted.journal / "mirrorfs.log").read_text()


@contextmanager
def busy(directory: Path) -> Iterator[list[int]]:
    """Somebody makes, writes, renames and removes files in it; errors of a dead mount are his."""
    ended = threading.Event()
    done: list[int] = []
    failed: list[OSError] = []

    def work() -> None:
        number = 0
        while not ended.is_set():
            number += 1
            try:
                name = directory / f"{number % 50}"
                name.write_text("text" * number)
                if number % 3 == 0:
                    name.rename(directory / f"{number % 50}-moved")
                if number % 7 == 0:
                    (directory / f"{number % 50}-moved").unlink(missing_ok=True)
                done.append(number)
            except OSError as error:
                if error.errno not in DEAD:
                    failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield done
    finally:
        ended.set()
        thread.join()
    assert not failed


def test_an_engine_that_dies_is_started_again(mounting: Mounting) -> None:
    mounted = mounting(over=True)
    assert run("status", mounted.mountpoint).returncode == 0
    (mounted.mountpoint / "before").write_text("text")
    os.kill(mounted.pid, signal.SIGKILL)
    told = mounted.wait_for_another()
    assert (mounted.mountpoint / "before").read_text() == "text"
    (mounted.mountpoint / "after").write_text("text")
    assert (told.restarts, told.restart_reason) == (1, "the engine was killed by SIGKILL")
    status = run("status", mounted.mountpoint)
    assert status.returncode == 1
    assert f"started again by process {told.supervisor}: once, last 20" in status.stdout
    value = json.loads(run("status", "--json", mounted.mountpoint).stdout)
    assert (value["restarts"], value["supervisor"]) == (1, told.supervisor)
    assert "the engine was killed by SIGKILL; it is started again in 0 s" in log(mounted)
    mounted.umount()
    mounted.wait()
    assert mountinfo.mounted_at(str(mounted.mountpoint)) is None
    assert [r.kind for r in mounted.records() if r.kind in (Kind.MOUNT, Kind.UNMOUNT)] == [
        *(Kind.MOUNT, Kind.MOUNT, Kind.UNMOUNT)
    ]


def test_kills_under_load_lose_nothing_and_compare_little(
    mounting: Mounting, replicating: Replicating
) -> None:
    """Only directories that were being changed are compared."""
    mounted = mounting.prepare(over=True)
    mount_with("0.0, " * 9, mounted)
    for name in ("quiet", "busy"):
        (mounted.mountpoint / name / "below").mkdir(parents=True)
    replication = replicating(mounted.journal, "site")
    replication.settle()
    with busy(mounted.mountpoint / "busy") as done:
        for _ in range(4):
            reached = len(done) + 20
            while len(done) < reached:
                select.select([], [], [], 0.01)
            os.kill(mounted.pid, signal.SIGKILL)
            mounted.wait_for_another()
    mounted.umount()
    replication.stop()
    assert differences(snapshot(mounted.source), snapshot(replication.sites["site"])) == []
    bodies = [record.body for record in mounted.records()]
    compared = {body.path for body in bodies if isinstance(body, Reconcile) and body.path}
    assert compared <= {b"busy", b"quiet", b"busy/below", b"quiet/below"}
    assert not any(isinstance(body, Reconcile) and body.whole and not body.path for body in bodies)


def test_the_raw_tree_does_not_show_meanwhile(mounting: Mounting) -> None:
    """Who looks gets the mount's answers; errors only if he asked the engine that died."""
    mounted = mounting.prepare(over=True)
    device = mounted.source.stat().st_dev
    mount_with("0.0, " * 9, mounted)
    with hammered(mounted.mountpoint, device) as told:
        for _ in range(5):
            os.kill(mounted.pid, signal.SIGKILL)
            mounted.wait_for_another()
            assert os.listdir(mounted.mountpoint) == []
    assert told["raw"] == 0
    assert told["answers"]
    assert isinstance(told["errors"], dict)
    assert set(told["errors"]) <= set(map(os.strerror, DEAD))
    mounted.umount()


def test_a_replicator_that_starts_while_no_engine_runs(
    mounting: Mounting, replicating: Replicating
) -> None:
    """The source's path leads into the mount, which waits for its engine; so does he."""
    mounted = mounting.prepare(over=True)
    mount_with("2.0,", mounted)
    (mounted.mountpoint / "file").write_text("text")
    os.kill(mounted.pid, signal.SIGKILL)
    while "started again in 2 s" not in log(mounted):
        select.select([], [], [], 0.02)
    replication = replicating(mounted.journal, "site")
    replication.settle()
    assert (replication.sites["site"] / "file").read_text() == "text"
    mounted.look()


def test_sigterm_to_it_drains(mounting: Mounting) -> None:
    mounted = mounting(over=True)
    (mounted.mountpoint / "d").mkdir()
    with busy(mounted.mountpoint / "d") as done:
        while len(done) < 20:
            select.select([], [], [], 0.01)
        os.kill(mounted.supervisor, signal.SIGTERM)
        mounted.wait()
    assert mountinfo.mounted_at(str(mounted.mountpoint)) is None
    assert mounted.records()[-1].kind is Kind.UNMOUNT
    mounted.mount()
    mounted.umount()
    assert not [r for r in mounted.records() if r.kind is Kind.RECONCILE]


def test_the_engine_outlives_it(mounting: Mounting) -> None:
    mounted = mounting(over=True)
    engine = os.pidfd_open(mounted.pid)
    try:
        os.kill(mounted.supervisor, signal.SIGKILL)
        select.select([mounted._pidfds[0]], [], [], 60)
        (mounted.mountpoint / "file").write_text("text")
        status = run("status", mounted.mountpoint)
        assert status.returncode == 1
        assert "NOT started again" in status.stdout
        options = f"journal={mounted.journal}"
        done = run("mount", mounted.source, mounted.mountpoint, "-o", options)
        assert (done.returncode, "mounted there already" in done.stderr) == (69, True)
        mounted.umount()
        assert select.select([engine], [], [], 0)[0]
    finally:
        os.close(engine)
    assert mounted.records()[-1].kind is Kind.UNMOUNT


def test_without_it(mounting: Mounting) -> None:
    mounted = mounting("restart=off", over=True)
    assert mounted.supervisor == 0
    assert run("status", mounted.mountpoint).returncode == 0
    os.kill(mounted.pid, signal.SIGKILL)
    mounted.wait()
    with pytest.raises(OSError, match="Transport endpoint"):
        os.listdir(mounted.mountpoint)
    mounted.mount()
    mounted.umount()


def test_it_gives_up_and_says_so(mounting: Mounting) -> None:
    """The dead mount stays: the raw tree does not show. The next mount replaces it."""
    mounted = mounting.prepare(over=True)
    mount_with("0.0, 0.0", mounted)
    for _ in range(2):
        os.kill(mounted.pid, signal.SIGKILL)
        mounted.wait_for_another()
    os.kill(mounted.pid, signal.SIGKILL)
    mounted.wait()
    assert "SIGKILL: 3 deaths within 10 minutes: given up" in log(mounted)
    with pytest.raises(OSError, match="Transport endpoint"):
        os.listdir(mounted.mountpoint)
    status = run("status", mounted.journal)
    assert status.returncode == 2
    assert "SIGKILL: 3 deaths within 10 minutes: given up" in status.stdout
    mounted.mount()
    mounted.umount()


def test_an_orderly_refusal_is_not_tried_again(mounting: Mounting) -> None:
    mounted = mounting("journal-compression=none", over=True)
    (mounted.mountpoint / "file").write_text("text")
    (segment,) = mounted.journal.glob("*.seg")
    data = bytearray(segment.read_bytes())
    data[data.index(version().encode())] ^= 1  # in the first record, which surely was synced
    segment.write_bytes(data)
    os.kill(mounted.pid, signal.SIGKILL)
    mounted.wait()
    assert "not started again: journal: " in log(mounted)
    assert "corrupt at offset" in log(mounted)
    with pytest.raises(OSError, match="Transport endpoint"):
        os.listdir(mounted.mountpoint)


def test_it_is_told_to_end_while_no_engine_runs(mounting: Mounting) -> None:
    mounted = mounting.prepare(over=True)
    mount_with("1000.0,", mounted)
    os.kill(mounted.pid, signal.SIGKILL)
    while "started again in 1000 s" not in log(mounted):
        select.select([], [], [], 0.02)
    os.kill(mounted.supervisor, signal.SIGTERM)
    mounted.wait()
    assert mountinfo.mounted_at(str(mounted.mountpoint)) is None
    mounted.mount()
    mounted.umount()


def test_what_was_unmounted_is_not_mounted_again(mounting: Mounting) -> None:
    """A detached mount whose engine is killed while it serves its last user."""
    mounted = mounting(over=True)
    file = os.open(mounted.mountpoint / "file", os.O_RDWR | os.O_CREAT)
    assert run("umount", "-l", mounted.mountpoint).returncode == 0
    os.kill(mounted.pid, signal.SIGKILL)
    mounted.wait()
    assert mountinfo.mounted_at(str(mounted.mountpoint)) is None
    assert "after its mount was taken away" in log(mounted)
    with pytest.raises(OSError, match="Transport endpoint"):
        os.close(file)


def test_what_was_remounted_stays_so(mounting: Mounting) -> None:
    mounted = mounting("nodev", over=True)
    command = ("mount", mounted.source, mounted.mountpoint, "-o", "remount,ro,noatime")
    assert run(*command).returncode == 0
    os.kill(mounted.pid, signal.SIGKILL)
    told = mounted.wait_for_another()
    entry = mountinfo.mounted_at(str(mounted.mountpoint))
    assert entry is not None
    assert {"ro", "noatime", "nodev"} <= entry.words
    assert {"ro", "noatime", "nodev"} <= set(told.kernel_options)


def test_in_the_foreground_under_a_service_manager(mounting: Mounting, tmp_path: Path) -> None:
    """The main process is the supervisor; it says READY once, and lives while engines die."""
    mounted = mounting.prepare(over=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        options = f"journal={mounted.journal}"
        process = subprocess.Popen(
            [*MIRRORFS, "mount", "-f", mounted.source, mounted.mountpoint, "-o", options],
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")},
        )
        assert process.stderr is not None
        try:
            assert manager.recv(4096).decode() == f"READY=1\nMAINPID={process.pid}\n"
            told = mounted.look()
            assert (told.supervisor, told.restarts) == (process.pid, 0)
            os.kill(mounted.pid, signal.SIGKILL)
            assert mounted.wait_for_another().supervisor == process.pid
            (mounted.mountpoint / "file").write_text("text")
            process.send_signal(signal.SIGTERM)
            said = process.communicate(timeout=60)[1]
            assert process.returncode == 0
            assert "started again in 0 s" in said
        finally:
            process.kill()
            process.wait()
            process.stderr.close()
    assert mounted.records()[-1].kind is Kind.UNMOUNT
