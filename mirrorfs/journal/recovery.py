"""Open a journal for writing: repair what a crash may leave behind, refuse everything else.

A torn tail is copied to `torn/` and cut off; empty segments are removed; corruption is refused with
file, offset and reason. Then a new incarnation begins. Appending the records that tell of the start
is the caller's business: this module only says whether the end before it was clean.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
import uuid
from dataclasses import dataclass
from typing import Final

from mirrorfs.journal.activity_header import ActivityHeader
from mirrorfs.journal.blocks import BlockCoder
from mirrorfs.journal.open_segment import (
    Head,
    SegmentName,
    list_segments,
    read_head,
    read_index,
)
from mirrorfs.journal.record import Kind, SequenceNumber, Tag
from mirrorfs.journal.segment import (
    ARCHIVE,
    COMPRESSED,
    INCARNATIONS_MAX,
    CorruptionError,
    Header,
    Incarnation,
    Scan,
    SourceIdentity,
    parse_segment_name,
    scan_records,
    valid_frame_offsets,
)
from mirrorfs.journal.writer import (
    COMPRESSED_SUFFIX,
    NEW_SUFFIX,
    JournalBusyError,
    JournalWriter,
    WriterOptions,
    lock_journal,
)

__all__ = ["JournalBusyError", "JournalRefusedError", "Opened", "open_journal"]

TORN_NAME: Final = "torn"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class JournalRefusedError(Exception):
    """The journal in that directory is not one of this source."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A journal open for writing.

    Attributes:
        clean: the incarnation before this one ended with `unmount`, or there was none.
        torn: the copy made of a torn tail, relative to the journal directory; None if there was
            none.
        ended_ns: time of the last record before this one; 0 if there is none.
    """

    writer: JournalWriter
    clean: bool
    torn: str | None
    ended_ns: int = 0


@dataclass(frozen=True, slots=True)
class _Found:
    """What earlier incarnations left: the newest header, and what follows it."""

    header: Header
    next: SequenceNumber
    clean: bool
    incarnations: tuple[Incarnation, ...]
    torn: str | None
    ended_ns: int


def open_journal(
    directory: str,
    volume: bytes,
    source: SourceIdentity,
    node: str,
    options: WriterOptions | None = None,
    told: ActivityHeader | None = None,
) -> Opened:
    """Take the lock, recover, and begin a new incarnation; makes a journal that does not exist.

    Raises JournalBusyError, JournalRefusedError (another volume's or another source's journal),
    CorruptionError, OSError. The epoch is the journal's own, 1 for a new one; ids in `source` must
    carry it. `told`: what stands at the beginning of the activity log.
    """
    with contextlib.suppress(FileExistsError):
        os.makedirs(directory, 0o700)
    directory_fd = os.open(directory, _DIRECTORY)
    try:
        _sync_above(directory)
        lock_fd = lock_journal(directory_fd, directory)
    except BaseException:
        os.close(directory_fd)
        raise
    try:
        found = _recover(directory_fd, directory, told)
        if found is not None:
            check_same(directory, found.header, volume, source)
        tag = Tag(secrets.randbits(64) or 1)
        header = Header(
            volume=volume,
            journal=found.header.journal if found else uuid.uuid4().bytes,
            tag=tag,
            node=node,
            epoch=found.header.epoch if found else 1,
            first=found.next if found else SequenceNumber(1),
            created_ns=time.time_ns(),
            source=source,
            incarnations=found.incarnations if found else (),
        )
        writer = JournalWriter(directory_fd, lock_fd, header, options or WriterOptions())
    except BaseException:
        os.close(lock_fd)
        os.close(directory_fd)
        raise
    if found is None:
        return Opened(writer, clean=True, torn=None)
    return Opened(writer, found.clean, found.torn, found.ended_ns)


def _sync_above(directory: str) -> None:
    """A directory that was just made is not to vanish with what is synced in it."""
    fd = os.open(os.path.join(directory, os.pardir), _DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def check_same(directory: str, header: Header, volume: bytes, source: SourceIdentity) -> None:
    """The path of the source may change; what it is may not. JournalRefusedError."""
    if header.volume != volume:
        raise JournalRefusedError(
            f"{directory}: the journal of volume {uuid.UUID(bytes=header.volume)},"
            f" this source is volume {uuid.UUID(bytes=volume)}"
        )
    known = header.source
    same_fs = (known.fs_uuid, known.fsid) == (source.fs_uuid, source.fsid)
    if known.fs_uuid and source.fs_uuid:
        same_fs = known.fs_uuid == source.fs_uuid
    if not same_fs or known.root != source.root:
        what = "directory" if same_fs else "file system"
        raise JournalRefusedError(
            f"{directory}: the source is not the one this journal names"
            f" ({os.fsdecode(known.path)}): it is another {what}: expected {described(known)},"
            f" found {described(source)}: mount the right one, or use a new journal"
        )


def described(source: SourceIdentity) -> str:
    """What tells it from others, in words."""
    if source.fs_uuid:
        system = f"file system {uuid.UUID(bytes=source.fs_uuid.ljust(16, bytes(1))[:16])}"
    elif source.fsid:
        system = f"file system id {source.fsid:x}"
    else:
        system = "a file system without identity"
    return f"{system}, root {source.root.hex()}"


def _recover(directory_fd: int, path: str, told: ActivityHeader | None) -> _Found | None:
    """Repair the journal; what is in it, or None if there is nothing."""
    segments = list_segments(directory_fd)
    for name in os.listdir(directory_fd):
        stem = name.removesuffix(NEW_SUFFIX).removesuffix(COMPRESSED_SUFFIX)
        if name.endswith(NEW_SUFFIX) and parse_segment_name(stem):
            os.unlink(name, dir_fd=directory_fd)
    newest: Header | None = None
    torn: str | None = None
    while segments:
        segment = segments.pop()
        try:
            header, scan, copy = _examine(directory_fd, path, segment, newest, told)
        except CorruptionError as error:
            raise error.of(f"{path}/{segment.name}") from None
        newest = newest or header
        torn = copy or torn
        if scan.length:
            clean = scan.last_kind == Kind.UNMOUNT
            ended = _ended(newest, scan.sequence, told)
            return _Found(newest, scan.sequence, clean, ended, torn, scan.last_ns)
        os.unlink(segment.name, dir_fd=directory_fd)
        os.fsync(directory_fd)
    if newest is None:
        return None
    clean = not newest.incarnations
    return _Found(newest, newest.first, clean, _ended(newest, newest.first, told), torn, 0)


def _examine(
    directory_fd: int,
    path: str,
    segment: SegmentName,
    newest: Header | None,
    told: ActivityHeader | None,
) -> tuple[Header, Scan, str | None]:
    """Check a segment, and repair it if there is none after it (`newest` is None).

    Its header, how far it is whole, and the copy made of a torn tail. CorruptionError.
    """
    fd = os.open(segment.name, os.O_RDWR | os.O_CLOEXEC, dir_fd=directory_fd)
    try:
        head = read_head(fd, segment)
        header, start = head.header, head.length
        if head.flags & ARCHIVE:
            raise JournalRefusedError(f"{path}: an archive: nothing is appended to it")
        if newest is not None and newest.journal != header.journal:
            raise CorruptionError(0, "belongs to another journal than the segments after it")
        if head.flags & COMPRESSED:
            return header, _look(fd, head), None
        scan, size = _scan(fd, start, header.first)
        if start + scan.length == size:
            return header, scan, None
        if newest is not None:
            raise scan.error or CorruptionError(
                start + scan.length, "a record cut short in a sealed segment"
            )
        if not _was_unsynced(header, scan, told):
            _check_torn(fd, start + scan.length, scan)
        return header, scan, _repair(directory_fd, fd, segment, start + scan.length)
    finally:
        os.close(fd)


def _scan(fd: int, start: int, first: SequenceNumber) -> tuple[Scan, int]:
    """Check all frames of a segment; the result (length from `start`) and the file's size."""
    size = os.fstat(fd).st_size
    data = os.pread(fd, size - start, start)
    return scan_records(data, first, start), size


