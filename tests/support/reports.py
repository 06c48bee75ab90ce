"""Journals and reports of replicators for tests of what reads them."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

from mirrorfs.journal.recovery import open_journal
from mirrorfs.journal.segment import SourceIdentity
from mirrorfs.journal.writer import JournalWriter
from replicator.cursor import tell_cursor, write_report
from replicator.site_state import HeldStep, SiteReport, SiteState, clean_cursor
from replicator.standing import boot_id
from tests.support.records import SOURCE, VOLUME

SECOND_NS = 1_000_000_000


def journal_at(directory: Path, source: SourceIdentity = SOURCE) -> JournalWriter:
    """A journal, open for appending."""
    return open_journal(str(directory), VOLUME, source, "node17").writer


def state_of(writer: JournalWriter, **fields: Any) -> SiteState:
    """The state of a site that has everything, but for the fields given."""
    header = writer.header
    values: dict[str, Any] = {
        "volume": header.volume.hex(),
        "site": "backup",
        "journal": header.journal.hex(),
        "tag": f"{header.tag:016x}",
        "working": writer.head,
        "held": [],
        "initial": False,
        **fields,
    }
    clean = clean_cursor(values["working"], values["held"], initial=values["initial"])
    return SiteState(**{"clean": clean, **values})


def report_of(state: SiteState, **fields: Any) -> SiteReport:
    """The report of a replicator that runs here (this process) and just wrote it."""
    now = time.time_ns()
    values: dict[str, Any] = {
        "site": state.site,
        "url": "file:///mnt/backup/data",
        "host": socket.gethostname(),
        "boot": boot_id(),
        "pid": os.getpid(),
        "started_ns": now,
        "updated_ns": now,
        "phase": "tailing",
        "phase_ns": now,
        "head": state.working,
        "read": state.working,
        "state": state,
        **fields,
    }
    return SiteReport(**values)


def put_report(journal: Path, state: SiteState, **fields: Any) -> SiteReport:
    """Write such a report, and tell the journal of the cursor."""
    report = report_of(state, **fields)
    write_report(str(journal), report)
    tell_cursor(str(journal), state, report.started_ns)
    return report


def held(sequence: int, **fields: Any) -> HeldStep:
    """A step that failed often."""
    values: dict[str, Any] = {
        "kind": "place",
        "path": b"a/b",
        "since_ns": time.time_ns(),
        "due_ns": time.time_ns(),
        "tries": 7,
        "error": "Permission denied",
        **fields,
    }
    return HeldStep(sequence=sequence, **values)
