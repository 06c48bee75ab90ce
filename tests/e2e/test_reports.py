"""What an operator asks, on real mounts and sites: what is told of scripted situations, and what
comes of orders."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from replicator.site_state import SiteReport
from tests.support import mounting as file_systems
from tests.support.mounts import Mounted, Mounting, mounting
from tests.support.replicating import Replicating, Replication, head, replicating, run

__all__ = ["mounting", "replicating"]
pytestmark = pytest.mark.fuse

_TIME = re.compile(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ")
Done = subprocess.CompletedProcess[str]


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of the tests' directories are long."""
    monkeypatch.setenv("COLUMNS", "300")


@pytest.fixture
def mounted(mounting: Mounting) -> Mounted:
    return mounting()


def ask(
    replication: Replication, command: str, *arguments: str
) -> subprocess.CompletedProcess[str]:
    return run(command, "--journal", replication.journal, *arguments)


def said(done: Done) -> str:
    """Its output, without what differs from run to run."""
    assert done.stderr == "", done.stderr
    return _TIME.sub("TIME", done.stdout)


def state_of(done: Done) -> str:
    """What `explain` says of the one site, on one line."""
    lines = said(done).splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("  state"))
    return " ".join(" ".join(lines[start:]).split()).removeprefix("state ")


def told(replication: Replication, path: str) -> dict[str, str]:
    """What `explain --json` says of the one site."""
    done = ask(replication, "explain", "--json", path)
    (site,) = json.loads(done.stdout)["sites"]
    assert done.returncode == (site["verdict"] not in ("there", "absent", "excluded"))
    return dict(site)


