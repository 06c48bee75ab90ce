"""Waiting for what may happen at a site: records, bytes that arrive, an operator, the time."""

from __future__ import annotations

import contextlib
import time
from typing import Final

import trio

from replicator.engine import Engine

SAVE_IDLE_SECONDS: Final = 0.3
"""What is done is saved when nothing was to do for so long."""
_WAIT_SECONDS: Final = 5.0
_PROMISED_SECONDS: Final = 0.2


class Waking:
    """Wakes the task of one site."""

    def __init__(self) -> None:
        self._event = trio.Event()
        self._token: trio.lowlevel.TrioToken | None = None

    def begin(self) -> None:
        """From now on other threads may wake it. Called in trio."""
        self._token = trio.lowlevel.current_trio_token()

    def renew(self) -> None:
        """Only what happens from now on wakes it."""
        self._event = trio.Event()

    def wake(self) -> None:
        """Something has happened."""
        self._event.set()

    def wake_from_thread(self) -> None:
        """The same, from any thread."""
        if self._token is not None:
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(lambda: self._event.set())

    async def wait(self, seconds: float, fd: int | None = None) -> None:
        """Until it is woken, `fd` can be read, or the time is over."""
        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:

                async def woken() -> None:
                    await self._event.wait()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(woken)
                if fd is None:
                    await trio.sleep_forever()
                else:
                    await trio.lowlevel.wait_readable(fd)
                nursery.cancel_scope.cancel()


def patience(engine: Engine) -> float:
    """Seconds to wait for records at most: something else may be due before."""
    seconds = SAVE_IDLE_SECONDS if engine.unsaved else _WAIT_SECONDS
    due = engine.next_due_ns()
    seconds = min(seconds, _PROMISED_SECONDS) if engine.promises else seconds
    if due is not None:
        seconds = min(seconds, max(0.01, (due - time.time_ns()) / 1e9))
    return seconds
