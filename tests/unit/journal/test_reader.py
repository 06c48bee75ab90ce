"""The reader: from any sequence, across rotation, restarts, repair and removal; cursors; waking."""

from __future__ import annotations

import os
import select
from pathlib import Path

import pytest

from mirrorfs.journal.open_segment import SegmentName
from mirrorfs.journal.reader import (
    JournalReader,
    NoJournalError,
    RecordsGoneError,
)
from mirrorfs.journal.record import Kind, SequenceNumber, Tag
from mirrorfs.journal.recovery import open_journal
from mirrorfs.journal.segment import CorruptionError, encode_header, segment_name
from mirrorfs.journal.site_cursor import Unknown
from mirrorfs.journal.writer import JournalWriter, WriterOptions
from tests.support.records import JOURNAL, SOURCE, VOLUME, created, frames, header, random_bytes

SMALL = WriterOptions(segment_bytes_max=1500)


def opened(directory: Path, options: WriterOptions = SMALL) -> JournalWriter:
    return open_journal(str(directory), VOLUME, SOURCE, "node17", options).writer


def append(writer: JournalWriter, count: int) -> None:
    for _ in range(count):
        writer.append(Kind.CREATE, created(writer.head + 1))


def filled(directory: Path, count: int) -> None:
    writer = opened(directory)
    append(writer, count)
    writer.close()


def segment_files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.seg"))


def written(directory: Path, *parts: bytes, first: int = 1, tag: int = 9) -> Path:
    """A segment of a header and whatever follows."""
    path = directory / segment_name(SequenceNumber(first), Tag(tag))
    path.write_bytes(encode_header(header(first, tag)) + b"".join(parts))
    return path


def drained(reader: JournalReader) -> list[int]:
    return [record.sequence for batch in reader.read() for record in batch]


@pytest.mark.parametrize("start", [1, 2, 37, 99, 100, 101])
def test_read_from_any_record(tmp_path: Path, start: int) -> None:
    filled(tmp_path, 100)
    with JournalReader(str(tmp_path)) as reader:
        batches = list(reader.read(SequenceNumber(start)))
        assert [record.sequence for batch in batches for record in batch] == list(range(start, 101))
        assert reader.position == 101


@pytest.mark.parametrize("limit", [1, 7, 1000])
def test_poll_keeps_to_its_limit(tmp_path: Path, limit: int) -> None:
    filled(tmp_path, 50)
    read: list[int] = []
    with JournalReader(str(tmp_path)) as reader:
        while batch := reader.poll(limit):
            assert len(batch) <= limit
            assert batch[0].sequence == len(read) + 1
            read += [record.sequence for record in batch]
            assert reader.position == len(read) + 1
    assert read == list(range(1, 51))


def test_seek_drops_what_was_read_ahead(tmp_path: Path) -> None:
    filled(tmp_path, 50)
    with JournalReader(str(tmp_path)) as reader:
        reader.poll(1)
        reader.seek(SequenceNumber(40))
        assert reader.poll(1)[0].sequence == 40


def test_following_rotation_and_restarts(tmp_path: Path) -> None:
    writer = opened(tmp_path)
    with JournalReader(str(tmp_path)) as reader:
        assert reader.poll() == []
        expected = 1
        for _ in range(3):
            for count in (1, 30, 5):
                append(writer, count)
                assert reader.head() == expected + count - 1
                assert drained(reader) == list(range(expected, expected + count))
                assert reader.poll() == []
                expected += count
            tag = writer.header.tag
            assert reader.tag_of(SequenceNumber(expected - 1)) == tag
            writer.close()
            writer = opened(tmp_path)
            assert writer.header.tag != tag
    writer.close()


def test_rotation_between_the_last_read_and_the_look_for_a_successor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = opened(tmp_path)
    append(writer, 2)
    with JournalReader(str(tmp_path)) as reader:
        assert drained(reader) == [1, 2]
        listing = reader.segments
        append(writer, 1)
        reader.poll(1)

        def append_first() -> list[SegmentName]:
            monkeypatch.undo()
            append(writer, 40)
            return listing()

        monkeypatch.setattr(reader, "segments", append_first)
        assert drained(reader) == list(range(4, 44))
    writer.close()


def test_the_empty_segment_of_a_short_incarnation_is_removed_under_the_reader(
    tmp_path: Path,
) -> None:
    filled(tmp_path, 3)
    opened(tmp_path).close()
    with JournalReader(str(tmp_path)) as reader:
        assert drained(reader) == [1, 2, 3]
        writer = opened(tmp_path)
        append(writer, 2)
        assert drained(reader) == [4, 5]
        assert [i.last - i.first + 1 for i in reader.incarnations()] == [3, 0, 2]
        writer.close()