def _look(fd: int, head: Head) -> Scan:
    """The same of a compressed segment, which is never torn: its last block tells."""
    index = read_index(fd, head)
    number = len(index.blocks) - 1
    start, stop = index.bounds(number)
    frames = BlockCoder().decode(os.pread(fd, stop - start, start), index, number)
    scan = scan_records(frames, index.blocks[number].first)
    if scan.error is not None or scan.sequence != index.end:
        raise CorruptionError(start, "a block that is not whole records")
    return scan._replace(length=index.size)


def _was_unsynced(header: Header, scan: Scan, told: ActivityHeader | None) -> bool:
    """Whether the records after those of `scan` were surely not synced yet: a power cut may have
    left later ones of them on the disk, and not earlier ones."""
    if told is None or (told.journal, told.tag) != (header.journal, header.tag):
        return False
    return scan.sequence > told.synced


def _check_torn(fd: int, offset: int, scan: Scan) -> None:
    """CorruptionError unless what stands there is the beginning of one record, and nothing more."""
    tail = os.pread(fd, os.fstat(fd).st_size - offset, offset)
    for _ in valid_frame_offsets(tail, SequenceNumber(scan.sequence - 1)):
        raise scan.error or CorruptionError(offset, "a record cut short before a whole one")


def _repair(directory_fd: int, fd: int, segment: SegmentName, offset: int) -> str:
    """Copy the torn tail to `torn/`, durably, and cut it off."""
    tail = os.pread(fd, os.fstat(fd).st_size - offset, offset)
    with contextlib.suppress(FileExistsError):
        os.mkdir(TORN_NAME, 0o700, dir_fd=directory_fd)
    copy = f"{TORN_NAME}/{segment.name}.{offset}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    copy_fd = os.open(copy, flags, 0o600, dir_fd=directory_fd)
    try:
        view = memoryview(tail)
        while view:
            view = view[os.write(copy_fd, view) :]
        os.fsync(copy_fd)
    finally:
        os.close(copy_fd)
    torn_fd = os.open(TORN_NAME, _DIRECTORY, dir_fd=directory_fd)
    try:
        os.fsync(torn_fd)
    finally:
        os.close(torn_fd)
    os.fsync(directory_fd)
    os.ftruncate(fd, offset)
    os.fsync(fd)
    return copy


def _ended(
    header: Header, following: SequenceNumber, told: ActivityHeader | None
) -> tuple[Incarnation, ...]:
    """The incarnations up to that of `header`, which ended just before `following`."""
    earlier = header.incarnations
    first = earlier[-1].last + 1 if earlier else 1
    its = told is not None and (told.journal, told.tag) == (header.journal, header.tag)
    last = Incarnation(
        header.tag,
        SequenceNumber(first),
        SequenceNumber(following - 1),
        told.generation if told is not None and its else 0,
    )
    return (*earlier, last)[-INCARNATIONS_MAX:]
