"""Requests on open directories: the merged listing, with attributes."""

from __future__ import annotations

import errno

import pyfuse3
import trio
from pyfuse3 import FileHandleT, FUSEError, InodeT, ReaddirToken, RequestContext

from xrootdfs.attributes import Attributes
from xrootdfs.errors import CallError
from xrootdfs.federation import Federation
from xrootdfs.inodes import Node
from xrootdfs.memory import Moment
from xrootdfs.names import join
from xrootdfs.serving import Serving, ServingOptions, answer
from xrootdfs.values import Found, Listing

_AHEAD = 256
"""Of so many names the attributes are prepared at once."""
_DOTS = (b".", b"..")


class _OpenDirectory:
    """A directory as it was when it was opened, or read from the beginning again."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.begun = False

    def set(self, listing: Listing, moment: Moment) -> None:
        """What there is now; `moment` from before it was asked."""
        self.listing = listing
        self.moment = self.prepared = moment
        self.names = list(listing.entries)
        self.attributes: dict[bytes, Attributes] = {}


class DirectoryRequests(Serving):
    """Handlers of these requests."""

    def __init__(
        self, federation: Federation, options: ServingOptions, nursery: trio.Nursery
    ) -> None:
        super().__init__(federation, options, nursery)
        self._directories: dict[int, _OpenDirectory] = {}

    @answer
    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        """Open a directory."""
        node = self._node(inode)
        directory = _OpenDirectory(node)
        await self._read_names(directory)
        node.handles += 1
        self._handle_number += 1
        self._directories[self._handle_number] = directory
        return FileHandleT(self._handle_number)

    async def _read_names(self, directory: _OpenDirectory) -> None:
        moment = self._federation.memory.moment()
        directory.set(await self._at(directory.node, self._federation.list), moment)

    @answer
    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        """Names from a position on, each with its attributes and one more lookup. Where a server
        stayed silent the end is an error: whoever takes the list for complete must notice."""
        directory = self._directories[fh]
        if start_id == 0 and directory.begun:
            await self._read_names(directory)
        directory.begun = True
        if directory.prepared != self._federation.memory.moment():
            directory.attributes.clear()  # something was changed through this mount
        position = start_id
        while position < len(_DOTS) + len(directory.names):
            if not await self._list(directory, position, token):
                return
            position += 1
        if position == start_id and directory.listing.silent:
            raise FUSEError(errno.EIO)

    async def _list(self, directory: _OpenDirectory, position: int, token: ReaddirToken) -> bool:
        """Put one name into the answer; False if it does not fit."""
        if position < len(_DOTS):
            entry = self._entry(directory.node, await self._attributes(directory.node))
            return pyfuse3.readdir_reply(token, _DOTS[position], entry, position + 1)
        index = position - len(_DOTS)
        name = directory.names[index]
        if name not in directory.attributes:
            await self._prepare(directory, index)
        attributes = directory.attributes.get(name)
        if attributes is None:
            return True  # removed since
        node = self._table.meet(directory.node, name, is_directory=attributes.is_directory)
        if self._files.get(node) is not None:
            attributes = await self._attributes(node)
        if not pyfuse3.readdir_reply(token, name, self._entry(node, attributes), position + 1):
            self._table.leave_unused(node)
            return False
        node.lookups += 1
        return True

    async def _prepare(self, directory: _OpenDirectory, index: int) -> None:
        """Have the attributes of the names that follow: most need no request."""
        errors: list[CallError] = []

        async def look(path: bytes, name: bytes, found: Found) -> None:
            try:
                if changed:  # through this mount, since it was listed
                    found = await self._federation.find(path)
                directory.attributes[name] = await self._keeper.of(path, found)
            except CallError as error:
                if not error.missing:
                    errors.append(error)

        above = self._path(directory.node)
        directory.prepared = self._federation.memory.moment()
        changed = directory.moment != self._federation.memory.moment()
        async with trio.open_nursery() as nursery:
            for name in directory.names[index : index + _AHEAD]:
                found = directory.listing.entries[name]
                if changed or self._keeper.shows(found.stat):
                    nursery.start_soon(look, join(above, name), name, found)
                else:
                    directory.attributes[name] = self._keeper.plain(found.stat)
        if errors:
            raise errors[0]

    @answer
    async def releasedir(self, fh: FileHandleT) -> None:
        """Close a directory."""
        self._table.closed(self._directories.pop(fh).node)

    @answer
    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        """Servers make changes of names durable as their file systems do; there is no request."""
