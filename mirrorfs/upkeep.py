"""Keeps a journal in order while it is being written: compresses sealed segments, removes old ones.

Works in a thread, a piece at a time, with rests between: jobs come first. Whatever it cannot do it
leaves as it is and tries again later; it never ends the mount. What may be removed is decided in
`journal.retention`.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from dataclasses import dataclass
from typing import Final, Literal

import trio

from mirrorfs.journal.compressing import compress_segment
from mirrorfs.journal.open_segment import SegmentName, list_segments, read_head
from mirrorfs.journal.record import SequenceNumber
from mirrorfs.journal.retention import (
    Holder,
    Limits,
    Need,
    Retention,
    RetentionError,
    Sealed,
    removable,
)
from mirrorfs.journal.segment import CorruptionError, known_incarnations
from mirrorfs.journal.site_cursor import (
    SiteCursor,
    SiteCursorError,
    Unknown,
    resolve_cursor,
)
from mirrorfs.journal.site_files import (
    SitesBusyError,
    read_cursors,
    read_retention,
    sites_locked,
    write_retention,
)
from mirrorfs.journal.writer import JournalWriter

_log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 1.0
"""How often it looks for a segment that was sealed; and, each so many looks, at all else."""
_LOOKS = 10

_REST = 4
"""So many times as long as a piece of work took is rested after it."""
_COMPRESSED_FROM_BYTES = 64 << 10
_ROOM = 2
"""Compressing needs so many times the segment's size to be free: appends come first."""


class _StoppedError(Exception):
    """The mount ends."""


@dataclass(frozen=True, slots=True)
class UpkeepOptions:
    """How to keep a journal."""

    compression: Literal["zstd", "none"]
    limits: Limits


