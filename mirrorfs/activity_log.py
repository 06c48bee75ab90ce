"""The file of `activity`, and when its entries go to disk and away.

A change in a directory whose entry is not reliable waits for one fdatasync, shared by all that
wait; entries that nobody waits for follow within 20 ms. Every ten seconds what was changed before
is made durable, the journal first and then the source's file system, in another thread; entries
not touched since leave. Decides nothing about what is recorded.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from collections.abc import Callable, Iterable
from typing import Final

import trio

from mirrorfs import system_calls
from mirrorfs.activity import (
    SLOT_BYTES,
    SLOTS,
    Activity,
    Entry,
    FullError,
    Slot,
    decode_slot,
    encode_slot,
)
from mirrorfs.inodes import Node
from mirrorfs.journal.activity_header import (
    FILE_NAME,
    ActivityHeader,
    decode_activity_header,
    encode_activity_header,
)
from mirrorfs.journal.record import ObjectId

_log = logging.getLogger(__name__)

SWEEP_SECONDS: Final = 10.0
_GATHER_SECONDS: Final = 0.02
_AGAIN_SECONDS: Final = 1.0
_MARGIN_NS: Final = 2_000_000_000
_NEW: Final = FILE_NAME + ".new"
_EXCHANGE: Final = 2  # RENAME_EXCHANGE of renameat2(2)
_ZEROED_SLOTS: Final = 1024


def boot_id() -> bytes:
    """Of this boot of this host: after another one nothing is in memory that is not on disk."""
    with open("/proc/sys/kernel/random/boot_id", "rb") as file:
        return file.read(36)


def read(directory_fd: int) -> tuple[ActivityHeader, list[Slot]] | None:
    """What the mount before left; None if there is no such file, or its header is bad. OSError."""
    try:
        fd = os.open(FILE_NAME, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory_fd)
    except FileNotFoundError:
        return None
    with open(fd, "rb") as file:
        data = file.read(SLOTS * SLOT_BYTES)
    told = decode_activity_header(data[:SLOT_BYTES])
    if told is None:
        return None
    header, slots = told
    offsets = range(SLOT_BYTES, min(slots * SLOT_BYTES, len(data) - SLOT_BYTES + 1), SLOT_BYTES)
    found = (decode_slot(data[offset : offset + SLOT_BYTES]) for offset in offsets)
    return header, [slot for slot in found if slot is not None]


def _open_new(directory_fd: int) -> int:
    """The file to be made: with all the space it needs, mostly that of the one before the last."""
    fd = os.open(_NEW, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=directory_fd)
    try:
        os.posix_fallocate(fd, 0, SLOTS * SLOT_BYTES)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _take_its_place(directory_fd: int) -> None:
    """The new file for the old one. That one stays for its space: the next start must not fail for
    a full disk."""
    try:
        system_calls.rename_with_flags(
            directory_fd, os.fsencode(_NEW), directory_fd, os.fsencode(FILE_NAME), _EXCHANGE
        )
    except OSError:  # there is none, or the file system cannot do it
        os.replace(_NEW, FILE_NAME, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
        with contextlib.suppress(OSError):
            os.close(_open_new(directory_fd))


class ActivityLog:
    """The file of one mount. Belongs to the engine's thread, but for what is said otherwise.

    Attributes:
        activity: the entries.
        failure: why the disk does not take them; None while it does.
        on_sweep: touches what is still without a record; whoever serves requests sets it.
    """

    def __init__(
        self,
        directory_fd: int,
        header: ActivityHeader,
        activity: Activity,
        make_durable: Callable[[], bool],
        ahead_ns: int = 0,
        witness: Callable[[int], bool] = lambda _: False,
        synced: Callable[[], int] = lambda: 0,
    ) -> None:
        """Make the file anew, with the entries there are, durably. OSError.

        `make_durable`: in another thread, the journal and then the source; False if one of them
        could not be. `ahead_ns`: the clock of the source's file system, less that of this host.
        `witness`, in another thread: told of each generation that is on the disk, and says whether
        the source was. `synced`, too: the last record that is on the disk.
        """
        self.activity = activity
        self.failure: OSError | None = None
        self._make_durable = make_durable
        self.on_sweep: Callable[[], None] = lambda: None
        self._ahead_ns = ahead_ns
        self._header = header
        self._swept_ns = header.swept_ns
        self._witness = witness
        self._told = self._witnessed = header.witnessed
        self._synced = synced
        self._collapsing: Entry | None = None
        self._begun = self._ended = 0
        self._wanted = trio.Event()
        self._urgent = trio.Event()
        self._done = trio.Event()
        self._sweep_now = trio.Event()
        self._fd = _open_new(directory_fd)
        try:
            for slot in range(0, SLOTS, _ZEROED_SLOTS):
                self._pwrite(bytes(_ZEROED_SLOTS * SLOT_BYTES), slot)
            batch = activity.to_write()
            self._write_slots(batch)
            activity.written(batch)
            _take_its_place(directory_fd)
            os.fsync(directory_fd)
            self._tell_durable()
        except BaseException:
            os.close(self._fd)
            raise

    def close(self) -> None:
        """After the journal: say what of it is on the disk, and let go of the file."""
        self._header = self._header._replace(synced=self._synced())
        with contextlib.suppress(OSError):  # then less is known
            self._pwrite(encode_activity_header(self._header, SLOTS), 0)
        os.close(self._fd)

    def touch(self, node: Node, object_id: ObjectId, *, is_object: bool = False) -> bool:
        """May something be changed in that directory (or in that file, if none is known)? If not
        yet, wait until it is `durable`, and ask again."""
        now_ns = self._past_ns()
        try:
            if is_object:
                return self.activity.touch_object(node, object_id, now_ns).reliable
            return self.activity.touch(node, object_id, now_ns).reliable
        except FullError:
            self._collapsing = self.activity.collapse()
            return False

    def born(self, node: Node, object_id: ObjectId) -> None:
        """A directory was made; see Activity."""
        with contextlib.suppress(FullError):
            self.activity.born(node, object_id, self._past_ns())
            self.nudge()

    def _past_ns(self) -> int:
        """A time of the source's file system that is surely past."""
        return time.time_ns() + self._ahead_ns - _MARGIN_NS

    def may_move(self, node: Node, object_id: ObjectId) -> bool:
        """May that directory be renamed? As `touch`, and after it."""
        if not self.activity.settled:
            return False
        own = self.activity.leaving(node, object_id)
        return own is None or own.reliable

    def nudge(self) -> None:
        """Something is to be written; nobody waits for it."""
        if not self._wanted.is_set():
            self._wanted.set()
        if self.activity.crowded and not self._sweep_now.is_set():
            self._sweep_now.set()

    async def durable(self) -> bool:
        """Have all entries made so far on disk; False if the disk refused."""
        needed = self._begun + 1
        self._wanted.set()
        self._urgent.set()
        while self._ended < needed:
            await self._done.wait()
        return self.failure is None

    async def run(self) -> None:
        """Write and sweep until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_sweeping)
            while True:
                await self._wanted.wait()
                with trio.move_on_after(_GATHER_SECONDS):
                    await self._urgent.wait()
                self._wanted, self._urgent = trio.Event(), trio.Event()
                await self._flush()

    async def _flush(self) -> None:
        self._begun += 1
        batch = self.activity.to_write()
        try:
            await trio.to_thread.run_sync(self._write, batch)
        except OSError as error:
            self.activity.not_written(batch)
            if self.failure is None:
                _log.error("activity: cannot be written: %s", error.strerror)
            self.failure = error
        else:
            self.activity.written(batch)
            whole, self._collapsing = self._collapsing, None
            if whole is not None and whole.durable:
                self.activity.absorb(whole)
            if self.failure is not None:
                _log.warning("activity: can be written again")
            self.failure = None
        self._ended = self._begun
        self._done.set()
        self._done = trio.Event()

    def _write(self, batch: Iterable[tuple[int, Entry | None]]) -> None:
        """In another thread: only what does not change any more is looked at."""
        self._write_slots(batch)
        self._tell_durable()

    def _write_slots(self, batch: Iterable[tuple[int, Entry | None]]) -> None:
        generation = self._header.generation + 1
        self._header = self._header._replace(
            generation=generation,
            swept_ns=self._swept_ns,
            synced=self._synced(),
            witnessed=self._witnessed,
        )
        self._pwrite(encode_activity_header(self._header, SLOTS), 0)
        for slot, entry in batch:
            self._pwrite(bytes(SLOT_BYTES) if entry is None else encode_slot(entry.says), slot)
        os.fdatasync(self._fd)

    def _tell_durable(self) -> None:
        """Who reads the file from now on knows what a power cut cannot take any more."""
        self._header = self._header._replace(durable=self._header.generation)
        self._pwrite(encode_activity_header(self._header, SLOTS), 0)
        if self._witness(self._header.generation):
            self._told = self._header.generation

    def _pwrite(self, data: bytes, slot: int) -> None:
        if os.pwrite(self._fd, data, slot * SLOT_BYTES) != len(data):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    async def _keep_sweeping(self) -> None:
        while True:
            with trio.move_on_after(SWEEP_SECONDS):
                await self._sweep_now.wait()
            if len(self.activity):
                await self.sweep()
            self._sweep_now = trio.Event()
            await trio.sleep(_AGAIN_SECONDS)

    async def sweep(self) -> None:
        """Have everything changed until now durable; entries not touched since leave."""
        self.activity.turn += 1
        turn = self.activity.turn
        self.on_sweep()
        began_ns, told = self._past_ns(), self._told
        if await trio.to_thread.run_sync(self._make_durable):
            self._swept_ns, self._witnessed = began_ns, told
            self.activity.sweep(turn)
            self.nudge()
