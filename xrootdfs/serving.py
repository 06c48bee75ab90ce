"""What all requests share: the state of a mount being served, and how a request is answered.

`answer` is the border where errors become errnos. Nothing gets past it, so that no request ends the
mount. Handlers check arguments and call what does the work; the modules below know no FUSE.
"""

from __future__ import annotations

import errno
import functools
import logging
import math
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any, Concatenate, ParamSpec, TypeVar

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FUSEError

from xrootdfs.attributes import AttributeKeeper, Attributes
from xrootdfs.breaker import State
from xrootdfs.changes import Changes
from xrootdfs.errors import CallError, errno_of
from xrootdfs.federation import Federation
from xrootdfs.inodes import InodeTable, Node
from xrootdfs.moving import Moving
from xrootdfs.open_files import Handle, OpenFiles
from xrootdfs.placement import Placement
from xrootdfs.values import Found

_log = logging.getLogger(__name__)

_P = ParamSpec("_P")
_R = TypeVar("_R")
_S = TypeVar("_S", bound="Serving")

BLOCK_BYTES = 1 << 20
"""What programs should read and write at a time."""
_UNIT_BYTES = 512
_SPACE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class ServingOptions:
    """What an operator chooses.

    Attributes:
        uid, gid: whose everything is that has no owner kept.
        attr_timeout, entry_timeout, negative_timeout: for how long the kernel may keep attributes,
            names and the absence of names, in seconds.
        placement: where new files go.
        directories_everywhere: new directories are made on all servers that are up.
        emulate: attributes that XRootD lacks are kept as docs/xattrs.md says; otherwise setting
            them is refused.
        operation_seconds: how long a request may take that changes no names.
    """

    uid: int = 0
    gid: int = 0
    attr_timeout: float = 10.0
    entry_timeout: float = 10.0
    negative_timeout: float = 0.0
    placement: Placement = Placement.NAME
    directories_everywhere: bool = True
    emulate: bool = True
    operation_seconds: float = 30.0