class Upkeep:
    """The upkeep of one journal; its writer holds the lock."""

    def __init__(self, directory: str, writer: JournalWriter, options: UpkeepOptions) -> None:
        self._directory = directory
        self._writer = writer
        self._options = options
        self._stop = threading.Event()
        self._done: set[SegmentName] = set()
        self._sealed_ns: dict[SegmentName, int] = {}
        self._told: dict[str, str] = {}

    async def serve(self) -> None:
        """Keep it until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._stop_when_cancelled)
            while True:
                first = self._writer.header.first
                await trio.to_thread.run_sync(self.work)
                for _ in range(_LOOKS):
                    await trio.sleep(LOOK_SECONDS)
                    if self._writer.header.first != first:
                        break

    async def _stop_when_cancelled(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self.stop()

    def stop(self) -> None:
        """Let `work` end soon. From any thread."""
        self._stop.set()

    def work(self) -> None:
        """Do what is to be done now. Blocks; never raises."""
        for name, piece in (("retention", self.retain), ("compression", self._compress)):
            try:
                piece()
            except _StoppedError:
                return
            except (OSError, CorruptionError) as error:
                self._tell(name, str(error))
            except Exception as error:  # noqa: BLE001 - nothing here may end the mount
                _log.error("%s: %s", name, error, exc_info=True)
            else:
                self._told.pop(name, None)

    def _tell(self, about: str, text: str) -> None:
        """Log it, once."""
        if self._told.get(about) != text:
            _log.warning("%s of the journal: %s", about, text)
        self._told[about] = text

    # Compression

    def _compress(self) -> None:
        if self._options.compression == "none":
            return
        directory_fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            segments = list_segments(directory_fd)
            self._done.intersection_update(segments)
            for segment in segments[:-1]:
                if segment not in self._done and self._has_room(directory_fd, segment):
                    self._compress_one(directory_fd, segment)
                    self._done.add(segment)
        finally:
            os.close(directory_fd)

    def _compress_one(self, directory_fd: int, segment: SegmentName) -> None:
        try:
            compress_segment(directory_fd, segment, self._rest)
        except FileNotFoundError:
            return
        except CorruptionError as error:
            _log.error("not compressed: %s", error.of(f"{self._directory}/{segment.name}"))

    def _has_room(self, directory_fd: int, segment: SegmentName) -> bool:
        """Whether it is worth it, and the disk has room for both."""
        size = os.stat(segment.name, dir_fd=directory_fd).st_size
        if size < _COMPRESSED_FROM_BYTES:
            return False
        free = os.fstatvfs(directory_fd)
        return free.f_bavail * free.f_frsize >= _ROOM * size

    def _rest(self, worked_seconds: float) -> None:
        if self._stop.wait(worked_seconds * _REST):
            raise _StoppedError

    # Retention

    def retain(self) -> None:
        """Remove what may be removed. OSError."""
        try:
            with sites_locked(self._directory, wait=False):
                self._retain()
        except SitesBusyError:
            return

    def _retain(self) -> None:
        """Holding the lock: no site can begin to rely on what is just being removed."""
        cursors = read_cursors(self._directory)
        try:
            known = read_retention(self._directory)
        except RetentionError as error:
            cursors[""] = SiteCursorError(str(error))
            known = Retention()
        for site in known.sites:
            if site not in cursors:
                cursors[site] = SiteCursorError("is missing")
        directory_fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            holders = self._remove(directory_fd, cursors)
        finally:
            os.close(directory_fd)
        if "" not in cursors:
            self._remember(known, cursors, holders)

    def _remove(
        self, directory_fd: int, cursors: dict[str, SiteCursor | SiteCursorError]
    ) -> list[Holder]:
        """Remove segments; who keeps the others, beyond their time."""
        doubts = [
            Holder(site, f"its cursor {error}" if site else str(error))
            for site, error in cursors.items()
            if isinstance(error, SiteCursorError)
        ]
        for doubt in doubts:
            self._tell(f"site {doubt.site}", f"everything is kept: {doubt.reason}")
        if doubts:
            return doubts
        now_ns = time.time_ns()
        segments, active_bytes = self._segments(directory_fd, now_ns)
        first = list_segments(directory_fd)[0].first
        needs = [
            need
            for cursor in cursors.values()
            if isinstance(cursor, SiteCursor) and (need := self._need(cursor, first)) is not None
        ]
        removed, holders = removable(segments, active_bytes, needs, self._options.limits, now_ns)
        for segment in removed:
            os.unlink(segment.name, dir_fd=directory_fd)
        if removed:
            os.fsync(directory_fd)
            _log.info("removed %d segments, up to record %d", len(removed), removed[-1].last)
        return holders

    def _need(self, cursor: SiteCursor, first: SequenceNumber) -> Need | None:
        """What that site needs; None: nothing, it has been forgotten or gets an initial copy."""
        if cursor.status == "forgotten":
            return None
        header = self._writer.header
        known = known_incarnations(header, self._writer.head)
        at = resolve_cursor(header.journal, known, first, cursor)
        if isinstance(at, Unknown):
            return None
        return Need(cursor.site, at, cursor.since_ns if cursor.status == "detached" else None)

    def _segments(self, directory_fd: int, now_ns: int) -> tuple[list[Sealed], int]:
        """The sealed segments, and the size of the active one."""
        segments = list_segments(directory_fd)
        self._sealed_ns = {s: at for s, at in self._sealed_ns.items() if s in set(segments)}
        sizes = [os.stat(segment.name, dir_fd=directory_fd).st_size for segment in segments]
        sealed: list[Sealed] = []
        old = True
        keep_ns = self._options.limits.keep_seconds * 1e9
        for number, following in enumerate(segments[1:]):
            at = self._begun_ns(directory_fd, following) if old else None
            old = at is not None and now_ns - at > keep_ns
            last = SequenceNumber(following.first - 1)
            sealed.append(Sealed(segments[number].name, last, sizes[number], at))
        return sealed, sizes[-1]

    def _begun_ns(self, directory_fd: int, segment: SegmentName) -> int:
        """When that segment was begun: then the one before it was sealed."""
        if segment not in self._sealed_ns:
            fd = os.open(segment.name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory_fd)
            try:
                self._sealed_ns[segment] = read_head(fd, segment).header.created_ns
            except CorruptionError as error:
                raise error.of(f"{self._directory}/{segment.name}") from None
            finally:
                os.close(fd)
        return self._sealed_ns[segment]

    def _remember(
        self,
        known: Retention,
        cursors: dict[str, SiteCursor | SiteCursorError],
        holders: list[Holder],
    ) -> None:
        """Write down which sites there are, and who holds what."""
        sites = {
            site
            for site, cursor in cursors.items()
            if site in known.sites or isinstance(cursor, SiteCursor)
        }
        sites -= {
            site
            for site, cursor in cursors.items()
            if isinstance(cursor, SiteCursor) and cursor.status == "forgotten"
        }
        now = Retention(time_ns=time.time_ns(), sites=tuple(sorted(sites)), holders=tuple(holders))
        if (now.sites, now.holders) != (known.sites, known.holders):
            durable = now.sites != known.sites
            write_retention(self._directory, now, durable=durable)
