"""What comes of what an operator orders, on real mounts and sites."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.support import mounting as file_systems
from tests.support.asking import TIME, ask, immutable, said, told, wait_until_failed
from tests.support.mounts import Mounted, Mounting, mounting
from tests.support.replicating import Replicating, replicating

__all__ = ["mounting", "replicating"]
pytestmark = pytest.mark.fuse


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of the tests' directories are long."""
    monkeypatch.setenv("COLUMNS", "300")


@pytest.fixture
def mounted(mounting: Mounting) -> Mounted:
    return mounting()


# failed steps ------------------------------------------------------------------------------------


def test_failed_retry_and_what_is_blocked(
    mounted: Mounted, replicating: Replicating, tmp_path: Path
) -> None:
    with file_systems.ext4(tmp_path / "site"):
        os.rmdir(tmp_path / "site" / "lost+found")
        replication = replicating.to(mounted.journal, {"site": tmp_path / "site"})
        (mounted.mountpoint / "d").mkdir()
        replication.settle()
        with immutable(tmp_path / "site" / "d"):
            (mounted.mountpoint / "d" / "below").mkdir()
            (mounted.mountpoint / "d" / "below" / "file").write_text("x")
            wait_until_failed(replication, b"d/below")
            wait_until_failed(replication, b"d/below/file")
            found = told(replication, "/d/below")
            assert found["verdict"] == "failed"
            assert re.match(
                r"the step \(id [0-9a-f]{8}\) failed \d+ times, last with EPERM: cannot put in"
                r" place 'below': Operation not permitted; the next try is due",
                found["text"],
            )
            found = told(replication, "/d/below/file")
            assert found["verdict"] == "blocked"
            assert re.match(r"blocked: the step of /d/below \(id .*\) failed", found["text"])
            done = ask(replication, "failed", "site")
            assert done.returncode == 1
            assert re.search(
                r"^site  [0-9a-f]{8}  /d/below\n    failed \d+ times since TIME: cannot"
                r" put in place 'below': Operation not permitted\n    place, record"
                r" \d+; tried again TIME$",
                said(done),
                re.M,
            )
            steps = [
                json.loads(line)
                for line in ask(replication, "failed", "--json").stdout.splitlines()
            ]
            assert {step["path"] for step in steps} >= {"/d/below", "/d/below/file"}
            lag = json.loads(ask(replication, "lag", "--json").stdout)
            assert lag["total"][0]["missing_paths"] == ["/d/below/file"]
            waited = ask(replication, "wait", "--site", "site", "/d/below/file")
            assert waited.returncode == 2
            assert "failed, the first is /d/below" in waited.stderr
            none = ask(replication, "retry", "/elsewhere")
            assert (none.returncode, none.stderr) == (
                66,
                "replicator: /elsewhere: no such step is held\n",
            )
        done = ask(replication, "retry", "--all")
        assert re.fullmatch(r"site: \d+ steps? will be tried again now\n", said(done))
        replication.settle()
        replication.expect(lambda: not replication.report("site").state.held, "steps are held")
        assert said(ask(replication, "failed")) == ""
        assert told(replication, "/d/below/file")["verdict"] == "there"
        replication.stop()


def test_skip_is_recorded_for_ever(
    mounted: Mounted, replicating: Replicating, tmp_path: Path
) -> None:
    with file_systems.ext4(tmp_path / "site"):
        os.rmdir(tmp_path / "site" / "lost+found")
        replication = replicating.to(mounted.journal, {"site": tmp_path / "site"})
        (mounted.mountpoint / "file").write_text("old")
        replication.settle()
        with immutable(tmp_path / "site" / "file"):
            assert ask(replication, "checkpoint", "before").returncode == 0
            (mounted.mountpoint / "file").write_text("new!")
            assert ask(replication, "checkpoint", "cycle").returncode == 0
            (mounted.mountpoint / "other").write_text("x")
            wait_until_failed(replication, b"file")
            done = ask(replication, "skip", "--reason", "kept as evidence", "/file")
            assert done.stdout == "site: 1 step skipped\n"
            replication.settle()
            found = told(replication, "/file")
            assert found["verdict"] == "skipped"
            assert "kept as evidence; it had failed: cannot put in place" in found["text"]
        for _ in range(2):
            status = ask(replication, "status")
            assert "skipped   1 step, by operators" in status.stdout
            assert "/file: kept as evidence (" in status.stdout
            replication.stop()
            replication.start()
            replication.settle()
        for goal, code in (("before", 0), ("cycle", 2), ("now", 0), ("/file", 2), ("/other", 0)):
            done = ask(replication, "wait", "--site", "site", "--timeout", "60", goal)
            assert done.returncode == code, (goal, done.stderr)
        assert done.stderr == ""
        (mounted.mountpoint / "file").write_text("newer")
        replication.settle()
        assert (tmp_path / "site" / "file").read_text() == "newer"
        assert told(replication, "/file")["verdict"] == "there"
        assert ask(replication, "wait", "--site", "site", "/file").returncode == 0
        replication.stop()