def answer(
    handler: Callable[Concatenate[_S, _P], Awaitable[_R]],
) -> Callable[Concatenate[_S, _P], Coroutine[Any, Any, _R]]:
    """A handler as pyfuse3 wants it: errors are errnos, nothing ends the mount. It has its time."""

    @functools.wraps(handler)
    async def handle(self: _S, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            with trio.fail_after(self.options.operation_seconds):
                return await handler(self, *args, **kwargs)
        except trio.TooSlowError:
            raise FUSEError(errno.ETIMEDOUT) from None
        except Exception as error:  # noqa: BLE001 - no request may end the mount
            raise self.failure(handler.__name__, error) from None

    return handle


def change(
    handler: Callable[Concatenate[_S, _P], Awaitable[_R]],
) -> Callable[Concatenate[_S, _P], Coroutine[Any, Any, _R]]:
    """The same for a handler that must not be left half-way: each of its steps has its time."""

    @functools.wraps(handler)
    async def handle(self: _S, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return await handler(self, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - no request may end the mount
            raise self.failure(handler.__name__, error) from None

    return handle


class Serving(pyfuse3.Operations):
    """One mount being served. `nursery` lives as long as the mount; made inside trio."""

    supports_dot_lookup = False
    enable_acl = False
    enable_writeback_cache = False

    virtual: Callable[[bytes, bytes], Awaitable[bytes]]
    """Value of an attribute that this mount tells of a path; whoever makes this sets it."""

    def __init__(
        self, federation: Federation, options: ServingOptions, nursery: trio.Nursery
    ) -> None:
        super().__init__()
        self.options = options
        self._federation = federation
        self._client = federation.client
        self._table = InodeTable()
        self._moving = Moving()
        self._keeper = AttributeKeeper(
            federation, (options.uid, options.gid), emulate=options.emulate
        )
        self._changes = Changes(
            federation,
            self._keeper,
            placement=options.placement,
            directories_everywhere=options.directories_everywhere,
        )
        self._files = OpenFiles(
            self._client,
            nursery,
            self._table.path,
            self._settled,
            lambda server: federation.topology.state(server) is State.DOWN,
        )
        self._handles: dict[int, Handle] = {}
        self._handle_number = 0
        self._logged: set[tuple[str, type[Exception]]] = set()

    # -- life cycle ------------------------------------------------------------------------------

    async def run(self) -> None:
        """What goes on beside requests, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._files.run)
            while True:
                try:
                    await self._federation.space()  # placement goes by it
                except CallError as error:
                    _log.debug("space: %s", error.reason)
                except Exception as error:  # noqa: BLE001 - it must not end the mount
                    self.failure("space", error)
                await trio.sleep(_SPACE_SECONDS)

    async def close(self) -> None:
        """Have everything that was written at the servers, and their files closed. Each wait in
        here ends at its deadline."""
        handles, self._handles = list(self._handles.values()), {}
        async with trio.open_nursery() as nursery:
            for handle in handles:
                nursery.start_soon(self._release, handle)

    async def _release(self, handle: Handle) -> None:
        """Close a handle. Its errors were told by flush, except what a memory mapping wrote."""
        try:
            await self._files.release(handle)
        except Exception as error:  # noqa: BLE001 - nobody is left to be told
            _log.warning("close of inode %d: %s", handle.file.node.number, error)

    def _settled(self, node: Node) -> None:
        """What was written to a file is at the servers."""
        path = self._table.path(node)
        if path is not None:
            self._federation.changed(path)

    def failure(self, request: str, error: Exception) -> FUSEError:
        """The answer to a request that failed; one by our fault is logged, once."""
        if isinstance(error, FUSEError):
            return error
        if isinstance(error, OSError):
            return FUSEError(errno_of(error))
        seen = (request, type(error))
        if seen not in self._logged:
            self._logged.add(seen)
            _log.error("%s: internal error, answered EIO", request, exc_info=error)
        return FUSEError(errno.EIO)

    # -- nodes -----------------------------------------------------------------------------------

    def _node(self, number: int) -> Node:
        """The node the kernel means."""
        node = self._table.nodes.get(number)
        if node is None:
            raise FUSEError(errno.ESTALE)
        return node

    def _path(self, node: Node) -> bytes:
        """Its path; ESTALE for what was removed."""
        path = self._table.path(node)
        if path is None:
            raise FUSEError(errno.ESTALE)
        return path

    def _path_in(self, directory: Node, name: bytes) -> bytes:
        """Path of a name in a directory; ENOENT in one that was removed."""
        path = self._table.path_in(directory, name)
        if path is None:
            raise FUSEError(errno.ENOENT)
        return path

    async def _at(self, node: Node, call: Callable[[bytes], Awaitable[_R]]) -> _R:
        """Call with the node's path; again if a directory above was renamed meanwhile."""
        while True:
            path = self._path(node)
            try:
                return await call(path)
            except CallError as error:
                if not error.missing or self._table.path(node) in (path, None):
                    raise

    async def _find(self, node: Node) -> tuple[bytes, Found]:
        """Where the node is, and what is found there."""

        async def find(path: bytes) -> tuple[bytes, Found]:
            return path, await self._federation.find(path)

        return await self._at(node, find)

    # -- answers ---------------------------------------------------------------------------------

    async def _attributes(self, node: Node) -> Attributes:
        """As they are now; of an open file, with what was written to it here."""
        file = self._files.get(node)
        if file is not None and file.attributes is not None:
            if file.mtime_ns is not None:
                return replace(file.attributes, size=file.size, mtime_ns=file.mtime_ns)
            if node.removed:
                stat = await file.stat()
                return replace(file.attributes, size=stat.size)

        async def look(path: bytes) -> tuple[Found, Attributes]:
            found = await self._federation.find(path)
            return found, await self._keeper.of(path, found)

        changes = node.changes
        found, attributes = await self._at(node, look)
        return self._seen(node, found, attributes, changes)

    def _seen(
        self, node: Node, found: Found, attributes: Attributes, changes: int | None
    ) -> Attributes:
        """What servers told of a node, with what was written to it here. `changes`: those of the
        node before they were asked; None: there was no such node."""
        file = self._files.get(node)
        if file is None:
            return attributes
        file.attributes = attributes
        if changes == node.changes:
            file.told(found.stat)
        if file.mtime_ns is None:
            return attributes
        return replace(attributes, size=file.size, mtime_ns=file.mtime_ns)

    def _entry(self, node: Node, attributes: Attributes) -> EntryAttributes:
        """The answer with a node's attributes. The caller counts the lookup, if it is one."""
        node.told = (attributes.size, attributes.mtime_ns)
        entry = EntryAttributes()
        entry.st_ino = node.number
        entry.generation = 0
        entry.entry_timeout = self.options.entry_timeout
        entry.attr_timeout = self.options.attr_timeout
        entry.st_mode = attributes.mode
        entry.st_nlink = 0 if node.removed else 1  # a directory: the number is not known
        entry.st_uid = attributes.uid
        entry.st_gid = attributes.gid
        entry.st_rdev = 0
        entry.st_size = attributes.size
        entry.st_blksize = BLOCK_BYTES
        entry.st_blocks = math.ceil(attributes.size / _UNIT_BYTES)
        entry.st_atime_ns = attributes.atime_ns
        entry.st_mtime_ns = attributes.mtime_ns
        entry.st_ctime_ns = attributes.ctime_ns
        return entry
