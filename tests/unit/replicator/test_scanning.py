"""Looking through a journal of several segments: the same as looking at a list of its records."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mirrorfs.journal.reader import JournalReader
from mirrorfs.journal.record import (
    SETTLED,
    Change,
    Checkpoint,
    Kind,
    Place,
    Record,
    SequenceNumber,
    Who,
)
from mirrorfs.journal.recovery import open_journal
from replicator.scanning import (
    Expected,
    about_object,
    about_path,
    between,
    by_segment,
    checkpoint_of,
    checkpoints,
    last_of,
    shares,
    since,
)
from tests.support.records import ROOT, SOURCE, VOLUME, object_id

FILE = 0o100644


def change(number: int, size: int = 0, **fields: object) -> Change:
    name = b"f%d" % (number % 10)
    values = {"mode": FILE, "links": 1, "size": size, "path": b"d/" + name, **fields}
    return Change(object_id(number % 10), (Place(ROOT, name),), **values)  # type: ignore[arg-type]


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[JournalReader]:
    """Five segments: 100 writes, and a checkpoint after each ten."""
    journal = str(tmp_path / "journal")
    for part in range(5):
        writer = open_journal(journal, VOLUME, SOURCE, "node17").writer
        for number in range(part * 20, part * 20 + 20):
            who = Who(7, 1000 + number % 2, f"job{number % 3}")
            writer.append(Kind.WRITE, change(number, size=number, who=who), SETTLED)
            if number % 10 == 9:
                writer.append(Kind.CHECKPOINT, Checkpoint(f"c{number // 10 % 5}"))
        writer.close()
    with JournalReader(journal) as found:
        yield found


def everything(reader: JournalReader) -> list[Record]:
    return [record for batch in reader.read(reader.segments()[0].first) for record in batch]


def test_by_segment_and_between(reader: JournalReader) -> None:
    records = everything(reader)
    parts = [list(part) for part in by_segment(reader)]
    assert len(parts) == 5
    assert [record for part in reversed(parts) for record in part] == records
    some = list(between(reader, SequenceNumber(17), SequenceNumber(60)))
    assert [each.sequence for each in some] == list(range(17, 60))
    assert list(between(reader, SequenceNumber(0), SequenceNumber(5))) == []
    assert list(between(reader, SequenceNumber(110), SequenceNumber(200))) == records[109:]


def test_since(reader: JournalReader) -> None:
    records = everything(reader)
    for wanted in (records[0], records[30], records[-1]):
        expected = [each for each in records if each.time_ns >= wanted.time_ns]
        assert list(since(reader, wanted.time_ns)) == expected
    assert list(since(reader, 0)) == records
    assert list(since(reader, 2**62)) == []


def test_the_last_record_of_a_path_and_of_an_object(reader: JournalReader) -> None:
    records = everything(reader)
    wanted = {"path": about_path(b"d/f3"), "object": about_object(object_id(4))}
    found = last_of(reader, {**wanted, "none": about_path(b"d")})
    for sort, is_it in wanted.items():
        assert found[sort] == [each for each in records if is_it(each)][-1]
    assert "none" not in found


def test_checkpoints(reader: JournalReader) -> None:
    records = [each for each in everything(reader) if each.kind is Kind.CHECKPOINT]
    assert checkpoints(reader, 3) == records[:-4:-1]
    assert checkpoints(reader, 100) == records[::-1]
    assert checkpoint_of(reader, "c4") == (records[9], records[8].sequence)
    assert checkpoint_of(reader, "c0") == (records[5], records[4].sequence)
    assert checkpoint_of(reader, "none") is None


def test_the_first_checkpoint_has_nothing_before_it(tmp_path: Path) -> None:
    writer = open_journal(str(tmp_path / "j"), VOLUME, SOURCE, "node17").writer
    writer.append(Kind.CHECKPOINT, Checkpoint("only"))
    writer.close()
    with JournalReader(str(tmp_path / "j")) as reader:
        found = checkpoint_of(reader, "only")
    assert found is not None
    assert found[1] == 0


def test_shares(reader: JournalReader) -> None:
    found = shares(since(reader, 0), lambda body: None if body.who is None else body.who.job)
    assert sorted(found) == ["job0", "job1", "job2"]
    assert found["job1"].bytes == sum(range(1, 100, 3))
    assert (found["job1"].records, len(found["job1"].files)) == (33, 10)
    assert shares(since(reader, 0), lambda _: None) == {}


def test_expected(reader: JournalReader) -> None:
    expected = Expected()

    def add(sequence: int, kind: Kind, body: Change, flags: int = SETTLED) -> None:
        expected.add(Record(SequenceNumber(sequence), sequence, kind, flags, body), 10)

    add(1, Kind.WRITE, change(1))
    add(2, Kind.WRITE, change(1))
    add(3, Kind.WRITE, change(2), flags=0)
    add(11, Kind.RENAME, change(3, other=object_id(1), path=None))
    add(12, Kind.UNLINK, change(4, links=0))
    add(13, Kind.UNLINK, change(5, links=1))
    add(14, Kind.MKDIR, change(6, mode=0o40755))
    assert expected.slices == {
        0: {object_id(1): (2, 1, b"d/f1")},
        10: {object_id(3): (11, 11, b"?")},
    }
    assert expected.gone == {object_id(1), object_id(4)}
    add(15, Kind.ATTRIBUTES, change(7))
    add(16, Kind.WRITE, change(3, path=None))
    assert expected.slices[10] == {object_id(3): (16, 11, b"?")}
