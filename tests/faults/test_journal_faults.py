"""The N-th I/O of a journal fails, N = 1, 2, ... until the run passes: once, then for ever.

Whatever fails: no acknowledged record is lost or changed, none appears twice or out of order, and
the next start works.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mirrorfs.journal import compressing, open_segment, recovery, writer
from mirrorfs.journal.compressing import compress_segment
from mirrorfs.journal.open_segment import list_segments
from mirrorfs.journal.reader import JournalReader
from mirrorfs.journal.record import Change, Kind, SequenceNumber
from mirrorfs.journal.recovery import open_journal
from mirrorfs.journal.writer import JournalWriteError, WriterOptions
from tests.support.records import SOURCE, VOLUME, created

CALLS = frozenset(
    {
        *("open", "write", "pwrite", "pread", "ftruncate", "fsync", "fdatasync", "replace"),
        *("mkdir", "unlink", "posix_fadvise"),
    }
)
OPTIONS = WriterOptions(sync="always", segment_bytes_max=600)
ATTEMPTS = 14


class NthFails:
    """`os`, but its N-th I/O fails: once, or with all after it. A failing write writes a part."""

    def __init__(self, nth: int, number: int, *, for_ever: bool) -> None:
        self.calls = 0
        self._nth = nth
        self._error = OSError(number, os.strerror(number))
        self._for_ever = for_ever

    @property
    def reached(self) -> bool:
        """The N-th I/O took place."""
        return self.calls >= self._nth

    def __getattr__(self, name: str) -> object:
        real: Callable[..., object] = getattr(os, name)
        if name not in CALLS:
            return real

        def call(*arguments: object, **keywords: object) -> object:
            self.calls += 1
            if self.calls != self._nth and not (self._for_ever and self.reached):
                return real(*arguments, **keywords)
            if name == "write":
                fd, data = arguments
                assert isinstance(fd, int)
                assert isinstance(data, (bytes, memoryview))
                os.write(fd, data[: len(data) // 2])
            raise self._error

        return call


def work(directory: Path) -> dict[int, Change]:
    """Open, append, close; the acknowledged records."""
    acknowledged: dict[int, Change] = {}
    opened = open_journal(str(directory), VOLUME, SOURCE, "node17", OPTIONS)
    for number in range(ATTEMPTS):
        body = created(number)
        try:
            acknowledged[opened.writer.append(Kind.CREATE, body)] = body
        except JournalWriteError:
            continue
    try:
        opened.writer.close()
    except JournalWriteError:
        return acknowledged
    return acknowledged


def read(directory: Path) -> dict[int, object]:
    with JournalReader(str(directory)) as reader:
        records = [record for batch in reader.read() for record in batch]
    assert [record.sequence for record in records] == list(range(1, len(records) + 1))
    return {record.sequence: record.body for record in records}


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC], ids=errno.errorcode.get)
@pytest.mark.parametrize("for_ever", [False, True], ids=["once", "for ever"])
def test_the_nth_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, for_ever: bool
) -> None:
    nth = 0
    reached = True
    while reached:
        nth += 1
        directory = tmp_path / str(nth)
        expected = work(directory)
        (last,) = sorted(directory.glob("*.seg"))[-1:]
        with last.open("ab") as stream:  # something for recovery to do
            stream.write(b"torn")
        system = NthFails(nth, number, for_ever=for_ever)
        with monkeypatch.context() as patched:
            for module in (recovery, writer):
                patched.setattr(module, "os", system)
            try:
                expected |= work(directory)
            except OSError as error:
                if error.errno != number:
                    raise
        reached = system.reached
        expected |= work(directory)
        found = read(directory)
        assert {sequence: found.get(sequence) for sequence in expected} == expected
        assert max(expected) == max(found)
        assert SequenceNumber(max(found)) >= 2 * ATTEMPTS
    assert nth > 40


def compress(directory: Path) -> None:
    """Compress what is sealed, as a running writer does."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        for segment in list_segments(fd)[:-1]:
            compress_segment(fd, segment, lambda _: None)
    finally:
        os.close(fd)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC], ids=errno.errorcode.get)
@pytest.mark.parametrize("for_ever", [False, True], ids=["once", "for ever"])
def test_the_nth_failure_of_compressing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, for_ever: bool
) -> None:
    """Whatever fails, also for good (as if it had been killed there): every record stays."""
    whole = tmp_path / "whole"
    expected = work(whole)
    nth = 0
    reached = True
    while reached:
        nth += 1
        directory = tmp_path / str(nth)
        shutil.copytree(whole, directory)
        system = NthFails(nth, number, for_ever=for_ever)
        with monkeypatch.context() as patched:
            for module in (compressing, open_segment):
                patched.setattr(module, "os", system)
            try:
                compress(directory)
            except OSError as error:
                if error.errno != number:
                    raise
        reached = system.reached
        assert read(directory) == expected
        open_journal(str(directory), VOLUME, SOURCE, "node17", OPTIONS).writer.close()
        assert not list(directory.glob("*.new"))
        compress(directory)
        assert read(directory) == expected
    assert nth > 15