def test_a_torn_tail_is_waited_for_and_its_repair_followed(tmp_path: Path) -> None:
    filled(tmp_path, 3)
    (segment,) = segment_files(tmp_path)
    with JournalReader(str(tmp_path)) as reader:
        assert len(reader.poll()) == 3
        with segment.open("ab") as stream:
            stream.write(frames(4)[0][:-1])
        assert reader.poll() == []
        assert reader.head() == 3
        with segment.open("ab") as stream:
            stream.write(bytes(5000))
        assert reader.poll() == []
        assert reader.head() == 3
        assert reader.unread_bytes() > 5000
        writer = opened(tmp_path)
        append(writer, 1)
        assert [record.body for record in reader.poll()] == [created(4)]
        assert reader.head() == 4
        writer.close()


def test_a_frame_is_read_once_it_is_whole(tmp_path: Path) -> None:
    each = frames()
    data = b"".join(each)
    path = written(tmp_path)
    read = []
    with JournalReader(str(tmp_path)) as reader, path.open("ab", buffering=0) as stream:
        for at in range(len(data)):
            stream.write(data[at : at + 1])
            read += [record.sequence for record in reader.poll()]
            assert len(read) == reader.head()
    assert read == list(range(1, len(each) + 1))


def test_a_record_larger_than_a_chunk(tmp_path: Path) -> None:
    from mirrorfs.journal.record import Checkpoint

    writer = opened(tmp_path, WriterOptions())
    append(writer, 1)
    writer.append(Kind.CHECKPOINT, Checkpoint("x" * (5 << 20)))
    append(writer, 1)
    with JournalReader(str(tmp_path)) as reader:
        assert reader.head() == 3
        assert drained(reader) == [1, 2, 3]
        reader.seek(SequenceNumber(3))
        assert drained(reader) == [3]
    writer.close()


# What is refused


def test_no_journal(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "missing", tmp_path / "file"):
        with pytest.raises(NoJournalError, match="no journal there"):
            JournalReader(str(path))


@pytest.mark.parametrize("start", [0, 52, 1000])
def test_records_that_are_not_there(tmp_path: Path, start: int) -> None:
    filled(tmp_path, 50)
    with JournalReader(str(tmp_path)) as reader, pytest.raises(RecordsGoneError):
        reader.seek(SequenceNumber(start))


def test_removed_segments(tmp_path: Path) -> None:
    filled(tmp_path, 50)
    with JournalReader(str(tmp_path)) as reader:
        reader.poll(1)
        segments = segment_files(tmp_path)
        first_kept = reader.segments()[3].first
        for path in segments[:3]:
            path.unlink()
        with pytest.raises(RecordsGoneError, match=f"{first_kept} is the first kept"):
            drained(reader)
        with pytest.raises(RecordsGoneError, match="not kept any more"):
            reader.seek(SequenceNumber(1))
        reader.seek(first_kept)
        assert drained(reader)[-1] == 50


def test_records_that_were_read_and_are_others_now(tmp_path: Path) -> None:
    """A power cut took the end of the journal, and its reader did not notice."""
    journal = tmp_path / "journal"
    filled(journal, 10)
    with JournalReader(str(journal)) as reader:
        assert drained(reader)[-1] == 10
        newest = segment_files(journal)[-1]
        data = newest.read_bytes()
        newest.unlink()  # it goes on reading the old file
        newest.write_bytes(data[:-200])
        filled(journal, 3)
        with pytest.raises(RecordsGoneError, match="was read, and is gone"):
            drained(reader)


def test_a_bad_record_in_a_sealed_segment(tmp_path: Path) -> None:
    filled(tmp_path, 50)
    path = segment_files(tmp_path)[1]
    data = bytearray(path.read_bytes())
    data[-10] ^= 1
    path.write_bytes(data)
    with JournalReader(str(tmp_path)) as reader:
        with pytest.raises(CorruptionError, match="checksum") as raised:
            drained(reader)
        assert raised.value.file == str(path)
        assert 0 < raised.value.offset < len(data)
        before = reader.position
        with pytest.raises(CorruptionError):
            reader.poll()
        assert reader.position == before


def test_a_record_cut_short_in_a_sealed_segment(tmp_path: Path) -> None:
    filled(tmp_path, 50)
    path = segment_files(tmp_path)[1]
    os.truncate(path, path.stat().st_size - 1)
    with JournalReader(str(tmp_path)) as reader, pytest.raises(CorruptionError, match="cut short"):
        drained(reader)


