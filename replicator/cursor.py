"""Load a site's state from the site, and keep a report of it beside the journal.

The state at the site is the truth: a site restored from a backup brings its older cursor along and
so rewinds itself. The report in `JOURNAL/sites/` is for people and for retention; losing it loses
nothing.
"""

from __future__ import annotations

import contextlib
import os

from mirrorfs.journal.reader import JournalReader, Unknown
from mirrorfs.journal.record import SequenceNumber, Tag
from replicator.site_state import (
    STATE_FILE,
    SiteReport,
    SiteState,
    StateError,
    decode_report,
    decode_state,
    encode_report,
)
from replicator.stores.base import SiteStore

_SITES = "sites"


def load_state(store: SiteStore, reader: JournalReader, site: str, *, adopt: bool) -> SiteState:
    """The state a replicator goes on from: the site's own if the journal still explains it.

    Otherwise one that asks for an initial copy; it is never taken for "up to date".
    Raises StateError if the site's state cannot be read.
    """
    head = reader.head()
    header = reader.header
    fresh = SiteState(
        volume=header.volume.hex(),
        site=site,
        journal=header.journal.hex(),
        tag=f"{header.tag:016x}",
        working=head,
        clean=-1,
        initial=True,
        adopt=adopt,
    )
    data = store.read_file(STATE_FILE)
    if data is None:
        return fresh
    state = decode_state(data)
    cursor = Tag(int(state.tag, 16)), SequenceNumber(state.working)
    at = reader.resolve(bytes.fromhex(state.journal), *cursor)
    if isinstance(at, Unknown):
        return fresh
    state.working = at
    return state


def report_path(journal: str, site: str) -> str:
    """Where the report of a site lies."""
    return f"{journal}/{_SITES}/{site}.json"


def write_report(journal: str, report: SiteReport) -> None:
    """Replace a site's report. Not synced: it is written again in a second. Raises OSError."""
    path = report_path(journal, report.site)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    scratch = f"{path}.{report.pid}"
    try:
        with open(scratch, "wb") as file:
            file.write(encode_report(report))
        os.replace(scratch, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(scratch)
        raise


def read_reports(journal: str) -> dict[str, SiteReport | StateError]:
    """The reports beside a journal, by site; an unreadable one is given as its error."""
    reports: dict[str, SiteReport | StateError] = {}
    try:
        names = sorted(os.listdir(f"{journal}/{_SITES}"))
    except FileNotFoundError:
        return reports
    for name in names:
        site, extension = os.path.splitext(name)
        if extension != ".json":
            continue
        try:
            with open(report_path(journal, site), "rb") as file:
                reports[site] = decode_report(file.read())
        except FileNotFoundError:
            continue
        except StateError as error:
            reports[site] = error
    return reports
