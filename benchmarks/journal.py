"""A journal of ten million records: how long it takes to open it, and to read it back.

Two records for each of `--files` files, as a mount makes them, appended by the writer itself. Each
measurement runs in a process of its own, so that its peak of memory is its own; the same journal is
measured plain, and then compressed as a mount does it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks import _support, _workshop
from benchmarks._workshop import Workshop
from mirrorfs.journal.compressing import compress_segment
from mirrorfs.journal.finding import Search
from mirrorfs.journal.open_segment import list_segments
from mirrorfs.journal.reader import JournalReader
from mirrorfs.journal.record import SETTLED, Change, Kind, Place, SequenceNumber, Who, handle_id
from mirrorfs.journal.recovery import open_journal
from mirrorfs.journal.segment import SourceIdentity
from mirrorfs.journal.writer import JournalWriter

_SOURCE = SourceIdentity(b"/srv/data", bytes(16), 1, handle_id(1, 1, bytes(8)), 0)
_MIB = 1 << 20


def _open(journal: Path) -> JournalWriter:
    return open_journal(str(journal), bytes(16), _SOURCE, "bench").writer


def _make(journal: Path, files: int) -> int:
    """`create` and `write` for each file, a thousand in a directory; how many records."""
    writer = _open(journal)
    chance = random.Random(1)
    for number in range(files):
        directory = handle_id(1, 1, (number // 1000).to_bytes(8, "little"))
        identity = handle_id(1, 1, number.to_bytes(4, "little") + chance.randbytes(4))
        name = b"field.%06d.grib" % (number % 1000)
        place = (Place(directory, name),)
        path = b"run/2026/cycle.%05d/%s" % (number // 1000, name)
        now = time.time_ns()
        writer.append(Kind.CREATE, Change(identity, place, path, 0o100644, 1, now))
        body = Change(
            identity,
            place,
            path,
            0o100644,
            1,
            now,
            size=chance.randrange(1 << 22),
            mtime_ns=now,
            who=Who(1000 + number // 50 % 60000, 1000, f"{7_000_000 + number // 5000}"),
        )
        writer.append(Kind.WRITE, body, SETTLED)
    records = writer.head
    writer.close()
    return records


def _start(journal: Path, _records: int) -> int:
    """The writer starts: it looks for a torn tail."""
    _open(journal).close()
    return 1


def _go_on(journal: Path, records: int) -> int:
    """A reader opens at some cursor, looks for the head, and has its first record."""
    with JournalReader(str(journal)) as reader:
        reader.head()
        reader.seek(SequenceNumber(random.randrange(1, records)))
        return len(reader.poll(1))


def _read(journal: Path, _records: int) -> int:
    """Read everything."""
    with JournalReader(str(journal)) as reader:
        return sum(map(len, reader.read(SequenceNumber(1))))


def _search(journal: Path, records: int) -> int:
    """Look for one job among all records; each is checked, few are decoded."""
    with JournalReader(str(journal)) as reader:
        search = Search(job="7000000")
        found = reader.select(search.wanted, SequenceNumber(1))
        assert sum(search.matches(record) for batch in found for record in batch)
    return records


def _compress(journal: Path, _records: int) -> int:
    """Compress what is sealed, without the rests that a mount takes; how many bytes there were."""
    directory_fd = os.open(journal, os.O_RDONLY)
    done = 0
    for segment in list_segments(directory_fd)[:-1]:
        done += os.stat(segment.name, dir_fd=directory_fd).st_size
        compress_segment(directory_fd, segment, lambda _: None)
    os.close(directory_fd)
    return done


class _Result(NamedTuple):
    """What it answered, seconds, and by how many bytes memory grew above that of the start."""

    value: int
    seconds: float
    memory: int


_Work = Callable[[Path, int], int]


def _memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _timed(work: _Work, journal: Path, records: int) -> _Result:
    before = _memory()
    began = time.perf_counter()
    value = work(journal, records)
    return _Result(value, time.perf_counter() - began, _memory() - before)


def _apart(work: _Work, journal: Path, records: int) -> _Result:
    """In a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_timed, (work, journal, records))


def _disk(journal: Path) -> float:
    return sum(path.stat().st_size for path in journal.glob("*.seg")) / _MIB


def measure(workshop: Workshop, given: argparse.Namespace) -> None:
    """Make the journal, measure it plain and compressed, print the table."""
    journal = workshop.directory("journal")
    began = time.perf_counter()
    records = _make(journal, given.files)
    made = records / (time.perf_counter() - began)
    columns = []
    compressing = 0.0
    for compressed in (False, True):
        if compressed:
            done = _apart(_compress, journal, records)
            compressing = done.value / _MIB / done.seconds
        took: dict[_Work, list[_Result]] = {}
        for _ in range(given.rounds):
            for work in (_start, _go_on, _read, _search):
                took.setdefault(work, []).append(_apart(work, journal, records))
        assert all(each.value == records for each in took[_read])
        seconds = {work: median(each.seconds for each in all) for work, all in took.items()}
        columns.append(
            (
                f"{_disk(journal):,.0f} MiB",
                f"{seconds[_start]:.2f} s",
                f"{seconds[_go_on]:.2f} s",
                f"{records / seconds[_read]:,.0f} /s",
                f"{max(each.memory for each in took[_read]) / _MIB:.0f} MiB",
                f"{records / seconds[_search]:,.0f} /s",
            )
        )
    print(f"{records:,} records; {_support.machine()}")
    print(f"medians of {given.rounds} rounds; appended {made:,.0f} /s,", end=" ")
    print(f"compressed {compressing:,.0f} MiB/s\n")
    names = (
        "on the disk",
        "the writer starts",
        "a reader opens at a cursor",
        "records read back",
        "... its memory above that of an idle one, at most",
        "records searched for a job",
    )
    rows = [["", "plain", "compressed"]]
    rows += [list(row) for row in zip(names, *columns, strict=True)]
    _support.print_table(rows)


if __name__ == "__main__":
    arguments = _support.parse_arguments("a journal of many records", 3, 5_000_000)
    sys.exit(_workshop.main(measure, arguments))
