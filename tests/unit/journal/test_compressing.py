"""Compressing sealed segments: read in place from any record, and never two truths."""

from __future__ import annotations

import itertools
import os
import random
from pathlib import Path

import pytest

from mirrorfs.journal import compressing
from mirrorfs.journal.blocks import BLOCK_BYTES
from mirrorfs.journal.compressing import compress_segment
from mirrorfs.journal.open_segment import list_segments, read_head
from mirrorfs.journal.reader import JournalReader
from mirrorfs.journal.record import Checkpoint, Kind, Record, SequenceNumber, Unmount
from mirrorfs.journal.recovery import JournalRefusedError, open_journal
from mirrorfs.journal.segment import ARCHIVE, COMPRESSED, CorruptionError
from mirrorfs.journal.writer import JournalWriter, WriterOptions
from tests.support.records import SOURCE, VOLUME, created

RECORDS = 5000


def opened(directory: Path) -> JournalWriter:
    options = WriterOptions(segment_bytes_max=200_000)
    return open_journal(str(directory), VOLUME, SOURCE, "node17", options).writer


def filled(directory: Path, *, large: bool = False) -> None:
    """A journal of several segments."""
    writer = opened(directory)
    for number in range(1, RECORDS + 1):
        if large and number % 1000 == 0:
            body = Checkpoint(random.Random(number).randbytes(BLOCK_BYTES).hex())
            writer.append(Kind.CHECKPOINT, body)
        else:
            writer.append(Kind.CREATE, created(number))
    writer.append(Kind.UNMOUNT, Unmount("node17"))
    writer.close()


