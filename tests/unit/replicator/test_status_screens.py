"""The screen of status, to the sign; thresholds; the line for monitoring; the schema."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from mirrorfs.journal.writer import JournalWriter
from replicator.config import RunSettings, Thresholds
from replicator.orders import pause
from replicator.site_state import SkippedStep
from replicator.status import StatusReader
from replicator.status_report import encode_status, status_schema
from replicator.status_text import nagios
from replicator.work import Doing, WorkReport
from tests.support.reports import SECOND_NS, held, put_report, state_of
from tests.support.screens import SITE, journal, status, text, writer

__all__ = ["journal", "writer"]

DOING = (
    Doing(path="/big", since_ns=0, seconds=100.0, size=3_000_000_000, copied=1_230_000_000),
    Doing(path="/small", since_ns=0),
    Doing(path="/x", since_ns=0),
)
SPACE = "waiting for space: 3.1 GB needed, 200 MB free, for /results/analysis.grib"


def scripted(writer: JournalWriter, situation: str) -> dict[str, Any]:
    """What a replicator would report in such a situation."""
    now = time.time_ns()
    fields: dict[str, dict[str, Any]] = {
        "dead": {"pid": 2**22 + 1, "host": "node18", "updated_ns": now - 3600 * SECOND_NS},
        "full": {"phase": "backing off", "reason": SPACE, "oldest_ns": now - 90 * SECOND_NS},
        "backlog": {
            "phase": "catching up",
            "oldest_ns": now - 4000 * SECOND_NS,
            "queue": 12_345,
            "records_per_second": 0.5,
            "lag_p50": 1000.0,
            "lag_p99": 4000.0,
            "work": WorkReport(busy=0.97, steps=30, site=0.8, own=0.2, doing=DOING[1:]),
        },
        "long": {"queue": 1, "work": WorkReport(doing=DOING)},
        "paused": {"phase": "paused"},
        "failed": {},
        "skipped": {},
    }
    state: dict[str, Any] = {"working": 4 if situation in ("full", "backlog") else 10}
    if situation == "failed":
        state["held"] = [
            held(5, path=b"a/b", error="cannot put in place 'b': Operation not permitted", errno=1),
            held(6, path=b"log", error="hot: it changes while it is read", tries=2),
            held(7, path=b"model/out", waiting=True, error="open for writing"),
        ]
    if situation == "skipped":
        gone = SkippedStep(
            kind="place",
            path=b"a/b",
            sequence=3,
            error="Operation not permitted",
            reason="immutable by intent",
            by=1000,
            time_ns=1_795_326_956 * SECOND_NS,
        )
        state["skipped"] = [gone] * 4
    return {"state": state_of(writer, **state), **fields[situation]}


SCREENS = {
    "dead": """\
  state     tailing for 1 h
  by        nobody; process 4194305 on node18, until TIME
  cursor    working 10, clean 10
  lag       0 s now
  work      0 places in the queue, 0.0 records/s

warning
  site backup: its replicator is silent for 1 h: process 4194305 on node18
""",
    "full": """\
  state     backing off for 1 h: waiting for space: 3.1 GB needed, 200 MB free,
            for /results/analysis.grib
  by        process PID on HOST
  cursor    working 4, clean 4
  lag       1 min 30 s now (6 records)
  work      0 places in the queue, 0.0 records/s

warning
  site backup is backing off: waiting for space: 3.1 GB needed, 200 MB free, for
  /results/analysis.grib
""",
    "backlog": """\
  state       catching up for 1 h
  by          process PID on HOST
  cursor      working 4, clean 4
  lag         1 h 6 min now (6 records); last hour: p50 16 min 40 s, p99 1 h 6
              min
  work        12,345 places in the queue, 0.5 records/s, caught up in 12 s
  bottleneck  writing at the site: 80% of the time of a step; one step at a time
  doing       /small
  doing       /x

CRITICAL
  site backup is 1 h 6 min behind
""",
    "long": """\
  state       tailing for 1 h
  by          process PID on HOST
  cursor      working 10, clean 10
  lag         0 s now
  work        1 place in the queue, 0.0 records/s
  bottleneck  a long step, 100 s so far: /big; one step at a time
  doing       /big: 1.23 GB of 3 GB copied, 2 min 24 s left
  doing       /small
  doing       and 1 more

ok
""",
    "paused": """\
  state     paused for 1 h: the array is mended, since TIME
  by        process PID on HOST
  cursor    working 10, clean 10
  lag       0 s now
  work      0 places in the queue, 0.0 records/s

warning
  site backup is paused: the array is mended, since TIME
""",
    "failed": """\
  state     tailing for 1 h
  by        process PID on HOST
  cursor    working 10, clean 4
  lag       0 s now
  work      0 places in the queue, 0.0 records/s
  failed    2 steps
            /a/b: cannot put in place 'b': Operation not permitted (7 tries)
            /log: hot: it changes while it is read (2 tries)
  waiting   1 step, for a writer to close its file

warning
  site backup: 2 steps failed