def test_a_bad_record_before_whole_ones_in_the_active_segment(tmp_path: Path) -> None:
    each = frames()
    path = written(tmp_path, each[0], each[1][:-1] + b"?", each[2])
    with JournalReader(str(tmp_path)) as reader:
        assert [record.sequence for record in reader.poll()] == [1]
        with pytest.raises(CorruptionError, match="checksum") as raised:
            reader.poll()
        assert raised.value.file == str(path)
        with pytest.raises(CorruptionError):
            reader.head()


@pytest.mark.parametrize("data", [b"", b"\x89MFSJ\r\n\x1a", random_bytes(3, 500)])
def test_a_bad_header(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / segment_name(SequenceNumber(1), Tag(9))
    path.write_bytes(data)
    with pytest.raises(CorruptionError) as raised:
        JournalReader(str(tmp_path))
    assert raised.value.file == str(path)


def test_a_segment_under_another_name(tmp_path: Path) -> None:
    written(tmp_path).rename(tmp_path / segment_name(SequenceNumber(2), Tag(9)))
    with pytest.raises(CorruptionError, match="does not belong"):
        JournalReader(str(tmp_path))


def test_a_segment_of_another_journal(tmp_path: Path) -> None:
    filled(tmp_path, 3)
    written(tmp_path, first=4)
    reader = JournalReader(str(tmp_path))
    with reader, pytest.raises(CorruptionError, match="another journal"):
        drained(reader)


# Cursors


def test_resolve(tmp_path: Path) -> None:
    filled(tmp_path, 10)
    writer = opened(tmp_path)
    append(writer, 5)
    with JournalReader(str(tmp_path)) as reader:
        journal = reader.header.journal
        first, second = reader.incarnations()
        assert (first.first, first.last, second.first, second.last) == (1, 10, 11, 15)

        def resolve(tag: int, sequence: int) -> SequenceNumber | Unknown:
            return reader.resolve(journal, Tag(tag), SequenceNumber(sequence))

        assert resolve(first.tag, 7) == 7
        assert resolve(first.tag, 10) == 10
        assert resolve(first.tag, 12) == 10  # records 11 and 12 were lost in a power cut
        assert resolve(second.tag, 15) == 15
        assert resolve(second.tag, 99) == 15
        assert isinstance(resolve(first.tag ^ 1, 7), Unknown)
        assert isinstance(reader.resolve(JOURNAL, first.tag, SequenceNumber(7)), Unknown)
        append(writer, 1)
        assert resolve(second.tag, 16) == 16
        assert reader.tag_of(SequenceNumber(10)) == first.tag
        assert reader.tag_of(SequenceNumber(11)) == second.tag
        segment_files(tmp_path)[0].unlink()
        assert isinstance(resolve(first.tag, 1), Unknown)
        kept = reader.segments()[0].first
        assert resolve(first.tag, kept - 1) == kept - 1
    writer.close()


def test_an_incarnation_too_old_to_be_listed(tmp_path: Path) -> None:
    filled(tmp_path, 1)
    reader = JournalReader(str(tmp_path))
    with reader, pytest.raises(RecordsGoneError, match="no incarnation is known"):
        reader.tag_of(SequenceNumber(0))


# Waiting


def is_readable(reader: JournalReader) -> bool:
    return bool(select.select([reader.wake_fd], [], [], 0)[0])


def test_wake_on_append_rotation_and_restart(tmp_path: Path) -> None:
    writer = opened(tmp_path)
    with JournalReader(str(tmp_path)) as reader:
        assert not is_readable(reader)
        for count in (1, 30):
            append(writer, count)
            assert is_readable(reader)
            reader.drain_wake()
            assert not is_readable(reader)
            assert len(drained(reader)) == count
        writer.close()
        reader.drain_wake()
        opened(tmp_path).close()
        assert is_readable(reader)
        reader.drain_wake()
        reader.drain_wake()
        assert not is_readable(reader)


def test_reading_needs_no_right_to_write(tmp_path: Path) -> None:
    filled(tmp_path, 10)
    before = {path: path.stat() for path in tmp_path.iterdir()}
    with JournalReader(str(tmp_path)) as reader:
        assert reader.wake_fd >= 0
        assert len(drained(reader)) == reader.head() == 10
    after = {path: path.stat() for path in tmp_path.iterdir()}
    assert {p: (s.st_mtime_ns, s.st_size) for p, s in before.items()} == {
        p: (s.st_mtime_ns, s.st_size) for p, s in after.items()
    }


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    filled(tmp_path, 50)
    before = set(os.listdir("/proc/self/fd"))
    with JournalReader(str(tmp_path)) as reader:
        drained(reader)
        assert reader.wake_fd >= 0
        assert reader.head() == 50
    assert set(os.listdir("/proc/self/fd")) == before
