"""The files that jobs have open: for each, its copies at the servers, its size, what is written.

All handles of a file share one `OpenFile`. Writes go to all copies, or they would differ; reads
come from one, and from another if that falls silent. While anything was written here that the
servers have not told of, size and modification time are those known here.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Final, TypeVar

import trio

from xrootdfs.attributes import Attributes
from xrootdfs.errors import CallError, Origin
from xrootdfs.handles import ServerFile
from xrootdfs.inodes import Node
from xrootdfs.reader import Reader, Room
from xrootdfs.values import Server, Stat
from xrootdfs.writer import Writer
from xrootdfs.xrd import Client, File

_log = logging.getLogger(__name__)

_R = TypeVar("_R")

SETTLE_SECONDS: Final = 1.0
"""What was written is sent after this time even if little came."""
_UNSETTLED_SECONDS: Final = 5
"""So long after a change another one may leave a server's times as they are."""
_SECOND_NS: Final = 1_000_000_000


class Handle:
    """One open(2) of a file.

    Attributes:
        append: every write goes to the end of the file.
        failures: of the writer, when this was opened: what came later is told to it.
    """

    __slots__ = ("append", "failures", "file", "reader", "writable")

    def __init__(self, file: OpenFile, reader: Reader, *, writable: bool, append: bool) -> None:
        self.file = file
        self.reader = reader
        self.writable = writable
        self.append = append
        self.failures = file.writer.failures


