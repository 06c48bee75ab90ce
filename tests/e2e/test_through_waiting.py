"""Jobs that wait for sites that do not answer: they get theirs, and are in nobody's way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.e2e.test_through import (
    HASTY,
    PATIENT,
    XATTR,
    closing,
    followed,
    of,
    wait_until_it_follows,
)
from tests.support.mounts import Mounting, mounting, run
from tests.support.replicating import Replicating, replicating, until
from tests.support.replicating import run as replicator
from tests.support.trees import differences, snapshot

pytestmark = pytest.mark.fuse

__all__ = ["mounting", "replicating"]


def test_a_job_that_waits_can_be_killed_and_leaves_nobody_waiting(mounting: Mounting) -> None:
    mounted = mounting("write-through=site", PATIENT)
    with closing(mounted.mountpoint / "f") as job:
        until(lambda: of(mounted).waiting == 1, lambda: "it does not wait")
        job.kill()
        job.wait()
    until(lambda: of(mounted).waiting == 0, lambda: "it waits still")
    assert of(mounted).down is None


@pytest.mark.parametrize("how", ["umount(8)", "mirrorfs umount", "SIGTERM", "umount -l"])
def test_what_ends_a_mount_while_a_job_waits(how: str, mounting: Mounting) -> None:
    mounted = mounting("write-through=site", PATIENT)
    path = mounted.mountpoint / "f"
    with closing(path) as job:
        until(lambda: of(mounted).waiting == 1, lambda: "it does not wait")
        if how == "umount(8)":  # the kernel refuses: the job has the file open
            done = subprocess.run(
                ["umount", mounted.mountpoint], capture_output=True, text=True, check=False
            )
            assert "busy" in done.stderr
            assert of(mounted).waiting == 1
            return
        if how == "umount -l":
            subprocess.run(["umount", "-l", mounted.mountpoint], check=True)
            assert of(mounted).waiting == 1  # until the site, the time-out, or a signal
            os.kill(mounted.pid, signal.SIGTERM)
        elif how == "SIGTERM":
            os.kill(mounted.pid, signal.SIGTERM)
        else:
            mounted.umount()
        assert job.wait() == 0
    mounted.wait()
    assert not os.path.ismount(mounted.mountpoint)


@pytest.mark.parametrize("change", ["mkdir", "rename", "unlink"])
def test_umount_answers_whoever_changes_a_name(change: str, mounting: Mounting) -> None:
    mounted = mounting("write-through=site", PATIENT)
    (mounted.source / "f").touch()
    act = {
        "mkdir": "os.mkdir(p + '/d')",
        "rename": "os.rename(p + '/f', p + '/g')",
        "unlink": "os.unlink(p + '/f')",
    }
    script = f"import os, sys; p = sys.argv[1]; {act[change]}"
    job = subprocess.Popen([sys.executable, "-c", script, mounted.mountpoint])
    try:
        until(lambda: of(mounted).waiting == 1, lambda: "it does not wait")
        mounted.umount()
        assert job.wait() == 0
    finally:
        job.kill()
        job.wait()


def test_umount_is_refused_while_somebody_else_uses_it(mounting: Mounting) -> None:
    mounted = mounting("write-through=site", PATIENT)
    with closing(mounted.mountpoint / "f") as job:
        until(lambda: of(mounted).waiting == 1, lambda: "it does not wait")
        user = os.open(mounted.mountpoint, os.O_RDONLY | os.O_DIRECTORY)
        try:
            assert "in use" in run("umount", mounted.mountpoint).stderr
            assert job.wait() == 0  # but it was answered
        finally:
            os.close(user)
    mounted.umount()


def test_who_wrote_the_same_waits_though_the_first_was_killed(mounting: Mounting) -> None:
    mounted = mounting("write-through=site", PATIENT)
    path = mounted.mountpoint / "f"
    (mounted.source / "f").touch()
    with closing(path, "; input()") as second:
        with closing(path) as first:  # its record tells of both
            until(lambda: of(mounted).waiting == 1, lambda: "it does not wait")
            first.kill()
        until(lambda: of(mounted).waiting == 0, lambda: "it waits still")
        assert second.stdin is not None
        second.stdin.write(b"\n")
        second.stdin.flush()
        until(lambda: of(mounted).waiting == 1 or second.poll() is not None, lambda: "neither")
        assert second.poll() is None, "what it wrote is nowhere else"


@pytest.mark.parametrize("io", ["inline", "threads"])
def test_a_job_that_waits_is_in_nobodys_way(io: str, mounting: Mounting) -> None:
    mounted = mounting("write-through=site", PATIENT, f"io={io}")
    (mounted.source / "free").mkdir()
    os.setxattr(mounted.source / "free", XATTR, b"off")
    with closing(mounted.mountpoint / "f") as job:
        until(lambda: of(mounted).waiting == 1, lambda: "it does not wait")
        assert (mounted.mountpoint / "f").read_text() == "x"
        (mounted.mountpoint / "free/f").write_text("y" * 300_000)
        (mounted.mountpoint / "free/f").rename(mounted.mountpoint / "free/g")
        assert job.poll() is None
        os.kill(mounted.pid, signal.SIGTERM)  # the mount ends: it has its answer
        assert job.wait() == 0
    mounted.wait()


# sites that do not answer ----------------------------------------------------------------------

CLOSES = """
import sys
for number in range(int(sys.argv[2])):
    with open(f"{sys.argv[1]}-{number}", "w") as file:
        file.write("x")
