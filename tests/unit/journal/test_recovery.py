"""Recovery: what a crash leaves behind is repaired, everything else is refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorfs.journal.activity_header import ActivityHeader
from mirrorfs.journal.reader import JournalReader
from mirrorfs.journal.record import Kind, SequenceNumber, Tag, Unmount
from mirrorfs.journal.recovery import JournalRefusedError, Opened, open_journal
from mirrorfs.journal.segment import (
    INCARNATIONS_MAX,
    CorruptionError,
    Incarnation,
    SourceIdentity,
    decode_header,
    encode_header,
    scan_records,
    segment_name,
)
from mirrorfs.journal.writer import WriterOptions
from tests.support.records import SOURCE, VOLUME, created, frames, header, object_id

ROOT_DIRECTORY = Path(__file__).parents[3]
SMALL = WriterOptions(segment_bytes_max=1500)


def opened(
    directory: Path, options: WriterOptions | None = None, told: ActivityHeader | None = None
) -> Opened:
    return open_journal(str(directory), VOLUME, SOURCE, "node17", options, told)


def filled(directory: Path, count: int, *, clean: bool = False) -> Path:
    """A journal of one segment; the segment."""
    writer = opened(directory).writer
    for number in range(count):
        writer.append(Kind.CREATE, created(number))
    if clean:
        writer.append(Kind.UNMOUNT, Unmount("node17"))
    writer.close()
    return max(directory.glob("*.seg"))


def sequences(directory: Path) -> list[int]:
    with JournalReader(str(directory)) as reader:
        return [record.sequence for batch in reader.read() for record in batch]


def test_a_new_journal_is_clean(tmp_path: Path) -> None:
    made = opened(tmp_path / "deep" / "journal")
    assert made.clean
    assert made.torn is None
    assert made.writer.header.first == 1
    assert (tmp_path / "deep" / "journal").stat().st_mode & 0o7777 == 0o700
    made.writer.close()


@pytest.mark.parametrize("clean", [True, False])
def test_clean_means_ended_with_unmount(tmp_path: Path, clean: bool) -> None:
    filled(tmp_path, 2, clean=clean)
    again = opened(tmp_path)
    assert again.clean is clean
    assert again.writer.head == (3 if clean else 2)
    again.writer.close()
    third = opened(tmp_path)
    assert third.clean is clean, "an incarnation without records says nothing of its own"
    third.writer.close()


def test_incarnations_are_listed(tmp_path: Path) -> None:
    tags = []
    for _ in range(3):
        writer = opened(tmp_path).writer
        tags.append(writer.header.tag)
        writer.append(Kind.CREATE, created(1))
        writer.close()
    opened(tmp_path).writer.close()
    writer = opened(tmp_path).writer
    listed = writer.header.incarnations
    assert [(i.first, i.last) for i in listed] == [(1, 1), (2, 2), (3, 3), (4, 3)]
    assert [i.tag for i in listed[:3]] == tags
    assert len({writer.header.tag, *(i.tag for i in listed)}) == 5
    writer.close()


def test_only_the_newest_incarnations_are_listed(tmp_path: Path) -> None:
    many = tuple(
        Incarnation(Tag(n), SequenceNumber(n), SequenceNumber(n))
        for n in range(1, INCARNATIONS_MAX + 1)
    )
    first = SequenceNumber(INCARNATIONS_MAX + 1)
    path = tmp_path / segment_name(first, Tag(1 << 40))
    path.write_bytes(encode_header(header(first, 1 << 40, many)) + frames(first)[0])
    writer = opened(tmp_path).writer
    assert len(writer.header.incarnations) == INCARNATIONS_MAX
    assert writer.header.incarnations[0].tag == 2
    assert writer.header.incarnations[-1] == Incarnation(Tag(1 << 40), first, first)
    writer.close()


# Torn tails


@pytest.mark.parametrize("tail", [b"\x00", bytes(100), b"\xff" * 5000, frames(4)[0][:-1]])
def test_a_torn_tail_is_cut_off_and_kept(tmp_path: Path, tail: bytes) -> None:
    segment = filled(tmp_path, 3)
    size = segment.stat().st_size
    with segment.open("ab") as stream:
        stream.write(tail)
    again = opened(tmp_path)
    assert again.torn == f"torn/{segment.name}.{size}"
    assert (tmp_path / again.torn).read_bytes() == tail
    assert segment.stat().st_size == size
    assert not again.clean
    again.writer.append(Kind.CREATE, created(9))
    again.writer.close()
    assert sequences(tmp_path) == [1, 2, 3, 4]


def test_every_cut_of_a_segment_recovers(tmp_path: Path) -> None:
    """Whatever a kill or a power cut leaves of the last segment: the whole records before it."""
    each = frames()
    data = b"".join(each)
    head = encode_header(header())
    path = tmp_path / segment_name(SequenceNumber(1), header().tag)
    for length in range(0, len(data), 7):
        for old in tmp_path.glob("*.seg"):
            old.unlink()
        path.write_bytes(head + data[:length])
        whole = len(
            [1 for count in range(1, len(each) + 1) if len(b"".join(each[:count])) <= length]
        )
        again = opened(tmp_path)
        assert again.writer.head == whole
        again.writer.close()
        assert sequences(tmp_path) == list(range(1, whole + 1))


def test_a_segment_with_nothing_but_a_torn_tail(tmp_path: Path) -> None:
    filled(tmp_path, 3, clean=True)
    segment = filled(tmp_path, 1)
    os.truncate(segment, segment.stat().st_size - 1)
    again = opened(tmp_path)
    assert again.torn is not None
    assert again.clean, "nothing can have happened before its first record was durable"
    assert again.writer.head == 4
    assert not segment.exists()
    again.writer.close()


def test_left_over_new_segments_are_removed(tmp_path: Path) -> None:
    filled(tmp_path, 1)
    left = tmp_path / (segment_name(SequenceNumber(2), Tag(5)) + ".new")
    left.write_bytes(b"half a header")
    foreign = tmp_path / "notes.new"
    foreign.touch()
    opened(tmp_path).writer.close()
    assert not left.exists()
    assert foreign.exists()


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_flipped_byte_before_the_tail_is_refused(
    tmp_path_factory: pytest.TempPathFactory, at: int, flip: int
) -> None:
    each = frames()
    data = bytearray(b"".join(each))
    data[at % (len(data) - len(each[-1]))] ^= flip
    directory = tmp_path_factory.mktemp("journal")
    path = directory / segment_name(SequenceNumber(1), header().tag)
    path.write_bytes(encode_header(header()) + data)
    before = path.read_bytes()
    with pytest.raises(CorruptionError) as raised:
        opened(directory)
    assert raised.value.file == str(path)
    assert path.read_bytes() == before
    assert not (directory / "torn").exists()


# What is refused


@pytest.mark.parametrize("of", ["this", "another", "none"])
@pytest.mark.parametrize("synced", [2, 3])
def test_a_hole_in_what_was_not_synced(tmp_path: Path, of: str, synced: int) -> None:
    """A power cut may leave a later record on the disk, and not the one before it."""
    segment = filled(tmp_path, 5)
    data = segment.read_bytes()
    with JournalReader(str(tmp_path)) as reader:
        journal, tag = reader.header.journal, reader.header.tag
    decoded = decode_header(data)
    assert decoded is not None
    third = (
        decoded[1]
        + scan_records(data[decoded[1] :], SequenceNumber(1), 0, SequenceNumber(3)).length
    )
    holed = data[:third] + bytes(50) + data[third + 50 :]
    segment.write_bytes(holed)
    told = ActivityHeader(journal, tag if of == "this" else Tag(1), 0, bytes(36), synced=synced)
    if of != "this" or synced == 3:
        with pytest.raises(CorruptionError):
            opened(tmp_path, told=None if of == "none" else told)
        return
    again = opened(tmp_path, told=told)
    assert again.torn is not None
    assert (tmp_path / again.torn).read_bytes() == holed[third:]
    assert again.writer.header.incarnations[-1].last == 2
    again.writer.close()
    assert sequences(tmp_path) == [1, 2]


def test_an_incarnation_remembers_the_log_of_what_changes(tmp_path: Path) -> None:
    filled(tmp_path, 1)
    with JournalReader(str(tmp_path)) as reader:
        journal, tag = reader.header.journal, reader.header.tag
    told = ActivityHeader(journal, tag, 0, bytes(36), generation=41)
    again = opened(tmp_path, told=told)
    assert again.writer.header.incarnations[-1].generation == 41
    assert again.ended_ns > 0
    again.writer.close()
    third = opened(tmp_path, told=told)  # it tells of the one before
    assert [each.generation for each in third.writer.header.incarnations] == [41, 0]
    third.writer.close()


def test_a_sealed_segment_that_is_not_whole(tmp_path: Path) -> None:
    """The segment before an empty one was synced before that one came to be."""
    segment = filled(tmp_path, 3)
    opened(tmp_path).writer.close()
    os.truncate(segment, segment.stat().st_size - 1)
    with pytest.raises(CorruptionError, match="sealed"):
        opened(tmp_path)


def test_a_bad_header(tmp_path: Path) -> None:
    segment = filled(tmp_path, 3)
    segment.write_bytes(b"")
    with pytest.raises(CorruptionError, match="header cut short"):
        opened(tmp_path)
    opened_again = tmp_path / "other"
    opened(opened_again).writer.close()


def test_another_volume(tmp_path: Path) -> None:
    filled(tmp_path, 1)
    with pytest.raises(JournalRefusedError, match="the journal of volume 00010203-"):
        open_journal(str(tmp_path), bytes(16), SOURCE, "node17")


REPLACED: dict[str, tuple[SourceIdentity, str | None]] = {
    "moved": (msgspec.structs.replace(SOURCE, path=b"/elsewhere"), None),
    "finer clock": (msgspec.structs.replace(SOURCE, ctime_granularity_ns=7), None),
    "same UUID, another f_fsid": (msgspec.structs.replace(SOURCE, fsid=1), None),
    "another UUID": (msgspec.structs.replace(SOURCE, fs_uuid=bytes(16)), "another file system"),
    "no UUID, another f_fsid": (
        msgspec.structs.replace(SOURCE, fs_uuid=b"", fsid=1),
        "another file system",
    ),
    "another root": (msgspec.structs.replace(SOURCE, root=object_id(5)), "another directory"),
}


@pytest.mark.parametrize("case", REPLACED)
def test_another_source(tmp_path: Path, case: str) -> None:
    source, refused = REPLACED[case]
    filled(tmp_path, 1)
    if refused is None:
        open_journal(str(tmp_path), VOLUME, source, "node17").writer.close()
        return
    with pytest.raises(JournalRefusedError, match=refused):
        open_journal(str(tmp_path), VOLUME, source, "node17")
    opened(tmp_path).writer.close()


def test_a_refusal_lets_go_of_the_lock_and_all_descriptors(tmp_path: Path) -> None:
    segment = filled(tmp_path, 1)
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(JournalRefusedError):
        open_journal(str(tmp_path), bytes(16), SOURCE, "node17")
    data = segment.read_bytes()
    segment.write_bytes(b"x" + data[1:])
    with pytest.raises(CorruptionError):
        opened(tmp_path)
    segment.write_bytes(data)
    assert set(os.listdir("/proc/self/fd")) == before
    opened(tmp_path).writer.close()


# Kills

WRITER = """
import sys
from mirrorfs.journal.record import Kind
from mirrorfs.journal.recovery import open_journal
from mirrorfs.journal.writer import WriterOptions
from tests.support.records import SOURCE, VOLUME, created

writer = open_journal(
    sys.argv[1], VOLUME, SOURCE, "node17", WriterOptions(segment_bytes_max=20_000)
).writer
while True:
    print(writer.append(Kind.CREATE, created(writer.head)), flush=True)
"""


def test_a_killed_writer_loses_no_acknowledged_record(tmp_path: Path) -> None:
    """kill -9 at moments chosen by record count; every record told of before it is there."""
    last = 0
    for kill_at in (1, 2, 17, 180, 700, 1500):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)],
            cwd=ROOT_DIRECTORY,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        for _ in range(kill_at):
            acknowledged = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        acknowledged = max([acknowledged, *map(int, process.stdout.read().splitlines()[:-1])])
        process.stdout.close()
        process.wait()
        assert acknowledged >= last + kill_at
        again = opened(tmp_path)
        assert again.writer.head >= acknowledged
        assert again.writer.head <= acknowledged + 2
        assert not again.clean
        last = again.writer.head
        again.writer.close()
        assert sequences(tmp_path) == list(range(1, last + 1))
