"""Append records to a journal: one write each, synced in groups by another thread.

Begins the segments of one incarnation and rotates them. One writer per journal, by lock. It does
not look at what earlier incarnations left behind: `recovery.open_journal` does, and opens it.
It never retries by itself and never drops a record silently: an append that fails raises.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
import time
from dataclasses import dataclass
from typing import Final, Literal

from mirrorfs.journal.record import Body, Kind, SequenceNumber
from mirrorfs.journal.segment import Header, encode_header, encode_record, segment_name

LOCK_NAME: Final = "journal.lock"
NEW_SUFFIX: Final = ".new"
"""A segment is written under this suffix until its header is durable."""
COMPRESSED_SUFFIX: Final = ".zst"
"""And this one before it while it is being compressed."""

SyncMode = Literal["group", "always"]

_GROUP_SECONDS = 0.02


class JournalWriteError(Exception):
    """A record could not be appended: nothing of it stays in the journal.

    With sync mode "always" also: it was appended, but could not be made durable.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(f"cannot append to the journal: {error.strerror}")
        self.errno = error.errno or errno.EIO


class JournalBusyError(Exception):
    """Another process writes this journal."""


@dataclass(frozen=True, slots=True)
class WriterOptions:
    """When to sync and when to rotate (bytes, seconds)."""

    sync: SyncMode = "group"
    segment_bytes_max: int = 64 << 20
    segment_seconds_max: float = 3600.0


def lock_journal(directory_fd: int, path: str) -> int:
    """Take the journal's lock; the descriptor that holds it. JournalBusyError, OSError."""
    fd = os.open(LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=directory_fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()} {os.uname().nodename}\n".encode(), 0)
    except BlockingIOError:
        pid, _, host = os.pread(fd, 256, 0).decode(errors="replace").strip().partition(" ")
        os.close(fd)
        raise JournalBusyError(f"{path}: in use by process {pid} on {host}") from None
    except OSError:
        os.close(fd)
        raise
    return fd


