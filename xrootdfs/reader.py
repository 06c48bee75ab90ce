"""What jobs read, fetched ahead: large requests, several in flight, where reading is sequential.

One reader serves one handle. A read that does not follow the last one asks for its bytes and no
more. What was fetched is dropped when it lies behind, when reading goes elsewhere, and by `forget`
when the file changes or is closed. All readers together hold only so much (`Room`).
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable
from typing import Final

import trio

_log = logging.getLogger(__name__)

BLOCK_BYTES: Final = 1 << 20
WINDOW_MAX: Final = 8
_WINDOW_FIRST: Final = 2
_REACH_BYTES: Final = 1 << 20
"""The kernel's own read-ahead asks for several ranges at once, and they come in any order."""


ROOM_BLOCKS: Final = 64


class Room:
    """How many blocks all readers of a mount may still fetch ahead."""

    def __init__(self, blocks: int = ROOM_BLOCKS) -> None:
        self.free = blocks


class _Block:
    """A block being fetched, or fetched."""

    __slots__ = ("data", "error", "ready")

    def __init__(self) -> None:
        self.ready = trio.Event()
        self.data = b""
        self.error: OSError | None = None


class Reader:
    """Reads for one handle.

    Args:
        nursery: where blocks are fetched.
        fetch: bytes of a range, fewer only at the end of the file.
        size: of the file now.
        room: shared by all readers. What a job waits for is fetched whether there is room or not.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        fetch: Callable[[int, int], Awaitable[bytes]],
        size: Callable[[], int],
        room: Room,
    ) -> None:
        self._room = room
        self._nursery = nursery
        self._fetch = fetch
        self._size = size
        self._blocks: dict[int, _Block] = {}
        self._expected = 0
        self._begun = False
        self._last = 0
        self._window = _WINDOW_FIRST

    def forget(self) -> None:
        """The file changed: what was fetched, or is being fetched, is not to be used."""
        self._room.free += len(self._blocks)
        self._blocks.clear()

    async def read(self, offset: int, size: int) -> bytes:
        """Bytes of a range; fewer only at the end of the file."""
        size = min(size, self._size() - offset)
        if size <= 0:
            return b""
        if self._begun and abs(offset - self._expected) <= _REACH_BYTES:
            self._expected = max(self._expected, offset + size)
            return await self._from_blocks(offset, size)
        self._begun = True
        self._expected = offset + size
        self._last, self._window = self._expected // BLOCK_BYTES, _WINDOW_FIRST
        self.forget()
        return await self._fetch(offset, size)

    async def _from_blocks(self, offset: int, size: int) -> bytes:
        first, last = offset // BLOCK_BYTES, (offset + size - 1) // BLOCK_BYTES
        self._fetch_ahead(first, last)
        parts = []
        for number in range(first, last + 1):
            block = await self._block(number)
            start = max(offset - number * BLOCK_BYTES, 0)
            end = offset + size - number * BLOCK_BYTES
            parts.append(block.data[start:end])
            if len(block.data) < BLOCK_BYTES:
                break  # the end of the file
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _block(self, number: int) -> _Block:
        """A block; one that could not be fetched ahead is asked for again."""
        block = self._blocks.get(number)
        if block is None or block.error is not None:
            self._drop(number)
            block = self._begin(number)
        await block.ready.wait()
        if block.error is not None:
            self._drop(number)
            raise OSError(block.error.errno, block.error.strerror)
        return block

    def _drop(self, number: int) -> None:
        if self._blocks.pop(number, None) is not None:
            self._room.free += 1

    def _fetch_ahead(self, first: int, last: int) -> None:
        """Have the blocks that are wanted and a window of those that follow."""
        end = (self._size() + BLOCK_BYTES - 1) // BLOCK_BYTES
        behind = first - _REACH_BYTES // BLOCK_BYTES
        for number in [number for number in self._blocks if number < behind]:
            self._drop(number)
        if last > self._last:
            self._last = last
            self._window = min(2 * self._window, WINDOW_MAX)
        for number in range(first, min(last + self._window, end - 1) + 1):
            if number not in self._blocks and (number <= last or self._room.free > 0):
                self._begin(number)

    def _begin(self, number: int) -> _Block:
        self._room.free -= 1
        block = self._blocks[number] = _Block()
        self._nursery.start_soon(self._fill, number, block)
        return block

    async def _fill(self, number: int, block: _Block) -> None:
        try:
            block.data = await self._fetch(number * BLOCK_BYTES, BLOCK_BYTES)
        except Exception as error:  # noqa: BLE001 - it must not end the mount
            block.error = error if isinstance(error, OSError) else _internal(error)
        finally:
            block.ready.set()


def _internal(error: Exception) -> OSError:
    _log.error("read: internal error, answered EIO", exc_info=error)
    return OSError(errno.EIO, "internal error")
