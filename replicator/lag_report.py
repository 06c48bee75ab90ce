"""How long files took to be at a site: statistics for slices of time, from the apply log and from
what the journal expects.

Pure. A file that has not arrived counts among those over a limit as soon as it is so old.
"""

from __future__ import annotations

import datetime
import fnmatch
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from replicator.wording import escaped

_NS: Final = 1_000_000_000
SLICES: Final = {"hour": 3600 * _NS, "day": 24 * 3600 * _NS}
PERCENTILES: Final = (0.5, 0.9, 0.99)


class LagSlice(msgspec.Struct, frozen=True, kw_only=True):
    """One slice of time (UTC) of one site; null: cannot be told.

    Attributes:
        expected: files that records of that time say the site is to have; null: the journal does
            not reach back so far. arrived: those it has and had in time to be logged. untimed:
            those it has, without a time: the initial copy brought them, say.
            missing: those it does not have yet. missing_paths: some of them, the oldest first.
        mean, p50, p90, p99, max, min: seconds from the record until the file was whole.
        slowest: path of the file that took longest. over: limit in seconds -> how many files took
            longer, missing ones of that age included. bytes: of the files that arrived.
    """

    site: str
    start: str
    expected: int | None
    arrived: int
    untimed: int
    missing: int
    missing_paths: tuple[str, ...]
    mean: float | None
    p50: float | None
    p90: float | None
    p99: float | None
    max: float | None
    min: float | None
    slowest: str | None
    over: dict[str, int]
    bytes: int


class LagReport(msgspec.Struct, frozen=True, kw_only=True):
    """What `replicator lag --json` prints: the slices, and everything together as `total`."""

    slice: str
    since: str
    slices: tuple[LagSlice, ...]
    total: tuple[LagSlice, ...]


@dataclass(frozen=True, slots=True)
class Arrival:
    """A file of a slice that has arrived."""

    lag_seconds: float
    size: int
    path: str


@dataclass(frozen=True, slots=True)
class Absence:
    """A file of a slice that has not arrived."""

    age_seconds: float
    path: str


@dataclass(frozen=True, slots=True)
class Files:
    """The files of one slice.

    Attributes:
        timed: what became whole, each time it did. files: how many files arrived.
        complete: the journal tells of all that were expected.
    """

    timed: Sequence[Arrival]
    missing: Sequence[Absence]
    files: int
    untimed: int = 0
    complete: bool = True


_PATHS_MAX: Final = 10


def summarize(site: str, start: str, files: Files, limits: Sequence[float]) -> LagSlice:
    """The statistics of a slice."""
    arrived = sorted(files.timed, key=lambda each: each.lag_seconds)
    missing = sorted(files.missing, key=lambda each: -each.age_seconds)
    lags = [each.lag_seconds for each in arrived]
    ages = [*lags, *(each.age_seconds for each in missing)]
    ranked = [percentile(lags, fraction) for fraction in PERCENTILES]
    known = files.files + files.untimed + len(missing)
    return LagSlice(
        site=site,
        start=start,
        expected=known if files.complete else None,
        arrived=files.files,
        untimed=files.untimed,
        missing=len(missing),
        missing_paths=tuple(each.path for each in missing[:_PATHS_MAX]),
        mean=math.fsum(lags) / len(lags) if lags else None,
        p50=ranked[0],
        p90=ranked[1],
        p99=ranked[2],
        max=lags[-1] if lags else None,
        min=lags[0] if lags else None,
        slowest=arrived[-1].path if arrived else None,
        over={f"{limit:g}": sum(age > limit for age in ages) for limit in limits},
        bytes=sum(each.size for each in arrived),
    )


def joined(slices: Iterable[Files]) -> Files:
    """All of them as one."""
    every = list(slices)
    return Files(
        [each for files in every for each in files.timed],
        [each for files in every for each in files.missing],
        sum(files.files for files in every),
        sum(files.untimed for files in every),
        all(files.complete for files in every),
    )


def percentile(ordered: Sequence[float], fraction: float) -> float | None:
    """The least value that this fraction of the values does not exceed; None without any."""
    if not ordered:
        return None
    return ordered[max(0, math.ceil(fraction * len(ordered)) - 1)]


def excluded(path: str, patterns: Sequence[str]) -> bool:
    """Whether a path (from the root, escaped) matches one of the patterns of the shell."""
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def shown_path(path: bytes) -> str:
    """A path of a record."""
    return "/" + escaped(path)


def start_of(time_ns: int, slice_name: str) -> str:
    """The start of a slice, in UTC."""
    at = datetime.datetime.fromtimestamp(time_ns // _NS, datetime.UTC)
    return f"{at:%Y-%m-%d}" if slice_name == "day" else f"{at:%Y-%m-%dT%H:00Z}"


# text ----------------------------------------------------------------------------------------


def table(report: LagReport, limits: Sequence[float]) -> list[str]:
    """The report as lines of at most 80 signs for two limits, but for the paths."""
    lines: list[str] = []
    for total in report.total:
        if lines:
            lines.append("")
        lines.append(f"site {total.site}: seconds from record to site, since {report.since}")
        lines.append(_head(limits))
        rows = [each for each in report.slices if each.site == total.site]
        for row in (*rows, total):
            lines.append(_row(row))
        if total.slowest is not None:
            lines.append(f"slowest: {total.slowest} ({total.max:,.3f} s)")
        if total.untimed:
            lines.append(
                f"without a time: {total.untimed:,} files the site has (initial copy, say)"
            )
        if total.missing:
            lines.append(f"missing: {total.missing:,}, the oldest first:")
            lines += [f"  {path}" for path in total.missing_paths]
    return lines


def _head(limits: Sequence[float]) -> str:
    names = "".join(f"{name:>7}" for name in ("mean", "p50", "p90", "p99", "max", "min"))
    over = "".join(f"{f'>{limit:g}':>6}" for limit in limits)
    return f"{'slice (UTC)':<13}{'expect':>7}{'miss':>6}{names}{over}"


def _row(row: LagSlice) -> str:
    start = row.start.removesuffix(":00Z").replace("T", " ")
    expected = "-" if row.expected is None else _number(row.expected)
    values = [row.mean, row.p50, row.p90, row.p99, row.max, row.min]
    cells = "".join(f"{_seconds(value):>7}" for value in values)
    over = "".join(f"{_number(value):>6}" for value in row.over.values())
    return f"{start:<13}{expected:>7}{_number(row.missing):>6}{cells}{over}"


def _number(value: int) -> str:
    return f"{value}" if value < 100_000 else f"{value / 1e6:.3g}M"


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    if value >= 100_000:
        return f"{value / 86400:.0f} d"
    return f"{value:.3f}" if value < 10 else f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def csv_rows(report: LagReport, limits: Sequence[float]) -> list[list[str]]:
    """A heading, and a row for each slice."""
    fields = ("mean", "p50", "p90", "p99", "max", "min")
    head = ["site", "start", "expected", "arrived", "untimed", "missing", *fields, "slowest"]
    rows = [[*head, *(f"over_{limit:g}" for limit in limits), "bytes"]]
    for each in report.slices:
        values: Mapping[str, float | None] = {name: getattr(each, name) for name in fields}
        numbers = ["" if value is None else f"{value:.6f}" for value in values.values()]
        expected = "" if each.expected is None else str(each.expected)
        counts = [expected, str(each.arrived), str(each.untimed), str(each.missing)]
        over = [str(value) for value in each.over.values()]
        slowest = each.slowest or ""
        rows.append([each.site, each.start, *counts, *numbers, slowest, *over, str(each.bytes)])
    return rows
