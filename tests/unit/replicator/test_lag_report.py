"""Statistics of lags, and their table, to the sign."""

from __future__ import annotations

import pytest

from replicator.lag_report import (
    Absence,
    Arrival,
    Files,
    LagReport,
    csv_rows,
    excluded,
    joined,
    percentile,
    shown_path,
    start_of,
    summarize,
    table,
)

NOW = 1_795_326_956_000_000_000
LIMITS = (300.0, 600.0)


def arrivals(*seconds: float) -> list[Arrival]:
    return [Arrival(each, 1000, f"/f{each:g}") for each in seconds]


def test_statistics() -> None:
    files = Files(arrivals(*range(1, 101)), [Absence(700, "/late"), Absence(10, "/new")], 100, 3)
    found = summarize("backup", "x", files, LIMITS)
    assert (found.expected, found.arrived, found.untimed, found.missing) == (105, 100, 3, 2)
    assert (found.mean, found.p50, found.p90, found.p99) == (50.5, 50, 90, 99)
    assert (found.max, found.min, found.slowest) == (100, 1, "/f100")
    assert found.over == {"300": 1, "600": 1}
    assert found.missing_paths == ("/late", "/new")
    assert found.bytes == 100_000


def test_nothing_arrived() -> None:
    found = summarize("backup", "x", Files([], [], 0, complete=False), (1.5,))
    assert found.expected is None
    assert (found.mean, found.p50, found.max, found.slowest) == (None, None, None, None)
    assert found.over == {"1.5": 0}


def test_joined() -> None:
    one = Files(arrivals(1), [Absence(1, "/a")], 1, 2)
    other = Files(arrivals(2), [], 1, complete=False)
    both = joined([one, other])
    assert (len(both.timed), len(both.missing), both.files, both.untimed) == (2, 1, 2, 2)
    assert not both.complete
    assert joined([]).complete


@pytest.mark.parametrize(("fraction", "value"), [(0.0, 1), (0.5, 2), (0.51, 3), (1.0, 4)])
def test_percentile(fraction: float, value: float) -> None:
    assert percentile([1, 2, 3, 4], fraction) == value


def test_patterns() -> None:
    assert excluded("/tmp/a/b", ["/x", "/tmp/*"])
    assert not excluded("/data/tmp", ["/tmp/*"])
    assert shown_path(b"a/\xff") == "/a/\\xff"


def report() -> LagReport:
    hours = []
    total: list[Files] = []
    for hour, files in enumerate(
        [
            Files(arrivals(0.004, 0.02, 12.5), [], 3),
            Files(arrivals(5, 450, 1234567.0), [Absence(700, "/late")], 1_250_000, 2),
            Files([], [], 0, complete=False),
        ]
    ):
        start = start_of(NOW + hour * 3_600_000_000_000, "hour")
        hours.append(summarize("backup", start, files, LIMITS))
        total.append(files)
    everything = summarize("backup", "total", joined(total), LIMITS)
    return LagReport(slice="hour", since="then", slices=tuple(hours), total=(everything,))


TABLE = """\
site backup: seconds from record to site, since then
slice (UTC)   expect  miss   mean    p50    p90    p99    max    min  >300  >600
2026-11-22 05      3     0  4.175  0.020   12.5   12.5   12.5  0.004     0     0
2026-11-22 06  1.25M     1    5 d  450.0   14 d   14 d   14 d  5.000     3     2
2026-11-22 07      -     0      -      -      -      -      -      -     0     0
total              -     1    2 d  5.000   14 d   14 d   14 d  0.004     3     2
slowest: /f1.23457e+06 (1,234,567.000 s)
without a time: 2 files the site has (initial copy, say)
missing: 1, the oldest first:
  /late
"""


def test_the_table() -> None:
    lines = table(report(), LIMITS)
    assert max(map(len, lines)) <= 80
    assert lines == TABLE.splitlines()


def test_two_sites_and_days() -> None:
    both = (
        summarize("a", "total", Files([], [], 0), LIMITS),
        summarize("b", "total", Files([], [], 0), LIMITS),
    )
    day = summarize("a", start_of(NOW, "day"), Files(arrivals(1), [], 1), LIMITS)
    lines = table(LagReport(slice="day", since="x", slices=(day,), total=both), LIMITS)
    assert lines[2].startswith("2026-11-22         1     0  1.000")
    assert "" in lines
    assert lines.count("site b: seconds from record to site, since x") == 1


def test_csv() -> None:
    rows = csv_rows(report(), LIMITS)
    assert rows[0][:6] == ["site", "start", "expected", "arrived", "untimed", "missing"]
    assert rows[0][-3:] == ["over_300", "over_600", "bytes"]
    assert rows[1][:6] == ["backup", "2026-11-22T05:00Z", "3", "3", "0", "0"]
    assert rows[1][6] == "4.174667"
    assert rows[3][2:7] == ["", "0", "0", "0", ""]
    assert all(len(row) == len(rows[0]) for row in rows)
