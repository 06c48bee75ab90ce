"""What there is to report of a site: what its engine has come to, and what its disk has left."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from dataclasses import asdict

import msgspec

from mirrorfs.journal.reader import JournalReader, NoJournalError
from mirrorfs.journal.record import SequenceNumber
from mirrorfs.journal.segment import CorruptionError
from mirrorfs.journal.site_cursor import SiteCursorError
from mirrorfs.journal.site_files import read_cursor
from replicator.config import SiteSettings
from replicator.cursor import fresh_state, read_reports, write_report
from replicator.engine import Engine
from replicator.lag import Waits
from replicator.observing import Observing
from replicator.site_state import SiteReport, SiteState
from replicator.standing import boot_id

_log = logging.getLogger(__name__)


def seen(
    settings: SiteSettings, engine: Engine, head: SequenceNumber, started_ns: int, oldest_ns: int
) -> SiteReport:
    """All but the phase and what is measured. `started_ns`: when this process began with it;
    `oldest_ns`: of the oldest record still to be worked on; 0: there is none."""
    store = engine.store
    counters = asdict(engine.counters)
    counters["directories_listed"] = store.directories_listed
    counters["bytes_written"] = store.bytes_written
    return SiteReport(
        site=settings.name,
        url=settings.url,
        host=socket.gethostname(),
        boot=boot_id(),
        pid=os.getpid(),
        started_ns=started_ns,
        updated_ns=0,
        phase="",
        phase_ns=0,
        head=head,
        read=engine.plan.known,
        done=engine.plan.working(),
        queue=len(engine.plan),
        oldest_ns=oldest_ns,
        counters=counters,
        state=engine.state,
    )


def seen_before(journal: str, settings: SiteSettings, started_ns: int) -> SiteReport | None:
    """Of a site that is not open yet, what was reported before, or what the journal knows; None:
    the journal cannot be read."""
    found = read_reports(journal).get(settings.name)
    if not isinstance(found, SiteReport):
        try:
            return _told(settings, _state_told(journal, settings.name), started_ns)
        except (NoJournalError, CorruptionError, OSError):
            return None
    told = _told(settings, msgspec.structs.replace(found.state, stopped=False), started_ns)
    ours = ("url", "host", "boot", "pid", "started_ns", "state")
    return msgspec.structs.replace(found, **{name: getattr(told, name) for name in ours})


def _told(settings: SiteSettings, state: SiteState, started_ns: int) -> SiteReport:
    """By this process, which knows no more."""
    return SiteReport(
        site=settings.name,
        url=settings.url,
        host=socket.gethostname(),
        boot=boot_id(),
        pid=os.getpid(),
        started_ns=started_ns,
        updated_ns=0,
        phase="",
        phase_ns=0,
        state=state,
    )


def measured(report: SiteReport, waits: Waits, observing: Observing) -> SiteReport:
    """That report, as of now."""
    now_ns = time.time_ns()
    return msgspec.structs.replace(
        report,
        updated_ns=now_ns,
        lag_p50=waits.lag.percentile(now_ns, 0.5),
        lag_p99=waits.lag.percentile(now_ns, 0.99),
        records_per_second=waits.rate.rate(now_ns),
        work=observing.report(now_ns),
    )


def _state_told(journal: str, site: str) -> SiteState:
    """As far as the journal was told."""
    with JournalReader(journal) as reader:
        state, known = fresh_state(reader, site, adopt=False), None
        with contextlib.suppress(SiteCursorError):
            known = read_cursor(journal, site)
    if known is None or known.status == "forgotten":
        return state
    at = {"journal": known.journal, "tag": known.tag, "working": known.sequence}
    return msgspec.structs.replace(state, initial=False, **at)


def free_bytes(path: str) -> int | None:
    """Bytes that may still be written to a site; None if it cannot be told."""
    try:
        found = os.statvfs(path)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def tell(journal: str, report: SiteReport | None) -> None:
    """Write the report beside the journal; a full disk there must not stop us."""
    try:
        if report is not None:
            write_report(journal, report)
    except OSError as error:
        _log.debug("%s: no report: %s", report.site if report else "", error)