@contextlib.contextmanager
def immutable(path: Path) -> Iterator[None]:
    """Nobody may change it, not even root."""
    subprocess.run(["chattr", "+i", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", path], check=True)


def wait_until_failed(replication: Replication, path: bytes) -> None:
    def failed() -> bool:
        held = replication.report("site").state.held
        return any(step.path == path and step.tries >= 3 for step in held)

    replication.expect(failed, f"{path!r} does not fail")


# explain -----------------------------------------------------------------------------------------


def test_a_path_that_is_there_and_one_that_never_was(
    mounted: Mounted, replicating: Replicating
) -> None:
    replication = replicating(mounted.journal, "site")
    replication.settle()
    (mounted.mountpoint / "d").mkdir()
    (mounted.mountpoint / "d" / "new").write_text("content")
    (mounted.mountpoint / "d" / "new").rename(mounted.mountpoint / "d" / "file")
    replication.settle()
    replication.stop()
    for path in ("/d/file", "d/file", f"{mounted.mountpoint}/d/file", "/d/f\\x69le"):
        done = ask(replication, "explain", path)
        assert done.returncode == 0
        text = re.sub(r"record \d+", "record N", said(done))
        assert text == (
            "/d/file\n"
            "  source  file, 7 bytes, modified TIME\n"
            "  last    rename at TIME (record N)\n"
            "\n"
            f"site site  file://{replication.sites['site']}\n"
            "  has     file, 7 bytes, modified TIME, as of record N\n"
            "  state   there, as in the source, since TIME\n"
        )
    assert "rightly absent" in state_of(ask(replication, "explain", "/d/none"))
    assert state_of(ask(replication, "explain", "/.mirrorfs/volume")).startswith("excluded")
    assert told(replication, "/")["verdict"] == "there"


def test_what_is_behind_its_turn_without_a_replicator(
    mounted: Mounted, replicating: Replicating
) -> None:
    replication = replicating(mounted.journal, "site")
    replication.settle()
    replication.stop()
    for number in range(20):
        (mounted.mountpoint / f"f{number:02}").write_text("x")
    found = told(replication, "/f03")
    assert found["verdict"] == "queued"
    # each file is two: its place, and its content
    assert re.match(r"queued at position 7 of 4\d; its replicator is not running", found["text"])
    (replication.sites["site"] / "stranger").write_text("x")
    assert told(replication, "/stranger")["verdict"] == "unexplained"


def test_what_nobody_can_look_at(mounted: Mounted, replicating: Replicating) -> None:
    (mounted.mountpoint / "file").write_text("x")
    never = replicating(mounted.journal, "site", start=False)
    done = run("explain", "--journal", mounted.journal, "/file")
    assert done.returncode == 64
    assert done.stderr == "replicator: option '--site': missing: no site is known yet\n"
    never.start()
    never.settle()
    never.stop()
    never.sites["site"].rename(never.sites["site"].with_name("elsewhere"))
    assert told(never, "/file")["verdict"] == "away"
    mounted.umount()
    (mounted.source / ".mirrorfs" / "volume").rename(mounted.source / "volume")
    done = ask(never, "explain", "/file")
    assert "the source cannot be looked at" in done.stdout


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
        assert re.fullmatch(r"site: \d+ steps will be tried again now\n", said(done))
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
        (mounted.mountpoint / "big").write_bytes(b"x" * 8_100_000)
        (mounted.mountpoint / "last").write_text("x")

        def full() -> bool:
            return replication.report("site").phase == "backing off"

        replication.expect(full, "it is not full")
        report = replication.report("site")
        assert re.fullmatch(
            r"waiting for space: 8\.1 MB needed, (4\.19|\d\.\d\d?) MB free, for /big", report.reason
        )
        status = ask(replication, "status")
        assert status.returncode == 1
        assert "site site is backing off: waiting for space: 8.1 MB needed" in status.stdout
        found = told(replication, "/last")
        assert found["verdict"] == "queued"
        assert re.match(
            r"queued at position \d+ of \d+; the site is backing off: waiting for space: 8\.1 MB",
            found["text"],
        )
        line = ask(replication, "status", "--nagios")
        assert line.returncode == 1
        assert len(line.stdout.splitlines()) == 1
        assert line.stdout.startswith("MIRRORFS WARNING - site site is backing off: waiting for")
        (mounted.mountpoint / "big").unlink()
        replication.settle()
        assert told(replication, "/last")["verdict"] == "there"
        replication.stop()


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
        r"state +paused for .*: new disks, since TIME", _TIME.sub("TIME", status.stdout)
    )
    (verdict,) = (
        each
        for each in json.loads(ask(replication, "explain", "--json", "/two").stdout)["sites"]
        if each["site"] == "site"
    )
    assert verdict["verdict"] == "paused"
    assert _TIME.sub("TIME", verdict["text"]).endswith("the site is paused since TIME: new disks")
    assert ask(replication, "resume", "site").stdout == "site: goes on\n"
    assert ask(replication, "resume", "site").stdout == "site: was not paused\n"
    replication.settle()
    assert (replication.sites["site"] / "two").read_text() == "2"
    replication.stop()


WRITER = """
import os, sys
file = open("log", "wb", buffering=0)
file.write(b"first")
os.rename("log", "log2")
print("written", flush=True)
sys.stdin.read()
"""


def test_a_file_that_is_being_written(mounted: Mounted, replicating: Replicating) -> None:
    replication = replicating(mounted.journal, "site")
    replication.settle()
    with subprocess.Popen(
        [sys.executable, "-c", WRITER],
        cwd=mounted.mountpoint,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as writer:  # not this process: its children would close the file
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"written\n"

        def waits() -> bool:
            return any(step.waiting for step in replication.report("site").state.held)

        replication.expect(waits, "no step waits")
        found = told(replication, "/log2")
        assert found["verdict"] == "waiting"
        assert "waits for a writer to close the file: open for writing" in found["text"]
        done = ask(replication, "failed")
        assert done.returncode == 0
        assert "waits for a writer since" in done.stdout
    ask(replication, "retry", "--all")
    replication.settle()
    assert told(replication, "/log2")["verdict"] == "there"
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


def test_lags_of_files_and_who_made_them(mounted: Mounted, replicating: Replicating) -> None:
    (mounted.mountpoint / "before").write_text("x")
    replication = replicating(mounted.journal, "site")
    replication.settle()
    for number in range(50):
        (mounted.mountpoint / f"f{number}").write_text("x" * 100)
    (mounted.mountpoint / "new").write_text("x" * 100)
    (mounted.mountpoint / "new").rename(mounted.mountpoint / "renamed")
    (mounted.mountpoint / "gone").write_text("x")
    (mounted.mountpoint / "gone").unlink()
    (mounted.mountpoint / "tmp").mkdir()
    (mounted.mountpoint / "tmp" / "x").write_text("x")
    (mounted.mountpoint / "empty").touch()
    replication.settle()
    replication.stop()
    (mounted.mountpoint / "late").write_text("x")
    done = ask(replication, "lag", "--json", "--exclude", "/tmp/*", "--over", "0", "--slice", "day")
    (total,) = json.loads(done.stdout)["total"]
    assert total["expected"] == 54
    assert (total["missing"], total["missing_paths"]) == (1, ["/late"])
    assert total["arrived"] + total["untimed"] == 53
    assert total["arrived"] >= 52
    assert total["min"] > 0
    assert total["over"]["0"] >= total["arrived"]
    text = ask(replication, "lag").stdout
    assert max(map(len, text.splitlines()[:3])) <= 80
    assert text.endswith("missing: 1, the oldest first:\n  /late\n")
    rows = ask(replication, "lag", "--csv").stdout.splitlines()
    assert rows[0].startswith(
        "site,start,expected,arrived,untimed,missing,mean,p50,p90,p99,max,min"
    )
    assert len(rows) >= 2
    users = ask(replication, "top", "--by", "user").stdout.splitlines()
    assert users[0].split() == ["bytes", "files", "records", "user"]
    assert users[1].split()[-1] == "root"
    found = [
        json.loads(line)
        for line in ask(replication, "top", "--by", "directory", "--json").stdout.splitlines()
    ]
    assert [each["directory"] for each in found] == ["/", "/tmp"]
    assert found[0]["bytes"] == 51 * 100 + 3
    assert ask(replication, "top").stdout.splitlines()[1].endswith("(no job)")


# metrics -----------------------------------------------------------------------------------------


def test_metrics_as_a_file_and_on_a_port(
    mounted: Mounted, replicating: Replicating, tmp_path: Path
) -> None:
    replication = replicating(mounted.journal, "site", start=False)
    file = tmp_path / "mirrorfs.prom"
    volume = tmp_path / "prod.toml"
    volume.write_text(
        f'[volume]\nname = "prod"\nsource = "{mounted.source}"\njournal = "{mounted.journal}"\n'
        f'[replicator]\nmetrics_file = "{file}"\nmetrics_listen = "127.0.0.1:0"\n'
    )
    replication.arguments = [str(volume)]
    replication.start()
    (mounted.mountpoint / "file").write_text("x")
    replication.settle()
    replication.expect(file.exists, "no metrics")
    values = parsed(file.read_text())
    assert values["mirrorfs_site_failed_steps", "site"] == 0
    port = listening(replication.pid)
    address = f"http://127.0.0.1:{port}"
    with urllib.request.urlopen(f"{address}/metrics") as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=")
        values = parsed(answer.read().decode())
    assert values["mirrorfs_site_working_cursor", "site"] <= head(mounted.journal)
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{address}/else")
    manual = (Path(__file__).parents[2] / "docs/man/replicator.1").read_text()
    assert all(f".B {name}" in manual for name, _ in values)
    replication.stop()
    assert not file.exists()


def parsed(text: str) -> dict[tuple[str, str], float]:
    """Metrics by name and site, as a parser of Prometheus reads them."""
    return {
        (sample.name, sample.labels["site"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def listening(pid: int) -> int:
    """The port on loopback that a process listens on."""
    inodes = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            inodes.add(os.readlink(f"/proc/{pid}/fd/{fd}").removeprefix("socket:[").rstrip("]"))
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    (address,) = (line[1] for line in lines if line[3] == "0A" and line[9] in inodes)
    host, _, port = address.partition(":")
    assert host == "0100007F"
    return int(port, 16)


def test_the_report_says_what_was_measured(mounted: Mounted, replicating: Replicating) -> None:
    replication = replicating(mounted.journal, "site")
    replication.settle()
    for number in range(30):
        (mounted.mountpoint / f"f{number}").write_text("x")
    replication.settle()

    def measured() -> bool:
        report: SiteReport = replication.report("site")
        return report.work is not None and report.work.steps >= 30 and report.done == report.head

    replication.expect(measured, "no steps measured")
    work = replication.report("site").work
    assert work is not None
    assert work.source > 0
    assert work.site > 0
    assert abs(work.source + work.site + work.copy + work.own - 1) < 0.01
    assert work.service_seconds > 0
    assert work.queue_seconds > 0
    replication.stop()
