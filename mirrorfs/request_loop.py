"""How the daemon waits for the next request: in pyfuse3's loop, with fewer turns of trio's.

Before each request pyfuse3 takes a lock and waits for the kernel's descriptor, which are two turns
of trio's loop and the dearest part of a short request. Mostly the next request is there already,
or comes as soon as a job has its answer. So it is awaited for a moment without trio; after some
requests in a row, or when none comes, the other tasks have their turn.

Knows nothing of requests. Replaces what pyfuse3 knows as `trio`, as its own asyncio support does.
"""

from __future__ import annotations

import select
from types import SimpleNamespace, TracebackType
from typing import Final

import pyfuse3
import trio

_PATIENCE_SECONDS: Final = 50e-6
_IN_A_ROW_MAX: Final = 64
_DESCRIPTOR_MAX: Final = 1023  # of select(2)


class _Lock:
    """A lock that a task may take again before those who wait for it had their turn."""

    def __init__(self) -> None:
        self._held = False
        self._waiting = trio.lowlevel.ParkingLot()

    async def __aenter__(self) -> None:
        while self._held:
            await self._waiting.park()
        self._held = True

    async def __aexit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._held = False
        self._waiting.unpark()


class _Readable:
    """Waits until a descriptor is readable, for a moment at first."""

    def __init__(self, patience_seconds: float) -> None:
        self._patience_seconds = patience_seconds
        self._in_a_row = _IN_A_ROW_MAX  # at first those who started before have their turn

    async def __call__(self, descriptor: int) -> None:
        if self._in_a_row < _IN_A_ROW_MAX and descriptor <= _DESCRIPTOR_MAX:
            self._in_a_row += 1
            if select.select((descriptor,), (), (), self._patience_seconds)[0]:
                return
        self._in_a_row = 0
        await trio.lowlevel.wait_readable(descriptor)


def install(*, patient: bool) -> None:
    """Let pyfuse3 wait so. `patient`: nothing else in this thread wants to be served meanwhile."""
    readable = _Readable(_PATIENCE_SECONDS if patient else 0.0)
    lowlevel = SimpleNamespace(**{**vars(trio.lowlevel), "wait_readable": readable})
    namespace = SimpleNamespace(**{**vars(trio), "Lock": _Lock, "lowlevel": lowlevel})
    pyfuse3.trio = namespace  # type: ignore[attr-defined]  # not in its stubs
