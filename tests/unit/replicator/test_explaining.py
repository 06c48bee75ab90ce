"""Why a path is not at a site, from files alone: no source, no daemon, scripted reports."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mirrorfs.journal.reader import JournalReader
from mirrorfs.journal.record import SETTLED, Change, Kind, Place, Who
from mirrorfs.journal.writer import JournalWriter
from replicator.config import SiteSettings
from replicator.cursor import report_path
from replicator.explaining import explain, names_of
from replicator.orders import pause
from replicator.site_state import SkippedStep
from replicator.work import Doing, WorkReport
from tests.support.records import ROOT, object_id
from tests.support.reports import SECOND_NS, held, journal_at, put_report, state_of

AT = 1_795_326_956 * SECOND_NS
DOING = WorkReport(
    doing=(Doing(path="/f4", since_ns=AT - 7 * SECOND_NS, size=3_100_000_000, copied=537_000_000),)
)
SKIPPED = SkippedStep(
    kind="place", path=b"f4", sequence=5, error="no", reason="old", by=1000, time_ns=AT
)


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def writer(journal: Path) -> Iterator[JournalWriter]:
    """Ten writes of ten files: f0 is record 1."""
    made = journal_at(journal)
    for number in range(10):
        name = b"f%d" % number
        who = Who(7, 0, "j")
        body = Change(object_id(number), (Place(ROOT, name),), name, 0o100644, 1, who=who)
        made.append(Kind.WRITE, body, SETTLED)
    yield made
    made.close()


def failing(**fields: Any) -> dict[str, Any]:
    values: dict[str, Any] = {"path": b"f4", "due_ns": AT + 60 * SECOND_NS, "tries": 2, **fields}
    return {"held": [held(5, **values)]}


FAILED = "the step (id 1e5142f3) failed 2 times, last with "
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
    "queued": ({"working": 2}, {"done": 2}, "queued", "queued at position 3 of 8"),
    "queued, done more than is saved": (
        {"working": 2},
        {"done": 4, "oldest_ns": AT},
        "queued",
        "queued at position 1 of 6",
    ),
    "halted": (
        {"working": 2},
        {"phase": "halted", "reason": "the lease is lost"},
        "queued",
        "queued at position 3 of 8; the site is halted: the lease is lost",
    ),
    "backing off": (
        {"working": 2},
        {"phase": "backing off", "reason": "Input/output error"},
        "queued",
        "queued at position 3 of 8; the site is backing off: Input/output error",
    ),
    "copying": (
        {"working": 2},
        {"work": DOING},
        "copying",
        "it is being copied now: 537 MB of 3.1 GB, for 7 s",
    ),
    "failed": (
        failing(error="Permission denied", errno=13),
        {},
        "failed",
        FAILED + "EACCES: Permission denied; the next try is due 2026-11-22T05:56:56Z",
    ),
    "failed without errno": (
        failing(due_ns=5),
        {},
        "failed",
        FAILED + "Permission denied; the next try is due now",
    ),
    "hot": (
        failing(error="hot: it changes while it is read"),
        {},
        "hot",
        "hot: it changes while it is read; the next try is due 2026-11-22T05:56:56Z",
    ),
    "waiting": (
        failing(waiting=True, error="open for writing"),
        {},
        "waiting",
        "the step waits for a writer to close the file: open for writing; the next look is due"
        " 2026-11-22T05:56:56Z",
    ),
    "skipped": (
        {"skipped": [SKIPPED]},
        {},
        "skipped",
        "skipped by an operator (user 1000, 2026-11-22T05:55:56Z): old; it had failed: no",
    ),
    "initial copy": (
        {"initial": True},
        {"phase": "initial copy"},
        "queued",
        "the initial copy has not come to it yet",
    ),
    "another journal": (
        {"journal": "00" * 16},
        {},
        "queued",
        "an initial copy is due: the cursor belongs to another journal",
    ),
    "nothing": ({}, {}, "away", "the site cannot be looked at: /none: No such file or directory"),
}


@pytest.mark.parametrize(("state", "report", "verdict", "text"), CASES.values(), ids=CASES.keys())
def test_a_reason_to_the_sign(
    journal: Path,
    writer: JournalWriter,
    state: dict[str, Any],
    report: dict[str, Any],
    verdict: str,
    text: str,
) -> None:
    put_report(journal, state_of(writer, **state), **{"updated_ns": AT, "done": 0, **report})
    told = explain(str(journal), [SiteSettings("backup", "", "/none")], b"/f4", AT)
    assert told.notes[0].startswith("the source cannot be looked at: /srv/data: ")
    assert told.record is not None
    assert (told.record.sequence, told.record.job, told.path) == (5, "j", "/f4")
    (site,) = told.sites
    assert (site.verdict, site.text) == (verdict, text)


def test_paused_and_never_heard_of(journal: Path, writer: JournalWriter) -> None:
    put_report(journal, state_of(writer, working=2), phase="paused", updated_ns=AT)
    pause(str(journal), "backup", "new disks")
    sites = [SiteSettings("backup", "", "/none"), SiteSettings("new", "", "/none")]
    paused, never = explain(str(journal), sites, b"f4", time.time_ns()).sites
    assert paused.verdict == "paused"
    assert paused.text.startswith("queued at position 3 of 8; the site is paused since 20")
    assert paused.text.endswith(": new disks")
    assert (never.verdict, never.text) == ("never", "no replicator has ever reported on it")
    with open(report_path(str(journal), "new"), "w") as file:
        file.write("{")
    never = explain(str(journal), sites, b"f4", time.time_ns()).sites[1]
    assert never.text.startswith("report cannot be read")


def test_paths_as_people_give_them(journal: Path, writer: JournalWriter) -> None:
    with JournalReader(str(journal)) as reader:
        for path, names in (
            (b"/srv/data/a/b", (b"a", b"b")),
            (b"/srv/data", ()),
            (b"/", ()),
            (b"a/./b/", (b"a", b"b")),
            (b"/a/../b", (b"b",)),
            (b"/srv/database", (b"srv", b"database")),
            (b"/a\\xff\\x5c", (b"a\xff\\",)),
            (b"/a\\x", (b"a\\x",)),
            (b"/a\\xzz", (b"a\\xzz",)),
        ):
            assert names_of(path, reader) == names
