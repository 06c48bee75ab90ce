"""The journal as the engine sees it: it never fails a job, and it never forgets that it failed.

While records cannot be appended the source carries a durable mark, and when they can again the
first record is a `reconcile` of the whole tree. Decides nothing about what is recorded.
"""

from __future__ import annotations

import logging
import time
from typing import Final

import trio

from mirrorfs.journal.record import Body, Kind, ObjectId, Reconcile, SequenceNumber, Unmount
from mirrorfs.journal.writer import JournalWriteError, JournalWriter
from mirrorfs.volume import VolumeDirectory

_log = logging.getLogger(__name__)

RETRY_SECONDS: Final = 1.0


class EnduringJournal:
    """A writer that degrades instead of raising. Belongs to the engine's thread.

    Attributes:
        degraded: why records cannot be appended; None while they can.
        reconciled: the last `reconcile` record; 0 if there was none.
    """

    def __init__(self, writer: JournalWriter, volume: VolumeDirectory, root: ObjectId) -> None:
        self.writer = writer
        self.degraded: str | None = None
        self.reconciled = SequenceNumber(0)
        self._volume = volume
        self._root = root
        self._retry_at = 0.0
        self._covered: SequenceNumber | None = None

    def append(self, kind: Kind, body: Body, flags: int = 0) -> SequenceNumber | None:
        """Append a record, or see to it that the change is found later. Never raises.

        The record's sequence, or None if there is no such record.
        """
        if self.degraded is not None and not self._resume():
            return None
        try:
            sequence = self.writer.append(kind, body, flags)
            if kind is Kind.RECONCILE:
                self.reconciled = sequence
            return sequence
        except JournalWriteError as error:
            self._degrade(str(error))
        except Exception as error:  # noqa: BLE001 - no job may fail for what cannot be encoded
            _log.error("cannot record a change: %s", error, exc_info=True)
            self._degrade(f"cannot record a change: {error}")
        return None

    def uncertain(self, reason: str) -> None:
        """A change was made that no record can tell of: see to it that it is found later."""
        self._degrade(reason)

    def cover(self, reason: str) -> SequenceNumber:
        """Append `reconcile` of the whole tree. JournalWriteError."""
        body = Reconcile(self._root, True, b"", reason)
        self.reconciled = self.writer.append(Kind.RECONCILE, body)
        return self.reconciled

    async def keep_trying(self) -> None:
        """While degraded, try again without waiting for the next change; until cancelled."""
        while True:
            await trio.sleep(RETRY_SECONDS)
            try:
                if self.degraded is not None:
                    self._resume()
                self._clear_mark()
            except Exception as error:  # noqa: BLE001 - nothing here may end the mount
                _log.error("cannot journal again yet: %s", error, exc_info=True)

    def close(self, host: str) -> None:
        """End the incarnation with `unmount`, unless something is left without a record."""
        self._retry_at = 0.0
        try:
            if self.degraded is None or self._resume():
                self.writer.append(Kind.UNMOUNT, Unmount(host))
                self.writer.sync()
                self._clear_mark()
            self.writer.close()
        except JournalWriteError as error:
            _log.error("%s: the next mount will compare the whole tree", error)

    def _degrade(self, reason: str) -> None:
        self._retry_at = time.monotonic() + RETRY_SECONDS
        self._covered = None
        if self.degraded is not None:
            return
        self.degraded = reason
        _log.error("degraded: %s: changes go on without records", reason)
        try:
            self._volume.set_degraded(reason)
        except OSError as error:
            _log.error("degraded: the source cannot be marked either: %s", error.strerror)

    def _resume(self) -> bool:
        """Try to append again, at most once a second; first of all what covers the gap."""
        if time.monotonic() < self._retry_at:
            return False
        try:
            self._covered = self.cover(f"no records were possible: {self.degraded}")
        except JournalWriteError:
            self._retry_at = time.monotonic() + RETRY_SECONDS
            return False
        self.degraded = None
        _log.warning("records are possible again: reconcile of the tree is %d", self._covered)
        return True

    def _clear_mark(self) -> None:
        """Remove the mark once the record that covers the gap is durable."""
        if self._covered is None or self.writer.durable_head < self._covered:
            return
        try:
            self._volume.clear_degraded()
        except OSError as error:
            _log.error("degraded: the mark cannot be removed: %s", error.strerror)
            return
        self._covered = None
