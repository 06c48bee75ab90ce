"""The journal as the engine sees it: it never fails a job, and it never forgets that it failed.

While records cannot be made, the directories that are changed are marked in the source, durably;
when they can again, a `reconcile` of each of them comes first. Or, as the operator chose, changes
wait or are refused meanwhile. Decides nothing about what is recorded.

    records ──(disk full: the reserve gave room for the last one)──► full ────┐
       │  ▲                                                                   │
       │  └──── reserve whole again, marks covered by durable reconciles ─────┤
       └──(an append failed: its change is marked)──────────────────► failed ─┘
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, Literal, TypeAlias

import trio

from mirrorfs.capture import Captured
from mirrorfs.journal.record import (
    Body,
    Change,
    Kind,
    Mount,
    ObjectId,
    Reconcile,
    SequenceNumber,
    Tag,
    Unmount,
)
from mirrorfs.journal.writer import JournalWriteError, JournalWriter
from mirrorfs.marks import Mark, Marks, Noted, Ways, encode_head, encode_mark
from mirrorfs.reserve import Reserve, Room
from mirrorfs.volume import VolumeDirectory

_log = logging.getLogger(__name__)

RETRY_SECONDS: Final = 1.0
_ROOM_SECONDS: Final = 10.0
_UNSYNCED_MAX: Final = 1 << 16
_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})

WhenFull: TypeAlias = Literal["degrade", "block", "readonly"]
Directories: TypeAlias = Iterable[tuple[ObjectId, bytes | None]]
"""Directories by id, with their paths where these are known."""


class EnduringJournal:
    """A writer that degrades instead of raising. Belongs to the engine's thread.

    Attributes:
        degraded: why records cannot be made; None while they can.
        since_ns: since when, nanoseconds since 1970.
        when_full: what becomes of changes meanwhile.
        room: on the journal's disk.
        unrecorded: asked for the directories of what has changed and has no record yet.
        reconciled: the last `reconcile` record; 0 if there was none.
    """

    def __init__(
        self,
        writer: JournalWriter,
        volume: VolumeDirectory,
        root: ObjectId,
        *,
        directory: str,
        ways: Ways | None = None,
        reserve_bytes: int = 0,
        when_full: WhenFull = "degrade",
    ) -> None:
        """Append to `writer`, whose journal is in `directory`; `ways` says where things are."""
        self.writer = writer
        self.degraded: str | None = None
        self.since_ns = 0
        self.when_full = when_full
        self.room = Room(directory)
        self.unrecorded: Callable[[], Directories | None] = lambda: ()
        self.reconciled = SequenceNumber(0)
        self._volume = volume
        self._root = root
        self._ways = ways
        self._reserve = Reserve(directory, reserve_bytes)
        self._marks = Marks(root, ways)
        self._failed = False
        self._retry_at = 0.0
        self._possible = trio.Event()
        self._abandoned = False
        self._unsynced: deque[tuple[SequenceNumber, Kind, Change]] = deque()
        self._forgotten = SequenceNumber(0)

    def newest(self) -> tuple[Tag, SequenceNumber]:
        """The incarnation, and its last record."""
        return self.writer.header.tag, self.writer.head

    @property
    def marks(self) -> int:
        """How many directories are marked."""
        return len(self._marks)

    @property
    def everything(self) -> bool:
        """The whole tree is marked."""
        return self._marks.everything

    # -- the beginning and the end of an incarnation ---------------------------------------------

    def begin(
        self,
        mount: Mount,
        active: Iterable[Mark],
        unclean: str,
        noted: Noted | None,
        since_ns: int = 0,
        also: Iterable[Captured] = (),
    ) -> None:
        """The first records, durable before anything can change through the mount.

        After an unclean end: a `reconcile` of what may have been changing then (`active`), for the
        reason `unclean`, with `since_ns` (record.Reconcile); and `also` these. Then one of each
        directory that was marked, as far as there is room.
        JournalWriteError: not even the first ones are possible.
        """
        self._append(Kind.MOUNT, mount)
        for mark in active:
            sequence = self._append(Kind.RECONCILE, _reconcile(mark, unclean, since_ns))
            where = "the tree" if mark.directory == self._root else "a directory"
            _log.warning("%s: reconcile of %s is %d", unclean, where, sequence)
        for captured in also:
            self._append(*captured)
        self.writer.sync()
        if noted is not None:
            self._take_over(noted)
        if self.degraded is None and not self._reserve.make_whole():
            self._degrade("the journal's disk has no room for the reserve", failed=False)
        self.room.look(time.monotonic())

    def _take_over(self, noted: Noted) -> None:
        for mark in noted.marks:
            if mark.whole and mark.directory == self._root:
                self._marks.add_everything()
            self._marks.add(mark.directory, mark.path, whole=mark.whole)
        self.degraded, self.since_ns, self._failed = noted.reason, noted.since_ns, True
        if not self._cover(sparing=False):
            _log.error("degraded, as before: %s: changes go on without records", noted.reason)

    def close(self, host: str) -> None:
        """End the incarnation with `unmount`, unless something is left without a record."""
        try:
            if self.degraded is None or self._cover(sparing=False):
                self._append(Kind.UNMOUNT, Unmount(host))
                self.writer.sync()
            else:
                _log.error("still degraded: the next mount will compare what is marked, and more")
            self.writer.close()
        except JournalWriteError as error:
            _log.error("%s: the next mount will compare what was being changed", error)

    # -- records ---------------------------------------------------------------------------------

    def append(self, kind: Kind, body: Body, flags: int = 0) -> SequenceNumber | None:
        """Append a record, or see to it that the change is found later. Never raises.

        The record's sequence, or None if there is no such record.
        """
        if self.degraded is None or self._resume() or self._reserve_is_for_it:
            try:
                return self._append(kind, body, flags)
            except JournalWriteError as error:
                self._degrade(str(error), failed=True)
            except Exception as error:  # noqa: BLE001 - no job may fail for what cannot be encoded
                _log.error("cannot record a change: %s", error, exc_info=True)
                if isinstance(body, Change):
                    self._append_reconciles(body, kind)
                return None
        if isinstance(body, Change):
            self._note(self._marks.change(kind, body))
        return None

    @property
    def _reserve_is_for_it(self) -> bool:
        """Changes wait or are refused; those that were made before get their records."""
        return self.when_full != "degrade" and not self._failed

    def uncertain(self, reason: str, directories: Directories | None) -> None:
        """A change may have been made there that no record tells of: have it compared.

        None: nobody knows where.
        """
        marks = Marks(self._root, self._ways)
        if directories is None:
            marks.add_everything()
        else:
            for directory, path in directories:
                marks.add(directory, path)
        self._compare(marks, reason)

    def _append_reconciles(self, change: Change, kind: Kind) -> None:
        """In place of the record of a change, which cannot be encoded."""
        marks = Marks(self._root, self._ways)
        marks.change(kind, change)
        self._compare(marks, "a change that cannot be recorded")

    def _compare(self, marks: Marks, reason: str) -> None:
        if self.degraded is None:
            try:
                for mark in marks:
                    sequence = self._append(Kind.RECONCILE, _reconcile(mark, reason))
                    _log.warning("%s: reconcile is %d", reason, sequence)
            except JournalWriteError as error:
                self._degrade(str(error), failed=True)
            else:
                return
        if marks.everything:
            self._note(self._marks.add_everything())
        for mark in marks:
            self._note(self._marks.add(mark.directory, mark.path, whole=mark.whole))

    def _append(self, kind: Kind, body: Body, flags: int = 0) -> SequenceNumber:
        """Append a record, with room from the reserve if that is what is missing.

        JournalWriteError.
        """
        short: JournalWriteError | None = None
        while True:
            before = self.writer.head
            try:
                sequence = self.writer.append(kind, body, flags)
                break
            except JournalWriteError as error:
                appended = self.writer.head > before  # but could not be synced
                if appended or error.errno not in _NO_SPACE or not self._reserve.give():
                    raise
                short = error
        if isinstance(body, Change):
            self._remember(sequence, kind, body)
        elif kind is Kind.RECONCILE:
            self.reconciled = sequence
        if short is not None:
            self._degrade(str(short), failed=False)
        return sequence

    def _remember(self, sequence: SequenceNumber, kind: Kind, change: Change) -> None:
        """Until it is durable a record may be lost with the disk."""
        unsynced, durable = self._unsynced, self.writer.durable_head
        while unsynced and unsynced[0][0] <= durable:
            unsynced.popleft()
        if len(unsynced) < _UNSYNCED_MAX:
            unsynced.append((sequence, kind, change))
        else:
            self._forgotten = sequence

    # -- while records cannot be made ------------------------------------------------------------

    async def admitted(self, killed: Callable[[], bool]) -> None:
        """Before a change: wait until it may be made, or refuse it, as the operator chose.

        `killed`: whether who asked for it is being killed. OSError.
        """
        if self.when_full == "degrade":
            return
        self.refuse_writing()
        while self.degraded is not None:
            if self._abandoned or killed():
                raise OSError(errno.EINTR, os.strerror(errno.EINTR))
            with trio.move_on_after(RETRY_SECONDS):
                await self._possible.wait()

    def refuse_writing(self) -> None:
        """OSError EROFS while nothing may be changed."""
        if self.degraded is not None and self.when_full == "readonly":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def abandon(self) -> None:
        """Let nobody wait any longer: the mount ends."""
        self._abandoned = True
        self._possible.set()

    def distrust(self) -> None:
        """The activity log cannot be kept: the next mount must not go by it."""
        try:
            self._volume.distrust_activity()
        except OSError as error:
            _log.error("activity: the source cannot be marked either: %s", error.strerror)

    def touching(self, directories: Directories | None) -> None:
        """These are about to be changed without a record (None: nobody knows which)."""
        if directories is None:
            self._note(self._marks.add_everything())
            return
        new: list[Mark] = []
        for directory, path in directories:
            new += self._marks.add(directory, path)
        self._note(new)

    async def keep_trying(self) -> None:
        """While degraded, try again without waiting for the next change; until cancelled."""
        look_at = 0.0
        while True:
            if look_at <= time.monotonic():
                look_at = time.monotonic() + _ROOM_SECONDS
                await trio.to_thread.run_sync(
                    self.room.look, time.monotonic(), abandon_on_cancel=True
                )
            await trio.sleep(RETRY_SECONDS)
            try:
                if self.degraded is not None:
                    self._resume()
            except Exception as error:  # noqa: BLE001 - nothing here may end the mount
                _log.error("cannot journal again yet: %s", error, exc_info=True)

    def _degrade(self, reason: str, *, failed: bool) -> None:
        """From now on no records. `failed`: the last ones may be lost, too."""
        self._retry_at = time.monotonic() + RETRY_SECONDS
        if self.degraded is not None and (self._failed or not failed):
            return
        if self.degraded is None:
            self.since_ns = time.time_ns()
            self._possible = trio.Event()
        self.degraded = reason
        self._failed = failed
        meanwhile = {"block": "wait", "readonly": "are refused"}
        what = meanwhile.get(self.when_full, "go on without records")
        _log.error("degraded: %s: changes %s", reason, what)
        if failed:
            self._doubt_unsynced()
        if failed or self.when_full == "degrade":
            self.touching(self.unrecorded())

    def _doubt_unsynced(self) -> None:
        """What was appended and is not known durable is marked, too."""
        if self._forgotten > self.writer.durable_head:
            self.touching(None)
        new: list[Mark] = []
        for sequence, kind, change in self._unsynced:
            if sequence > self.writer.durable_head:
                new += self._marks.change(kind, change)
        self._unsynced.clear()
        self._note(new)

    def _note(self, new: list[Mark]) -> None:
        """Write marks down, durably."""
        if not new:
            return
        try:
            if self._marks.too_many:
                self._marks.collapse()
                _log.warning("degraded: many directories: %d marks now", len(self._marks))
                self._volume.begin_marks(self._encoded())
            elif self._volume.marks_begun:
                self._volume.append_marks(b"".join(map(encode_mark, new)))
            else:
                self._volume.begin_marks(self._encoded())
        except OSError as error:
            self._marks.add_everything()
            try:
                self._volume.overwrite_marks(self._encoded())
            except OSError:
                _log.error("degraded: the source cannot be marked either: %s", error.strerror)

    def _encoded(self) -> bytes:
        head = encode_head(self.since_ns, self.degraded or "")
        return head + b"".join(map(encode_mark, self._marks))

    def _resume(self) -> bool:
        """Try to make records again, at most once a second; first of all what covers the gap."""
        if time.monotonic() < self._retry_at:
            return False
        self._retry_at = time.monotonic() + RETRY_SECONDS
        return self._reserve.make_whole() and self._cover(sparing=True)

    def _cover(self, *, sparing: bool) -> bool:
        """A `reconcile` of each mark, all durable; then they may go. `sparing`: not from the
        reserve."""
        append = self.writer.append if sparing else self._append
        reason = f"no records were possible: {self.degraded}"
        try:
            for mark in self._marks:
                append(Kind.RECONCILE, _reconcile(mark, reason))
            self.writer.sync()
        except JournalWriteError:
            return False
        _log.warning("records are possible again: %d directories to compare", len(self._marks))
        self.degraded, self._failed = None, False
        self._marks = Marks(self._root, self._ways)
        self._possible.set()
        try:
            self._volume.clear_marks()
        except OSError as error:
            _log.error("degraded: the marks cannot be removed: %s", error.strerror)
        return True


def _reconcile(mark: Mark, reason: str, since_ns: int = 0) -> Reconcile:
    return Reconcile(mark.directory, mark.whole, mark.path, reason, since_ns)
