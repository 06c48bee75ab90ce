"""What an operator asks, on real mounts and sites: what is told of scripted situations."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from replicator.site_state import SiteReport
from tests.support.asking import ask, said, state_of, told
from tests.support.mounts import Mounted, Mounting, mounting
from tests.support.replicating import Replicating, head, replicating, run

__all__ = ["mounting", "replicating"]
pytestmark = pytest.mark.fuse


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of the tests' directories are long."""
    monkeypatch.setenv("COLUMNS", "300")


@pytest.fixture
def mounted(mounting: Mounting) -> Mounted:
    return mounting()


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
    assert total["expected"] in (54, 55)  # "gone" may have arrived before it went
    assert (total["missing"], total["missing_paths"]) == (1, ["/late"])
    assert total["arrived"] + total["untimed"] == total["expected"] - 1
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
