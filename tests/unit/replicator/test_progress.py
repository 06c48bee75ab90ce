"""Whether a site makes progress, and whether it will stop."""

from __future__ import annotations

from replicator.progress import Progress


def test_no_progress_for_a_minute_with_work_waiting_is_a_stall() -> None:
    progress = Progress()
    for now in range(60):
        progress.look("as before", float(now), waits=True)
        assert not progress.stalled
    progress.look("as before", 60.0, waits=True)
    assert progress.stalled
    progress.look("something", 61.0, waits=True)
    assert not progress.stalled


def test_nothing_to_do_is_no_stall() -> None:
    progress = Progress()
    for now in (0.0, 59.0, 118.0, 177.0):
        progress.look("as before", now, waits=True)
        progress.look("as before", now + 1, waits=False)
        assert not progress.stalled


def test_a_site_that_is_to_stop_is_lost_after_a_while_without_progress() -> None:
    progress = Progress()
    progress.look(1, 0.0, waits=True)
    progress.look(1, 29.0, waits=True)
    assert not progress.is_lost(100.0, at_once=False)
    assert not progress.is_lost(4.0, at_once=True)
    assert progress.is_lost(5.0, at_once=True)
    progress.look(1, 30.0, waits=True)
    assert progress.is_lost(100.0, at_once=False)
