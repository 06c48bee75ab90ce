"""From the callbacks of the client library, on its threads, to coroutines of trio.

Bounds what is in flight, in all and for each server; ends every wait at its deadline; drops what
comes later. Callbacks only append to a queue: one wake-up of trio's thread serves all that came
meanwhile. Knows nothing of what is asked.
"""

from __future__ import annotations

import contextlib
import errno
import math
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

import outcome
import trio

from xrootdfs.errors import CallError, Origin, error_of

Status: TypeAlias = Mapping[str, Any]
Callback: TypeAlias = Callable[..., None]
Submit: TypeAlias = Callable[[Callback, int], Status]
"""Hands a request to the library, with the callback and whole seconds of time-out."""

IN_FLIGHT_MAX: Final = 256
PER_SERVER_MAX: Final = 64
THREADS_MAX: Final = 64
THREADS_PER_SERVER_MAX: Final = 8
_LOST_SECONDS: Final = 60.0
_CONVERSION_ERRORS: Final = (UnicodeError, TypeError, SystemError, ValueError, OverflowError)
"""What the binding raises when it cannot turn Python's values into its own, or back."""


class _Call:
    """One request: who waits for it, until nobody does."""

    __slots__ = ("deliver", "late", "lost_at", "server", "task")

    def __init__(
        self, server: str, lost_at: float, late: Callable[[Status, Any], None] | None
    ) -> None:
        self.server = server
        self.lost_at = lost_at
        self.late = late
        self.deliver: Callable[[Status, Any], None] | None = None
        self.task: trio.lowlevel.Task | None = None