class OpenFile:
    """A file that is open at least once.

    Attributes:
        node: which file.
        copies: the file at each server that holds it, the newest first.
        size: in bytes, as far as known.
        mtime_ns: when it was last written through this mount; None if the servers' time counts.
        handles: those on it.
        written: it was changed since it was opened at the servers.
        times_void: it was changed since times were set.
        attributes: as last seen.
    """

    def __init__(
        self,
        node: Node,
        nursery: trio.Nursery,
        copies: Iterable[ServerFile],
        on_settled: Callable[[Node], None],
        room: Room,
    ) -> None:
        self._room = room
        self.node = node
        self._on_settled = on_settled
        self.copies = list(copies)
        self.size = 0
        self.mtime_ns: int | None = None
        self.written = False
        self.times_void = False
        self.attributes: Attributes | None = None
        self.handles: set[Handle] = set()
        self.writer = Writer(nursery, self._send)
        self._nursery = nursery
        self._size_there = 0  # at the servers, at least
        self._preferred = 0
        self._known: tuple[int, int] | None = None
        self._appending = trio.Lock()
        self._changing = 0  # changes that are not yet with the writer, or at the servers

    # -- opening and closing ---------------------------------------------------------------------

    async def open(self, *, write: bool) -> None:
        """Have it open at the servers: for writing at all of them, for reading at one."""
        if write:
            await self._at_all(lambda copy: copy.open(write=True))
            stat = self.copies[0].stat
        else:
            stat = await self._at_one(self._open_copy)
        if stat is not None:
            self.told(stat)

    async def _open_copy(self, copy: ServerFile) -> Stat | None:
        await copy.open(write=False)
        return copy.stat

    def join(self, *, writable: bool, append: bool) -> Handle:
        """One more handle."""
        reader = Reader(self._nursery, self.fetch, lambda: self.size, self._room)
        handle = Handle(self, reader, writable=writable, append=append)
        self.handles.add(handle)
        return handle

    @property
    def writable(self) -> bool:
        """A handle on it may write."""
        return any(handle.writable for handle in self.handles)

    @property
    def version(self) -> Stat | None:
        """What the server that is read from said of it when it was opened there; None while that
        may be the same of other content: it was changed just now, or is written here."""
        stat = self.copies[self._preferred].stat
        if stat is None or self.writable or self.written:
            return None
        changed = max(stat.mtime, stat.ctime)
        return stat if time.time_ns() // _SECOND_NS - changed > _UNSETTLED_SECONDS else None

    async def hold(self) -> None:
        """Have it open at the servers now: its name is about to go."""
        await self.open(write=self.writable)

    async def close(self) -> None:
        """Send all and close it everywhere. The first error is raised, after all was tried."""
        await self.settle()
        await self.close_copies()

    async def close_copies(self) -> None:
        """Close it at the servers; it is opened again there when it is used again."""
        self.written = False
        await self._at_all(ServerFile.close)

    def told(self, stat: Stat) -> None:
        """What a server says of it now; it does not know of what is on its way."""
        if self.mtime_ns is not None:
            return
        now = (stat.size, stat.mtime)
        if self._known is not None and self._known != now:
            self.forget_read()
        self._known = now
        self.size = self._size_there = stat.size

    # -- reading ---------------------------------------------------------------------------------

    async def read(self, handle: Handle, offset: int, size: int) -> bytes:
        """Bytes of a range; fewer only at the end of the file."""
        end = min(offset + size, self.size)
        if self.writer.touches(offset, end) or end > self._size_there:
            await self.writer.drain()
            self._size_there = max(self._size_there, end)
            self.writer.check(handle.failures)
        return await handle.reader.read(offset, size)

    async def fetch(self, offset: int, size: int) -> bytes:
        """Bytes of a range from the servers."""

        async def read(copy: ServerFile) -> bytes:
            async with copy.using() as file:
                return await file.read(offset, size)

        return await self._at_one(read)

    def forget_read(self) -> None:
        """Nothing that was fetched may be used any more."""
        for handle in self.handles:
            handle.reader.forget()

    # -- writing ---------------------------------------------------------------------------------

    async def write(self, handle: Handle, offset: int, data: bytes) -> int:
        """Take bytes over; they go to the end where the handle says so. Returns their number."""
        self.writer.check(handle.failures)
        if handle.append:
            async with self._appending:
                return await self._write(self.size, data)
        return await self._write(offset, data)

    async def _write(self, offset: int, data: bytes) -> int:
        with self._change():
            self.size = max(self.size, offset + len(data))  # before any await
            await self.writer.write(offset, data)
        return len(data)

    async def truncate(self, size: int) -> None:
        """Set the size, after what was written before."""
        await self.writer.drain()
        with self._change():
            self.size = size
            await self._at_all_files(lambda file: file.truncate(size))
            self._size_there = size
        self.forget_read()

    async def settle(self) -> None:
        """Have all that was written at the servers, whose size and time count again then. Errors
        are kept for the handles."""
        await self.writer.drain()
        if not self._changing and not self.writer.changed and self.mtime_ns is not None:
            self.mtime_ns = None
            self._known = None
            self._on_settled(self.node)

    async def sync(self) -> None:
        """Have it on the servers' disks."""
        await self.settle()
        if self.written:
            await self._at_all_files(File.sync)

    @contextlib.contextmanager
    def _change(self) -> Iterator[None]:
        """From here on what servers told is old, and what they tell is not all."""
        self.node.changes += 1
        self.written = self.times_void = True
        # Whole seconds, as servers tell them: a time that went back after close would be a change.
        self.mtime_ns = time.time_ns() // _SECOND_NS * _SECOND_NS
        self._changing += 1
        try:
            yield
        finally:
            self._changing -= 1

    async def _send(self, offset: int, data: bytes) -> None:
        try:
            await self._at_all_files(lambda file: file.write(offset, data))
        finally:
            self.forget_read()  # what was fetched until now may be from before it

    async def stat(self) -> Stat:
        """As the servers see it, by handle."""

        async def look(copy: ServerFile) -> Stat:
            async with copy.using() as file:
                return await file.stat()

        return await self._at_one(look)

    # -- copies ----------------------------------------------------------------------------------

    async def _at_one(self, call: Callable[[ServerFile], Awaitable[_R]]) -> _R:
        """Call for the preferred copy, then for the others; once more for one that was lost at
        once: its server may just have been started again."""
        count = len(self.copies)
        order = [(self._preferred + step) % count for step in range(count)]
        error = CallError(errno.EIO, "no copy", Origin.LOCAL)
        for attempt, index in enumerate([*order, order[0]]):
            if attempt == count and error.origin is Origin.LATE:
                break
            try:
                result = await call(self.copies[index])
            except CallError as failed:
                error = failed
                if not (failed.silent or failed.missing or failed.errno == errno.EBADF):
                    raise
            else:
                self._preferred = index
                return result
        if error.missing:  # of an open file, ENOENT would be an answer to another question
            raise CallError(errno.ESTALE, error.reason, error.origin)
        raise error

    async def _at_all(self, call: Callable[[ServerFile], Awaitable[None]]) -> None:
        """Call for all copies at once. The first error is raised when all have ended."""
        errors: list[CallError] = []

        async def one(copy: ServerFile) -> None:
            try:
                await call(copy)
            except CallError as error:
                errors.append(error)

        if len(self.copies) == 1:
            await one(self.copies[0])
        else:
            async with trio.open_nursery() as nursery:
                for copy in self.copies:
                    nursery.start_soon(one, copy)
        if errors:
            raise errors[0]

    async def _at_all_files(self, call: Callable[[File], Awaitable[None]]) -> None:
        async def one(copy: ServerFile) -> None:
            async with copy.using(write=True) as file:
                await call(file)

        await self._at_all(one)


