"""The writer: order, sync, rotation, and what it does when the disk fails it."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirrorfs.journal import writer as writer_module
from mirrorfs.journal.reader import JournalReader
from mirrorfs.journal.record import Kind, SequenceNumber
from mirrorfs.journal.recovery import open_journal
from mirrorfs.journal.writer import (
    JournalBusyError,
    JournalWriteError,
    JournalWriter,
    WriterOptions,
)
from tests.support.failing_system import FAILED, NO_SPACE, FailingSystem
from tests.support.records import EVERY_KIND, SOURCE, VOLUME, created

SMALL = WriterOptions(segment_bytes_max=2000)


def opened(directory: Path, options: WriterOptions | None = None) -> JournalWriter:
    return open_journal(str(directory), VOLUME, SOURCE, "node17", options).writer


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[JournalWriter]:
    made = opened(tmp_path)
    yield made
    made.close()


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> FailingSystem:
    failing = FailingSystem()
    monkeypatch.setattr(writer_module, "os", failing)
    return failing


def sequences(directory: Path) -> list[int]:
    with JournalReader(str(directory)) as reader:
        return [record.sequence for batch in reader.read() for record in batch]


def test_appends_are_numbered_and_read_back(tmp_path: Path, writer: JournalWriter) -> None:
    assert writer.head == 0
    appended = [writer.append(kind, body, flags) for kind, flags, body in EVERY_KIND]
    assert appended == list(range(1, len(EVERY_KIND) + 1))
    assert writer.head == len(EVERY_KIND)
    with JournalReader(str(tmp_path)) as reader:
        records = reader.poll()
    assert [(r.kind, r.flags, r.body) for r in records] == list(EVERY_KIND)


def test_group_sync_follows(writer: JournalWriter) -> None:
    sequence = writer.append(Kind.CREATE, created(1))
    assert writer.wait_durable(sequence, 60)
    assert writer.durable_head == sequence
    assert not writer.wait_durable(SequenceNumber(sequence + 1), 0)


def test_sync_always(tmp_path: Path) -> None:
    writer = opened(tmp_path, WriterOptions(sync="always"))
    for number in range(3):
        sequence = writer.append(Kind.CREATE, created(number))
        assert writer.durable_head == sequence
    writer.close()


def test_rotation_by_size(tmp_path: Path) -> None:
    writer = opened(tmp_path, SMALL)
    for number in range(100):
        writer.append(Kind.CREATE, created(number))
    writer.close()
    segments = sorted(path for path in tmp_path.iterdir() if path.suffix == ".seg")
    assert len(segments) > 5
    assert all(path.stat().st_size < 2300 for path in segments)
    assert sequences(tmp_path) == list(range(1, 101))
    assert not list(tmp_path.glob("*.new"))


def test_rotation_by_age_leaves_no_empty_segments(tmp_path: Path) -> None:
    writer = opened(tmp_path, WriterOptions(segment_seconds_max=-1.0))
    for number in range(5):
        writer.append(Kind.CREATE, created(number))
    writer.close()
    assert len(list(tmp_path.glob("*.seg"))) == 5
    assert sequences(tmp_path) == [1, 2, 3, 4, 5]


def test_a_segment_is_durable_before_the_next_begins(tmp_path: Path) -> None:
    writer = opened(tmp_path, WriterOptions(segment_seconds_max=-1.0))
    writer.append(Kind.CREATE, created(1))
    writer.append(Kind.CREATE, created(2))
    assert writer.durable_head >= 1
    writer.close()


def test_a_second_writer_is_refused(tmp_path: Path, writer: JournalWriter) -> None:
    with pytest.raises(JournalBusyError, match=f"in use by process {os.getpid()} on "):
        opened(tmp_path)
    writer.append(Kind.CREATE, created(1))


@pytest.mark.parametrize("failure", [NO_SPACE, FAILED, 0, 1, 40])
def test_a_failed_write_leaves_whole_records_only(
    tmp_path: Path, writer: JournalWriter, system: FailingSystem, failure: OSError | int
) -> None:
    writer.append(Kind.CREATE, created(1))
    system.failing["write"] = failure
    with pytest.raises(JournalWriteError) as raised:
        writer.append(Kind.CREATE, created(2))
    expected = failure.errno if isinstance(failure, OSError) else errno.ENOSPC
    assert raised.value.errno == expected
    with JournalReader(str(tmp_path)) as reader:
        reader.poll()
        assert reader.unread_bytes() == 0
    system.failing.clear()
    assert writer.append(Kind.CREATE, created(3)) == 2
    assert sequences(tmp_path) == [1, 2]


def test_nothing_is_appended_after_a_partial_write_that_cannot_be_cut_off(
    tmp_path: Path, writer: JournalWriter, system: FailingSystem
) -> None:
    writer.append(Kind.CREATE, created(1))
    system.failing = {"write": 20, "ftruncate": FAILED}
    with pytest.raises(JournalWriteError):
        writer.append(Kind.CREATE, created(2))
    del system.failing["write"]
    with pytest.raises(JournalWriteError):
        writer.append(Kind.CREATE, created(2))
    with JournalReader(str(tmp_path)) as reader:
        assert len(reader.poll()) == 1
        assert reader.poll() == []
        assert reader.unread_bytes() == 20
        system.failing.clear()
        assert writer.append(Kind.CREATE, created(3)) == 2
        assert [record.body for record in reader.poll()] == [created(3)]


def test_a_failed_sync_is_reported_and_mended(tmp_path: Path, system: FailingSystem) -> None:
    writer = opened(tmp_path)
    first = writer.append(Kind.CREATE, created(1))
    assert writer.wait_durable(first, 60)
    system.failing["fdatasync"] = FAILED
    writer.append(Kind.CREATE, created(2))
    with pytest.raises(JournalWriteError):
        writer.sync()
    with pytest.raises(JournalWriteError):
        writer.append(Kind.CREATE, created(3))
    assert writer.durable_head == first
    system.failing.clear()
    assert writer.append(Kind.CREATE, created(4)) == 3
    assert writer.wait_durable(SequenceNumber(3), 60)
    writer.close()
    assert sequences(tmp_path) == [1, 2, 3]


def test_what_a_failed_sync_may_have_lost_is_written_again(
    tmp_path: Path, system: FailingSystem
) -> None:
    """The kernel drops the pages and calls them clean; here the file's bytes are spoiled."""
    rewritten: list[tuple[int, bytes]] = []
    writer = opened(tmp_path)
    writer.append(Kind.CREATE, created(1))
    writer.sync()
    (segment,) = tmp_path.glob("*.seg")
    size = segment.stat().st_size
    system.failing["fdatasync"] = FAILED
    writer.append(Kind.CREATE, created(2))
    with pytest.raises(JournalWriteError):
        writer.sync()
    system.failing.clear()

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        rewritten.append((offset, data))
        return os.pwrite(fd, data, offset)

    system.pwrite = pwrite  # type: ignore[attr-defined]
    writer.append(Kind.CREATE, created(3))
    ((offset, data),) = rewritten
    assert offset == size
    assert segment.read_bytes()[size:].startswith(data)
    writer.close()
    assert sequences(tmp_path) == [1, 2, 3]


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
def test_a_failed_rotation_is_tried_again(tmp_path: Path, system: FailingSystem, call: str) -> None:
    options = WriterOptions(segment_bytes_max=1)
    writer = opened(tmp_path, options)
    writer.append(Kind.CREATE, created(1))
    writer.sync()
    system.failing[call] = NO_SPACE
    for _ in range(2):
        with pytest.raises(JournalWriteError):
            writer.append(Kind.CREATE, created(2))
    system.failing.clear()
    assert writer.append(Kind.CREATE, created(3)) == 2
    writer.close()
    assert sequences(tmp_path) == [1, 2]


def test_appends_beside_a_waiting_reader_and_the_sync_thread(tmp_path: Path) -> None:
    """Rotation every few records, while another thread reads to the end all the time."""
    count = 3000
    writer = opened(tmp_path, WriterOptions(segment_bytes_max=20_000))
    read: list[int] = []
    failures: list[BaseException] = []

    def follow() -> None:
        try:
            with JournalReader(str(tmp_path)) as reader:
                while len(read) < count:
                    read.extend(record.sequence for record in reader.poll(100))
        except BaseException as error:
            failures.append(error)
            raise

    thread = threading.Thread(target=follow)
    thread.start()
    for number in range(count):
        writer.append(Kind.CREATE, created(number))
    thread.join(60)
    writer.close()
    assert not failures
    assert read == list(range(1, count + 1))


def test_close_is_refused_nothing_and_reports_a_failed_sync(
    tmp_path: Path, system: FailingSystem
) -> None:
    writer = opened(tmp_path)
    writer.append(Kind.CREATE, created(1))
    writer.sync()
    system.failing["fdatasync"] = FAILED
    writer.append(Kind.CREATE, created(2))
    with pytest.raises(JournalWriteError):
        writer.close()
    system.failing.clear()
    opened(tmp_path).close()