"""


@pytest.mark.parametrize("timeout", [HASTY, "write-through-timeout=2"])
def test_hundreds_close_while_the_replicator_hangs(
    timeout: str, mounting: Mounting, replicating: Replicating
) -> None:
    mounted, replication, there = followed(mounting, replicating, timeout)
    replication.signal(signal.SIGSTOP)
    jobs = [
        subprocess.Popen([sys.executable, "-c", CLOSES, mounted.mountpoint / f"job{n}", "80"])
        for n in range(8)
    ]
    try:
        assert [job.wait() for job in jobs] == [0] * 8
    finally:
        for job in jobs:
            job.kill()
            job.wait()
    found = of(mounted)
    assert (found.waiting, found.passed, found.followed) == (0, 640, True)
    assert "was not there in" in (found.down or "")
    replication.signal(signal.SIGCONT)
    wait_until_it_follows(mounted)
    (mounted.mountpoint / "last").write_text("x")
    assert (there / "last").exists() or of(mounted).down
    replication.settle()
    assert differences(snapshot(mounted.source), snapshot(there)) == []


def test_a_site_that_is_detached_is_not_waited_for_again(
    mounting: Mounting, replicating: Replicating
) -> None:
    mounted, replication, there = followed(mounting, replicating, HASTY)
    replication.stop()
    replicator("detach", "--journal", mounted.journal, "--site", "site", check=True)
    for number in range(5):
        (mounted.mountpoint / f"f{number}").write_text("x")
    found = of(mounted)
    assert (found.waiting, found.passed, found.followed) == (0, 5, False)
    assert "no replicator of it is there" in (found.down or "")
    replication.start()  # that attaches it
    wait_until_it_follows(mounted)
    (mounted.mountpoint / "g").write_text("x")
    assert (there / "g").exists() or of(mounted).down
    replication.settle()


def test_a_site_that_has_halted_is_not_waited_for(
    mounting: Mounting, replicating: Replicating
) -> None:
    mounted, replication, there = followed(mounting, replicating, PATIENT)
    replicator("pause", "--journal", mounted.journal, "site", check=True)
    replication.expect(lambda: replication.report("site").phase == "paused", "it goes on")
    (there / ".mirrorfs/state").write_bytes(b"damaged")
    replicator("resume", "--journal", mounted.journal, "site", check=True)
    assert replication.wait() != 0
    (mounted.mountpoint / "f").write_text("x")  # nobody waits an hour
    (mounted.mountpoint / "f").rename(mounted.mountpoint / "g")
    assert (of(mounted).passed, of(mounted).followed) == (2, False)
    assert of(mounted).down is not None
