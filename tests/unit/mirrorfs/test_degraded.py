"""The journal that never fails a job: a real writer on calls that fail, a real source."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mirrorfs import degraded as degraded_module
from mirrorfs.degraded import EnduringJournal
from mirrorfs.journal import writer as writer_module
from mirrorfs.journal.reader import JournalReader
from mirrorfs.journal.record import Checkpoint, Kind, Reconcile
from mirrorfs.journal.recovery import open_journal
from mirrorfs.volume import VolumeDirectory
from tests.support.failing_system import FAILED, NO_SPACE, FailingSystem
from tests.support.records import ROOT, SOURCE, VOLUME, created


class Clock:
    """Stands before `time` in the module."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@dataclass
class Rig:
    journal: EnduringJournal
    system: FailingSystem
    clock: Clock
    mark: Path
    directory: Path

    def append(self, number: int) -> int | None:
        return self.journal.append(Kind.CREATE, created(number))

    def kinds(self) -> list[str]:
        with JournalReader(str(self.directory)) as reader:
            return [record.kind.label for batch in reader.read() for record in batch]


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    source = tmp_path / "source"
    source.mkdir()
    root = os.open(source, os.O_PATH)
    volume = VolumeDirectory(root, str(source))
    clock, system = Clock(), FailingSystem()
    monkeypatch.setattr(degraded_module, "time", clock)
    monkeypatch.setattr(writer_module, "os", system)
    directory = tmp_path / "journal"
    writer = open_journal(str(directory), VOLUME, SOURCE, "node17").writer
    journal = EnduringJournal(writer, volume, ROOT)
    yield Rig(journal, system, clock, source / ".mirrorfs" / "degraded", directory)
    system.failing.clear()
    volume.close()
    os.close(root)


def test_records_have_sequences(rig: Rig) -> None:
    assert [rig.append(n) for n in range(3)] == [1, 2, 3]
    rig.journal.close("node17")
    assert rig.kinds() == ["create", "create", "create", "unmount"]


def test_degrading_and_back(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.append(1)
    rig.system.failing["write"] = NO_SPACE
    assert rig.append(2) is None
    assert rig.mark.read_text() == "cannot append to the journal: No space left on device\n"
    assert rig.journal.degraded is not None
    rig.system.failing.clear()
    assert rig.append(3) is None, "tried again at most once a second"
    rig.clock.now += 1
    assert rig.append(4) == 3
    assert rig.journal.degraded is None
    assert rig.mark.exists(), "until the record that covers the gap is durable"
    rig.journal.close("node17")
    assert not rig.mark.exists()
    assert rig.kinds() == ["create", "reconcile", "create", "unmount"]
    assert len([r for r in caplog.records if r.levelname == "ERROR"]) == 1
    with JournalReader(str(rig.directory)) as reader:
        body = reader.poll()[1].body
    assert isinstance(body, Reconcile)
    assert (body.directory, body.whole, body.path) == (ROOT, True, b"")


def test_it_stays_degraded_while_the_disk_does(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.system.failing["write"] = FAILED
    for _ in range(5):
        assert rig.append(1) is None
        rig.clock.now += 1
    assert len(caplog.records) == 1
    rig.journal.close("node17")
    assert rig.mark.exists()
    rig.system.failing.clear()
    assert rig.kinds() == []


def test_a_close_that_finds_the_disk_well_again_covers_the_gap(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.system.failing["write"] = NO_SPACE
    rig.append(1)
    rig.system.failing.clear()
    rig.journal.close("node17")
    assert rig.kinds() == ["reconcile", "unmount"]
    assert not rig.mark.exists()
    assert caplog.records


def test_what_cannot_be_encoded_is_covered(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    assert rig.journal.append(Kind.CHECKPOINT, Checkpoint("\udcff")) is None
    rig.clock.now += 1
    assert rig.append(1) == 2
    rig.journal.close("node17")
    assert rig.kinds() == ["reconcile", "create", "unmount"]
    assert caplog.records


def test_what_the_engine_could_not_look_at_is_covered(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.journal.uncertain("a change could not be looked at")
    rig.clock.now += 1
    assert rig.append(1) == 2
    rig.journal.close("node17")
    assert rig.kinds() == ["reconcile", "create", "unmount"]
    assert caplog.records


def test_a_source_that_cannot_be_marked_is_told_of(
    rig: Rig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(reason: str) -> None:
        raise FAILED

    monkeypatch.setattr(rig.journal._volume, "set_degraded", refuse)
    rig.system.failing["write"] = NO_SPACE
    rig.append(1)
    assert "cannot be marked" in caplog.text
    rig.system.failing.clear()
    rig.journal.close("node17")
