"""The journal that never fails a job: a real writer on calls that fail, a real source."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
import trio.testing

from mirrorfs import degraded as degraded_module
from mirrorfs import volume as volume_module
from mirrorfs.degraded import EnduringJournal, WhenFull
from mirrorfs.journal import writer as writer_module
from mirrorfs.journal.reader import JournalReader
from mirrorfs.journal.record import (
    Change,
    Checkpoint,
    Kind,
    Mount,
    ObjectId,
    Place,
    Reconcile,
    Record,
    SequenceNumber,
)
from mirrorfs.journal.recovery import open_journal
from mirrorfs.marks import Mark, Marks, Noted, Way, decode
from mirrorfs.reserve import RESERVE_NAME
from mirrorfs.volume import VolumeDirectory
from tests.support.failing_system import FAILED, NO_SPACE, FailingSystem
from tests.support.records import ROOT, SOURCE, VOLUME, created, object_id

RESERVE_BYTES = 512 << 10


class Clock:
    """Stands before `time` in the module."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time_ns(self) -> int:
        return 17


DIRECTORY, OTHER = object_id(100), object_id(101)


@dataclass
class Rig:
    journal: EnduringJournal
    system: FailingSystem
    clock: Clock
    mark: Path
    directory: Path

    def append(self, number: int) -> int | None:
        return self.journal.append(Kind.CREATE, created(number))

    def append_in(self, directory: ObjectId, kind: Kind = Kind.CREATE) -> int | None:
        change = Change(object_id(7), (Place(directory, b"x"),), None, 0o100644, 1)
        return self.journal.append(kind, change)

    def kinds(self) -> list[str]:
        return [record.kind.label for record in self.records()]

    def records(self) -> list[Record]:
        with JournalReader(str(self.directory)) as reader:
            return [record for batch in reader.read() for record in batch]

    def reconciled(self) -> list[tuple[ObjectId, bool]]:
        bodies = [record.body for record in self.records()]
        return [(b.directory, b.whole) for b in bodies if isinstance(b, Reconcile)]

    def marked(self) -> list[ObjectId]:
        noted = decode(self.mark.read_bytes())
        assert noted is not None
        return [mark.directory for mark in noted.marks]


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
    journal = EnduringJournal(
        writer, volume, ROOT, directory=str(directory), reserve_bytes=RESERVE_BYTES
    )
    assert journal._reserve.make_whole()
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
    rig.journal.writer.sync()
    rig.system.failing["write"] = FAILED
    assert rig.append_in(DIRECTORY) is None
    assert b" 17 cannot append to the journal: Input/output error " in rig.mark.read_bytes()
    assert rig.marked() == [DIRECTORY]
    assert (rig.journal.degraded is not None, rig.journal.marks) == (True, 1)
    rig.system.failing.clear()
    assert rig.append_in(OTHER) is None, "tried again at most once a second"
    assert rig.append_in(DIRECTORY, Kind.UNLINK) is None
    assert rig.marked() == [DIRECTORY, OTHER]
    rig.clock.now += 1
    assert rig.append(4) == 4
    assert rig.journal.degraded is None
    assert not rig.mark.exists()
    rig.journal.close("node17")
    assert rig.kinds() == ["create", "reconcile", "reconcile", "create", "unmount"]
    assert rig.reconciled() == [(DIRECTORY, False), (OTHER, False)]
    assert len([r for r in caplog.records if r.levelname == "ERROR"]) == 1


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


