"""One file at one server, opened at most once however many handles there are on it.

A server lets clients agree on who writes; inside one mount nobody has to. The file is opened when
it is first needed and again when a writer joins or a connection was lost; the one before is closed
when the last call on it has ended, and that is waited for. Decides nothing about which server.
"""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

import trio

from xrootdfs.errors import CallError, Origin
from xrootdfs.values import Server, Stat
from xrootdfs.xrd import Client, File

_log = logging.getLogger(__name__)

_MAKING_SECONDS: Final = 0.25
"""Whoever is making a file has made it by then."""
_AGAIN_SECONDS: Final = 0.02


class _Opened:
    """An open file, and the calls on it."""

    __slots__ = ("file", "idle", "uses", "writable")

    def __init__(self, file: File, *, writable: bool) -> None:
        self.file = file
        self.writable = writable
        self.uses = 0
        self.idle = trio.Event()
        self.idle.set()

    async def close(self) -> None:
        await self.idle.wait()
        await self.file.close()


class ServerFile:
    """A file at one server.

    Args:
        path: where the file is now; None: it was removed, and only what is open is left of it.
        is_down: whether that server is known not to answer.

    Attributes:
        stat: as it was when it was last opened; None before.
    """

    def __init__(
        self,
        client: Client,
        nursery: trio.Nursery,
        server: Server,
        path: Callable[[], bytes | None],
        is_down: Callable[[Server], bool],
    ) -> None:
        self.server = server
        self.stat: Stat | None = None
        self._client = client
        self._nursery = nursery
        self._path = path
        self._is_down = is_down
        self._opened: _Opened | None = None
        self._changing = trio.Lock()

    async def open(self, *, write: bool) -> None:
        """Have it open, for writing as well if asked."""
        async with self._changing:
            if not self._fits(write=write):
                await self._open(
                    lambda path: self._client.open(self.server, path, write=write), writable=write
                )

    async def create(self, mode: int) -> None:
        """Make it. EEXIST if it is there."""
        async with self._changing:
            await self._open(lambda path: self._create(path, mode), writable=True)

    async def _create(self, path: bytes, mode: int) -> File:
        """One of several clients makes the file. EBUSY says that the name is open: somebody is
        making it, or has made it, or goes on using a file of that name that was removed."""
        end = trio.current_time() + _MAKING_SECONDS
        while True:
            force = trio.current_time() >= end
            try:
                return await self._client.open(self.server, path, create=mode, force=force)
            except CallError as error:
                if error.errno != errno.EBUSY or force:
                    raise
            try:
                await self._client.stat(self.server, path)
            except CallError as error:
                if not error.missing:
                    raise
            else:
                raise CallError(errno.EEXIST, "another client made it", Origin.ANSWERED)
            await trio.sleep(_AGAIN_SECONDS)

    @contextlib.asynccontextmanager
    async def using(self, *, write: bool = False) -> AsyncIterator[File]:
        """The open file, for one call. A silent server's is not used again, and one that is known
        to be down is not waited for; except to write: what a job has written is not given up while
        there is time."""
        if not write and self._is_down(self.server):
            raise CallError(errno.EHOSTUNREACH, f"{self.server} is down", Origin.UNREACHABLE)
        while (opened := self._opened) is None or (write and not opened.writable):
            await self.open(write=write)
        opened.uses += 1
        if opened.uses == 1:
            opened.idle = trio.Event()
        try:
            yield opened.file
        except CallError as error:
            if error.silent or error.errno == errno.EBADF:
                self._abandon(opened)
            raise
        finally:
            opened.uses -= 1
            if not opened.uses:
                opened.idle.set()

    async def close(self) -> None:
        """Close it at the server. An error may mean that what was written is not kept."""
        async with self._changing:
            opened, self._opened = self._opened, None
            if opened is not None:
                await opened.close()

    @property
    def is_open(self) -> bool:
        """It is open, for whatever access."""
        return self._opened is not None

    def _fits(self, *, write: bool) -> bool:
        return self._opened is not None and (self._opened.writable or not write)

    async def _open(self, call: Callable[[bytes], Awaitable[File]], *, writable: bool) -> None:
        """Open the file's name; it must be the file that it was. Holding `_changing`."""
        path = self._path()
        if path is None:
            raise CallError(errno.ESTALE, "the file was removed", Origin.LOCAL)
        file = await call(path)
        try:
            stat = await file.stat(fresh=False)
            if self.stat is not None and self.stat.id != stat.id:
                raise CallError(errno.ESTALE, "the name is another file now", Origin.ANSWERED)
        except BaseException:
            self._nursery.start_soon(self._close_quietly, _Opened(file, writable=False))
            raise
        before, self._opened = self._opened, _Opened(file, writable=writable)
        self.stat = stat
        if before is not None:
            await self._close_quietly(before)

    def _abandon(self, opened: _Opened) -> None:
        if self._opened is opened:
            self._opened = None
            self._nursery.start_soon(self._close_quietly, opened)

    async def _close_quietly(self, opened: _Opened) -> None:
        """What was written is at the server, or has failed already."""
        try:
            await opened.close()
        except CallError as error:
            _log.debug("close at %s: %s", self.server, error)
        except Exception as error:  # noqa: BLE001 - it must not end the mount
            _log.error("close at %s: internal error", self.server, exc_info=error)
