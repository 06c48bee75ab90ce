"""Status from the disk: what it says, how urgent it is, and that it does not pretend."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mirrorfs.journal.reader import NoJournalError
from mirrorfs.journal.site_files import cursor_path, write_cursor
from mirrorfs.journal.writer import JournalWriter
from replicator.config import RunSettings
from replicator.cursor import cursor_of
from replicator.status import StatusReader
from replicator.status_report import SiteStatus, VolumeReport, encode_status
from tests.support.reports import SECOND_NS, held, put_report, report_of, state_of
from tests.support.screens import SITE, append, journal, status, text, writer

__all__ = ["journal", "writer"]


def said(report: VolumeReport) -> list[str]:
    """The problems, but that of nothing being mounted."""
    problems = [*report.volume.problems, *(each for s in report.sites for each in s.problems)]
    return [each.text for each in problems if "not mounted" not in each.text]


def site(report: VolumeReport) -> SiteStatus:
    assert len(report.sites) == 1
    return report.sites[0]


def test_a_journal_without_sites(journal: Path, writer: JournalWriter) -> None:
    report = status(journal)
    assert report.sites == ()
    assert report.volume.head == 10
    assert report.volume.mounted is False
    assert report.severity == 1
    assert "mirrorfs is not mounted: changes go without records" in text(report)
    assert "no site yet" in text(report)


def test_a_site_that_has_everything(journal: Path, writer: JournalWriter) -> None:
    put_report(journal, state_of(writer), lag_p50=0.004, lag_p99=0.02)
    report = status(journal, SITE)
    found = site(report)
    assert (found.state, found.running, found.working, found.clean) == ("tailing", True, 10, 10)
    assert (found.lag_records, found.lag_seconds, found.failed) == (0, 0.0, 0)
    assert said(report) == []
    shown = text(report)
    assert "working 10, clean 10" in shown
    assert "0 s now; last hour: p50 4 ms, p99 20 ms" in shown


def test_a_site_nobody_has_heard_of(journal: Path, writer: JournalWriter) -> None:
    report = status(journal, SITE)
    assert site(report).state == "never ran"
    assert said(report) == ["site backup: no replicator has ever reported on it"]
    assert "state" in text(report)


def test_an_unreadable_report_is_critical(journal: Path, writer: JournalWriter) -> None:
    (journal / "sites").mkdir()
    (journal / "sites" / "backup.json").write_text("{")
    report = status(journal)
    assert report.severity == 2
    assert said(report)[0].startswith("site backup: its report cannot be read")
    assert "CRITICAL" in text(report)


SILENT: dict[str, tuple[dict[str, Any], str]] = {
    "stopped": ({"phase": "stopped"}, "not running: stopped"),
    "gone": ({"pid": 2**22 + 1}, "not running: process 4194305 ended without stopping"),
    "other boot": ({"boot": "another"}, "ended without stopping"),
    "stale": ({"updated_ns": 5}, "silent for"),
    "elsewhere": ({"host": "other", "pid": 2**22 + 1, "updated_ns": 5}, "on other"),
}


@pytest.mark.parametrize(("fields", "why"), SILENT.values(), ids=SILENT.keys())
def test_a_replicator_that_does_not_run(
    journal: Path, writer: JournalWriter, fields: dict[str, Any], why: str
) -> None:
    put_report(journal, state_of(writer), **fields)
    report = status(journal)
    assert not site(report).running
    assert why in said(report)[0]
    assert report.severity == 1
    assert "nobody; process" in text(report)


def test_a_site_that_was_stopped_cleanly(journal: Path, writer: JournalWriter) -> None:
    put_report(journal, state_of(writer, stopped=True))
    assert "not running: stopped" in said(status(journal))[0]


def test_a_replicator_elsewhere_that_reports_is_believed(
    journal: Path, writer: JournalWriter
) -> None:
    put_report(journal, state_of(writer), host="other", pid=2**22 + 1, boot="another")
    assert site(status(journal)).running


def test_a_halted_site_is_critical(journal: Path, writer: JournalWriter) -> None:
    put_report(journal, state_of(writer), phase="halted", reason="the lease was taken")
    report = status(journal)
    assert report.severity == 2
    assert said(report) == ["site backup is halted: the lease was taken"]


def test_a_site_that_backs_off(journal: Path, writer: JournalWriter) -> None:
    put_report(journal, state_of(writer), phase="backing off", reason="waiting for space")
    report = status(journal)
    assert said(report) == ["site backup is backing off: waiting for space"]
    assert "backing off for 0 s: waiting for space" in text(report)


def test_an_initial_copy(journal: Path, writer: JournalWriter) -> None:
    put_report(journal, state_of(writer, initial=True), phase="initial copy")
    report = status(journal)
    found = site(report)
    assert (found.working, found.clean, found.lag_seconds) == (None, None, None)
    assert said(report) == ["site backup: the initial copy is not complete"]
    assert "none before the initial copy is complete" in text(report)


def test_a_cursor_of_another_journal(journal: Path, writer: JournalWriter) -> None:
    put_report(journal, state_of(writer, journal="00" * 16))
    report = status(journal)
    assert site(report).working is None
    assert site(report).reason.startswith("an initial copy is due: the cursor belongs to another")
    assert said(report)[0].startswith("site backup: the initial copy is due")


def test_a_cursor_past_the_end_is_cut_back(journal: Path, writer: JournalWriter) -> None:
    put_report(journal, state_of(writer, working=1000))
    assert site(status(journal)).working == 10


def test_a_cursor_nobody_can_read(journal: Path, writer: JournalWriter) -> None:
    put_report(journal, state_of(writer, tag="x"))
    assert "its cursor cannot be read" in site(status(journal)).reason


def test_failed_and_waiting_steps(journal: Path, writer: JournalWriter) -> None:
    steps = [held(5, path=b"a/\xff%d" % number) for number in range(5)]
    steps += [held(6, waiting=True, path=None)]
    put_report(journal, state_of(writer, held=steps))
    report = status(journal)
    found = site(report)
    assert (found.working, found.clean, found.failed, found.waiting) == (10, 4, 5, 1)
    assert found.failed_steps[0].path == "/a/\\xff0"
    assert found.waiting_steps[0].path is None
    assert said(report) == ["site backup: 5 steps failed"]
    shown = text(report)
    assert "/a/\\xff2: Permission denied (7 tries)" in shown
    assert "and 2 more" in shown
    assert "1 step, for a writer to close its file" in shown


def test_the_lag_of_a_running_site_is_as_reported(journal: Path, writer: JournalWriter) -> None:
    now = report_of(state_of(writer)).updated_ns
    put_report(
        journal,
        state_of(writer, working=4),
        oldest_ns=now - 400 * SECOND_NS,
        queue=17,
        records_per_second=2.0,
        phase="catching up",
    )
    report = status(journal)
    found = site(report)
    assert found.lag_seconds == pytest.approx(400, abs=100)
    assert (found.lag_records, found.eta_seconds) == (6, 3.0)
    assert said(report)[0].endswith("behind")
    assert "(6 records)" in text(report)
    assert "17 places in the queue, 2.0 records/s, caught up in 3 s" in text(report)


def test_the_lag_without_a_replicator_is_that_of_the_journal(
    journal: Path, writer: JournalWriter
) -> None:
    put_report(journal, state_of(writer), phase="stopped")
    assert site(status(journal)).lag_seconds == 0.0
    append(writer, 2)
    found = site(status(journal))
    assert found.lag_records == 2
    assert found.lag_seconds is not None
    assert found.lag_seconds > 0
    assert found.eta_seconds is None


def test_records_made_since_the_report_are_no_lag(journal: Path, writer: JournalWriter) -> None:
    put_report(journal, state_of(writer))
    with StatusReader(RunSettings(str(journal), ())) as reader:
        assert site(reader.read()).lag_seconds == 0.0
        append(writer, 2)
        found = site(reader.read())
        assert (found.lag_records, found.lag_seconds) == (2, 0.0)
        put_report(journal, state_of(writer, working=10), read=10)
        later = site(reader.read())
        assert later.lag_seconds is not None
        assert later.lag_seconds > 0


def test_a_corrupt_journal_is_critical(journal: Path, writer: JournalWriter) -> None:
    put_report(journal, state_of(writer))
    (segment,) = journal.glob("*.seg")
    data = bytearray(segment.read_bytes())
    data[3] ^= 1
    segment.write_bytes(data)
    report = status(journal)
    assert report.severity == 2
    assert report.volume.head is None
    assert any(line.startswith("the journal is corrupt: ") for line in said(report))
    assert site(report).working is None
    assert "CRITICAL" in text(report)


def test_corruption_behind_the_header_is_critical(journal: Path, writer: JournalWriter) -> None:
    put_report(journal, state_of(writer))
    (segment,) = journal.glob("*.seg")
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.write_bytes(data)
    assert status(journal).severity == 2


def test_no_journal(tmp_path: Path) -> None:
    with pytest.raises(NoJournalError):
        status(tmp_path)


def test_the_documented_fields_are_there(journal: Path, writer: JournalWriter) -> None:
    put_report(journal, state_of(writer, held=[held(5)]))
    value = json.loads(encode_status(status(journal)))
    assert list(value) == ["severity", "time", "volume", "sites"]
    manual = (Path(__file__).parents[3] / "docs/man/replicator.1").read_text()
    for part in (value, value["volume"], value["sites"][0], value["sites"][0]["failed_steps"][0]):
        for name in part:
            assert f".BR {name}" in manual or f".B {name}" in manual, name


def test_it_is_one_screen_of_eighty_columns(journal: Path, writer: JournalWriter) -> None:
    for name in ("one", "two"):
        steps = [held(5, path=b"x" * 200, error="e" * 100) for _ in range(9)]
        state = state_of(writer, held=steps)
        put_report(journal, state, site=name, url="file:///" + "y" * 60)
    lines = text(status(journal)).splitlines()
    assert max(map(len, lines)) <= 80


def test_the_command(journal: Path, writer: JournalWriter) -> None:
    put_report(journal, state_of(writer))
    command = [sys.executable, "-m", "replicator", "status", "--journal", str(journal)]
    root = Path(__file__).parents[3]
    plain = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert plain.returncode == 1
    assert "\x1b" not in plain.stdout
    assert not [line for line in plain.stdout.splitlines() if line != line.rstrip()]
    assert f"process {os.getpid()} on {socket.gethostname()}" in plain.stdout
    found = subprocess.run([*command, "--json"], cwd=root, capture_output=True, text=True)
    assert found.returncode == 1
    assert json.loads(found.stdout)["sites"][0]["site"] == "backup"


def test_a_cursor_that_the_journal_does_not_have(journal: Path, writer: JournalWriter) -> None:
    put_report(journal, state_of(writer))
    os.unlink(cursor_path(str(journal), "backup"))
    report = status(journal)
    assert site(report).attached is None
    told = "its cursor is missing: there is a report only: the journal keeps everything"
    assert said(report) == [f"site backup: {told}"]


def test_a_detached_site(journal: Path, writer: JournalWriter) -> None:
    state = state_of(writer)
    put_report(journal, state, phase="stopped")
    write_cursor(str(journal), cursor_of(state, "detached", SECOND_NS), durable=False)
    report = status(journal)
    assert (site(report).attached, site(report).attachment_since) == (False, "1970-01-01T00:00:01Z")
    assert said(report) == []
    assert "detached  since 1970-01-01T00:00:01Z" in text(report)
    assert "kept      " in text(report)


def test_how_far_an_initial_copy_is(journal: Path, writer: JournalWriter) -> None:
    counters = {"files_copied": 1234, "bytes_written": 3_100_000_000}
    put_report(journal, state_of(writer, initial=True), phase="initial copy", counters=counters)
    assert "1,234 files, 3.1 GB since the replicator came up" in text(status(journal))
