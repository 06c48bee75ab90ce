"""What jobs write, on its way to the servers: gathered into large requests, several in flight.

One writer serves all handles of a file. A write is done when its bytes are here; they are at the
servers when `drain` returns. Requests that overlap never are in flight together, so the servers see
them in the order in which they were made. An error cannot be undone: every handle that was open
when it happened gets it from each write, flush and fsync that follows, until it is closed. Nothing
is sent a second time.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable
from typing import Final

import trio

_log = logging.getLogger(__name__)

REQUEST_BYTES: Final = 1 << 20
IN_FLIGHT_MAX: Final = 4


class _Request:
    """Bytes on their way."""

    __slots__ = ("data", "done", "end", "start")

    def __init__(self, start: int, data: bytes) -> None:
        self.start = start
        self.data = data
        self.end = start + len(data)
        self.done = trio.Event()


class Writer:
    """Gathers and sends for one file.

    Args:
        nursery: where requests are carried out.
        send: writes bytes at an offset to all servers that hold the file.

    Attributes:
        changed: something was written that no `drain` has seen through.
        failures: errors so far; a handle remembers how many there were when it was opened.
    """

    def __init__(
        self, nursery: trio.Nursery, send: Callable[[int, bytes], Awaitable[None]]
    ) -> None:
        self._nursery = nursery
        self._send = send
        self._start = 0
        self._gathered = bytearray()
        self._in_flight: list[_Request] = []
        self._room = trio.Semaphore(IN_FLIGHT_MAX)
        self._order = trio.Lock()  # requests are begun in the order of the writes
        self._error: OSError | None = None
        self.failures = 0
        self.changed = False

    def check(self, failures: int) -> None:
        """Raise the last error, if there were more than `failures`."""
        if self._error is not None and self.failures > failures:
            raise OSError(self._error.errno, self._error.strerror)

    def touches(self, start: int, end: int) -> bool:
        """Part of the range is still on its way."""
        if self._gathered and start < self._start + len(self._gathered) and self._start < end:
            return True
        return any(start < request.end and request.start < end for request in self._in_flight)

    async def write(self, offset: int, data: bytes) -> None:
        """Take bytes over. Waits while too much is in flight."""
        async with self._order:
            self.changed = True
            follows = offset == self._start + len(self._gathered)
            if self._gathered and not (
                follows and len(self._gathered) + len(data) <= REQUEST_BYTES
            ):
                await self._begin()
            if not self._gathered:
                self._start = offset
            self._gathered += data
            if len(self._gathered) >= REQUEST_BYTES:
                await self._begin()

    async def drain(self) -> None:
        """Return when all that was written before is at the servers, or has failed."""
        async with self._order:
            if self._gathered:
                await self._begin()
            for request in list(self._in_flight):
                await request.done.wait()
            self.changed = False

    async def _begin(self) -> None:
        """Send what is gathered. Holding `_order`."""
        request = _Request(self._start, bytes(self._gathered))
        self._gathered.clear()
        self._in_flight.append(request)  # before any await: reads must find it
        with trio.CancelScope(shield=True):  # it has been taken over; every send has its deadline
            for other in self._in_flight[:-1]:
                if request.start < other.end and other.start < request.end:
                    await other.done.wait()
            await self._room.acquire()
        self._nursery.start_soon(self._carry, request)

    async def _carry(self, request: _Request) -> None:
        try:
            await self._send(request.start, request.data)
        except Exception as error:  # noqa: BLE001 - it must not end the mount, nor be lost
            self._error = error if isinstance(error, OSError) else _internal(error)
            self.failures += 1
        finally:
            self._room.release()
            self._in_flight.remove(request)
            request.done.set()


def _internal(error: Exception) -> OSError:
    _log.error("write: internal error, answered EIO", exc_info=error)
    return OSError(errno.EIO, "internal error")