def test_a_step_skipped_without_a_replicator_is_skipped_by_the_next(
    mounted: Mounted, replicating: Replicating, tmp_path: Path
) -> None:
    with file_systems.ext4(tmp_path / "site"):
        os.rmdir(tmp_path / "site" / "lost+found")
        replication = replicating.to(mounted.journal, {"site": tmp_path / "site"})
        (mounted.mountpoint / "file").write_text("old")
        replication.settle()
        with immutable(tmp_path / "site" / "file"):
            (mounted.mountpoint / "file").write_text("new!")
            wait_until_failed(replication, b"file")
            replication.kill()
            done = ask(replication, "skip", "--reason", "why not", "/file")
            assert "ended without stopping" in done.stdout
            assert done.stdout.endswith("it will be done when one runs\n")
            replication.start()
            replication.settle()
            assert [each.reason for each in replication.state("site").skipped] == ["why not"]
            replication.stop()


# sites in trouble --------------------------------------------------------------------------------


def test_a_full_site_says_how_much_it_needs(
    mounted: Mounted, replicating: Replicating, tmp_path: Path
) -> None:
    with file_systems.tmpfs(tmp_path / "site", "size=4m"):
        replication = replicating.to(mounted.journal, {"site": tmp_path / "site"})
        replication.settle()
        for name in ("one", "two"):
            (mounted.mountpoint / name).write_bytes(b"x" * 8_100_000)

        def full() -> bool:
            return replication.report("site").phase == "backing off"

        replication.expect(full, "it is not full")
        report = replication.report("site")
        reason = r"waiting for space: 8\.1 MB needed, \d\.\d\d? MB free, for /(one|two)"
        tried = re.fullmatch(reason, report.reason)
        assert tried is not None
        other = "/two" if tried[1] == "one" else "/one"
        status = ask(replication, "status")
        assert status.returncode == 1
        assert "site site is backing off: waiting for space: 8.1 MB needed" in status.stdout
        found = told(replication, other)
        assert found["verdict"] == "queued"
        assert re.match(
            r"queued at position \d+ of \d+; the site is backing off: waiting for space: 8\.1 MB",
            found["text"],
        )
        line = ask(replication, "status", "--nagios")
        assert line.returncode == 1
        assert len(line.stdout.splitlines()) == 1
        assert line.stdout.startswith("MIRRORFS WARNING - site site is backing off: waiting for")
        more_space = ("mount", "-o", "remount,size=64m", tmp_path / "site")
        subprocess.run(more_space, check=True)
        replication.settle()
        assert told(replication, other)["verdict"] == "there"
        replication.stop()


def test_a_dead_site_says_why_and_what_waits(
    mounted: Mounted, replicating: Replicating, tmp_path: Path
) -> None:
    with file_systems.ext4(tmp_path / "site"):
        os.rmdir(tmp_path / "site" / "lost+found")
        replication = replicating.to(mounted.journal, {"site": tmp_path / "site"})
        (mounted.mountpoint / "file").write_text("old")
        replication.settle()
        file_systems.shut_down(tmp_path / "site")
        (mounted.mountpoint / "late").write_text("x")

        def dead() -> bool:
            return replication.report("site").phase == "backing off"

        replication.expect(dead, "it does not back off")
        status = ask(replication, "status")
        assert status.returncode == 1
        assert re.search(r"site site is backing off: .*(Input/output error|EIO)", status.stdout)
        found = told(replication, "/late")
        assert re.match(r"queued at position 1 of \d; the site is backing off: ", found["text"])
        replication.kill()


