"""What is read: ahead where reading is sequential, and never what was there before a change."""

from __future__ import annotations

import errno
import random

import pytest
import trio

from xrootdfs.reader import BLOCK_BYTES, ROOM_BLOCKS, WINDOW_MAX, Reader, Room


class Served:
    """A file at a server."""

    def __init__(self, size: int) -> None:
        self.content = random.Random(1).randbytes(size)
        self.requests: list[tuple[int, int]] = []
        self.error: Exception | None = None
        self.room = Room()

    async def fetch(self, offset: int, size: int) -> bytes:
        self.requests.append((offset, size))
        data = self.content[offset : offset + size]
        await trio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error
        return data

    def reader(self, nursery: trio.Nursery) -> Reader:
        return Reader(nursery, self.fetch, lambda: len(self.content), self.room)


async def test_sequential_reading_is_done_ahead_in_large_requests(nursery: trio.Nursery) -> None:
    served = Served(20 * BLOCK_BYTES + 123)
    reader = served.reader(nursery)
    content = b""
    while data := await reader.read(len(content), 1 << 17):
        content += data
        ahead = max(offset + size for offset, size in served.requests) - len(content)
        assert ahead <= (WINDOW_MAX + 1) * BLOCK_BYTES
    assert content == served.content
    assert len(served.requests) <= 1 + 21
    assert served.requests[0] == (0, 1 << 17)  # perhaps only the beginning is wanted


async def test_random_reading_fetches_what_is_asked_for(nursery: trio.Nursery) -> None:
    served = Served(20 * BLOCK_BYTES)
    reader = served.reader(nursery)
    wanted = [(number * 7 % 20 * BLOCK_BYTES, 4096) for number in range(20)]
    for offset, size in wanted:
        assert await reader.read(offset, size) == served.content[offset : offset + size]
    far = [each for each, before in zip(wanted[1:], wanted, strict=False) if each != before]
    assert set(far) <= set(served.requests)


async def test_reads_in_any_order_nearby(nursery: trio.Nursery) -> None:
    """The kernel's own read-ahead asks for several ranges at once."""
    served = Served(4 * BLOCK_BYTES)
    reader = served.reader(nursery)
    answers: dict[int, bytes] = {}

    async def read(offset: int) -> None:
        answers[offset] = await reader.read(offset, 1 << 17)

    await read(0)
    async with trio.open_nursery() as reads:
        for offset in (3 << 17, 1 << 17, 2 << 17):
            reads.start_soon(read, offset)
    assert b"".join(answers[offset] for offset in sorted(answers)) == served.content[: 4 << 17]


async def test_the_end(nursery: trio.Nursery) -> None:
    served = Served(1000)
    reader = served.reader(nursery)
    assert await reader.read(0, 4096) == served.content
    assert await reader.read(900, 4096) == served.content[900:]
    assert await reader.read(1000, 4096) == b""
    assert await reader.read(5000, 4096) == b""
    assert Served(0).requests == []


async def test_a_change_is_seen(nursery: trio.Nursery) -> None:
    served = Served(3 * BLOCK_BYTES)
    reader = served.reader(nursery)
    await reader.read(0, 10)
    await reader.read(10, 10)
    served.content = bytes(3 * BLOCK_BYTES)
    reader.forget()
    assert await reader.read(20, 10) == bytes(10)


async def test_a_file_that_is_shorter_than_was_known(nursery: trio.Nursery) -> None:
    served = Served(3 * BLOCK_BYTES)
    reader = served.reader(nursery)
    await reader.read(0, 10)
    size = len(served.content)
    served.content = served.content[: BLOCK_BYTES + 5]
    reader = Reader(nursery, served.fetch, lambda: size, served.room)
    await reader.read(BLOCK_BYTES - 20, 10)
    assert await reader.read(BLOCK_BYTES - 10, 3 * BLOCK_BYTES) == served.content[-15:]


async def test_errors_are_told_and_asked_again(
    nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    served = Served(3 * BLOCK_BYTES)
    reader = served.reader(nursery)
    await reader.read(0, 10)
    served.error = OSError(errno.EHOSTUNREACH, "gone")
    with pytest.raises(OSError, match="gone"):
        await reader.read(10, 10)
    served.error = KeyError("our fault")
    reader.forget()
    with pytest.raises(OSError, match="internal error"):
        await reader.read(10, 10)
    caplog.clear()
    served.error = None
    assert await reader.read(10, 10) == served.content[10:20]


async def test_what_could_not_be_fetched_ahead_is_asked_for_again(nursery: trio.Nursery) -> None:
    served = Served(6 * BLOCK_BYTES)
    reader = served.reader(nursery)
    await reader.read(0, 10)
    await reader.read(10, 10)
    reader.forget()
    served.error = OSError(errno.EHOSTUNREACH, "gone for a while")
    with pytest.raises(OSError, match="gone"):
        await reader.read(20, 10)
    await trio.testing.wait_all_tasks_blocked()
    served.error = None
    asked = len(served.requests)
    assert await reader.read(BLOCK_BYTES, 10) == served.content[BLOCK_BYTES : BLOCK_BYTES + 10]
    assert len(served.requests) > asked


async def test_all_readers_together_hold_so_much(nursery: trio.Nursery) -> None:
    served = Served(12 * BLOCK_BYTES)
    readers = [served.reader(nursery) for _ in range(2 * ROOM_BLOCKS)]
    for offset in range(0, 4 * BLOCK_BYTES, BLOCK_BYTES // 2):
        for reader in readers:
            data = await reader.read(offset, BLOCK_BYTES // 2)
            assert data == served.content[offset : offset + len(data)]
    await trio.testing.wait_all_tasks_blocked()
    assert -3 * len(readers) <= served.room.free <= 0  # what each reads at the moment
    for reader in readers:
        reader.forget()
    assert served.room.free == ROOM_BLOCKS
