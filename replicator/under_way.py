"""What is being done at a site right now, so that it is known after the process has died of it.

A small file beside the journal, `sites/NAME.under-way`, names the step being done and the objects
being copied. It is never synced: what a process wrote outlasts the process. A step that was under
way at three deaths in a row is quarantined: it is held, and tried again after long pauses only.
After the second one files are copied one at a time, and nothing is done beside, so that the third
tells which of them it was.

    "MFUNDER1", u64 state (1: open, 2: closed in order), SLOTS x u64, TABLE x (u64 name, u64 deaths)

An unexpected exception inside a step ends the step, not the replicator.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Final

import xxhash

from mirrorfs.journal.reader import RecordsGoneError
from mirrorfs.journal.record import ObjectId, Place
from mirrorfs.journal.segment import CorruptionError
from replicator.held import DeferredError, PausedStepError
from replicator.stores.base import SiteRefusedError, StoreError
from replicator.view import SourceChangedError, SourceError, SourceRefusedError

DEATHS_MAX: Final = 3
SLOTS: Final = 1 + 1024
"""The step being done, and one for each worker there may be."""
TABLE: Final = 64

_MAGIC: Final = b"MFUNDER1"
_OPEN, _CLOSED = 1, 2
_HEAD: Final = struct.Struct("<8sQ")
_NAME: Final = struct.Struct("<Q")
_ROW: Final = struct.Struct("<QQ")
_SLOTS_AT: Final = _HEAD.size
_TABLE_AT: Final = _SLOTS_AT + SLOTS * _NAME.size
_BYTES: Final = _TABLE_AT + TABLE * _ROW.size
_PAUSE_SECONDS: Final = 900.0
_PAUSE_SECONDS_MAX: Final = 86_400.0
_WARY_COPIES: Final = 256


class QuarantinedError(PausedStepError):
    """The replicator has died at it again and again."""

    def __init__(self, deaths: int) -> None:
        times = {3: "three"}.get(deaths, str(deaths))
        super().__init__(f"quarantined: the replicator died at it {times} times")
        pause = _PAUSE_SECONDS * 2.0 ** min(deaths - DEATHS_MAX, 10)
        self.pause_seconds = min(pause, _PAUSE_SECONDS_MAX)


class InternalError(StoreError):
    """Something that should never happen happened in a step; the cause tells."""

    def __init__(self, error: Exception) -> None:
        told = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        super().__init__(f"internal error: {told}", 0, transient=False)


class CutOffError(Exception):
    """What is being done is cut off on purpose, and is done again later."""


_EXPECTED = (
    *(CutOffError, DeferredError, SourceChangedError, StoreError, SourceError),
    *(SiteRefusedError, SourceRefusedError, CorruptionError, RecordsGoneError),
)


def name_of(subject: Place | ObjectId, *, copied: bool = False) -> int:
    """What a step, or an object being copied, is called in the file; never 0."""
    if isinstance(subject, Place):
        return xxhash.xxh3_64_intdigest(subject.directory + b"/" + subject.name) or 1
    return xxhash.xxh3_64_intdigest((b"copied " if copied else b"object ") + subject) or 1


class UnderWay:
    """What is under way at one site. `copying` and `copied` may be called by any thread.

    Attributes:
        lenient: what is being done was held, and is due: quarantine does not keep it.
    """

    def __init__(self, path: str | None = None) -> None:
        """Kept in that file; if it cannot be written (or None), nothing outlasts the process."""
        self.lenient = False
        self._fd = -1
        self._step = 0
        self._free = list(range(SLOTS - 1, 0, -1))
        self._changing = threading.Lock()
        self._deaths: dict[int, int] = {}
        if path is not None:
            with contextlib.suppress(OSError):
                self._open(path)
        self._wary = _WARY_COPIES if DEATHS_MAX - 1 in self._deaths.values() else 0

    def _open(self, path: str) -> None:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            self._deaths = deaths_after(os.pread(fd, _BYTES, 0))
            os.pwrite(fd, _encode(_OPEN, self._deaths), 0)
        except OSError:
            os.close(fd)
            raise
        self._fd = fd

    def close(self) -> None:
        """The end, in order: whatever is under way now was left on purpose."""
        if self._fd >= 0:
            known = {name: deaths for name, deaths in self._deaths.items() if deaths >= DEATHS_MAX}
            self._write(_encode(_CLOSED, known), 0)
            os.close(self._fd)
            self._fd = -1

    # steps -------------------------------------------------------------------------------------

    def border(self, subject: Place | ObjectId) -> _Border:
        """Around all that is done for a place or an object. Raises QuarantinedError on entry, and
        InternalError for what nobody expects."""
        return _Border(self, name_of(subject))

    def begin(self, name: int) -> int:
        """That is being done now; what was before."""
        deaths = self._deaths.get(name, 0)
        if deaths >= DEATHS_MAX and not self.lenient:
            raise QuarantinedError(deaths)
        return self.go_on(name)

    def go_on(self, name: int) -> int:
        """It is being done again, or (0) nothing is."""
        before, self._step = self._step, name
        if before != name:
            self._write(_NAME.pack(name), _SLOTS_AT)
        return before

    def done(self, name: int) -> None:
        """It was quarantined, was tried again, and nobody has died of that."""
        if self.lenient and self._deaths.pop(name, 0):
            self._write(_table(self._deaths), _TABLE_AT)

    # bytes -------------------------------------------------------------------------------------

    def check(self, identity: ObjectId) -> None:
        """That object is about to be copied. Raises QuarantinedError."""
        deaths = self._deaths.get(name_of(identity, copied=True), 0) if self._deaths else 0
        if deaths >= DEATHS_MAX and not self.lenient:
            raise QuarantinedError(deaths)

    @property
    def wary(self) -> bool:
        """Whether files are to be copied one at a time, with nothing else done meanwhile."""
        return self._wary > 0

    @contextlib.contextmanager
    def suspected(self, identity: ObjectId) -> Iterator[None]:
        """Around the copying of that object by the thread that decides, which the step tells, too.
        Raises QuarantinedError."""
        self.check(identity)
        if not self.wary:
            yield
            return
        slot = self.copying(identity)
        try:
            yield
        finally:
            self.copied(identity, slot)

    def copying(self, identity: ObjectId) -> int:
        """It is being copied; what `copied` is to be told."""
        with self._changing:
            slot = self._free.pop()
            self._wary = max(0, self._wary - 1)
        self._write(_NAME.pack(name_of(identity, copied=True)), _SLOTS_AT + slot * _NAME.size)
        return slot

    def copied(self, identity: ObjectId, slot: int) -> None:
        """It has ended, well or not."""
        self._write(_NAME.pack(0), _SLOTS_AT + slot * _NAME.size)
        with self._changing:
            self._free.append(slot)
            self.done(name_of(identity, copied=True))

    def _write(self, data: bytes, at: int) -> None:
        if self._fd >= 0:
            with contextlib.suppress(OSError):  # it only helps after a death
                os.pwrite(self._fd, data, at)


class _Border:
    """Around a step. (A class: it is entered for each of them.)"""

    __slots__ = ("_before", "_name", "_under_way")

    def __init__(self, under_way: UnderWay, name: int) -> None:
        self._under_way = under_way
        self._name = name
        self._before = 0

    def __enter__(self) -> None:
        self._before = self._under_way.begin(self._name)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._under_way.go_on(self._before)
        if error is None:
            self._under_way.done(self._name)
        elif isinstance(error, Exception) and not isinstance(error, _EXPECTED):
            raise InternalError(error) from error


def deaths_after(data: bytes) -> dict[int, int]:
    """At how many deaths in a row what was under way, by what the process before left."""
    if len(data) != _BYTES or not data.startswith(_MAGIC):
        return {}
    _, state = _HEAD.unpack_from(data)
    rows = (_ROW.unpack_from(data, at) for at in range(_TABLE_AT, _BYTES, _ROW.size))
    before = {name: deaths for name, deaths in rows if name}
    if state == _CLOSED:
        return before
    slots = (_NAME.unpack_from(data, _SLOTS_AT + slot * _NAME.size)[0] for slot in range(SLOTS))
    after = {name: before.get(name, 0) + 1 for name in slots if name}
    quarantined = {name: deaths for name, deaths in before.items() if deaths >= DEATHS_MAX}
    known = sorted((quarantined | after).items(), key=lambda row: row[1], reverse=True)
    return dict(known[:TABLE])


def _encode(state: int, deaths: dict[int, int]) -> bytes:
    return _HEAD.pack(_MAGIC, state) + bytes(SLOTS * _NAME.size) + _table(deaths)


def _table(deaths: dict[int, int]) -> bytes:
    rows = b"".join(_ROW.pack(*row) for row in deaths.items())
    return rows.ljust(TABLE * _ROW.size, b"\0")
