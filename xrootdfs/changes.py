"""Changes of names at the servers: make, remove, rename; in the order that never shows old content.

A change concerns every copy: all servers must have been heard, or it is refused before it is begun.
What fails half-way is taken back where that can be done, is an error in any case, and whatever was
known of the names is forgotten. Knows paths; nodes and the kernel are not its business.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import NoReturn

from xrootdfs.attributes import AttributeKeeper
from xrootdfs.emulation import Emulated
from xrootdfs.errors import CallError, Origin
from xrootdfs.federation import Federation
from xrootdfs.handles import ServerFile
from xrootdfs.names import split
from xrootdfs.placement import Placement, ranked
from xrootdfs.values import Found, Server, Stat

_log = logging.getLogger(__name__)

_TRY_ELSEWHERE = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EAGAIN))


class Changes:
    """Changes names at the servers of a federation, and tells it."""

    def __init__(
        self,
        federation: Federation,
        keeper: AttributeKeeper,
        *,
        placement: Placement,
        directories_everywhere: bool,
    ) -> None:
        self._federation = federation
        self._client = federation.client
        self._keeper = keeper
        self._placement = placement
        self._directories_everywhere = directories_everywhere

    # -- making ----------------------------------------------------------------------------------

    async def create(
        self,
        path: bytes,
        kept: Emulated,
        copy_at: Callable[[Server], ServerFile],
    ) -> ServerFile:
        """Make a file that no server is known to have; it is open then. EEXIST."""
        failed = CallError(errno.EIO, "no server takes new files", Origin.UNREACHABLE)
        for server in self._ranked(path):
            copy = copy_at(server)
            try:
                await self._ensure_directory(server, split(path)[0])
                await copy.create((kept.mode or 0) & 0o777)
            except CallError as error:
                failed = error
                if error.unsure:
                    # It may make the file yet: empty, and newer than one made elsewhere now.
                    self._federation.forget(path)
                    raise
                if not error.silent and error.errno not in _TRY_ELSEWHERE:
                    raise
                continue
            stat = await self._complete(path, copy, kept)
            self._federation.created(path, server, stat)
            return copy
        raise failed

    async def _complete(self, path: bytes, copy: ServerFile, kept: Emulated) -> Stat:
        """Give a new file its attributes; without them it is none of ours, and is removed."""
        stat = copy.stat
        assert stat is not None  # it is open
        try:
            if await self._keeper.keep(path, copy.server, stat, kept):
                stat = await self._client.stat(copy.server, path)
        except BaseException:
            self._federation.forget(path)
            await copy.close()
            await self._client.unlink(copy.server, path)
            raise
        return stat

    async def make_symlink(
        self, path: bytes, kept: Emulated, copy_at: Callable[[Server], ServerFile]
    ) -> None:
        """Make a symlink that no server is known to have. EEXIST."""
        copy = await self.create(path, kept, copy_at)
        await copy.close()

    async def make_directory(self, path: bytes, kept: Emulated) -> None:
        """Make a directory. EEXIST if there is anything, just now."""
        if await self._exists_now(path):
            raise CallError(errno.EEXIST, "there is something", Origin.ANSWERED)
        ranking = self._ranked(path)
        count = len(ranking) if self._directories_everywhere else 1
        answers = await self._federation.ask(
            ranking[:count], lambda server: self._make_directory(server, path, kept)
        )
        for server in ranking[count:]:
            if any(isinstance(answer, Stat) for answer in answers.values()):
                break
            answers |= await self._federation.ask(
                [server], lambda server: self._make_directory(server, path, kept)
            )
        first = True
        for server, answer in answers.items():
            if not isinstance(answer, Stat):
                continue
            if first:
                self._federation.created(path, server, answer)
                first = False
            else:
                self._federation.placed(path, server)
        if first or any(isinstance(a, CallError) and a.unsure for a in answers.values()):
            self._federation.forget(path)  # a silent one may make it yet
        if first:
            raise _first_error(answers) or CallError(errno.EIO, "no server", Origin.UNREACHABLE)

    async def _make_directory(self, server: Server, path: bytes, kept: Emulated) -> Stat:
        """Make it at one server, with its attributes."""
        await self._ensure_directory(server, split(path)[0])
        await self._client.mkdir(server, path, kept.mode or 0)
        stat = await self._client.stat(server, path)
        if await self._keeper.keep(path, server, stat, kept):
            stat = await self._client.stat(server, path)
        return stat

    async def _ensure_directory(self, server: Server, path: bytes) -> None:
        """Have a directory of the tree at that server too, with the attributes that it has
        elsewhere."""
        if not path:
            return  # servers make their root
        found = await self._federation.find(path)
        if server in found.holders:
            return
        if not found.is_directory:
            raise CallError(errno.ENOTDIR, "not a directory", Origin.ANSWERED)
        await self._ensure_directory(server, split(path)[0])
        view = await self._keeper.of(path, found)
        mode = view.mode & 0o7777
        await self._client.mkdir(server, path, mode, parents=True)
        stat = await self._client.stat(server, path)
        await self._keeper.keep(path, server, stat, self._keeper.owned(mode, view.uid, view.gid))
        self._federation.placed(path, server)

    def _ranked(self, path: bytes) -> list[Server]:
        takers = self._federation.takers()
        return list(ranked(path, takers, self._placement, self._federation.spaces))

    async def _exists_now(self, path: bytes) -> bool:
        try:
            await self._federation.find(path, fresh=True)
        except CallError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        return True

    # -- removing --------------------------------------------------------------------------------

    async def remove_file(self, path: bytes) -> None:
        """Remove anything but a directory, wherever it is."""
        found = await self._federation.find_everywhere(path)
        if found.is_directory:
            raise CallError(errno.EISDIR, "a directory", Origin.ANSWERED)
        await self._at(path, found.holders, self._client.unlink)
        if found.contrary:  # servers where a directory has the name: it appears now
            self._federation.forget(path)
        else:
            self._federation.removed(path)

    async def remove_directory(self, path: bytes) -> None:
        """Remove a directory that is empty at every server."""
        found = await self._federation.find_everywhere(path)
        await self._check_empty(path, found)
        await self._at(path, found.holders, self._client.rmdir)
        self._federation.removed(path)

    async def _check_empty(self, path: bytes, found: Found) -> None:
        if not found.is_directory:
            raise CallError(errno.ENOTDIR, "not a directory", Origin.ANSWERED)
        listing = await self._federation.list(path, fresh=True)
        if listing.entries:
            raise CallError(errno.ENOTEMPTY, "not empty", Origin.ANSWERED)
        if not listing.complete:
            reason = f"{listing.silent[0]} does not answer, and may hold names in it"
            raise CallError(errno.EIO, reason, Origin.UNREACHABLE)

    async def _at(
        self,
        path: bytes,
        servers: Iterable[Server],
        call: Callable[[Server, bytes], Awaitable[None]],
    ) -> None:
        """Call for a path at all these servers. That it is gone already is no error."""
        answers = await self._federation.ask(servers, lambda server: call(server, path))
        error = _first_error(answers, but=errno.ENOENT)
        if error is not None:
            self._federation.forget(path)
            raise error

    # -- renaming --------------------------------------------------------------------------------

    async def rename(self, old: bytes, new: bytes, *, replace: bool) -> None:
        """Give a file or directory another name, over what has it, wherever either is.

        At servers that hold it the rename itself replaces. Where only the old target is, it is
        removed afterwards, and if that fails the rename is taken back: two copies of one name
        would remain, and the wrong one might be the newer.
        """
        source = await self._federation.find_everywhere(old)
        target = await self._target(new)
        if source.contrary or (target is not None and target.contrary):
            raise CallError(errno.EIO, "a file at one server, a directory at another")
        if target is not None:
            if not replace:
                raise CallError(errno.EEXIST, "there is something", Origin.ANSWERED)
            await self._check_replaceable(source, new, target)
        for server in source.holders:
            await self._ensure_directory(server, split(new)[0])
        await self._move(old, new, source.holders)
        if target is not None:
            await self._remove_replaced(old, new, source, target)
        self._federation.renamed(old, new)

    async def _target(self, path: bytes) -> Found | None:
        try:
            return await self._federation.find_everywhere(path)
        except CallError as error:
            if error.errno == errno.ENOENT:
                return None
            raise

    async def _check_replaceable(self, source: Found, path: bytes, target: Found) -> None:
        if source.is_directory:
            await self._check_empty(path, target)
        elif target.is_directory:
            raise CallError(errno.EISDIR, "a directory", Origin.ANSWERED)

    async def _move(self, old: bytes, new: bytes, holders: Iterable[Server]) -> None:
        answers = await self._federation.ask(
            holders, lambda server: self._client.rename(server, old, new)
        )
        error = _first_error(answers)
        if error is None:
            return
        done = [server for server, answer in answers.items() if not isinstance(answer, CallError)]
        await self._take_back(old, new, done, error)

    async def _remove_replaced(self, old: bytes, new: bytes, source: Found, target: Found) -> None:
        """Remove the old target where nothing was renamed over it."""
        stale = [server for server in target.holders if server not in source.holders]
        remove = self._client.rmdir if target.is_directory else self._client.unlink
        answers = await self._federation.ask(stale, lambda server: remove(server, new))
        error = _first_error(answers, but=errno.ENOENT)
        if error is not None:
            await self._take_back(old, new, source.holders, error)

    async def _take_back(
        self, old: bytes, new: bytes, servers: Iterable[Server], error: CallError
    ) -> NoReturn:
        """Undo a rename at these servers; raise the error in any case."""
        answers = await self._federation.ask(
            servers, lambda server: self._client.rename(server, new, old)
        )
        for server, answer in answers.items():
            if isinstance(answer, CallError):
                _log.error(
                    "%s: %s was renamed to %s, elsewhere it was not: %s",
                    server,
                    os.fsdecode(old),
                    os.fsdecode(new),
                    answer.reason,
                )
        self._federation.forget(old)
        self._federation.forget(new)
        raise error


def _first_error(answers: Mapping[Server, object], but: int = 0) -> CallError | None:
    for server in sorted(answers):
        answer = answers[server]
        if isinstance(answer, CallError) and answer.errno != but:
            return answer
    return None
