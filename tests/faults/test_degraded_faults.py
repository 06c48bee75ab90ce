"""The N-th append fails, N = 1, 2, ... until the work passes: once, for a while, or for ever.

Whatever fails, every request is answered as ever, and what the records do not tell lies in the
directories that are compared; which are only those that were touched.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import Any

import pyfuse3
import pytest
import trio

from mirrorfs import degraded as degraded_module
from mirrorfs import engine
from mirrorfs.backing_tree import BackingTree
from mirrorfs.degraded import EnduringJournal
from mirrorfs.journal.reader import JournalReader
from mirrorfs.journal.record import Body, Checkpoint, Kind, Reconcile, SequenceNumber
from mirrorfs.journal.recovery import open_journal
from mirrorfs.journal.writer import JournalWriteError, JournalWriter
from mirrorfs.marks import Mark, decode
from mirrorfs.operations import EngineOptions, Operations
from mirrorfs.volume import VolumeDirectory
from tests.faults.test_engine_faults import ACTIONS, CHANGES, Request, prepare
from tests.support.records import VOLUME
from tests.support.told import Standing, Told

pytestmark = pytest.mark.fuse

UNTOUCHED = 40


class Clock:
    """Stands before `time`: a second passes with every look."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 1.0
        return self.now

    def time_ns(self) -> int:
        return int(self.now * 1e9)


class FailingAppends:
    """Appends of a writer fail from the N-th on, so many of them."""

    def __init__(self, writer: JournalWriter, nth: int, number: int, failures: int) -> None:
        self.calls = 0
        self._real = writer.append
        self._nth, self._number, self.failures = nth, number, failures
        writer.append = self.append  # type: ignore[method-assign]

    def append(self, kind: Kind, body: Body, flags: int = 0) -> SequenceNumber:
        self.calls += 1
        if self._nth <= self.calls < self._nth + self.failures:
            raise JournalWriteError(OSError(self._number, os.strerror(self._number)))
        return self._real(kind, body, flags)


def attempt(base: Path, nth: int, number: int, failures: int) -> bool:
    """All actions, one after another, on a new tree; True if there were less than N appends."""
    source, where = base / f"source-{nth}", str(base / f"journal-{nth}")
    prepare(source)
    for name in range(UNTOUCHED):
        (source / f"untouched{name}").mkdir()
    tree = BackingTree.open(bytes(source), 1)
    volume = VolumeDirectory(tree.root, str(source))
    opened = open_journal(where, VOLUME, tree.identity(), "node17")
    journal = EnduringJournal(
        opened.writer, volume, tree.root_id, directory=where, ways=tree.way, reserve_bytes=1 << 20
    )
    failing = FailingAppends(opened.writer, nth, number, failures)
    told = Told(Standing.of(tree))
    answers: list[object] = []

    async def run() -> Operations:
        operations = Operations(tree, journal, EngineOptions(job_variables=()))
        for action in ACTIONS.values():
            try:
                answers.append(await action(operations, Request(operations)))
            except pyfuse3.FUSEError as error:
                answers.append(error.errno)
        return operations

    trio.run(run).finish()
    appends = failing.calls
    failing.failures = 0
    journal.close("node17")
    assert EXPECTED.setdefault(len(answers), errors(answers)) == errors(answers)
    with JournalReader(where) as reader:
        records = [record for batch in reader.read() for record in batch]
    assert records[-1].kind is Kind.UNMOUNT
    assert volume.read_marks() is None
    compared = [record.body for record in records if isinstance(record.body, Reconcile)]
    assert not any(body.directory == tree.root_id and body.whole for body in compared)
    assert len(compared) < UNTOUCHED
    told.hear(record for record in records[:-1] if record.kind is not Kind.RECONCILE)
    whole = {body.directory for body in compared}
    assert told.differences(Standing.of(tree), whole) == [], nth
    assert compared or appends < nth or number == errno.ENOSPC, "there the reserve gave room"
    volume.close()
    tree.close()
    return appends < nth


EXPECTED: dict[int, list[int]] = {}


def errors(answers: list[object]) -> list[int]:
    """The errors among the answers, and where."""
    return [each if isinstance(each, int) else 0 for each in answers]


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.ENOSPC], ids=errno.errorcode.get)
@pytest.mark.parametrize("failures", [1, 3, 1 << 20], ids=["once", "for a while", "for ever"])
def test_the_nth_append_fails(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    number: int,
    failures: int,
) -> None:
    monkeypatch.setattr(engine, "prepare_thread", lambda: None)
    monkeypatch.setattr(degraded_module, "time", Clock())
    nth = 1
    while not attempt(tmp_path, nth, number, failures):
        nth += 1
    assert nth > 20
    caplog.clear()  # it warned of what it must warn of


class Watching:
    """A source tree that notes, before each change of it, what is marked on the disk."""

    def __init__(self, tree: BackingTree, volume: VolumeDirectory) -> None:
        self.marked: list[set[Mark]] = []
        self._tree = tree
        self._volume = volume

    def now(self) -> set[Mark]:
        noted = decode(self._volume.read_marks() or b"")
        return set() if noted is None else set(noted.marks)

    def __getattr__(self, name: str) -> object:
        if name in CHANGES:
            self.marked.append(self.now())
        return getattr(self._tree, name)


@pytest.mark.parametrize("name", ACTIONS)
def test_a_directory_is_marked_before_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    monkeypatch.setattr(engine, "prepare_thread", lambda: None)
    source, where = tmp_path / "source", str(tmp_path / "journal")
    prepare(source)
    tree = BackingTree.open(bytes(source), 1)
    volume = VolumeDirectory(tree.root, str(source))
    opened = open_journal(where, VOLUME, tree.identity(), "node17")
    journal = EnduringJournal(opened.writer, volume, tree.root_id, directory=where, ways=tree.way)
    FailingAppends(opened.writer, 1, errno.EIO, 1)
    monkeypatch.setattr(journal, "_resume", lambda: False)
    assert journal.append(Kind.CHECKPOINT, Checkpoint("fails")) is None
    assert journal.degraded is not None
    watching: Any = Watching(tree, volume)

    async def run() -> Operations:
        operations = Operations(watching, journal, EngineOptions(job_variables=()))
        with contextlib.suppress(pyfuse3.FUSEError):
            await ACTIONS[name](operations, Request(operations))
        return operations

    operations = trio.run(run)
    after = {mark for mark in watching.now() if not mark.whole}
    assert after
    assert after <= watching.marked[-1]
    operations.finish()
    journal.close("node17")
    assert volume.read_marks() is None
    volume.close()
    tree.close()
    caplog.clear()  # it warned of what it must warn of