class OpenFiles:
    """All files that are open, by node."""

    def __init__(
        self,
        client: Client,
        nursery: trio.Nursery,
        path: Callable[[Node], bytes | None],
        on_settled: Callable[[Node], None],
        is_down: Callable[[Server], bool],
    ) -> None:
        self._is_down = is_down
        self._room = Room()
        self._on_settled = on_settled
        self._client = client
        self._nursery = nursery
        self._path = path
        self._files: dict[Node, OpenFile] = {}
        self._closing: dict[Node, trio.Event] = {}

    def get(self, node: Node) -> OpenFile | None:
        """The node's open file, if it is open."""
        return self._files.get(node)

    def copy(self, node: Node, server: Server) -> ServerFile:
        """The file at one server."""
        return ServerFile(
            self._client, self._nursery, server, lambda: self._path(node), self._is_down
        )

    async def open(
        self, node: Node, holders: Iterable[Server], *, writable: bool, append: bool
    ) -> Handle:
        """A handle on a file that is there; it is open at the servers then."""
        while node in self._closing:  # what was written is on its way there
            await self._closing[node].wait()
        file = self._files.get(node)
        fresh = file is None
        if file is None:
            copies = [self.copy(node, server) for server in holders]
            file = self._files[node] = self._file(node, copies)
        handle = file.join(writable=writable, append=append)
        node.handles += 1
        try:
            if writable and not fresh:
                known = {copy.server for copy in file.copies}
                file.copies += [
                    self.copy(node, server) for server in holders if server not in known
                ]
            await file.open(write=writable)
        except BaseException:
            await self.release(handle)
            raise
        return handle

    def _file(self, node: Node, copies: Iterable[ServerFile]) -> OpenFile:
        return OpenFile(node, self._nursery, copies, self._on_settled, self._room)

    def created(self, node: Node, copy: ServerFile, *, append: bool) -> Handle:
        """A handle on a file that was just made, and is open, at one server."""
        file = self._files[node] = self._file(node, [copy])
        node.handles += 1
        return file.join(writable=True, append=append)

    async def release(self, handle: Handle) -> None:
        """One handle less; the last one closes the file. Errors have been told by flush, or are
        raised here, where nobody hears them but the log."""
        file = handle.file
        handle.reader.forget()
        file.handles.discard(handle)
        file.node.handles -= 1
        if file.handles:
            return
        node = file.node
        closed = self._closing[node] = trio.Event()
        del self._files[node]
        try:
            await file.close()
            file.writer.check(handle.failures)
        finally:
            del self._closing[node]
            closed.set()

    async def settle(self, node: Node) -> None:
        """Have what was written to it at the servers, if it is open, or being closed."""
        while node in self._closing:
            await self._closing[node].wait()
        file = self._files.get(node)
        if file is not None:
            await file.settle()

    async def settle_all(self) -> None:
        """The same for all."""
        for file in list(self._files.values()):
            await file.settle()

    async def run(self) -> None:
        """Send what jobs wrote and left lying, for ever."""
        while True:
            await trio.sleep(SETTLE_SECONDS)
            for file in list(self._files.values()):
                if file.writer.changed:
                    self._nursery.start_soon(self._settle_quietly, file)

    async def _settle_quietly(self, file: OpenFile) -> None:
        try:
            await file.settle()
        except Exception as error:  # noqa: BLE001 - it must not end the mount
            _log.error("settle: internal error", exc_info=error)
