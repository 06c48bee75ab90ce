"""Archives: a part of a journal, byte for byte, that is read like one and never appended to."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from mirrorfs import export
from mirrorfs.errors import CannotWriteError, RefusedError, UnusableError
from mirrorfs.export import Moment, Span
from mirrorfs.journal.compressing import compress_segment
from mirrorfs.journal.open_segment import list_segments, open_segment
from mirrorfs.journal.reader import JournalReader, RecordsGoneError
from mirrorfs.journal.record import Kind, Record, SequenceNumber
from mirrorfs.journal.recovery import JournalRefusedError, open_journal
from mirrorfs.journal.segment import CorruptionError
from mirrorfs.journal.writer import JournalWriter, WriterOptions
from tests.support.records import SOURCE, VOLUME, created

ROOT = Path(__file__).parents[3]
RECORDS = 3000


def opened(directory: Path) -> JournalWriter:
    options = WriterOptions(segment_bytes_max=70_000)
    return open_journal(str(directory), VOLUME, SOURCE, "node17", options).writer


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """Two incarnations, sealed segments compressed but one, a tail that is being written."""
    directory = tmp_path / "journal"
    for _ in range(2):
        writer = opened(directory)
        for _ in range(RECORDS // 2):
            writer.append(Kind.CREATE, created(writer.head + 1))
        writer.close()
    fd = os.open(directory, os.O_RDONLY)
    for segment in list_segments(fd)[1:-1]:
        compress_segment(fd, segment, lambda _: None)
    os.close(fd)
    with sorted(directory.glob("*.seg"))[-1].open("ab") as file:
        file.write(b"\x20\0\0\0 half a fra")
    return directory


def frames(directory: Path, first: int, last: int) -> bytes:
    """The frames of those records, as they stand in the segments."""
    fd = os.open(directory, os.O_RDONLY)
    parts = []
    for segment in list_segments(fd):
        one = open_segment(fd, segment, str(directory))
        one.skip(SequenceNumber(max(first, segment.first)))
        while taken := one.take(SequenceNumber(last + 1)):
            parts.append(taken.data)
        one.close()
    os.close(fd)
    return b"".join(parts)


def records(directory: Path) -> list[Record]:
    with JournalReader(str(directory)) as reader:
        assert reader.unread_bytes() == 0
        return [record for batch in reader.read() for record in batch]


def exported(journal: Path, first: int, last: int, to: Path) -> None:
    with JournalReader(str(journal)) as reader:
        span = Span(SequenceNumber(first), SequenceNumber(last))
        size = export.to_directory(reader, span, str(to))
    assert size == sum(path.stat().st_size for path in to.iterdir())


def test_any_part_is_what_it_was(journal: Path, tmp_path: Path) -> None:
    chance = random.Random(7)
    cuts = [(1, RECORDS), (1, 1), (RECORDS, RECORDS), (1500, 1501)]
    cuts += [tuple(sorted(chance.sample(range(1, RECORDS), 2))) for _ in range(6)]  # type: ignore[misc]
    for number, (first, last) in enumerate(cuts):
        archive = tmp_path / f"archive{number}"
        exported(journal, first, last, archive)
        assert [record.sequence for record in records(archive)] == list(range(first, last + 1))
        assert frames(archive, first, last) == frames(journal, first, last)
        with pytest.raises(JournalRefusedError, match="an archive"):
            opened(archive)


def test_an_archive_of_an_archive(journal: Path, tmp_path: Path) -> None:
    exported(journal, 100, 2500, tmp_path / "one")
    exported(tmp_path / "one", 1000, 2000, tmp_path / "two")
    assert frames(tmp_path / "two", 1, RECORDS) == frames(journal, 1000, 2000)


def test_as_a_tar_archive(journal: Path, tmp_path: Path) -> None:
    stream = io.BytesIO()
    with JournalReader(str(journal)) as reader:
        export.to_stream(reader, Span(SequenceNumber(9), SequenceNumber(2999)), stream)
    stream.seek(0)
    with tarfile.open(fileobj=stream) as archive:
        archive.extractall(tmp_path / "out")
    assert frames(tmp_path / "out", 1, RECORDS) == frames(journal, 9, 2999)


def test_spans(journal: Path) -> None:
    times = [record.time_ns for record in records_of_half(journal)]
    with JournalReader(str(journal)) as reader:

        def span(since: export.Bound | None, until: export.Bound | None) -> tuple[int, int]:
            found = export.span_of(reader, since, until)
            return found.first, found.last

        number = SequenceNumber
        assert span(None, None) == (1, RECORDS)
        assert span(number(5), number(7)) == (5, 7)
        assert span(number(5), number(99_999)) == (5, RECORDS)
        assert span(Moment(times[99]), Moment(times[199])) == (100, 200)
        assert span(Moment(0), Moment(times[-1])) == (1, RECORDS)
        for since, until in ((number(9), number(8)), (Moment(times[-1] + 1), None)):
            with pytest.raises(UnusableError, match="no such records"):
                export.span_of(reader, since, until)


def records_of_half(journal: Path) -> list[Record]:
    with JournalReader(str(journal)) as reader:
        return [record for batch in reader.read() for record in batch]


def test_what_is_there_is_not_touched(journal: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(RefusedError, match="is there already"):
        exported(journal, 1, 2, tmp_path / "there")
    with pytest.raises(CannotWriteError):
        exported(journal, 1, 2, tmp_path / "no" / "such")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["journal", "there"]


def test_records_that_are_gone(journal: Path, tmp_path: Path) -> None:
    sorted(journal.glob("*.seg"))[1].unlink()
    with pytest.raises(RecordsGoneError):
        exported(journal, 1, RECORDS, tmp_path / "archive")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["journal"]


def test_corruption_is_not_exported(journal: Path, tmp_path: Path) -> None:
    path = sorted(journal.glob("*.seg"))[0]
    data = bytearray(path.read_bytes())
    data[30_000] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptionError):
        exported(journal, 1, RECORDS, tmp_path / "archive")
    assert not (tmp_path / "archive").exists()


# The command


def mirrorfs(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mirrorfs", "journal", *arguments]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


def test_the_command(journal: Path, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    done = mirrorfs("export", journal, archive, "--since", "1000", "--until", "1999")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{archive}: records 1000 to 1999, ")
    assert "1000 records from 1000" in mirrorfs("verify", archive).stdout
    listed = [json.loads(line) for line in mirrorfs("ls", "--json", archive).stdout.splitlines()]
    assert {each["state"] for each in listed} == {"archive"}
    assert all(each["compressed"] for each in listed)
    assert "archive, compressed" in mirrorfs("ls", archive).stdout
    found = mirrorfs("cat", archive, "--json", "--path", "/srv/data/**/file001500").stdout
    assert [json.loads(line)["sequence"] for line in found.splitlines()] == [1500]
    ago = mirrorfs("export", journal, tmp_path / "other", "--since", "1h")
    assert ago.stdout.startswith(f"{tmp_path / 'other'}: records 1 to {RECORDS}, ")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--since", "soon"), 64, "option '--since': soon: "),
        (("--since", "9999"), 66, "no such records"),
        (("--until", "0"), 66, "no such records"),
    ],
)
def test_what_the_command_refuses(
    journal: Path, tmp_path: Path, words: tuple[str, ...], code: int, said: str
) -> None:
    done = mirrorfs("export", journal, tmp_path / "archive", *words)
    assert done.returncode == code
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "archive").exists()
