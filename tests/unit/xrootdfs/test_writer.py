"""What is written: gathered, in order where it overlaps, and no error lost."""

from __future__ import annotations

import errno
import random

import pytest
import trio

from xrootdfs.writer import IN_FLIGHT_MAX, REQUEST_BYTES, Writer


class Sent:
    """A server that answers when it is told to."""

    def __init__(self) -> None:
        self.content = bytearray()
        self.requests: list[tuple[int, int]] = []
        self.waiting: list[trio.Event] = []
        self.hold = False
        self.error: Exception | None = None

    async def send(self, offset: int, data: bytes) -> None:
        self.requests.append((offset, len(data)))
        if self.hold:
            event = trio.Event()
            self.waiting.append(event)
            await event.wait()
        else:
            await trio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error
        if len(self.content) < offset:
            self.content.extend(bytes(offset - len(self.content)))
        self.content[offset : offset + len(data)] = data


async def test_small_writes_become_large_requests(nursery: trio.Nursery) -> None:
    sent = Sent()
    writer = Writer(nursery, sent.send)
    for number in range(40):
        await writer.write(number << 17, bytes(1 << 17))
    assert writer.changed
    await writer.drain()
    assert not writer.changed
    assert sent.requests == [(number << 20, REQUEST_BYTES) for number in range(5)]


async def test_what_does_not_follow_is_another_request(nursery: trio.Nursery) -> None:
    sent = Sent()
    writer = Writer(nursery, sent.send)
    await writer.write(0, b"abc")
    await writer.write(3, b"def")
    await writer.write(100, b"x")
    await writer.write(50, b"y")
    await writer.drain()
    assert sent.requests == [(0, 6), (100, 1), (50, 1)]


async def test_so_many_in_flight_and_no_more(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    sent = Sent()
    sent.hold = True
    writer = Writer(nursery, sent.send)
    written = 0

    async def write() -> None:
        nonlocal written
        for number in range(IN_FLIGHT_MAX + 2):
            await writer.write(number * REQUEST_BYTES, bytes(REQUEST_BYTES))
            written += 1

    nursery.start_soon(write)
    await trio.testing.wait_all_tasks_blocked()
    assert (len(sent.waiting), written) == (IN_FLIGHT_MAX, IN_FLIGHT_MAX)
    sent.waiting[0].set()
    await trio.testing.wait_all_tasks_blocked()
    assert (len(sent.waiting), written) == (IN_FLIGHT_MAX + 1, IN_FLIGHT_MAX + 1)
    sent.hold = False
    for event in sent.waiting:
        event.set()
    await writer.drain()
    assert len(sent.content) == written * REQUEST_BYTES


async def test_bytes_taken_over_are_sent_whoever_gives_up_waiting(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    sent = Sent()
    sent.hold = True
    writer = Writer(nursery, sent.send)
    for number in range(IN_FLIGHT_MAX):
        await writer.write(number << 20, bytes(REQUEST_BYTES))

    async def answer_late() -> None:
        await trio.sleep(2)
        sent.hold = False
        for event in sent.waiting:
            event.set()

    nursery.start_soon(answer_late)
    with trio.move_on_after(1):
        await writer.write(IN_FLIGHT_MAX << 20, b"x" * REQUEST_BYTES)
    await writer.drain()
    assert sent.content[-1:] == b"x"
    assert len(sent.content) == (IN_FLIGHT_MAX + 1) << 20


async def test_overlapping_requests_are_never_in_flight_together(nursery: trio.Nursery) -> None:
    sent = Sent()
    sent.hold = True
    writer = Writer(nursery, sent.send)
    await writer.write(0, b"first")
    await writer.write(100, b"elsewhere")  # which sends the first
    nursery.start_soon(writer.write, 2, b"second")
    await trio.testing.wait_all_tasks_blocked()
    nursery.start_soon(writer.drain)
    await trio.testing.wait_all_tasks_blocked()
    assert [offset for offset, _ in sent.requests] == [0, 100]
    sent.hold = False
    for event in sent.waiting:
        event.set()
    await writer.drain()
    assert sent.content[:8] == b"fisecond"


async def test_reads_know_what_is_on_its_way(nursery: trio.Nursery) -> None:
    sent = Sent()
    writer = Writer(nursery, sent.send)
    assert not writer.touches(0, 100)
    await writer.write(10, b"0123456789")
    assert [writer.touches(*each) for each in ((0, 10), (0, 11), (19, 20), (20, 30))] == [
        False,
        True,
        True,
        False,
    ]
    sent.hold = True
    await writer.write(50, b"x")  # the first is in flight now
    await trio.testing.wait_all_tasks_blocked()
    assert writer.touches(0, 11)
    assert writer.touches(50, 51)
    sent.hold = False
    sent.waiting[0].set()
    await writer.drain()
    assert not writer.touches(0, 100)


async def test_errors_stay_with_the_handles_that_were_open(nursery: trio.Nursery) -> None:
    sent = Sent()
    writer = Writer(nursery, sent.send)
    writer.check(0)
    sent.error = OSError(errno.ENOSPC, "full")
    await writer.write(0, b"lost")
    await writer.drain()
    sent.error = None
    for _ in range(2):
        with pytest.raises(OSError, match="full") as raised:
            writer.check(0)
        assert raised.value.errno == errno.ENOSPC
    writer.check(writer.failures)  # a handle opened since
    await writer.write(0, b"kept")
    await writer.drain()
    assert sent.content == b"kept"


async def test_our_own_faults_are_errors_too(
    nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    sent = Sent()
    sent.error = KeyError("fault")
    writer = Writer(nursery, sent.send)
    await writer.write(0, b"lost")
    await writer.drain()
    with pytest.raises(OSError, match="internal error"):
        writer.check(0)
    assert "internal error" in caplog.text
    caplog.clear()


async def test_any_writes_give_what_a_file_has(nursery: trio.Nursery) -> None:
    chance = random.Random(5)
    sent = Sent()
    writer = Writer(nursery, sent.send)
    expected = bytearray()
    for _ in range(300):
        offset, data = chance.randrange(3000), chance.randbytes(chance.randrange(1, 500))
        await writer.write(offset, data)
        if len(expected) < offset:
            expected.extend(bytes(offset - len(expected)))
        expected[offset : offset + len(data)] = data
        if chance.random() < 0.1:
            await writer.drain()
            assert sent.content == expected
    await writer.drain()
    assert sent.content == expected
