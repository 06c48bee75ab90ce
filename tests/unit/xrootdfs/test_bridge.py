"""Callbacks to coroutines: deadlines, limits, late and lost answers. The library is a script."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from xrootdfs.bridge import Bridge, Callback, Status
from xrootdfs.errors import CallError, Origin

OK = {"ok": True, "code": 0, "errno": 0, "message": ""}
REFUSED = {"ok": False, "code": 108, "errno": 0, "message": "[FATAL] Connection error"}


class Library:
    """Keeps the callbacks of what was submitted, to answer when the test says so."""

    def __init__(self) -> None:
        self.callbacks: list[Callback] = []
        self.timeouts: list[int] = []

    def submit(self, callback: Callback, timeout: int) -> Status:
        self.callbacks.append(callback)
        self.timeouts.append(timeout)
        return OK

    def answer(self, index: int, response: object, status: Status = OK) -> None:
        """As the library does, from a thread of its own."""
        callback = self.callbacks[index]
        thread = threading.Thread(target=callback, args=(status, response, []))
        thread.start()
        thread.join()


async def submitted(library: Library, count: int) -> None:
    while len(library.callbacks) < count:
        await trio.lowlevel.checkpoint()


@pytest.fixture
def library() -> Library:
    return Library()


async def test_the_answer_is_the_response(library: Library) -> None:
    bridge = Bridge()
    answers: list[Any] = []

    async def ask() -> None:
        answers.append(await bridge.call("s", library.submit, 5.0))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await submitted(library, 1)
        assert bridge.in_flight == 1
        library.answer(0, "there")
    assert answers == ["there"]
    assert bridge.in_flight == 0
    assert library.timeouts == [5]


async def test_answers_reach_those_who_asked(library: Library) -> None:
    bridge = Bridge()
    answers: dict[int, Any] = {}

    async def ask(number: int) -> None:
        answers[number] = await bridge.call("s", library.submit, 5.0)

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(ask, number)
            await submitted(library, number + 1)
        for number in reversed(range(20)):
            library.answer(number, number)
    assert answers == {number: number for number in range(20)}


async def test_an_answer_that_comes_while_submitting() -> None:
    def submit(callback: Callback, _timeout: int) -> Status:
        callback(OK, "at once")
        return OK

    assert await Bridge().call("s", submit, 1.0) == "at once"


async def test_a_failure_is_an_error(library: Library) -> None:
    bridge = Bridge()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def ask() -> None:
            with pytest.raises(CallError) as caught:
                await bridge.call("s", library.submit, 5.0)
            assert caught.value.origin is Origin.UNSENT

        await submitted(library, 1)
        library.answer(0, None, REFUSED)
    assert bridge.in_flight == 0


async def test_what_is_refused_at_once_is_not_in_flight() -> None:
    bridge = Bridge()
    with pytest.raises(CallError) as caught:
        await bridge.call("s", lambda _callback, _timeout: REFUSED, 5.0)
    assert caught.value.errno == errno.EHOSTUNREACH
    assert bridge.in_flight == 0


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates"), errno.EILSEQ),
        (TypeError("no"), errno.EINVAL),
        (SystemError("no"), errno.EINVAL),
    ],
)
async def test_what_the_binding_cannot_carry(error: Exception, expected: int) -> None:
    def submit(*_: object) -> Status:
        raise error

    bridge = Bridge()
    with pytest.raises(CallError) as caught:
        await bridge.call("s", submit, 5.0)
    assert (caught.value.errno, caught.value.origin) == (expected, Origin.LOCAL)
    assert bridge.in_flight == 0


async def test_a_wait_ends_at_its_deadline_and_the_late_answer_is_dropped(
    library: Library, autojump_clock: trio.testing.MockClock
) -> None:
    bridge = Bridge()
    late: list[Any] = []
    began = trio.current_time()
    with pytest.raises(CallError) as caught:
        await bridge.call("s", library.submit, 5.0, lambda _status, answer: late.append(answer))
    assert trio.current_time() - began == 5.0
    assert (caught.value.errno, caught.value.origin) == (errno.ETIMEDOUT, Origin.LATE)
    assert bridge.in_flight == 1  # the library still has it
    library.answer(0, "too late")
    await trio.testing.wait_all_tasks_blocked()
    assert late == ["too late"]
    assert bridge.in_flight == 0


async def test_an_answer_that_came_in_time_counts_though_this_thread_was_late(
    library: Library, mock_clock: trio.testing.MockClock
) -> None:
    bridge = Bridge()
    answers: list[Any] = []

    async def ask() -> None:
        answers.append(await bridge.call("s", library.submit, 5.0))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await submitted(library, 1)
        library.answer(0, "in time")
        mock_clock.jump(60.0)
    assert answers == ["in time"]


async def test_a_cancelled_wait_drops_its_answer(library: Library) -> None:
    bridge = Bridge()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bridge.call, "s", library.submit, 5.0)
        await submitted(library, 1)
        nursery.cancel_scope.cancel()
    library.answer(0, "nobody")
    await trio.testing.wait_all_tasks_blocked()
    assert bridge.in_flight == 0


async def test_no_more_than_so_many_are_in_flight_for_one_server_and_in_all(
    library: Library, autojump_clock: trio.testing.MockClock
) -> None:
    bridge = Bridge(in_flight_max=3, per_server_max=2)
    async with trio.open_nursery() as nursery:
        for server in ("a", "a", "a", "b", "b"):
            nursery.start_soon(bridge.call, server, library.submit, 5.0)
        await trio.testing.wait_all_tasks_blocked()
        assert len(library.callbacks) == 3
        for done in range(5):
            library.answer(done, "done")
            await trio.testing.wait_all_tasks_blocked()
            assert bridge.in_flight <= 3
    assert len(library.callbacks) == 5


async def test_waiting_for_room_ends_at_the_deadline_and_is_not_the_servers_fault(
    library: Library, autojump_clock: trio.testing.MockClock
) -> None:
    bridge = Bridge(per_server_max=1)
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def first() -> None:
            with pytest.raises(CallError):
                await bridge.call("s", library.submit, 9.0)

        await submitted(library, 1)
        with pytest.raises(CallError) as caught:
            await bridge.call("s", library.submit, 2.0)
        assert (caught.value.errno, caught.value.origin) == (errno.ETIMEDOUT, Origin.LOCAL)
        with trio.move_on_after(1.0):
            await bridge.call("s", library.submit, 2.0, urgent=True)
    assert len(library.callbacks) == 2


async def test_answers_that_never_come_do_not_keep_their_room(
    library: Library, autojump_clock: trio.testing.MockClock
) -> None:
    bridge = Bridge(per_server_max=1)
    with pytest.raises(CallError):
        await bridge.call("s", library.submit, 1.0)
    await trio.sleep(100.0)
    with pytest.raises(CallError) as caught:
        await bridge.call("s", library.submit, 1.0)
    assert caught.value.origin is Origin.LATE
    assert len(library.callbacks) == 2
    library.answer(0, "after all")
    await trio.testing.wait_all_tasks_blocked()
    assert bridge.in_flight == 1


def test_answers_after_the_end_are_nobodys(library: Library) -> None:
    async def main() -> None:
        with trio.move_on_after(0.0):
            await Bridge().call("s", library.submit, 5.0)

    trio.run(main)
    library.answer(0, "nobody listens")


# Without waiting


async def test_what_is_posted_is_delivered(library: Library) -> None:
    bridge = Bridge(per_server_max=2)
    delivered: list[Any] = []

    def deliver(status: Status, response: Any) -> None:
        delivered.append((status["ok"], response))

    drop = bridge.post("s", library.submit, 5.0, deliver)
    dropped = bridge.post("s", library.submit, 5.0, deliver)
    assert drop is not None
    assert dropped is not None
    assert bridge.post("s", library.submit, 5.0, deliver) is None  # no room
    dropped()
    library.answer(1, "dropped")
    library.answer(0, "there")
    await trio.testing.wait_all_tasks_blocked()
    assert delivered == [(True, "there")]
    assert bridge.in_flight == 0
    bridge.post("s", lambda _callback, _timeout: REFUSED, 5.0, deliver)
    assert delivered[-1] == (False, None)
    assert bridge.in_flight == 0


async def test_what_cannot_be_posted_is_an_error() -> None:
    def submit(*_: object) -> Status:
        raise TypeError("no")

    bridge = Bridge()
    with pytest.raises(CallError) as caught:
        bridge.post("s", submit, 5.0, lambda _status, _response: None)
    assert caught.value.errno == errno.EINVAL
    assert bridge.in_flight == 0


# In threads


async def in_thread(work: Callable[[int], tuple[Status, Any]], seconds: float = 5.0) -> Any:
    return await Bridge().call_in_thread("s", work, seconds)


async def test_a_blocking_call() -> None:
    assert await in_thread(lambda seconds: (OK, seconds), 1.5) == 2


async def test_a_blocking_call_that_fails() -> None:
    with pytest.raises(CallError) as caught:
        await in_thread(lambda _: (REFUSED, None))
    assert caught.value.errno == errno.EHOSTUNREACH


async def test_a_blocking_call_whose_answer_is_no_text() -> None:
    with pytest.raises(CallError) as caught:
        await in_thread(lambda _: (OK, b"\xff".decode()))
    assert (caught.value.errno, caught.value.origin) == (errno.EILSEQ, Origin.LOCAL)


async def test_a_blocking_call_is_left_behind_at_its_deadline() -> None:
    release = threading.Event()

    def work(_: int) -> tuple[Status, Any]:
        release.wait()
        return OK, "too late"

    try:
        with pytest.raises(CallError) as caught:
            await in_thread(work, 0.01)
        assert (caught.value.errno, caught.value.origin) == (errno.ETIMEDOUT, Origin.LATE)
    finally:
        release.set()
