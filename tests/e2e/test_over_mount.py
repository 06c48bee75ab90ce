"""A mount over its own source: who holds the tree beneath; a mount in place of a dead one."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from mirrorfs import fuse_mount, mount_calls, mountinfo
from mirrorfs.config import read_volume
from mirrorfs.journal.control_client import ControlClient
from mirrorfs.journal.record import Reconcile
from tests.support.hammering import hammered
from tests.support.mounting import tmpfs
from tests.support.mounts import MIRRORFS, ROOT, Mounted, Mounting, mounting, run
from tests.support.replicating import Replicating, replicating, until

__all__ = ["mounting", "replicating"]

pytestmark = pytest.mark.fuse

HOLD = {
    "file": "import os, sys; f = os.open('d/f', os.O_RDONLY); os.chdir('/')",
    "directory": "import os, sys; f = os.open('d', os.O_RDONLY); os.chdir('/')",
    "working directory": "import os, sys; os.chdir('d')",
    "root": "import os, sys; os.chroot('.'); f = os.open('/', os.O_PATH); os.close(f)",
    "shared mapping": (
        "import mmap, os, sys; f = os.open('d/f', os.O_RDWR); m = mmap.mmap(f, 4096); os.close(f);"
        " [os.close(n) for n in map(int, os.listdir('/proc/self/fd')) if n > 2 and"
        " os.path.exists(f'/proc/self/fd/{n}')]; os.chdir('/')"
    ),
}
LINUX = {
    "6.5": "pass",
    "5.2": "from mirrorfs import mount_calls; mount_calls.MOVE_MOUNT_BENEATH = 1 << 30",
    "5.1": "from mirrorfs import mount_calls; mount_calls._FSOPEN = 1 << 20",
}
"""Replaces what that version does not have by what no version has."""


@contextmanager
def holding(source: Path, how: str) -> Iterator[subprocess.Popen[str]]:
    """A process that holds something of the tree in that way."""
    (source / "d").mkdir(exist_ok=True)
    (source / "d" / "f").write_bytes(bytes(4096))
    program = f"{HOLD[how]}; print('ready', flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=source,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.stdin.close()
        process.wait(60)
        process.stdout.close()


def mount_by(program: str, mounted: Mounted) -> None:
    """Mount it by a mirrorfs in which something is otherwise."""
    options = ",".join((f"journal={mounted.journal}", *mounted.options))
    code = f"{program}; from mirrorfs.cli import main; main()"
    arguments = ("mount", mounted.source, mounted.mountpoint, "-o", options)
    subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, check=True, timeout=60)
    mounted.look()


def refusal(mounted: Mounted) -> str:
    options = f"journal={mounted.journal}"
    done = run("mount", mounted.source, mounted.mountpoint, "-o", options)
    assert done.returncode == 69, done.stderr
    assert done.stderr.count("\n") == 1
    return done.stderr


# Who holds the tree beneath


@pytest.mark.parametrize("how", HOLD)
def test_who_would_pass_the_mount_is_named(mounting: Mounting, how: str) -> None:
    mounted = mounting.prepare(over=True)
    with holding(mounted.source, how) as process:
        said = refusal(mounted)
        name = Path(f"/proc/{process.pid}/comm").read_text().strip()
        assert f"in use, past any mount over it, by {process.pid} ({name}): " in said
        assert "-o force" in said
        assert mountinfo.mounted_at(str(mounted.mountpoint)) is None
        mounted.options = ("force",)
        mounted.mount()
        status = run("status", mounted.mountpoint)
        assert status.returncode == 1
        assert f"PASSED BY   {process.pid} ({name}): " in status.stdout
        log = (mounted.journal / "mirrorfs.log").read_text()
        assert f"in use past the mount, without records: {process.pid} ({name})" in log
    assert run("status", mounted.mountpoint).returncode == 0
    mounted.umount()


def test_a_mount_elsewhere_than_the_source_is_not_refused(mounting: Mounting) -> None:
    mounted = mounting.prepare()
    with holding(mounted.source, "file"):
        mounted.mount()
        mounted.umount()


def test_who_changes_nothing_is_not_in_the_way(
    mounting: Mounting, replicating: Replicating
) -> None:
    """A program that was started from the tree; a replicator, which has the source's root."""
    mounted = mounting(over=True)
    shutil.copy("/bin/sleep", mounted.mountpoint / "sleep")
    replication = replicating(mounted.journal, "site")
    replication.settle()
    mounted.umount()
    process = subprocess.Popen([mounted.source / "sleep", "1000"], cwd="/")
    try:
        mounted.mount()
        (mounted.mountpoint / "new").write_text("text")
        replication.settle()
        assert (replication.sites["site"] / "new").read_text() == "text"
        assert "processes" not in [
            line.split()[1]
            for line in run("doctor", mounted.mountpoint).stdout.splitlines()
            if not line.startswith("ok")
        ]
    finally:
        process.kill()
        process.wait()


# In place of a dead mount


@pytest.mark.parametrize("version", LINUX)
def test_the_raw_tree_never_shows(mounting: Mounting, version: str) -> None:
    """While the daemon is killed and its mount replaced, over and over; with old Linux, too."""
    mounted = mounting.prepare("nosuid", over=True)
    device = mounted.source.stat().st_dev
    mount_by(LINUX[version], mounted)
    (mounted.mountpoint / "file").write_text("text")
    with hammered(mounted.mountpoint, device) as told:
        for _ in range(2):
            mounted.die()
            mount_by(LINUX[version], mounted)
            assert (mounted.mountpoint / "file").read_text() == "text"
    assert told["raw"] == 0
    assert told["answers"]
    dead = {os.strerror(errno.ENOTCONN), os.strerror(errno.ECONNABORTED)}
    assert isinstance(told["errors"], dict)
    assert set(told["errors"]) <= dead
    stacked = mountinfo.stacked_at(str(mounted.mountpoint))
    assert len(stacked) == (1 if version == "6.5" else 2)
    assert "nosuid" in stacked[0].words
    mounted.umount()
    assert mountinfo.mounted_at(str(mounted.mountpoint)) is None
    assert (mounted.source / "file").read_text() == "text"