class Bridge:
    """Carries requests out; one for each trio run, made inside it."""

    def __init__(
        self, *, in_flight_max: int = IN_FLIGHT_MAX, per_server_max: int = PER_SERVER_MAX
    ) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._answers: deque[tuple[_Call, Status, Any]] = deque()
        self._armed = False
        self._in_flight: dict[_Call, None] = {}
        self._by_server: Counter[str] = Counter()
        self._in_flight_max = in_flight_max
        self._per_server_max = per_server_max
        self._free = trio.lowlevel.ParkingLot()
        self._threads = trio.CapacityLimiter(THREADS_MAX)
        self._threads_by_server: dict[str, trio.CapacityLimiter] = {}

    @property
    def in_flight(self) -> int:
        """Requests the library has and has not answered, those nobody waits for included."""
        return len(self._in_flight)

    async def call(
        self,
        server: str,
        submit: Submit,
        seconds: float,
        late: Callable[[Status, Any], None] | None = None,
        *,
        urgent: bool = False,
    ) -> Any:
        """Submit a request, wait for its answer, return the response.

        `late`: is given an answer that came after the wait had ended, in trio's thread.
        `urgent`: does not wait for room.
        Raises CallError: what the status says, or ETIMEDOUT after `seconds`.
        """
        call = None
        with trio.move_on_after(seconds):
            if not urgent:
                await self._wait_for_room(server)
            call = self._begin(server, seconds, late)
            # No await until the task waits: an answer could not be given to it before.
            status = self._submit(call, submit, seconds)
            if not status["ok"]:
                raise error_of(status)
            status, response = await self._wait(call)
            if not status["ok"]:
                raise error_of(status)
            return response
        if call is None:
            raise CallError(errno.ETIMEDOUT, f"{server}: too much in flight", Origin.LOCAL)
        raise CallError(errno.ETIMEDOUT, f"{server}: no answer in {seconds:g} s", Origin.LATE)

    def post(
        self, server: str, submit: Submit, seconds: float, deliver: Callable[[Status, Any], None]
    ) -> Callable[[], None] | None:
        """Submit a request and go on; None, and nothing is done, if there is no room now.

        `deliver` is given the answer in trio's thread, at once if the request is refused; the
        library gives up soon after `seconds`. What is returned drops the answer. CallError.
        """
        if self._full(server):
            return None
        call = self._begin(server, seconds, None)
        call.deliver = deliver
        status = self._submit(call, submit, seconds)
        if not status["ok"]:
            deliver(status, None)

        def drop() -> None:
            call.deliver = None

        return drop

    async def call_in_thread(
        self, server: str, work: Callable[[int], tuple[Status, Any]], seconds: float
    ) -> Any:
        """The same for a call that blocks; `work` gets whole seconds of time-out.

        For answers that the library cannot always turn into Python's values: on its own threads
        such a failure goes unnoticed, here it is an error of this call.
        """
        limiter = self._threads_by_server.setdefault(
            server, trio.CapacityLimiter(THREADS_PER_SERVER_MAX)
        )
        begun = False

        def run() -> tuple[Status, Any]:
            nonlocal begun
            begun = True
            return work(_whole(seconds))

        with trio.move_on_after(seconds):
            async with self._threads:
                try:
                    status, response = await trio.to_thread.run_sync(
                        run, abandon_on_cancel=True, limiter=limiter
                    )
                except _CONVERSION_ERRORS as error:
                    raise _not_sent(error) from None
            if not status["ok"]:
                raise error_of(status)
            return response
        origin = Origin.LATE if begun else Origin.LOCAL
        raise CallError(errno.ETIMEDOUT, f"{server}: no answer in {seconds:g} s", origin)

    # What is in flight

    def _full(self, server: str) -> bool:
        return (
            len(self._in_flight) >= self._in_flight_max
            or self._by_server[server] >= self._per_server_max
        )

    async def _wait_for_room(self, server: str) -> None:
        while self._full(server):
            if not self._give_up_lost():
                await self._free.park()

    def _begin(
        self, server: str, seconds: float, late: Callable[[Status, Any], None] | None
    ) -> _Call:
        call = _Call(server, trio.current_time() + seconds + _LOST_SECONDS, late)
        self._in_flight[call] = None
        self._by_server[server] += 1
        return call

    def _submit(self, call: _Call, submit: Submit, seconds: float) -> Status:
        """Hand it to the library; a call that it refuses has ended. CallError."""
        try:
            status = submit(self._callback(call), _whole(seconds))
        except _CONVERSION_ERRORS as error:
            self._end(call)
            raise _not_sent(error) from None
        if not status["ok"]:
            self._end(call)
        return status

    def _end(self, call: _Call) -> bool:
        """Give its room to others; False if that was done already."""
        if call not in self._in_flight:
            return False
        del self._in_flight[call]
        self._by_server[call.server] -= 1
        self._free.unpark_all()
        return True

    def _give_up_lost(self) -> bool:
        """An answer that never comes must not take room for ever."""
        now = trio.current_time()
        lost = [call for call in self._in_flight if call.lost_at < now]
        for call in lost:
            self._end(call)
        return bool(lost)

    # Waiting

    async def _wait(self, call: _Call) -> tuple[Status, Any]:
        def abort(_: object) -> trio.lowlevel.Abort:
            # After a long step of this thread the answer may be there, and only not delivered yet.
            if any(answered is call for answered, _, _ in self._answers):
                return trio.lowlevel.Abort.FAILED
            call.task = None
            return trio.lowlevel.Abort.SUCCEEDED

        call.task = trio.lowlevel.current_task()
        answer: tuple[Status, Any] = await trio.lowlevel.wait_task_rescheduled(abort)
        return answer

    def _callback(self, call: _Call) -> Callback:
        def answered(status: Status, response: Any, _hosts: object = None) -> None:
            """On a thread of the library: never blocks, never raises."""
            self._answers.append((call, status, response))  # before `armed` is looked at
            if not self._armed:
                self._armed = True
                with contextlib.suppress(trio.RunFinishedError):
                    self._token.run_sync_soon(self._deliver)

        return answered

    def _deliver(self) -> None:
        """On trio's thread: all answers that have come."""
        self._armed = False
        while self._answers:
            call, status, response = self._answers.popleft()
            self._end(call)
            if call.task is not None:
                task, call.task = call.task, None
                trio.lowlevel.reschedule(task, outcome.Value((status, response)))
            elif call.deliver is not None:
                call.deliver(status, response)
            elif call.late is not None:
                call.late(status, response)


def _whole(seconds: float) -> int:
    return max(1, math.ceil(seconds))


def _not_sent(error: Exception) -> CallError:
    if isinstance(error, UnicodeError) or isinstance(error.__cause__, UnicodeError):
        return CallError(errno.EILSEQ, "a name or value that is not UTF-8", Origin.LOCAL)
    return CallError(errno.EINVAL, f"not possible with this binding: {error}", Origin.LOCAL)