class JournalWriter:
    """The one writer of a journal, for one incarnation.

    `append` and `close` belong to one thread. A second thread syncs. The lock order is
    `_sync_lock` (held over fdatasync, so that rotation cannot close the descriptor under it), then
    `_state` (never held over I/O).
    """

    def __init__(
        self, directory_fd: int, lock_fd: int, header: Header, options: WriterOptions
    ) -> None:
        """Begin an incarnation; takes over both descriptors. OSError if the disk refuses."""
        self.header = header
        self._options = options
        self._directory_fd = directory_fd
        self._lock_fd = lock_fd
        self._next = header.first
        self._durable = SequenceNumber(header.first - 1)
        self._sync_lock = threading.Lock()
        self._state = threading.Condition()
        self._wanted = threading.Event()
        self._closing = False
        self._sync_error: OSError | None = None
        self._torn = False
        self._fd = -1
        self._begin_segment(header)
        self._synced_size = self._size
        self._thread = threading.Thread(target=self._sync_loop, name="journal-sync", daemon=True)
        self._thread.start()

    @property
    def head(self) -> SequenceNumber:
        """The last appended record; what it was at the start if there is none yet."""
        return SequenceNumber(self._next - 1)

    @property
    def durable_head(self) -> SequenceNumber:
        """The last record known to survive a power cut."""
        return self._durable

    def append(self, kind: Kind, body: Body, flags: int = 0) -> SequenceNumber:
        """Append one record; its sequence. Raises JournalWriteError."""
        sequence = self._next
        frame = encode_record(sequence, time.time_ns(), kind, flags, body)
        try:
            if self._torn or self._sync_error is not None:
                self._mend()
            if self._size >= self._options.segment_bytes_max or self._rotate_at < time.monotonic():
                self._rotate()
            self._write(frame)
        except OSError as error:
            raise JournalWriteError(error) from error
        self._size += len(frame)
        self._next = SequenceNumber(sequence + 1)
        if self._options.sync == "always":
            self.sync()
        elif not self._wanted.is_set():
            self._wanted.set()
        return sequence

    def wait_durable(self, sequence: SequenceNumber, timeout_seconds: float) -> bool:
        """Wait until that record is durable; False if it was not in time."""
        with self._state:
            return self._state.wait_for(lambda: self._durable >= sequence, timeout_seconds)

    def sync(self) -> None:
        """Make everything appended so far durable now. JournalWriteError."""
        try:
            self._sync()
        except OSError as error:
            raise JournalWriteError(error) from error

    def close(self) -> None:
        """Sync everything and let go of the journal. JournalWriteError if the sync failed."""
        self._closing = True
        self._wanted.set()
        self._thread.join()
        try:
            if self._torn or self._sync_error is not None:
                self._mend()
            self._sync()
        except OSError as error:
            raise JournalWriteError(error) from error
        finally:
            for fd in (self._fd, self._directory_fd, self._lock_fd):
                os.close(fd)

    # Writing

    def _write(self, frame: bytes) -> None:
        """One write of a whole frame; a part of it is cut off again, now or before the next."""
        try:
            written = os.write(self._fd, frame)
        except OSError:
            self._torn = True
            self._cut()
            raise
        if written != len(frame):
            self._torn = True
            self._cut()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _cut(self) -> None:
        """Truncate to the last whole frame; if that fails too, `_mend` does it later."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, self._size)
            self._torn = False

    def _mend(self) -> None:
        """Undo what a failed write or sync left behind, or raise OSError.

        After a failed fdatasync the kernel holds the lost pages as clean: a second one would
        answer success without writing them. So what is not known durable is written again.
        """
        if self._torn:
            os.ftruncate(self._fd, self._size)
            self._torn = False
        if self._sync_error is not None:
            with self._sync_lock:
                path = f"/proc/self/fd/{self._fd}"
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    lost = os.pread(fd, self._size - self._synced_size, self._synced_size)
                    os.pwrite(fd, lost, self._synced_size)
                    os.fdatasync(fd)
                finally:
                    os.close(fd)
                self._sync_error = None
            self._sync()

    # Segments

    def _begin_segment(self, header: Header) -> None:
        """Make the segment that begins with the next record, durable with its header.

        If that fails, even after the name is there, nothing may be appended to the one before:
        the next append tries again.
        """
        name = segment_name(self._next, header.tag)
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        fd = os.open(name + NEW_SUFFIX, flags, 0o600, dir_fd=self._directory_fd)
        try:
            data = encode_header(header)
            if os.write(fd, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(fd)
            os.replace(
                name + NEW_SUFFIX,
                name,
                src_dir_fd=self._directory_fd,
                dst_dir_fd=self._directory_fd,
            )
            os.fsync(self._directory_fd)
        except OSError:
            os.close(fd)
            raise
        if self._fd >= 0:
            os.close(self._fd)
        self.header = header
        self._fd = fd
        self._size = len(data)
        self._rotate_at = time.monotonic() + self._options.segment_seconds_max

    def _rotate(self) -> None:
        """Seal the segment, if it has records, and begin the next one."""
        if self._next == self.header.first:
            self._rotate_at = time.monotonic() + self._options.segment_seconds_max
            return
        self._sync()
        with self._sync_lock:
            self._begin_segment(_continued(self.header, self._next))
            self._synced_size = self._size

    # Syncing

    def _sync(self) -> None:
        """Make everything appended so far durable; OSError if that is not possible."""
        with self._sync_lock:
            sequence = SequenceNumber(self._next - 1)
            size = self._size
            if self._durable >= sequence:
                return
            try:
                os.fdatasync(self._fd)
            except OSError as error:
                self._sync_error = error
                raise
            with self._state:
                self._durable = sequence
                self._synced_size = size
                self._state.notify_all()

    def _sync_loop(self) -> None:
        """Sync at once after an idle time, at most every 20 ms under load."""
        while True:
            self._wanted.wait()
            self._wanted.clear()
            began = time.monotonic()
            if self._sync_error is None:
                with contextlib.suppress(
                    OSError
                ):  # kept in _sync_error: the next append reports it
                    self._sync()
            if self._closing:
                return
            rest = _GROUP_SECONDS - (time.monotonic() - began)
            if rest > 0:
                time.sleep(rest)


def _continued(header: Header, first: SequenceNumber) -> Header:
    """The header of the incarnation's next segment."""
    return Header(
        volume=header.volume,
        journal=header.journal,
        tag=header.tag,
        node=header.node,
        epoch=header.epoch,
        first=first,
        created_ns=time.time_ns(),
        source=header.source,
        incarnations=header.incarnations,
    )
