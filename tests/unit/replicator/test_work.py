"""The account of the steps of a minute, and the narrow part it names."""

from __future__ import annotations

import pytest

from replicator.work import Doing, WorkReport, WorkWindow, bottleneck

SECOND = 1_000_000_000
MILLI = 1_000_000


def test_shares_and_times_of_a_minute() -> None:
    window = WorkWindow()
    for second in range(10):
        now = (100 + second) * SECOND
        window.waited(now, 20 * MILLI)
        window.add(now, 500 * MILLI, (100 * MILLI, 250 * MILLI, 50 * MILLI))
    found = window.report(110 * SECOND, 1, [])
    assert (found.steps, found.busy) == (10, 0.5)
    assert (found.service_seconds, found.queue_seconds) == (0.5, 0.02)
    assert (found.source, found.site, found.copy) == (0.2, 0.5, 0.1)
    assert found.own == pytest.approx(0.2)


def test_many_workers_are_busy_when_all_are() -> None:
    window = WorkWindow()
    window.add(100 * SECOND, 8 * SECOND, (0, 8 * SECOND, 0))
    running = [(2 * SECOND, Doing(path="/a", since_ns=0))] * 4
    assert window.report(102 * SECOND, 8, running).busy == 1.0
    assert window.report(102 * SECOND, 16, []).busy == 0.25


def test_what_is_older_than_a_minute_is_forgotten() -> None:
    window = WorkWindow()
    window.add(100 * SECOND, SECOND, (0, 0, 0))
    window.add(130 * SECOND, SECOND, (0, 0, 0))
    assert window.report(159 * SECOND, 1, []).steps == 2
    assert window.report(160 * SECOND, 1, []).steps == 1
    assert window.report(200 * SECOND, 1, []).steps == 0


def test_a_clock_that_steps_back_leaves_no_future() -> None:
    window = WorkWindow()
    window.add(1000 * SECOND, SECOND, (0, 0, 0))
    window.add(100 * SECOND, SECOND, (0, 0, 0))
    found = window.report(101 * SECOND, 1, [])
    assert (found.steps, found.busy) == (1, 1.0)


def test_without_any_step_nothing_is_busy() -> None:
    found = WorkWindow().report(SECOND, 1, [])
    assert found == WorkReport()


CASES = [
    (WorkReport(), 0, "none", "none: nothing waits for long"),
    (WorkReport(busy=0.2), 3, "idle", "none yet: busy 20% of the last minute"),
    (
        WorkReport(busy=0.9, steps=10, site=0.63, own=0.37),
        5,
        "site",
        "writing at the site: 63% of the time of a step; one step at a time",
    ),
    (
        WorkReport(busy=0.9, steps=10, source=0.8, own=0.2, workers=16),
        5,
        "source",
        "reading the source: 80% of the time of a step; all 16 workers busy",
    ),
    (
        WorkReport(busy=0.9, steps=10, copy=0.8, own=0.2),
        5,
        "copy",
        "copying content from source to site: 80% of the time of a step; one step at a time",
    ),
    (
        WorkReport(busy=0.9, steps=10, copy=0.3, own=0.7),
        0,
        "own",
        "the replicator's own work: 70% of the time of a step; one step at a time",
    ),
    (
        WorkReport(doing=(Doing(path="/big", since_ns=0, seconds=2500.0),)),
        1,
        "long",
        "a long step, 2,500 s so far: /big; one step at a time",
    ),
    (
        WorkReport(copies=WorkReport(busy=0.9, steps=10, site=0.7, source=0.3, workers=4)),
        0,
        "site",
        "writing at the site: 70% of the time of a step; all 4 workers busy",
    ),
    (
        WorkReport(workers=2, doing=(Doing(path="/big", since_ns=0, seconds=2.0),)),
        0,
        "none",
        "none: nothing waits for long",
    ),
]


@pytest.mark.parametrize(("work", "queue", "part", "text"), CASES)
def test_the_narrow_part(work: WorkReport, queue: int, part: str, text: str) -> None:
    found = bottleneck(work, queue)
    assert (found.part, found.text) == (part, text)