@pytest.mark.parametrize("linux", ["6.5", "5.2", "5.1"])
def test_there_is_no_moment_between_two_mounts(
    mounting: Mounting, monkeypatch: pytest.MonkeyPatch, linux: str
) -> None:
    """Five hundred dead mounts, each replaced by the next, while somebody looks."""
    if linux < "6.5":
        monkeypatch.setattr(mount_calls, "MOVE_MOUNT_BENEATH", 1 << 30)
    if linux < "5.2":
        monkeypatch.setattr(mount_calls, "_FSOPEN", 1 << 20)
    mounted = mounting.prepare(over=True)
    (mounted.source / ".mirrorfs").mkdir()
    device = mounted.source.stat().st_dev
    path = str(mounted.source)
    volume = read_volume(path, path, {"journal": str(mounted.journal)})
    connection = fuse_mount.open_device()
    fuse_mount.put_mount(volume, connection, ())
    with hammered(mounted.mountpoint, device) as told:
        for _ in range(500):
            os.close(connection)
            connection = fuse_mount.open_device()
            fuse_mount.put_mount(volume, connection, ())
        os.close(connection)
    assert told["raw"] == 0
    assert isinstance(told["errors"], dict)
    assert sum(told["errors"].values()) > 500
    assert len(mountinfo.stacked_at(path)) == (1 if linux == "6.5" else 2)


def test_a_dead_mount_beside_its_source_is_replaced(mounting: Mounting) -> None:
    mounted = mounting("subtype=data")
    mounted.die()
    mounted.mount()
    (mounted.mountpoint / "file").write_text("text")
    assert (mounted.source / "file").read_text() == "text"
    assert len(mountinfo.stacked_at(str(mounted.mountpoint))) == 1
    os.kill(mounted.pid, signal.SIGTERM)
    mounted.wait()
    assert mountinfo.mounted_at(str(mounted.mountpoint)) is None


@pytest.mark.parametrize("own", [False, True])
def test_the_tree_beneath_a_dead_mount_is_served(
    mounting: Mounting, tmp_path: Path, own: bool
) -> None:
    """Whether it is a directory of a larger file system or the root of its own; guard included."""
    mounted = mounting.prepare("guard=on", over=True)
    with tmpfs(mounted.source) if own else nullcontext():
        mounted.mount()
        (mounted.mountpoint / "d").mkdir()
        mounted.die()
        mounted.mount()
        (mounted.mountpoint / "d" / "file").write_text("text")
        (mounted.mountpoint / "d").rename(mounted.mountpoint / "e")
        with ControlClient(str(mounted.journal)) as client:
            _, root = client.root()
            try:
                os.mkdir("e/behind", dir_fd=root)
                subprocess.run(
                    ["mkdir", f"/proc/self/fd/{root}/e/too"], check=True, pass_fds=[root]
                )
            finally:
                os.close(root)
        until(lambda: any(found.path == b"e" for found in reconciles(mounted)), lambda: "no record")
        assert sorted(os.listdir(mounted.mountpoint / "e")) == ["behind", "file", "too"]
        mounted.umount()
        assert sorted(os.listdir(mounted.source / "e")) == ["behind", "file", "too"]


def reconciles(mounted: Mounted) -> list[Reconcile]:
    return [r.body for r in mounted.records() if isinstance(r.body, Reconcile)]


def test_in_a_mount_table_that_is_shared_with_others(mounting: Mounting) -> None:
    """Both mount tables see the new mount, and none after it was unmounted."""
    mounted = mounting.prepare(over=True)
    options = f"journal={mounted.journal}"
    command = " ".join(map(str, MIRRORFS))
    script = f"""
        set -e
        {command} mount {mounted.source} {mounted.mountpoint} -o {options},restart=off
        mkfifo {mounted.journal}/go
        unshare -m --propagation slave sh -c '
            read go < {mounted.journal}/go; test -e {mounted.source}/file
            test ! -e {mounted.source}/.mirrorfs; read go < {mounted.journal}/go
            ! grep -q " {mounted.source} " /proc/self/mountinfo' & other=$!
        kill -9 $({command} status --json {mounted.journal} | sed 's/.*"pid": \\([0-9]*\\).*/\\1/')
        until {command} mount {mounted.source} {mounted.mountpoint} -o {options},restart=off
            do sleep 0.1; done
        touch {mounted.source}/file
        echo > {mounted.journal}/go
        {command} umount {mounted.source}
        echo > {mounted.journal}/go
        wait $other
    """
    done = subprocess.run(
        ["unshare", "-m", "--propagation", "shared", "sh", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert (mounted.source / "file").exists()


def test_a_lookup_waits_for_the_next_engine(mounting: Mounting) -> None:
    """Who asks after the mount was replaced gets an answer; who held a file gets an error."""
    mounted = mounting(over=True)
    file = os.open(mounted.mountpoint / "file", os.O_RDWR | os.O_CREAT)
    os.write(file, b"text")
    os.kill(mounted.pid, signal.SIGKILL)
    mounted.wait_for_another()
    for call in (lambda: os.write(file, b"more"), lambda: os.read(file, 1), lambda: os.close(file)):
        with pytest.raises(OSError, match="Transport endpoint") as raised:
            call()
        assert raised.value.errno == errno.ENOTCONN
    assert (mounted.mountpoint / "file").read_text() == "text"
