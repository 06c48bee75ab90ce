"""How the driver of a site waits: for the journal, for bytes, an order, the end of a time."""

from __future__ import annotations

import contextlib

import trio


class Wake:
    """Something to wake one task by, from other tasks and other threads."""

    def __init__(self) -> None:
        self._event = trio.Event()
        self._token: trio.lowlevel.TrioToken | None = None

    def begin(self) -> None:
        """The task that waits runs in this loop."""
        self._token = trio.lowlevel.current_trio_token()

    def clear(self) -> None:
        """What has been set so far is known: only what comes now wakes."""
        self._event = trio.Event()

    def set(self) -> None:
        """Wake it, in the same loop."""
        self._event.set()

    def set_from_thread(self) -> None:
        """The same for any thread."""
        if self._token is not None:
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self.set)

    async def wait(self, seconds: float, fd: int | None = None) -> None:
        """Until it is set, or `fd` is readable, or the time is over."""
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
