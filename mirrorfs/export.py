"""A part of a journal as an archive: a journal directory of its own, to be read and kept.

Frames are copied byte for byte, with their checksums, and compressed. The headers carry the flag
that says that nothing is appended to it.
"""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple, TypeAlias

import msgspec

from mirrorfs.errors import CannotWriteError, RefusedError, UnusableError
from mirrorfs.journal.compressing import CompressedWriter
from mirrorfs.journal.open_segment import OpenSegment, open_segment
from mirrorfs.journal.reader import JournalReader, RecordsGoneError
from mirrorfs.journal.record import SequenceNumber
from mirrorfs.journal.segment import ARCHIVE, segment_name


class Moment(NamedTuple):
    """A time, in ns since 1970."""

    time_ns: int


Bound: TypeAlias = SequenceNumber | Moment


@dataclass(frozen=True, slots=True)
class Span:
    """The records to export, both ends included; there is at least one."""

    first: SequenceNumber
    last: SequenceNumber


def span_of(reader: JournalReader, since: Bound | None, until: Bound | None) -> Span:
    """What `since` and `until` mean now. UnusableError if there is no such record."""
    head = reader.head()
    first = reader.first()
    if isinstance(since, Moment):
        first = _first_from(reader, reader.since(since.time_ns), since.time_ns, head)
    elif since is not None:
        first = since
    last = head
    if isinstance(until, Moment):
        after = _first_from(reader, first, until.time_ns + 1, head)
        last = SequenceNumber(min(after - 1, head))
    elif until is not None:
        last = SequenceNumber(min(until, head))
    if first > last:
        raise UnusableError(f"{reader.path}: no such records: the journal ends with {head}")
    return Span(first, last)


def _first_from(
    reader: JournalReader, start: SequenceNumber, time_ns: int, head: SequenceNumber
) -> SequenceNumber:
    """The first record from `start` on that is not older than that; else the one after the head."""
    if start <= head:
        for batch in reader.select(lambda _kind, at_ns, _payload: at_ns >= time_ns, start):
            return batch[0].sequence
    return SequenceNumber(head + 1)


def to_directory(reader: JournalReader, span: Span, destination: str) -> int:
    """Make the archive; how many bytes it has. RefusedError if something is there already.

    It is complete when it has its name. CannotWriteError.
    """
    destination = os.path.abspath(destination)
    scratch = f"{destination}.{os.getpid()}.new"
    if os.path.lexists(destination):
        raise RefusedError(f"{destination}: is there already: a new directory is allowed")
    try:
        os.mkdir(scratch, 0o700)
        try:
            size = sum(_write(opened, span, scratch) for opened in _segments(reader, span))
            _sync(scratch)
            os.replace(scratch, destination)
            _sync(os.path.dirname(destination))
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
    except OSError as error:
        raise CannotWriteError(f"{destination}: {error.strerror}") from None
    return size


def to_stream(reader: JournalReader, span: Span, stream: BinaryIO) -> None:
    """Write the archive as tar, a segment at a time. CannotWriteError."""
    try:
        with (
            tempfile.TemporaryDirectory(prefix="mirrorfs-export-") as scratch,
            tarfile.open(fileobj=stream, mode="w|") as archive,
        ):
            for opened in _segments(reader, span):
                _write(opened, span, scratch)
                for name in os.listdir(scratch):
                    archive.add(os.path.join(scratch, name), name)
                    os.unlink(os.path.join(scratch, name))
    except BrokenPipeError:
        raise
    except OSError as error:
        raise CannotWriteError(f"export: {error.strerror}") from None


def _segments(reader: JournalReader, span: Span) -> Iterator[OpenSegment]:
    """The segments that have records of the span, each before the first of them.

    RecordsGoneError, CorruptionError.
    """
    reader.seek(span.first)
    segments = reader.segments()
    reached = span.first
    directory_fd = os.open(reader.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for segment, following in zip(segments, [*segments[1:], None], strict=True):
            ended = following is not None and following.first <= span.first
            if ended or segment.first > span.last:
                continue
            try:
                opened = open_segment(directory_fd, segment, reader.path)
            except FileNotFoundError:
                break  # removed just now
            try:
                opened.skip(SequenceNumber(max(segment.first, span.first)))
                if opened.sequence != reached:
                    break
                yield opened
                reached = opened.sequence
            finally:
                opened.close()
    finally:
        os.close(directory_fd)
    if reached != span.last + 1:
        raise RecordsGoneError(f"{reader.path}: record {reached} was just removed")


def _write(opened: OpenSegment, span: Span, directory: str) -> int:
    """One segment of the archive, durably; its size, 0 if it has no records."""
    first, stop = opened.sequence, SequenceNumber(span.last + 1)
    frames = opened.take(stop)
    if frames is None:
        return 0
    header = msgspec.structs.replace(opened.header, first=first)
    path = os.path.join(directory, segment_name(first, header.tag))
    with open(path, "xb", buffering=0) as file:
        writer = CompressedWriter(file.fileno(), header, ARCHIVE)
        while frames is not None:
            writer.add(frames.data, frames.first, frames.end - frames.first)
            end = frames.end
            frames = opened.take(stop)
        if opened.rest() and end < stop:
            raise opened.leftover()
        writer.finish(end)
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size


def _sync(directory: str) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
