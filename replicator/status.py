"""How a volume and its sites fare, from the disk: the journal's head and the reports beside it.

Works without any daemon and says when what it tells is old. Only mirrorfs is asked, if it runs,
whether it is mounted. What is critical, a warning or neither is decided here, and nowhere else.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from typing import Final

from mirrorfs.journal.control_client import (
    ControlClient,
    ControlError,
    NotRunningError,
    Status,
    ThroughStatus,
)
from mirrorfs.journal.reader import JournalReader, RecordsGoneError
from mirrorfs.journal.record import SequenceNumber
from mirrorfs.journal.segment import CorruptionError
from mirrorfs.journal.site_cursor import SiteCursor, SiteCursorError
from mirrorfs.journal.site_files import read_cursors
from replicator.config import RunSettings, SiteSettings, Thresholds
from replicator.cursor import read_reports
from replicator.lag import eta_seconds, lag_seconds
from replicator.orders import Pause, read_pause
from replicator.site_state import HeldStep, Phase, SiteReport, SkippedStep, StateError
from replicator.standing import Standing, standing, why_silent
from replicator.status_report import (
    HeldStatus,
    Limits,
    Problem,
    Severity,
    SiteStatus,
    SkippedStatus,
    VolumeReport,
    VolumeStatus,
)
from replicator.wording import count, escaped, moment, span
from replicator.work import bottleneck

_CONTROL_SECONDS: Final = 2.0
_AT_WORK: Final = frozenset(
    phase.value for phase in (Phase.INITIAL_COPY, Phase.CATCHING_UP, Phase.TAILING)
)


class StatusReader:
    """Reads the status of a volume, again and again if asked to; a context manager."""

    def __init__(self, settings: RunSettings) -> None:
        """`settings.sites` are shown even if nothing was heard of them. NoJournalError, OSError."""
        self._settings = settings
        self._reader: JournalReader | None = None
        self._corrupt: CorruptionError | None = None
        self._times: dict[int, int] = {}
        self._cursors: dict[str, SiteCursor | SiteCursorError] = {}
        try:
            self._reader = JournalReader(settings.journal)
        except CorruptionError as error:
            self._corrupt = error

    def __enter__(self) -> StatusReader:
        return self

    def __exit__(self, *_: object) -> None:
        if self._reader is not None:
            self._reader.close()

    def read(self) -> VolumeReport:
        """The status now. OSError."""
        now_ns = time.time_ns()
        volume = self._volume(now_ns)
        reports = read_reports(self._settings.journal)
        self._cursors = read_cursors(self._settings.journal)
        sites = [
            self._site(each, reports.pop(each.name, None), now_ns) for each in self._settings.sites
        ]
        for name, report in reports.items():
            url = report.url if isinstance(report, SiteReport) else ""
            sites.append(self._site(SiteSettings(name, url, ""), report, now_ns))
        problems = [*volume.problems, *(each for site in sites for each in site.problems)]
        return VolumeReport(
            severity=max((each.severity for each in problems), default=Severity.OK),
            time=moment(now_ns),
            volume=volume,
            sites=tuple(sites),
        )

    # the volume --------------------------------------------------------------------------------

    def _volume(self, now_ns: int) -> VolumeStatus:
        journal = self._settings.journal
        problems: list[Problem] = []
        told, mounted = _ask(journal)
        if mounted is False:
            problems.append(_warning("mirrorfs is not mounted: changes go without records"))
        if told is not None and told.degraded is not None:
            problems.append(_warning(f"mirrorfs is degraded: {_degraded(told, now_ns)}"))
        through = () if told is None else told.through
        for each in through:
            if each.down is not None or each.undone:
                problems.append(_warning(f"write-through: {_through(each)}"))
        head = self._head()
        header = None if self._reader is None else self._reader.header
        if self._corrupt is not None:
            problems.append(_critical(f"the journal is corrupt: {self._corrupt}"))
        first, taken = self._kept()
        return VolumeStatus(
            first=first,
            journal_bytes=taken,
            journal=escaped(os.fsencode(journal)),
            source=None if header is None else escaped(header.source.path),
            uuid=None if header is None else str(uuid.UUID(bytes=header.volume)),
            head=head,
            mounted=mounted,
            mountpoint=None if told is None else escaped(told.mountpoint),
            degraded=None if told is None else told.degraded,
            degraded_since=moment(told.degraded_since_ns) if told and told.degraded else None,
            marked=None if told is None else told.marks,
            write_through=tuple(_through(each) for each in through),
            problems=tuple(problems),
        )

    def _head(self) -> SequenceNumber | None:
        if self._reader is None:
            return None
        try:
            return self._reader.head()
        except CorruptionError as error:
            self._corrupt = error
            return None

    def _kept(self) -> tuple[SequenceNumber | None, int | None]:
        """The oldest record, and what the journal takes on its disk."""
        if self._reader is None:
            return None, None
        return self._reader.first(), self._reader.disk_bytes()

    # a site ------------------------------------------------------------------------------------

    def _site(
        self, settings: SiteSettings, report: SiteReport | StateError | None, now_ns: int
    ) -> SiteStatus:
        name = settings.name
        if not isinstance(report, SiteReport):
            return _unheard(settings, report)
        silent = why_silent(report, now_ns)
        pause = read_pause(self._settings.journal, name)
        limits = settings.thresholds or self._settings.thresholds
        at, reader = None, self._reader
        if reader is not None and self._corrupt is None:
            at = standing(reader, report.state)
        lag = None if at is None else self._lag(report, at, silent is None, now_ns)
        held = report.state.held
        failed = tuple(held_status(step) for step in held if not step.waiting)
        waiting = tuple(held_status(step) for step in held if step.waiting)
        behind = None
        if reader is not None and at is not None and at.working >= 0:
            done = _working_now(report, at) if silent is None else at.working
            behind = max(0, reader.head() - done)
        rate = report.records_per_second if silent is None else 0.0
        cursor = self._cursors.get(name)
        known = cursor if isinstance(cursor, SiteCursor) else None
        problems = [
            *_problems(report, at, silent, pause),
            *_excesses(f"site {name}", lag, len(failed), limits),
        ]
        if known is not None and known.status == "detached":
            problems = _problems_detached(report, at)
        elif isinstance(cursor, SiteCursorError):
            told = f"site {name}: its cursor {cursor}: the journal keeps everything"
            problems.append(_warning(told))
        work = report.work if silent is None and report.phase in _AT_WORK else None
        return SiteStatus(
            site=name,
            attached=None if known is None else known.status == "attached",
            attachment_since=None if known is None else moment(known.since_ns),
            url=report.url,
            state=report.phase,
            reason=_reason(report, at, pause),
            running=silent is None,
            host=report.host,
            pid=report.pid,
            updated=moment(report.updated_ns),
            since=moment(report.phase_ns),
            since_seconds=max(0, now_ns - report.phase_ns) / 1e9,
            working=at.working if at is not None and at.working >= 0 else None,
            clean=at.clean if at is not None and at.clean >= 0 else None,
            lag_records=behind,
            lag_seconds=lag,
            lag_p50_seconds=report.lag_p50,
            lag_p99_seconds=report.lag_p99,
            queue=report.queue,
            records_per_second=rate,
            eta_seconds=None if behind is None else eta_seconds(behind, rate),
            skipped=len(report.state.skipped),
            skipped_steps=tuple(_skipped(step) for step in report.state.skipped),
            bottleneck=None if work is None else bottleneck(work, report.queue),
            work=work,
            free_bytes=report.free_bytes,
            limits=_limits(limits),
            failed=len(failed),
            waiting=len(waiting),
            failed_steps=failed,
            waiting_steps=waiting,
            counters=report.counters,
            problems=tuple(problems),
        )

    def _lag(self, report: SiteReport, at: Standing, running: bool, now_ns: int) -> float | None:
        """Age of the oldest record that was not worked on; None: cannot be told."""
        if at.working < 0 or self._reader is None:
            return None
        if running and report.oldest_ns:
            return lag_seconds(report.oldest_ns, now_ns)
        done = _working_now(report, at) if running else at.working
        if done >= self._reader.head():
            return 0.0
        oldest_ns = self._time_of(self._reader, SequenceNumber(done + 1))
        if oldest_ns is None:
            return None
        if running and oldest_ns > report.updated_ns:
            return 0.0  # nothing waited when it reported
        return lag_seconds(oldest_ns, now_ns)

    def _time_of(self, reader: JournalReader, sequence: SequenceNumber) -> int | None:
        if sequence not in self._times:
            try:
                reader.seek(sequence)
                records = reader.poll(1)
            except (RecordsGoneError, CorruptionError):
                return None
            if not records:
                return None
            self._times = {sequence: records[0].time_ns}
        return self._times[sequence]


def _ask(journal: str) -> tuple[Status | None, bool | None]:
    """What mirrorfs says of itself, and whether it runs (None: cannot be told)."""
    try:
        with ControlClient(journal, _CONTROL_SECONDS) as client:
            return client.status(), True
    except NotRunningError:
        return None, False
    except (ControlError, OSError):
        return None, None


def _through(site: ThroughStatus) -> str:
    """How write-through to a site fares."""
    if site.down is not None:
        return f"site {site.site} is not waited for: {site.down}"
    if site.undone:
        told = f"{count(site.undone, 'object')}: {site.undone_reason}"
        return f"site {site.site} is not waited for with {told}"
    return f"{count(site.waiting, 'job')} waiting for site {site.site}"


def _degraded(told: Status, now_ns: int) -> str:
    """Why, since when, and how much will be compared."""
    since = span(max(0, now_ns - told.degraded_since_ns) / 1e9)
    marked = "the whole tree" if told.everything else count(told.marks, "mark")
    return f"{told.degraded}; for {since}; {marked} to compare"


def _unheard(settings: SiteSettings, error: StateError | None) -> SiteStatus:
    if error is None:
        state, told = "never ran", _warning("no replicator has ever reported on it")
    else:
        state, told = "unreadable", _critical(f"its report {error}")
    problem = Problem(severity=told.severity, text=f"site {settings.name}: {told.text}")
    return SiteStatus(site=settings.name, url=settings.url, state=state, problems=(problem,))


def _working_now(report: SiteReport, at: Standing) -> int:
    """Up to where a running replicator has worked: its saved cursor may be seconds old."""
    return max(at.working, report.done if report.oldest_ns else report.read)


def _reason(report: SiteReport, at: Standing | None, pause: Pause | None) -> str:
    if pause is not None and report.phase == Phase.PAUSED.value:
        return _paused(pause)
    if at is not None and at.reason:
        return f"an initial copy is due: {at.reason}"
    return report.reason


def _paused(pause: Pause) -> str:
    since = f"since {moment(pause.time_ns)}" if pause.time_ns else ""
    return ", ".join(part for part in (pause.reason, since) if part)


def _problems(
    report: SiteReport, at: Standing | None, silent: str | None, pause: Pause | None
) -> list[Problem]:
    site = f"site {report.site}"
    found = []
    if report.phase == Phase.HALTED.value:
        found.append(_critical(f"{site} is halted: {report.reason}"))
    elif silent is not None:
        found.append(_warning(f"{site}: its replicator is {silent}"))
    elif report.phase in (Phase.BACKING_OFF.value, Phase.STALLED.value):
        found.append(_warning(f"{site} is {report.phase}: {report.reason}"))
    if at is not None and at.working < 0:
        what = "is not complete" if not at.reason else f"is due: {at.reason}"
        found.append(_warning(f"{site}: the initial copy {what}"))
    if pause is not None:
        found.append(_warning(f"{site} is paused: {_paused(pause)}"))
    return found


def _problems_detached(report: SiteReport, at: Standing | None) -> list[Problem]:
    """Of a site that is away because its operator wants so."""
    if at is not None and at.reason:
        told = f"site {report.site} is detached, and an initial copy is due: {at.reason}"
        return [_warning(told)]
    return []


def _excesses(site: str, lag: float | None, failed: int, limits: Thresholds) -> Iterator[Problem]:
    """What is more than the thresholds allow."""
    if lag is not None and 0 < limits.critical_lag < lag:
        yield _critical(f"{site} is {span(lag)} behind")
    elif lag is not None and 0 < limits.warn_lag < lag:
        yield _warning(f"{site} is {span(lag)} behind")
    if 0 < limits.critical_failed <= failed:
        yield _critical(f"{site}: {count(failed, 'step')} failed")
    elif 0 < limits.warn_failed <= failed:
        yield _warning(f"{site}: {count(failed, 'step')} failed")


def _limits(limits: Thresholds) -> Limits:
    return Limits(
        warn_lag=limits.warn_lag,
        critical_lag=limits.critical_lag,
        warn_failed=limits.warn_failed,
        critical_failed=limits.critical_failed,
    )


def _skipped(step: SkippedStep) -> SkippedStatus:
    return SkippedStatus(
        kind=step.kind,
        path=None if step.path is None else "/" + escaped(step.path),
        sequence=step.sequence,
        error=step.error,
        reason=step.reason,
        by=step.by,
        time=moment(step.time_ns),
    )


def held_status(step: HeldStep) -> HeldStatus:
    """A held step, as values to show."""
    return HeldStatus(
        id=step.id,
        kind=step.kind,
        path=None if step.path is None else "/" + escaped(step.path),
        sequence=step.sequence,
        error=step.error,
        errno=step.errno,
        tries=step.tries,
        since=moment(step.since_ns),
        next_try=moment(step.due_ns),
    )


def _warning(text: str) -> Problem:
    return Problem(severity=Severity.WARNING, text=text)


def _critical(text: str) -> Problem:
    return Problem(severity=Severity.CRITICAL, text=text)