def test_marks_stay_until_what_covers_them_is_durable(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.system.failing["write"] = FAILED
    rig.append_in(DIRECTORY)
    rig.system.failing.clear()
    rig.system.failing["fdatasync"] = FAILED
    rig.clock.now += 1
    assert rig.append_in(OTHER) is None
    assert rig.marked() == [DIRECTORY, OTHER]
    rig.system.failing.clear()
    rig.clock.now += 1
    assert rig.append(1) is not None
    assert not rig.mark.exists()
    assert {DIRECTORY, OTHER} <= {directory for directory, _ in rig.reconciled()}
    rig.journal.close("node17")
    assert caplog.records


def test_a_close_that_finds_the_disk_well_again_covers_the_gap(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.system.failing["write"] = FAILED
    rig.append(1)
    rig.system.failing.clear()
    rig.journal.close("node17")
    assert rig.kinds() == ["reconcile", "unmount"]
    assert not rig.mark.exists()
    assert caplog.records


def test_what_was_appended_and_not_synced_is_marked_too(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.system.failing["fdatasync"] = FAILED
    assert rig.append_in(OTHER) == 1
    assert not rig.journal.writer.wait_durable(SequenceNumber(1), 0.3)
    rig.system.failing["pwrite"] = FAILED  # which would put right what was not synced
    assert rig.append_in(DIRECTORY) is None
    assert rig.marked() == [OTHER, DIRECTORY]
    rig.system.failing.clear()
    rig.journal.close("node17")
    assert rig.kinds() == ["create", "reconcile", "reconcile", "unmount"]
    assert caplog.records


def test_so_much_unsynced_that_it_is_not_remembered(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(degraded_module, "_UNSYNCED_MAX", 2)
    with rig.journal.writer._sync_lock:  # the disk takes its time
        for number in range(4):
            assert rig.append(number) is not None
        rig.system.failing["write"] = FAILED
        rig.append_in(DIRECTORY)
    assert rig.journal.everything
    assert rig.marked() == [ROOT]
    rig.system.failing.clear()
    rig.journal.close("node17")
    assert caplog.records


def test_what_has_changed_and_has_no_record_yet_is_marked(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.journal.unrecorded = lambda: [(OTHER, b"other")]
    rig.system.failing["write"] = FAILED
    rig.append_in(DIRECTORY)
    assert rig.marked() == [OTHER, DIRECTORY]
    rig.system.failing.clear()
    rig.journal.close("node17")
    assert caplog.records


# The reserve


class Disk:
    """A full disk: a write needs space that the reserve has given."""

    def __init__(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        self.taken = RESERVE_BYTES
        self.full = True
        self._file = rig.directory / RESERVE_NAME
        self.failing_call: Callable[..., int] = self._write
        monkeypatch.setattr(writer_module, "os", self)
        monkeypatch.setattr(
            rig.journal._reserve, "make_whole", lambda: not self.full and self._refill()
        )

    def __getattr__(self, name: str) -> object:
        return self._write if name == "write" else getattr(os, name)

    def _reserve(self) -> int:
        return self._file.stat().st_size if self._file.exists() else 0

    def _refill(self) -> bool:
        self._file.write_bytes(bytes(RESERVE_BYTES))
        self.taken = RESERVE_BYTES
        return True

    def _write(self, fd: int, data: bytes) -> int:
        if self.full and self.taken <= self._reserve():
            raise NO_SPACE
        self.taken = self._reserve() if self.full else self.taken
        return os.write(fd, data)


def test_a_full_disk_is_noticed_before_a_record_fails(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    disk = Disk(rig, monkeypatch)
    assert rig.append(1) == 1, "with room from the reserve"
    assert rig.journal.degraded == "cannot append to the journal: No space left on device"
    assert rig.append_in(DIRECTORY) is None, "the rest is not for these"
    assert rig.marked() == [DIRECTORY]
    rig.clock.now += 1
    assert rig.append_in(DIRECTORY) is None
    rig.journal.close("node17")
    assert rig.kinds() == ["create", "reconcile", "unmount"], "with room from the reserve"
    assert not rig.mark.exists()
    assert disk.full
    assert caplog.records


@pytest.mark.parametrize("when_full", ["block", "readonly"])
async def test_changes_wait_or_are_refused_and_those_made_have_records(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, when_full: WhenFull
) -> None:
    rig.journal.when_full = when_full
    await rig.journal.admitted(lambda: False)
    rig.journal.refuse_writing()
    disk = Disk(rig, monkeypatch)
    assert [rig.append(n) for n in range(4)] == [1, 2, 3, 4]
    assert rig.journal.degraded is not None
    assert not rig.mark.exists()
    if when_full == "readonly":
        for refused in (rig.journal.refuse_writing,):
            with pytest.raises(OSError, match="Read-only"):
                refused()
        with pytest.raises(OSError, match="Read-only"):
            await rig.journal.admitted(lambda: False)
    else:
        rig.journal.refuse_writing()
        with pytest.raises(OSError, match="Interrupted"):
            await rig.journal.admitted(lambda: True)
    admitted: list[int] = []

    async def change() -> None:
        await rig.journal.admitted(lambda: False)
        admitted.append(1)

    async with trio.open_nursery() as nursery:
        if when_full == "block":
            nursery.start_soon(change)
            await trio.testing.wait_all_tasks_blocked()
            assert not admitted
        disk.full = False
        rig.clock.now += 1
        assert rig.append(5) == 5
    assert bool(admitted) == (when_full == "block")
    rig.journal.close("node17")
    assert rig.kinds() == [*5 * ["create"], "unmount"]
    assert caplog.records


async def test_who_waits_is_let_go_when_the_mount_ends(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rig.journal.when_full = "block"
    Disk(rig, monkeypatch)
    rig.append(1)

    async def change() -> None:
        with pytest.raises(OSError, match="Interrupted"):
            await rig.journal.admitted(lambda: False)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(change)
        await trio.testing.wait_all_tasks_blocked()
        rig.journal.abandon()
    rig.journal.close("node17")
    assert caplog.records


def test_a_change_that_was_made_is_marked_when_the_reserve_is_used_up(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rig.journal.when_full = "readonly"
    disk = Disk(rig, monkeypatch)
    number = 0
    while rig.append_in(DIRECTORY) is not None:
        number += 1
    assert number == RESERVE_BYTES // (64 << 10)
    assert rig.marked() == [DIRECTORY]
    disk.full = False
    rig.clock.now += 1
    assert rig.append(1) == number + 2
    rig.journal.close("node17")
    assert rig.kinds() == [*number * ["create"], "reconcile", "create", "unmount"]
    assert caplog.records


# What no record can tell


def test_what_cannot_be_encoded_is_covered(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    change = Change(object_id(7), (Place(DIRECTORY, b"x"),), None, 1 << 70, 1)
    assert rig.journal.append(Kind.CREATE, change) is None
    assert rig.journal.append(Kind.CHECKPOINT, Checkpoint("\udcff")) is None
    assert rig.append(1) == 2, "it is not degraded by that"
    rig.journal.close("node17")
    assert rig.kinds() == ["reconcile", "create", "unmount"]
    assert rig.reconciled() == [(DIRECTORY, False)]
    assert caplog.records


def test_what_the_engine_could_not_look_at_is_covered(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.journal.uncertain("a change could not be looked at", [(DIRECTORY, b"d")])
    assert rig.append(1) == 2
    rig.system.failing["write"] = FAILED
    rig.journal.uncertain("another one", [(OTHER, None)])
    rig.journal.uncertain("a third one", None)
    rig.system.failing.clear()
    rig.clock.now += 1
    assert rig.append(1) == 4
    rig.journal.close("node17")
    assert rig.reconciled() == [(DIRECTORY, False), (ROOT, True)]
    assert caplog.records


def test_many_directories_become_fewer_marks(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    ways: dict[ObjectId, Way] = {
        object_id(n): [(ROOT, b""), (OTHER, b"o"), (object_id(n), b"o/n")] for n in range(9)
    }
    rig.journal._marks = Marks(ROOT, ways.get, most=8)
    rig.system.failing["write"] = FAILED
    for number in range(9):
        rig.append_in(object_id(number))
    assert rig.marked() == [OTHER]
    rig.system.failing.clear()
    rig.journal.close("node17")
    assert rig.reconciled() == [(OTHER, True)]
    assert caplog.records


def test_a_source_that_cannot_be_marked(
    rig: Rig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First it is full: what is there becomes everything. Then it cannot be written at all."""
    rig.system.failing["write"] = FAILED
    rig.append_in(DIRECTORY)
    system = FailingSystem()
    monkeypatch.setattr(volume_module, "os", system)

    def no_room(data: bytes) -> None:
        raise NO_SPACE

    monkeypatch.setattr(rig.journal._volume, "append_marks", no_room)
    rig.append_in(OTHER)
    assert rig.journal.everything
    noted = decode(rig.mark.read_bytes())
    assert noted is None or noted.marks[0].directory == ROOT
    assert "cannot be marked" not in caplog.text
    rig.journal.close("node17")
    system.failing["pwrite"] = FAILED
    rig.journal._marks = Marks(ROOT)
    rig.journal._note(rig.journal._marks.add(DIRECTORY, None))
    assert "cannot be marked" in caplog.text


# The start


def test_the_next_start_reads_the_marks(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    mount = Mount("node17", 1, "0", b"/m", False)
    noted = Noted(5, "no room", (Mark(DIRECTORY, False, b"d"), Mark(OTHER, True, b"o")))
    rig.journal.begin(mount, [Mark(ROOT, True, b"")], "stopped", noted)
    assert rig.kinds() == ["mount", "reconcile", "reconcile", "reconcile"]
    assert rig.reconciled() == [(ROOT, True), (DIRECTORY, False), (OTHER, True)]
    assert rig.journal.degraded is None
    rig.journal.close("node17")
    assert caplog.records


def test_the_next_start_keeps_the_marks_it_has_no_room_for(
    rig: Rig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(rig, monkeypatch)
    disk.taken = RESERVE_BYTES + 1  # room for one write
    while rig.journal._reserve.give():
        pass
    written: list[int] = []

    def write(fd: int, data: bytes) -> int:
        if written:
            raise NO_SPACE
        written.append(1)
        return os.write(fd, data)

    monkeypatch.setattr(disk, "_write", write)
    noted = Noted(5, "no room", (Mark(DIRECTORY, False, b"d"), Mark(ROOT, True, b"")))
    rig.journal.begin(Mount("node17", 1, "0", b"/m", False), [], "stopped", noted)
    assert rig.kinds() == ["mount"]
    assert (rig.journal.degraded, rig.journal.everything) == ("no room", True)
    disk.full = False
    written.clear()
    monkeypatch.setattr(disk, "_write", os.write)
    rig.journal.close("node17")
    assert rig.kinds() == ["mount", "reconcile", "unmount"]
    assert caplog.records


def test_a_start_without_room_for_the_reserve(
    rig: Rig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rig.journal._reserve, "make_whole", lambda: False)
    rig.journal.begin(Mount("node17", 1, "0", b"/m", False), [], "stopped", None)
    assert rig.journal.degraded == "the journal's disk has no room for the reserve"
    assert rig.append_in(DIRECTORY) is None
    rig.journal.close("node17")
    assert rig.kinds() == ["mount", "reconcile", "unmount"]
    assert caplog.records
