"""Load a site's state from the site, and tell the journal of it: what it needs, and how it fares.

The state at the site is the truth: a site restored from a backup brings its older cursor along and
so rewinds itself. `JOURNAL/sites/NAME.cursor` says what the site needs, so that it is kept; the
report beside it is for people, losing it loses nothing.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time

import msgspec

from mirrorfs.journal.activity_header import FILE_NAME, HEADER_BYTES, decode_activity_header
from mirrorfs.journal.reader import JournalReader
from mirrorfs.journal.record import SequenceNumber, Tag
from mirrorfs.journal.site_cursor import SiteCursor, SiteCursorError, SiteStatus, Unknown
from mirrorfs.journal.site_files import read_cursor, sites_locked, write_cursor
from replicator.schedule import Incarnations
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

_log = logging.getLogger(__name__)

_SITES = "sites"
_OF_THE_SITE = ("boot", "mount", "stopped", "saves", "site_cuts", "source_cuts")


def fresh_state(reader: JournalReader, site: str, *, adopt: bool) -> SiteState:
    """One that asks for an initial copy."""
    header = reader.header
    return SiteState(
        volume=header.volume.hex(),
        site=site,
        journal=header.journal.hex(),
        tag=f"{header.tag:016x}",
        working=reader.head(),
        clean=-1,
        initial=True,
        adopt=adopt,
    )


def load_state(data: bytes | None, reader: JournalReader, site: str, *, adopt: bool) -> SiteState:
    """The state a replicator goes on from: the site's own (`data`) if the journal still explains
    it.

    Otherwise one that asks for an initial copy; it is never taken for "up to date".
    Raises StateError if the site's state cannot be read.
    """
    fresh = fresh_state(reader, site, adopt=adopt)
    if data is None:
        return fresh
    state = decode_state(data)
    cursor = Tag(int(state.tag, 16)), SequenceNumber(state.working)
    at = reader.resolve(bytes.fromhex(state.journal), *cursor)
    reason = at.reason if isinstance(at, Unknown) else went_back(reader, state)
    if reason is not None:
        _log.info("%s: %s: everything is compared", site, reason)
        kept = {name: getattr(state, name) for name in _OF_THE_SITE}
        return msgspec.structs.replace(fresh, **kept)
    assert not isinstance(at, Unknown), "it has a reason"
    state.working = at
    return state


def went_back(reader: JournalReader, state: SiteState) -> str | None:
    """Why the site may have what the journal, or the source with it, has not any more: they are
    older copies of themselves. None: they are not.

    A power cut takes records a site has seen, but nothing the activity log knew of: what it names
    is compared then. Where the log itself knows less than it did, nobody knows what to compare.
    """
    if not state.generation:
        return None
    tag = Tag(int(state.log_tag, 16))
    *ended, current = reader.incarnations()
    if tag == current.tag:
        return None
    known = next((each.generation for each in ended if each.tag == tag), None)
    if known is None:
        return "the journal does not know the activity log it had"
    if known < state.generation:
        return "the journal is an older copy of itself"
    return None


def incarnations_of(reader: JournalReader) -> Incarnations:
    """Those of the journal."""
    known = reader.incarnations()
    return Incarnations(known[:-1], known[-1].tag)


def read_log(journal: str) -> tuple[Tag, int]:
    """The activity log's incarnation and the generation that is surely on disk; 0 if there is
    none."""
    try:
        with open(f"{journal}/{FILE_NAME}", "rb") as file:
            found = decode_activity_header(file.read(HEADER_BYTES))
    except OSError:
        found = None
    return (Tag(0), 0) if found is None else (found[0].tag, found[0].durable)


def attach_site(
    store: SiteStore, reader: JournalReader, site: str, *, adopt: bool
) -> tuple[SiteState, int]:
    """`load_state`, and see to it that the journal keeps all records after it; since when (ns).

    Nothing is removed from the journal between the look and the word; the site, which may hang, is
    asked before, and others need not wait for it. Raises StateError; OSError if the journal can
    neither be told nor knows enough already.
    """
    data = store.read_file(STATE_FILE)
    with sites_locked(reader.path, wait=True):
        state = load_state(data, reader, site, adopt=adopt)
        known: SiteCursor | None = None
        with contextlib.suppress(SiteCursorError):  # it is replaced
            known = read_cursor(reader.path, site)
        attached = known is not None and known.status == "attached"
        since_ns = known.since_ns if known is not None and attached else time.time_ns()
        cursor = cursor_of(state, "attached", since_ns)
        try:
            write_cursor(reader.path, cursor, durable=True)
        except OSError:
            if known is None or not attached or not _keeps(known, cursor):
                raise
    return state, since_ns


def is_known(journal: str, site: str) -> bool:
    """Whether there is a site of that name that the journal keeps records for."""
    with contextlib.suppress(SiteCursorError):
        known = read_cursor(journal, site)
        return known is not None and known.status != "forgotten"
    return False


def _keeps(known: SiteCursor, wanted: SiteCursor) -> bool:
    """Whether what the journal was told before is enough."""
    same = (known.journal, known.tag) == (wanted.journal, wanted.tag)
    return same and known.sequence <= wanted.sequence


def tell_cursor(journal: str, state: SiteState, since_ns: int) -> None:
    """The state was saved at the site: the journal need not keep what is before it. OSError, which
    may be passed over: then more is kept."""
    write_cursor(journal, cursor_of(state, "attached", since_ns), durable=False)


def cursor_of(state: SiteState, status: SiteStatus, since_ns: int) -> SiteCursor:
    """What the journal is told of a site in that state."""
    return SiteCursor(
        site=state.site,
        status=status,
        volume=state.volume,
        journal=state.journal,
        tag=state.tag,
        sequence=state.working,
        since_ns=since_ns,
    )


def report_path(journal: str, site: str) -> str:
    """Where the report of a site lies."""
    return f"{journal}/{_SITES}/{site}.json"


def under_way_path(journal: str, site: str) -> str:
    """Where what is being done at a site lies (see `under_way`)."""
    return f"{journal}/{_SITES}/{site}.under-way"


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