def test_a_paused_site_is_let_go_of(
    mounted: Mounted, replicating: Replicating, tmp_path: Path
) -> None:
    with file_systems.tmpfs(tmp_path / "site"):
        replication = replicating.to(mounted.journal, {"site": tmp_path / "site"})
        (mounted.mountpoint / "one").write_text("1")
        replication.settle()
        done = ask(replication, "pause", "site", "--reason", "new disks")
        assert done.stdout == "site: paused\n"
        assert ask(replication, "pause", "site").stdout == "site: was paused already\n"

        def paused() -> bool:
            return replication.report("site").phase == "paused"

        replication.expect(paused, "it is not paused")
        file_systems.remount(tmp_path / "site", "ro")  # refused as long as a file is written
        open_files = os.listdir(f"/proc/{replication.pid}/fd")
        for fd in open_files:
            with contextlib.suppress(FileNotFoundError):
                target = os.readlink(f"/proc/{replication.pid}/fd/{fd}")
                assert not target.startswith(str(tmp_path / "site")), "it could not be unmounted"
        file_systems.remount(tmp_path / "site", "rw")
        ask(replication, "resume", "site")
        (mounted.mountpoint / "two").write_text("2")
        replication.settle()
        replication.stop()


def test_a_pause_holds_across_restarts(mounted: Mounted, replicating: Replicating) -> None:
    replication = replicating(mounted.journal, "site", "other")
    (mounted.mountpoint / "one").write_text("1")
    replication.settle()
    ask(replication, "pause", "site", "--reason", "new disks")
    replication.expect(lambda: replication.report("site").phase == "paused", "not paused")
    replication.stop()
    (mounted.mountpoint / "two").write_text("2")
    replication.start()
    replication.settle("other")
    replication.expect(lambda: replication.report("site").pid == replication.pid, "no report")
    assert replication.report("site").phase == "paused"
    assert not (replication.sites["site"] / "two").exists()
    status = ask(replication, "status")
    assert status.returncode == 1
    assert re.search(
        r"state +paused for .*: new disks, since TIME", TIME.sub("TIME", status.stdout)
    )
    (verdict,) = (
        each
        for each in json.loads(ask(replication, "explain", "--json", "/two").stdout)["sites"]
        if each["site"] == "site"
    )
    assert verdict["verdict"] == "paused"
    assert TIME.sub("TIME", verdict["text"]).endswith("the site is paused since TIME: new disks")
    assert ask(replication, "resume", "site").stdout == "site: goes on\n"
    assert ask(replication, "resume", "site").stdout == "site: was not paused\n"
    replication.settle()
    assert (replication.sites["site"] / "two").read_text() == "2"
    replication.stop()


# records -----------------------------------------------------------------------------------------


def test_checkpoints_and_waiting_for_them(mounted: Mounted, replicating: Replicating) -> None:
    replication = replicating(mounted.journal, "site")
    (mounted.mountpoint / "one").write_text("1")
    done = ask(replication, "checkpoint", "cycle 00")
    assert re.fullmatch(r"cycle 00: record \d+\n", done.stdout)
    assert ask(replication, "wait", "--site", "site", "cycle 00").returncode == 0
    assert (replication.sites["site"] / "one").exists()
    replication.stop()
    (mounted.mountpoint / "two").write_text("2")
    ask(replication, "checkpoint", "cycle 01")
    late = ask(replication, "wait", "--site", "site", "--timeout", "0", "cycle 01")
    assert late.returncode == 1
    lines = ask(replication, "checkpoints").stdout.splitlines()
    assert [line.split("  ", 2)[2].strip().split("  ")[-1] for line in lines] == [
        "not reached",
        "reached by site",
    ]
    values = [
        json.loads(line) for line in ask(replication, "checkpoints", "--json").stdout.splitlines()
    ]
    assert [(value["name"], value["reached"]) for value in values] == [
        ("cycle 01", []),
        ("cycle 00", ["site"]),
    ]
    unknown = ask(replication, "wait", "--site", "site", "cycle 02")
    assert (unknown.returncode, unknown.stderr) == (
        66,
        "replicator: cycle 02: the journal has no checkpoint of that name\n",
    )


def test_touch_has_a_path_compared(mounted: Mounted, replicating: Replicating) -> None:
    replication = replicating(mounted.journal, "site")
    (mounted.mountpoint / "d").mkdir()
    (mounted.mountpoint / "d" / "file").write_text("right")
    (mounted.mountpoint / "top").write_text("right")
    replication.settle()
    site = replication.sites["site"]
    (site / "d" / "file").unlink()
    (site / "top").unlink()
    done = ask(replication, "touch", "/d", "/top")
    assert re.fullmatch(
        r"/d: record \d+: /d is compared, with all below it\n"
        r"/top: record \d+: / is compared, its entries\n",
        done.stdout,
    )
    replication.settle()
    assert (site / "d" / "file").read_text() == (site / "top").read_text() == "right"
    replication.stop()
    mounted.umount()
    away = ask(replication, "touch", "/d")
    assert (away.returncode, len(away.stderr.splitlines())) == (66, 1)