def compress(directory: Path, *, active: bool = False) -> int:
    """Compress the sealed segments (and the active one); how many."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        segments = list_segments(fd)
        chosen = segments if active else segments[:-1]
        return sum(compress_segment(fd, segment, lambda _: None) for segment in chosen)
    finally:
        os.close(fd)


def flags(directory: Path) -> list[int]:
    fd = os.open(directory, os.O_RDONLY)
    try:
        found = []
        for segment in list_segments(fd):
            one = os.open(segment.name, os.O_RDONLY, dir_fd=fd)
            found.append(read_head(one, segment).flags)
            os.close(one)
        return found
    finally:
        os.close(fd)


def all_records(directory: Path, start: int = 1) -> list[Record]:
    with JournalReader(str(directory)) as reader:
        return [record for batch in reader.read(SequenceNumber(start)) for record in batch]


@pytest.mark.parametrize("large", [False, True])
def test_the_same_records_in_a_fraction_of_the_room(tmp_path: Path, large: bool) -> None:
    filled(tmp_path, large=large)
    before = all_records(tmp_path)
    room = sum(path.stat().st_size for path in tmp_path.glob("*.seg"))
    assert compress(tmp_path) == len(flags(tmp_path)) - 1 > 1
    assert set(flags(tmp_path)[:-1]) == {COMPRESSED}
    assert compress(tmp_path) == 0
    assert all_records(tmp_path) == before
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".lock"] + [".seg"] * len(
        flags(tmp_path)
    )
    if not large:
        assert sum(path.stat().st_size for path in tmp_path.glob("*.seg")) < room / 2


def test_from_any_record_without_reading_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path)
    before = all_records(tmp_path)
    compress(tmp_path)
    starts = [1, 2, RECORDS, RECORDS + 1, *random.Random(1).sample(range(3, RECORDS), 30)]
    read_bytes = 0
    pread = os.pread

    def counted(fd: int, length: int, offset: int) -> bytes:
        nonlocal read_bytes
        data = pread(fd, length, offset)
        read_bytes += len(data)
        return data

    with JournalReader(str(tmp_path)) as reader:
        for start in starts:
            reader.seek(SequenceNumber(start))
            assert reader.poll(7) == before[start - 1 : start + 6]
        assert reader.head() == RECORDS + 1
        monkeypatch.setattr(os, "pread", counted)
        reader.seek(SequenceNumber(1300))
        reader.poll(1)
    block = 100_000  # compressed; the head of a segment is read with what follows it
    assert read_bytes < block


def test_a_reader_that_has_the_plain_segment_open_goes_on(tmp_path: Path) -> None:
    filled(tmp_path)
    before = all_records(tmp_path)
    with JournalReader(str(tmp_path)) as reader:
        read = list(reader.poll(10))
        compress(tmp_path)
        read += [record for batch in reader.read() for record in batch]
    assert read == before


def test_selected_records_of_plain_and_compressed_segments(tmp_path: Path) -> None:
    filled(tmp_path)
    wanted = [record for record in all_records(tmp_path) if record.sequence % 100 == 7]
    times = {record.time_ns for record in wanted}
    for _ in range(2):
        with JournalReader(str(tmp_path)) as reader:
            batches = list(reader.select(lambda _kind, time_ns, _payload: time_ns in times))
            assert all(batches)
            assert [record for batch in batches for record in batch] == wanted
            assert reader.position == RECORDS + 2
        compress(tmp_path)


def test_a_writer_starts_after_a_compressed_segment(tmp_path: Path) -> None:
    """The one after it was found empty, and removed."""
    filled(tmp_path)
    before = all_records(tmp_path)
    compress(tmp_path, active=True)
    for _ in range(2):
        again = open_journal(str(tmp_path), VOLUME, SOURCE, "node17")
        assert again.clean
        assert again.writer.header.first == RECORDS + 2
        one = again.writer.header.incarnations[0]
        assert (one.first, one.last) == (1, RECORDS + 1)
        again.writer.close()
    assert all_records(tmp_path) == before
    with JournalReader(str(tmp_path)) as reader:
        assert reader.head() == RECORDS + 1
        assert reader.poll(1) == before[:1]


def test_a_half_written_compressed_segment_is_removed_at_the_next_start(tmp_path: Path) -> None:
    filled(tmp_path)
    name = sorted(tmp_path.glob("*.seg"))[0].name
    (tmp_path / f"{name}.zst.new").write_bytes(b"half")
    opened(tmp_path).close()
    assert not list(tmp_path.glob("*.new"))


def test_nothing_is_appended_to_an_archive(tmp_path: Path) -> None:
    filled(tmp_path)
    (last,) = sorted(tmp_path.glob("*.seg"))[-1:]
    fd = os.open(tmp_path, os.O_RDONLY)
    (segment,) = list_segments(fd)[-1:]
    one = os.open(segment.name, os.O_RDONLY, dir_fd=fd)
    head = read_head(one, segment)
    with (tmp_path / "copy").open("wb") as out:
        writer = compressing.CompressedWriter(out.fileno(), head.header, ARCHIVE)
        for frames, first, end in compressing.blocks_of(one, head):
            writer.add(frames, first, end - first)
        writer.finish(end)
    os.close(one)
    os.close(fd)
    os.replace(tmp_path / "copy", last)
    assert flags(tmp_path)[-1] == ARCHIVE | COMPRESSED
    with pytest.raises(JournalRefusedError, match="an archive"):
        opened(tmp_path)
    assert len(all_records(tmp_path)) == RECORDS + 1


@pytest.mark.parametrize("at", [0.3, 0.9999])
def test_a_bad_frame_stays_where_it_is(tmp_path: Path, at: float) -> None:
    """Compressing never turns corruption into something else."""
    filled(tmp_path)
    path = sorted(tmp_path.glob("*.seg"))[0]
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 1
    path.write_bytes(data)
    fd = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(CorruptionError, match="checksum"):
        compress_segment(fd, list_segments(fd)[0], lambda _: None)
    os.close(fd)
    assert path.read_bytes() == data
    assert not list(tmp_path.glob("*.new"))


def test_a_segment_cut_short_is_not_compressed(tmp_path: Path) -> None:
    filled(tmp_path)
    path = sorted(tmp_path.glob("*.seg"))[0]
    data = path.read_bytes()[:-3]
    path.write_bytes(data)
    fd = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(CorruptionError, match="cut short"):
        compress_segment(fd, list_segments(fd)[0], lambda _: None)
    os.close(fd)
    assert path.read_bytes() == data


@pytest.mark.parametrize("missing", [0, 1, 500])
def test_a_copy_that_is_not_what_was_written_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: int
) -> None:
    """The disk gave back something else, of the same length or not: the plain segment stays."""
    filled(tmp_path)
    path = sorted(tmp_path.glob("*.seg"))[0]
    data = path.read_bytes()
    fd = os.open(tmp_path, os.O_RDONLY)
    segment = list_segments(fd)[0]
    other = Path(tmp_path / "other")
    other.mkdir()
    writer = open_journal(str(other), VOLUME, SOURCE, "node17").writer
    for number in range(1, list_segments(fd)[1].first - missing):
        writer.append(Kind.CREATE, created(number))
    writer.close()
    real = compressing.blocks_of

    def swapped(one: int, head: object) -> object:
        with next(other.glob("*.seg")).open("rb") as file:
            name = list_segments(os.open(other, os.O_RDONLY))[0]
            yield from real(file.fileno(), read_head(file.fileno(), name))

    monkeypatch.setattr(compressing, "blocks_of", swapped)
    with pytest.raises(CorruptionError, match="compressed copy"):
        compress_segment(fd, segment, lambda _: None)
    os.close(fd)
    assert path.read_bytes() == data
    assert not list(tmp_path.glob("*.new"))


@pytest.mark.parametrize("at", [0.0, 0.3, 0.9999])
def test_a_damaged_compressed_segment_is_refused_with_its_name(tmp_path: Path, at: float) -> None:
    filled(tmp_path)
    compress(tmp_path)
    path = sorted(tmp_path.glob("*.seg"))[0]
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 0x20
    path.write_bytes(data)
    with pytest.raises(CorruptionError) as raised:
        all_records(tmp_path)
    assert raised.value.file == str(path)


def test_a_stop_leaves_nothing_behind(tmp_path: Path) -> None:
    filled(tmp_path)
    before = all_records(tmp_path)
    steps = left = 0

    class StopError(Exception):
        pass

    def pause(_: float) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise StopError

    fd = os.open(tmp_path, os.O_RDONLY)
    segment = list_segments(fd)[0]
    stopped = True
    while stopped:
        left = steps
        steps += 1
        try:
            compress_segment(fd, segment, pause)
            stopped = False
        except StopError:
            assert not list(tmp_path.glob("*.new"))
            assert flags(tmp_path)[0] == 0
    os.close(fd)
    assert steps > 4
    assert flags(tmp_path)[0] == COMPRESSED
    assert all_records(tmp_path) == before


def test_nothing_is_given_up_before_its_copy_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written, synced, read back, renamed, the directory synced: in this order."""
    filled(tmp_path)
    fd = os.open(tmp_path, os.O_RDONLY)
    calls: list[str] = []

    class Told:
        def __getattr__(self, name: str) -> object:
            real = getattr(os, name)
            if name not in ("write", "fsync", "posix_fadvise", "pread", "replace"):
                return real

            def call(*arguments: object, **keywords: object) -> object:
                calls.append(name)
                return real(*arguments, **keywords)

            return call

    monkeypatch.setattr(compressing, "os", Told())
    assert compress_segment(fd, list_segments(fd)[0], lambda _: None)
    os.close(fd)
    written = len(calls) - calls[::-1].index("write") - 1
    assert calls[written + 1 : written + 3] == ["fsync", "posix_fadvise"]
    assert set(calls[written + 3 : -2]) == {"pread"}
    assert calls[-2:] == ["replace", "fsync"]


def test_a_copy_that_ends_early_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path)
    before = flags(tmp_path)
    real = compressing.blocks_of
    monkeypatch.setattr(
        compressing, "blocks_of", lambda fd, head: itertools.islice(real(fd, head), 1)
    )
    fd = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(CorruptionError, match="compressed copy ends here"):
        compress_segment(fd, list_segments(fd)[0], lambda _: None)
    os.close(fd)
    assert flags(tmp_path) == before
