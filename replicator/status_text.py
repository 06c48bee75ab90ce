"""The status of a volume on one screen of 80 columns.

Turns values into something to show; reads nothing and decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from replicator.site_state import Phase
from replicator.status_report import (
    HeldStatus,
    Problem,
    Severity,
    SiteStatus,
    SkippedStatus,
    VolumeReport,
    VolumeStatus,
)
from replicator.wording import count, lag, size, span
from replicator.work import LONG_SECONDS, Doing

_STEPS_SHOWN: Final = 3
_DOING_SHOWN: Final = 2
_STYLES: Final = {Severity.OK: "green", Severity.WARNING: "yellow", Severity.CRITICAL: "bold red"}
_VERDICTS: Final = {Severity.OK: "ok", Severity.WARNING: "warning", Severity.CRITICAL: "CRITICAL"}

Row = tuple[str, str, str]
"""Label, text, style."""


def render(report: VolumeReport) -> RenderableType:
    """The report as rich shows it."""
    parts: list[RenderableType] = [_grid(_volume_rows(report.volume))]
    for site in report.sites:
        worst = max((each.severity for each in site.problems), default=0)
        title = Text(f"\nsite {site.site}", style=f"bold {_STYLES[Severity(worst)]}")
        title.append(f"  {site.url}", style="not bold default")
        parts += [title, _grid(_site_rows(site))]
    if not report.sites:
        parts.append(Text("\nno site yet: 'replicator run' names them"))
    problems = [*report.volume.problems, *(each for site in report.sites for each in site.problems)]
    parts += _verdict(report, problems)
    return Group(*parts)


def _grid(rows: Iterator[Row]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, min_width=10)
    grid.add_column(overflow="fold")
    for label, text, style in rows:
        grid.add_row(Text(f"  {label}", style="dim"), Text(text, style=style))
    return grid


def _volume_rows(volume: VolumeStatus) -> Iterator[Row]:
    yield "source", volume.source or "not known", ""
    head = "" if volume.head is None else f", head {volume.head:,}"
    yield "journal", f"{volume.journal}{head}", ""
    if volume.journal_bytes is not None:
        first = "" if volume.first is None else f", from record {volume.first:,}"
        yield "kept", f"{size(volume.journal_bytes)}{first}", ""
    if volume.degraded is not None:
        yield "mirrorfs", f"DEGRADED: {volume.degraded}", _STYLES[Severity.WARNING]
    elif volume.mounted:
        yield "mirrorfs", f"mounted at {volume.mountpoint}", ""
    elif volume.mounted is None:
        yield "mirrorfs", "cannot be asked", ""
    else:
        yield "mirrorfs", "not mounted", _STYLES[Severity.WARNING]
    for told in volume.write_through:
        yield "through", told, ""


def _site_rows(site: SiteStatus) -> Iterator[Row]:
    since = "" if site.since_seconds is None else f" for {span(site.since_seconds)}"
    reason = f": {site.reason}" if site.reason else ""
    yield "state", f"{site.state}{since}{reason}", "" if site.running else "yellow"
    if site.attached is False:
        yield "detached", f"since {site.attachment_since}; 'replicator run' attaches it", "yellow"
    if site.pid is None:
        return
    if site.running:
        yield "by", f"process {site.pid} on {site.host}", "dim"
    else:
        yield "by", f"nobody; process {site.pid} on {site.host}, until {site.updated}", "yellow"
    yield "cursor", _cursors(site), ""
    yield "lag", _lags(site), ""
    if site.state == Phase.INITIAL_COPY.value or site.reason.startswith("comparing"):
        yield "copied", _copied(site.counters), ""
    yield "work", _work(site), ""
    if site.bottleneck is not None and site.bottleneck.part != "none":
        yield "bottleneck", site.bottleneck.text, ""
    yield from (("doing", each, "") for each in _doing(site))
    if site.failed:
        yield "failed", "\n".join(_steps(site.failed_steps)), _STYLES[Severity.CRITICAL]
    if site.waiting:
        yield "waiting", f"{count(site.waiting, 'step')}, for a writer to close its file", ""
    if site.skipped:
        yield "skipped", "\n".join(_skipped(site.skipped_steps)), "yellow"


def _cursors(site: SiteStatus) -> str:
    if site.working is None:
        return "none before the initial copy is complete"
    clean = "none" if site.clean is None else f"{site.clean:,}"
    return f"working {site.working:,}, clean {clean}"


def _lags(site: SiteStatus) -> str:
    parts = [f"{lag(site.lag_seconds)} now"]
    if site.lag_records:
        parts[0] += f" ({count(site.lag_records, 'record')})"
    if site.lag_p50_seconds is not None:
        half, most = lag(site.lag_p50_seconds), lag(site.lag_p99_seconds)
        parts.append(f"last hour: p50 {half}, p99 {most}")
    return "; ".join(parts)


def _steps(steps: Sequence[HeldStatus]) -> Iterator[str]:
    yield count(len(steps), "step")
    for step in steps[:_STEPS_SHOWN]:
        tries = "1 try" if step.tries == 1 else f"{step.tries} tries"
        yield f"{step.path or step.kind}: {step.error} ({tries})"
    if len(steps) > _STEPS_SHOWN:
        yield f"and {len(steps) - _STEPS_SHOWN:,} more"


def _skipped(steps: Sequence[SkippedStatus]) -> Iterator[str]:
    yield f"{count(len(steps), 'step')}, by operators: the site may differ there"
    for step in steps[-_STEPS_SHOWN:]:
        yield f"{step.path or step.kind}: {step.reason} ({step.time})"
    if len(steps) > _STEPS_SHOWN:
        yield f"and {len(steps) - _STEPS_SHOWN:,} before"


def _work(site: SiteStatus) -> str:
    told = f"{count(site.queue or 0, 'place')} in the queue"
    told += f", {site.records_per_second or 0:,.1f} records/s"
    if site.eta_seconds:
        told += f", caught up in {span(site.eta_seconds)}"
    return told


def _copied(counters: Mapping[str, int]) -> str:
    files, written = counters.get("files_copied", 0), counters.get("bytes_written", 0)
    return f"{count(files, 'file')}, {size(written)} since the replicator came up"


def _doing(site: SiteStatus) -> Iterator[str]:
    under_way = () if site.work is None else site.work.under_way
    steps = [step for step in under_way if step.path != "?"]
    for step in steps[:_DOING_SHOWN]:
        yield doing(step)
    if len(steps) > _DOING_SHOWN:
        yield f"and {len(steps) - _DOING_SHOWN:,} more"


def doing(step: Doing) -> str:
    """A step that is being carried out."""
    if not step.size:
        return step.path
    told = f"{step.path}: {size(step.copied)} of {size(step.size)} copied"
    if not step.copied or step.seconds < LONG_SECONDS:
        return told
    return f"{told}, {span((step.size - step.copied) * step.seconds / step.copied)} left"


def nagios(report: VolumeReport) -> str:
    """One line as monitoring plugins print it, with performance data."""
    problems = [*report.volume.problems, *(each for site in report.sites for each in site.problems)]
    texts = [each.text for each in sorted(problems, key=lambda each: -each.severity)]
    if not texts:
        texts = [
            f"{site.site} {site.state}, {lag(site.lag_seconds)} behind" for site in report.sites
        ]
    told = "; ".join(texts) or "no site yet"
    data = " ".join(part for site in report.sites for part in _performance(site))
    verdict = _VERDICTS[Severity(report.severity)].upper()
    return f"MIRRORFS {verdict} - {told.replace('|', '/')} | {data}".rstrip(" |")


def _performance(site: SiteStatus) -> Iterator[str]:
    limits = site.limits
    if limits is None:
        return
    if site.lag_seconds is not None:
        allowed = [f"{each:g}" if each else "" for each in (limits.warn_lag, limits.critical_lag)]
        yield f"{site.site}_lag={site.lag_seconds:.3f}s;{allowed[0]};{allowed[1]};0"
    yield f"{site.site}_queue={site.queue or 0};;;0"
    # a threshold of these data is crossed above it, ours is from it on
    steps = [str(each - 1) if each else "" for each in (limits.warn_failed, limits.critical_failed)]
    yield f"{site.site}_failed={site.failed};{steps[0]};{steps[1]};0"


def _verdict(report: VolumeReport, problems: Sequence[Problem]) -> Iterator[RenderableType]:
    severity = Severity(report.severity)
    yield Text(f"\n{_VERDICTS[severity]}", style=_STYLES[severity])
    for problem in sorted(problems, key=lambda each: -each.severity):
        text = Text(problem.text, style=_STYLES[Severity(problem.severity)], overflow="fold")
        yield Padding(text, (0, 0, 0, 2))
