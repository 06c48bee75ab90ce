"""A backlog: what memory and processor time the replicator takes to work it off.

The source has `--kept` files in directories of 100. A site is attached and equal; then the
replicator is stopped, and `--files` more files come and go, four records each, by the journal's own
writer: made under a temporary name, written, renamed, and removed half a million records later (by
then nobody can know at the first record what the last one says). After each hundred of them one of
the kept files has a record, too. Then a replicator is started, and its peak of memory and its
processor time are read when the site's cursor has arrived. The same with a tenth of the files says
what a longer backlog costs.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import _support, _workshop
from benchmarks._workshop import Workshop
from mirrorfs.journal.reader import JournalReader
from mirrorfs.journal.record import SETTLED, Change, Kind, ObjectId, Place, handle_id
from mirrorfs.journal.recovery import open_journal
from mirrorfs.journal.writer import JournalWriter
from replicator.system_calls import handle_of

_MIB = 1 << 20
_PATIENCE_SECONDS = 3600.0
_LIVES = 125_000
"""So many files are made after one before it is removed: half a million records."""


def _identity(path: Path, epoch: int) -> ObjectId:
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    try:
        handle = handle_of(descriptor)
        return handle_id(epoch, handle.type, handle.handle)
    finally:
        os.close(descriptor)


@contextmanager
def _writer(journal: Path) -> Iterator[tuple[JournalWriter, int]]:
    with JournalReader(str(journal)) as reader:
        header = reader.header
    opened = open_journal(str(journal), header.volume, header.source, header.node)
    try:
        yield opened.writer, header.epoch
    finally:
        opened.writer.close()


def _append(journal: Path, source: Path, kept: list[Path], files: int) -> int:
    """The backlog; how many records."""
    with _writer(journal) as (writer, epoch):
        first = writer.head
        directories = [(each, _identity(each, epoch)) for each in sorted({f.parent for f in kept})]
        alive: deque[tuple[ObjectId, Place, bytes]] = deque()
        for number in range(files):
            above, directory = directories[number % len(directories)]
            name = b"new%07d" % number
            dead = handle_id(epoch, 1, number.to_bytes(4, "little") + b"\xff\xff\xff\x7f")
            path = os.fsencode(above.relative_to(source)) + b"/" + name
            was, place = Place(directory, name + b".tmp"), Place(directory, name)
            now = time.time_ns()
            made = Change(dead, (was,), path + b".tmp", 0o100644, 1, now)
            writer.append(Kind.CREATE, made)
            writer.append(Kind.WRITE, made, SETTLED)
            moved = Change(dead, (was, place), path, 0o100644, 1, now)
            writer.append(Kind.RENAME, moved, SETTLED)
            alive.append((dead, place, path))
            if len(alive) > _LIVES or number == files - 1:
                _remove(writer, alive, all=number == files - 1)
            if number % _support.PER_DIRECTORY == 0:
                _rewrite(writer, source, kept[number // _support.PER_DIRECTORY % len(kept)], epoch)
        return writer.head - first


def _remove(
    writer: JournalWriter, alive: deque[tuple[ObjectId, Place, bytes]], *, all: bool
) -> None:
    for _ in range(len(alive) if all else 1):
        dead, place, path = alive.popleft()
        gone = Change(dead, (place,), path, 0o100644, 0, time.time_ns())
        writer.append(Kind.UNLINK, gone, SETTLED)


def _rewrite(writer: JournalWriter, source: Path, file: Path, epoch: int) -> None:
    identity, above = _identity(file, epoch), _identity(file.parent, epoch)
    found = file.stat()
    place = Place(above, os.fsencode(file.name))
    path = os.fsencode(file.relative_to(source))
    body = Change(identity, (place,), path, found.st_mode, 1, found.st_ctime_ns)
    writer.append(Kind.WRITE, body, SETTLED)


def _follow(workshop: Workshop, journal: Path, site: Path) -> tuple[float, float, int]:
    """A replicator until the site has everything: seconds, its processor time, its peak."""
    began = time.monotonic()
    with workshop.follower(journal, "site", site) as process:
        _workshop.wait(journal, "site", _PATIENCE_SECONDS)
        seconds = time.monotonic() - began
        return seconds, _workshop.processor_seconds(process), _workshop.memory_peak(process)


def measure(workshop: Workshop, given: argparse.Namespace) -> None:
    """The backlogs, print the table."""
    source, mountpoint, journal, site = map(
        workshop.directory, ("source", "mount", "journal", "site")
    )
    kept = _support.write_tree(source, given.kept)
    with workshop.mirrorfs(source, mountpoint, journal, activity=False):
        pass
    _, _, initial = _follow(workshop, journal, site)
    _, _, idle = _follow(workshop, journal, site)
    rows = [["records", "seconds", "records/s", "processor, s", "peak of memory"]]
    for files in (given.files // 10, given.files) * given.rounds:
        records = _append(journal, source, kept, max(1, files))
        seconds, processor, peak = _follow(workshop, journal, site)
        rate = f"{records / seconds:,.0f}"
        shown = f"{peak / _MIB:.0f} MiB"
        rows.append([f"{records:,}", f"{seconds:.1f}", rate, f"{processor:.1f}", shown])
    _workshop.run("diff", "--recursive", "--brief", "--exclude=.mirrorfs", source, site)
    print(f"a backlog; {given.kept:,} files beside it; {_support.machine()}")
    print(f"peak without one {idle / _MIB:.0f} MiB, of the initial copy {initial / _MIB:.0f} MiB\n")
    _support.print_table(rows)


if __name__ == "__main__":
    sys.exit(
        _workshop.main(
            measure,
            _support.parse_arguments("a long backlog", 1, 250_000, kept=20_000),
        )
    )
