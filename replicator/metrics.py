"""Metrics of a volume's sites in the text format of Prometheus.

Made from the same reports as `replicator status`, in the replicator's process: a file for the node
exporter's textfile collector, or HTTP on this host alone, or both. The names are documented in
replicator(1) and stay.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence

import trio
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from replicator.site_state import Phase, SiteReport
from replicator.work import WorkReport

_log = logging.getLogger(__name__)

_REQUEST_BYTES_MAX = 8192
_REQUEST_SECONDS = 5.0
_FILE_SECONDS = 10.0


class SiteCollector(Collector):
    """The metrics of the sites, as of now."""

    def __init__(self, reports: Sequence[SiteReport], now_ns: int) -> None:
        self._reports = reports
        self._now_ns = now_ns

    def collect(self) -> Iterator[Metric]:
        """Every metric of every site."""
        reports = self._reports
        yield from self._gauges(reports)
        phases = GaugeMetricFamily(
            "mirrorfs_site_state", "1 for the state the site is in.", labels=["site", "state"]
        )
        shares = GaugeMetricFamily(
            "mirrorfs_site_step_share",
            "Share of the time of a step in the last minute, by part.",
            labels=["site", "part"],
        )
        done = CounterMetricFamily(
            "mirrorfs_site_steps",
            "What was done since the replicator came up, by sort.",
            labels=["site", "sort"],
        )
        for report in reports:
            for phase in Phase:
                phases.add_metric([report.site, phase.value], report.phase == phase.value)
            for part in ("source", "site", "copy", "own"):
                if report.work is not None:
                    shares.add_metric([report.site, part], getattr(report.work, part))
            for sort, number in report.counters.items():
                done.add_metric([report.site, sort], number)
        yield from (phases, shares, done)

    def _gauges(self, reports: Sequence[SiteReport]) -> Iterator[Metric]:
        now = self._now_ns
        for name, text, value in _GAUGES:
            family = GaugeMetricFamily(f"mirrorfs_site_{name}", text, labels=["site"])
            for report in reports:
                found = value(report, now)
                if found is not None:
                    family.add_metric([report.site], found)
            yield family


def _lag(report: SiteReport, now_ns: int) -> float:
    return max(0, now_ns - report.oldest_ns) / 1e9 if report.oldest_ns else 0.0


def _work(report: SiteReport) -> WorkReport:
    return report.work or WorkReport()


_GAUGES: tuple[tuple[str, str, Callable[[SiteReport, int], float | None]], ...] = (
    ("lag_seconds", "Age of the oldest record that was not worked on.", _lag),
    ("lag_records", "Records that were not worked on.", lambda r, _: max(0, r.head - r.done)),
    ("lag_p50_seconds", "From record to site, median of the last hour.", lambda r, _: r.lag_p50),
    ("lag_p99_seconds", "The same, 99th percentile.", lambda r, _: r.lag_p99),
    ("queue_places", "Places and objects in the queue.", lambda r, _: r.queue),
    ("records_per_second", "Over the last minute.", lambda r, _: r.records_per_second),
    (
        "failed_steps",
        "Steps that failed and are tried again.",
        lambda r, _: sum(not step.waiting for step in r.state.held),
    ),
    (
        "waiting_steps",
        "Steps that wait for a writer.",
        lambda r, _: sum(step.waiting for step in r.state.held),
    ),
    ("skipped_steps", "Steps that operators passed over.", lambda r, _: len(r.state.skipped)),
    ("working_cursor", "Every record up to it was worked on.", lambda r, _: r.done),
    ("clean_cursor", "Every place up to it is true; -1: none.", lambda r, _: r.state.clean),
    ("free_bytes", "Space left at the site.", lambda r, _: r.free_bytes),
    ("busy_ratio", "Time of the thread that decides that steps took.", lambda r, _: _work(r).busy),
    (
        "workers_busy_ratio",
        "Time of the workers that copies took.",
        lambda r, _: (_work(r).copies or WorkReport()).busy,
    ),
    (
        "step_seconds",
        "One step of the last minute, on average.",
        lambda r, _: _work(r).service_seconds,
    ),
    (
        "queue_seconds",
        "From record to the begin of its step, on average.",
        lambda r, _: _work(r).queue_seconds,
    ),
    ("updated_time_seconds", "When it was last heard of.", lambda r, _: r.updated_ns / 1e9),
)


def exposition(reports: Sequence[SiteReport], now_ns: int) -> bytes:
    """All metrics as text."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(SiteCollector(reports, now_ns))
    return generate_latest(registry)


async def write_file(path: str, text: Callable[[], bytes]) -> None:
    """Keep a file up to date until cancelled; then take it away: nobody keeps it up to date."""
    failed = ""
    try:
        while True:
            try:
                _replace(path, text())
                failed = ""
            except OSError as error:
                if str(error) != failed:
                    _log.warning("metrics: %s: %s", path, error.strerror)
                failed = str(error)
            await trio.sleep(_FILE_SECONDS)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)


def _replace(path: str, data: bytes) -> None:
    scratch = f"{path}.{os.getpid()}"
    try:
        with open(scratch, "wb") as file:
            file.write(data)
        os.replace(scratch, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(scratch)
        raise


async def serve(listeners: list[trio.SocketListener], text: Callable[[], bytes]) -> None:
    """Answer `GET /metrics` until cancelled."""

    async def answer(stream: trio.SocketStream) -> None:
        with trio.move_on_after(_REQUEST_SECONDS), contextlib.suppress(trio.BrokenResourceError):
            async with stream:
                await _answer(stream, text)

    await trio.serve_listeners(answer, listeners)


async def _answer(stream: trio.SocketStream, text: Callable[[], bytes]) -> None:
    request = b""
    while b"\r\n\r\n" not in request:
        more = await stream.receive_some(_REQUEST_BYTES_MAX)
        request += more
        if not more or len(request) > _REQUEST_BYTES_MAX:
            return
    words = request.split(b"\r\n", 1)[0].split(b" ")
    target = words[1].split(b"?")[0] if len(words) == 3 else b""
    if words[0] not in (b"GET", b"HEAD") or target not in (b"/metrics", b"/"):
        status, body = "404 Not Found", b"GET /metrics\n"
    else:
        status, body = "200 OK", text()
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {CONTENT_TYPE_LATEST}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    await stream.send_all(head.encode() + (b"" if words[0] == b"HEAD" else body))