""",
    "skipped": """\
  state     tailing for 1 h
  by        process PID on HOST
  cursor    working 10, clean 10
  lag       0 s now
  work      0 places in the queue, 0.0 records/s
  skipped   4 steps, by operators: the site may differ there
            /a/b: immutable by intent (TIME)
            /a/b: immutable by intent (TIME)
            /a/b: immutable by intent (TIME)
            and 1 before

ok
""",
}


@pytest.mark.parametrize("situation", SCREENS)
def test_the_screen_to_the_sign(journal: Path, writer: JournalWriter, situation: str) -> None:
    fields = scripted(writer, situation)
    state = fields.pop("state")
    put_report(journal, state, **{"phase_ns": time.time_ns() - 3600 * SECOND_NS, **fields})
    if situation == "paused":
        pause(str(journal), "backup", "the array is mended")
    report = status(journal, SITE)
    for width in (80, 120):
        shown = text(report, width)
        assert max(map(len, shown.splitlines())) <= width
        assert len(shown.splitlines()) <= 24, "one screen"
    shown = text(report)
    shown = shown.replace(
        "warning\n  mirrorfs is not mounted: changes go without records", "warning"
    )
    shown = shown.replace("\n  mirrorfs is not mounted: changes go without records", "")
    shown = re.sub(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", "TIME", shown)
    shown = shown.replace(f"process {os.getpid()} on {socket.gethostname()}", "process PID on HOST")
    shown = "".join(line.rstrip() + "\n" for line in shown.splitlines())
    wanted = SCREENS[situation]
    if wanted.endswith("\nok\n"):
        wanted = wanted.removesuffix("ok\n") + "warning\n"  # nothing is mounted
    assert shown.split("data\n", 1)[1].endswith(wanted.split("\n", 1)[1])
    assert wanted.split("\n", 1)[0] in shown


def test_thresholds_decide(journal: Path, writer: JournalWriter) -> None:
    oldest = time.time_ns() - 100 * SECOND_NS
    put_report(journal, state_of(writer, working=4, held=[held(5)]), oldest_ns=oldest)

    def severity(**limits: float) -> int:
        values: Any = {"warn_lag": 0, "critical_lag": 0, "warn_failed": 0, **limits}
        own = Thresholds(**values)
        everywhere = RunSettings(str(journal), (), own)
        of_site = RunSettings(str(journal), (replace(SITE, thresholds=own),))
        found = []
        for settings in (everywhere, of_site):
            with StatusReader(settings) as reader:
                problems = reader.read().sites[0].problems
                found.append(max((each.severity for each in problems), default=0))
        assert found[0] == found[1]
        return found[0]

    assert severity() == 0
    assert severity(warn_lag=50) == 1
    assert severity(warn_lag=5000) == 0
    assert severity(warn_lag=50, critical_lag=60) == 2
    assert severity(warn_failed=1) == 1
    assert severity(warn_failed=2) == 0
    assert severity(warn_failed=1, critical_failed=1) == 2


def test_one_line_for_monitoring(journal: Path, writer: JournalWriter) -> None:
    put_report(journal, state_of(writer))
    assert nagios(status(journal, SITE)) == (
        "MIRRORFS WARNING - mirrorfs is not mounted: changes go without records"
        " | backup_lag=0.000s;300;3600;0 backup_queue=0;;;0 backup_failed=0;0;;0"
    )
    (journal / "sites" / "backup.json").write_text("a|b")
    line = nagios(status(journal, SITE))
    assert line.startswith("MIRRORFS CRITICAL - site backup: its report cannot be read")
    assert "|" not in line


def test_one_line_when_all_is_well(journal: Path, writer: JournalWriter) -> None:
    put_report(journal, state_of(writer, initial=True))
    limits = Thresholds(0, 0, 0, 2)
    with StatusReader(RunSettings(str(journal), (), limits)) as reader:
        report = reader.read()
    volume = msgspec.structs.replace(report.volume, problems=())
    sites = (msgspec.structs.replace(report.sites[0], problems=()),)
    well = msgspec.structs.replace(report, severity=0, volume=volume, sites=sites)
    assert nagios(well) == (
        "MIRRORFS OK - backup tailing, - behind | backup_queue=0;;;0 backup_failed=0;;1;0"
    )
    assert nagios(msgspec.structs.replace(well, sites=())) == "MIRRORFS OK - no site yet"


def test_the_schema_is_what_status_prints(journal: Path, writer: JournalWriter) -> None:
    path = Path(__file__).parents[3] / "docs/status.schema.json"
    schema = json.loads(path.read_text())
    made = msgspec.json.format(msgspec.json.encode(status_schema())) + b"\n"
    assert json.loads(made) == schema, f"write it again: {path}"
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    validator.validate(json.loads(encode_status(status(journal, SITE))))
    for situation in SCREENS:
        fields = scripted(writer, situation)
        put_report(journal, fields.pop("state"), **fields)
        validator.validate(json.loads(encode_status(status(journal, SITE))))
    with pytest.raises(jsonschema.ValidationError):
        validator.validate({"severity": 0})
