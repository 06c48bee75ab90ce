"""No change under way is taken for a difference, and no difference for a change under way."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable

import pytest

from mirrorfs.journal.record import Kind, Reconcile
from replicator import verify as verification
from replicator.verify import SiteResult
from tests.support.reports import held, state_of
from tests.support.verifying import ENTRIES, Bench, bench, id_of

__all__ = ["bench"]
pytestmark = pytest.mark.fuse  # root, for handles


def test_what_records_left_to_apply_touch_is_in_flight(bench: Bench) -> None:
    bench.change(Kind.CREATE, bench.source, "new")
    bench.change(Kind.WRITE, bench.source / "g")
    (bench.source / "new").touch()
    (bench.source / "g").write_bytes(b"newer")
    (bench.site / "d" / "f").chmod(0o600)
    result = bench.verify()
    assert sorted(bench.in_flight) == ["/", "/g", "/h", "/new"]
    assert bench.lines == ["/d/f: mode 0644, 0600 at the site"]
    assert (result.differences, result.in_flight) == (1, 4)


def test_before_the_initial_copy_everything_is_in_flight(bench: Bench) -> None:
    bench.say(state_of(bench.writer, initial=True))
    (bench.site / "g").unlink()
    assert bench.verify().differences == 0
    assert "/g" in bench.in_flight


def test_after_an_unapplied_reconcile_everything_is_in_flight(bench: Bench) -> None:
    (bench.site / "d" / "f").chmod(0o600)
    reconcile = Reconcile(bench.writer.header.source.root, True, b"", "test")
    bench.writer.append(Kind.RECONCILE, reconcile)
    assert bench.verify().differences == 0
    assert bench.in_flight == ["/d/f"]


def test_a_site_without_a_cursor_is_not_that_far(bench: Bench) -> None:
    (bench.site / ".mirrorfs" / "state").unlink()
    (bench.site / "d" / "f").chmod(0o600)
    bench.verify()
    assert bench.in_flight == ["/d/f"]


def test_steps_that_wait_for_a_writer_are_in_flight(bench: Bench) -> None:
    (bench.site / "d" / "f").chmod(0o600)
    step = held(1, kind="object", object=id_of(bench.source / "d" / "f"), waiting=True)
    bench.say(state_of(bench.writer, held=[step]))
    bench.verify()
    assert bench.in_flight == ["/d/f"]


def test_steps_that_failed_are_differences(bench: Bench) -> None:
    (bench.site / "d" / "f").chmod(0o600)
    step = held(1, directory=id_of(bench.source / "d"), name=b"f")
    bench.say(state_of(bench.writer, held=[step]))
    bench.verify()
    assert bench.lines == ["/d/f: mode 0644, 0600 at the site (failed: Permission denied)"]


Hook = Callable[[], object]


def during(monkeypatch: pytest.MonkeyPatch, *hooks: Hook) -> None:
    """What happens while the comparison waits for the site, each time it looks again."""
    left = list(hooks)
    real, waiting = time.sleep, threading.current_thread()

    def sleep(seconds: float) -> None:
        if threading.current_thread() is not waiting:
            real(seconds)  # the journal's writer: it must not take a hook
        elif left:
            left.pop(0)()

    monkeypatch.setattr("replicator.verify.time.sleep", sleep)


def test_a_running_replicator_is_waited_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.say(state_of(bench.writer), phase="tailing")
    bench.change(Kind.ATTRIBUTES, bench.source / "d" / "f")
    (bench.source / "d" / "f").chmod(0o600)

    def apply() -> None:
        (bench.site / "d" / "f").chmod(0o600)
        bench.say(state_of(bench.writer), phase="tailing")

    during(monkeypatch, lambda: None, apply)
    assert bench.verify() == SiteResult("backup", ENTRIES, 0, 0)


def test_what_differs_when_the_site_is_that_far_is_a_difference(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.say(state_of(bench.writer), phase="tailing")
    bench.change(Kind.ATTRIBUTES, bench.source / "d" / "f")
    (bench.source / "d" / "f").chmod(0o600)
    during(monkeypatch, lambda: bench.say(state_of(bench.writer), phase="tailing"))
    bench.verify()
    assert bench.lines == ["/d/f: mode 0600, 0644 at the site"]


def test_what_was_touched_again_is_looked_at_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.say(state_of(bench.writer), phase="tailing")
    bench.change(Kind.ATTRIBUTES, bench.source / "d" / "f")
    (bench.source / "d" / "f").chmod(0o600)

    def touch_again() -> None:
        bench.say(state_of(bench.writer), phase="tailing")
        bench.change(Kind.ATTRIBUTES, bench.source / "d" / "f")
        (bench.source / "d" / "f").chmod(0o640)

    def apply() -> None:
        (bench.site / "d" / "f").chmod(0o640)
        bench.say(state_of(bench.writer), phase="tailing")

    during(monkeypatch, touch_again, apply)
    assert bench.verify() == SiteResult("backup", ENTRIES, 0, 0)


def test_a_directory_that_arrives_is_entered(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(bench.source / "d", bench.source / "new", copy_function=shutil.copy2)
    os.utime(bench.source, ns=(1, 1))
    bench.say(state_of(bench.writer), phase="tailing")
    bench.change(Kind.MKDIR, bench.source, "new")

    def apply() -> None:
        subprocess.run(["cp", "-a", bench.source / "new", bench.site / "new"], check=True)
        (bench.site / "new" / "f").chmod(0o600)
        os.utime(bench.site, ns=(1, 1))
        bench.say(state_of(bench.writer), phase="tailing")

    during(monkeypatch, apply)
    assert bench.verify().entries == ENTRIES + 2
    assert bench.lines == ["/new/f: mode 0644, 0600 at the site"]


def test_patience_ends(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.say(state_of(bench.writer), phase="tailing")
    bench.change(Kind.ATTRIBUTES, bench.source / "d" / "f")
    (bench.source / "d" / "f").chmod(0o600)
    monkeypatch.setattr(verification, "PATIENCE_SECONDS", 0.0)
    bench.verify()
    assert bench.in_flight == ["/d/f"]


def test_many_differences_are_decided_in_between(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "_SUSPECTS_MAX", 3)
    for top in ("d", "e", "f"):
        (bench.source / top).mkdir(exist_ok=True)
        (bench.site / top).mkdir(exist_ok=True)
        for number in range(5):
            (bench.source / top / f"n{number}").touch()
    result = bench.verify()
    assert sum("missing" in line for line in bench.lines) == 15
    assert result.entries == ENTRIES + 2 + 15
