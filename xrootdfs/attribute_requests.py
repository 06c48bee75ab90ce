"""Requests on attributes: of files, of the file system, extended ones."""

from __future__ import annotations

import errno
import stat
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final

from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FUSEError,
    InodeT,
    RequestContext,
    SetattrFields,
    StatvfsData,
    XAttrNameT,
)

from xrootdfs.attributes import Change
from xrootdfs.content_requests import ContentRequests
from xrootdfs.emulation import RESERVED, escape, unescape
from xrootdfs.errors import CallError
from xrootdfs.inodes import Node
from xrootdfs.names import NAME_BYTES_MAX
from xrootdfs.serving import BLOCK_BYTES, answer, change
from xrootdfs.values import Found, Server

_USER: Final = b"user."
_VIRTUAL: Final = b"user.xrootd."
_NAME_TEXT_MAX: Final = 240
"""What servers take as the name of an attribute."""
_FILES: Final = 1 << 32
"""Nobody knows how many files there may be; nought would read as none."""
_FRAGMENT_BYTES: Final = 4096


class AttributeRequests(ContentRequests):
    """Handlers of these requests."""

    @answer
    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        """Attributes as they are now."""
        node = self._node(inode)
        return self._entry(node, await self._attributes(node))

    @change
    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        """Set size, mode, owner, times."""
        node = self._node(inode)
        if fields.update_size:
            await self._truncate(node, attr.st_size)
        wanted = Change(
            mode=stat.S_IMODE(attr.st_mode) if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
        )
        if wanted != Change():
            await self._change(node, wanted)
        return self._entry(node, await self._attributes(node))

    async def _truncate(self, node: Node, size: int) -> None:
        file = self._files.get(node)
        if file is not None and file.writable:
            await file.truncate(size)
            return

        async def truncate(path: bytes) -> None:
            found = await self._federation.find_everywhere(path)
            answers = await self._federation.ask(
                found.current, lambda server: self._client.truncate(server, path, size)
            )
            self._federation.changed(path)
            _raise_any(answers.values())
            if self._keeper.shows(found.stat):
                await self._keeper.drop_times(path, found.current)

        await self._at(node, truncate)

    @answer
    async def readlink(self, inode: InodeT, ctx: RequestContext) -> bytes:
        """Where a symlink points to."""
        attributes = await self._attributes(self._node(inode))
        if attributes.link is None:
            raise FUSEError(errno.EINVAL)
        return attributes.link

    @answer
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        """Room at all servers together."""
        space = await self._federation.space()
        told = StatvfsData()
        told.f_bsize = BLOCK_BYTES
        told.f_frsize = _FRAGMENT_BYTES
        told.f_blocks = space.total // _FRAGMENT_BYTES
        told.f_bfree = told.f_bavail = space.free // _FRAGMENT_BYTES
        told.f_files = told.f_ffree = told.f_favail = _FILES
        told.f_namemax = NAME_BYTES_MAX
        return told

    # -- extended attributes ---------------------------------------------------------------------

    @answer
    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        """Value of one: of a user's, or of what this mount tells of a file."""
        if not name.startswith(_USER):
            raise FUSEError(errno.ENOTSUP)
        node = self._node(inode)
        if name.startswith(_VIRTUAL):
            return await self._told(node, name)
        text = _text(name)

        async def get(path: bytes) -> bytes:
            found = await self._federation.find(path)
            answers = await self._federation.ask(
                _bearers(found), lambda server: self._client.get_xattrs(server, path, [text])
            )
            values = [v[text] for v in answers.values() if isinstance(v, dict) and text in v]
            if values:
                return unescape(values[0])
            _raise_any(answers.values())
            raise FUSEError(errno.ENODATA)

        return await self._at(node, get)

    @answer
    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[XAttrNameT]:
        """Names of users' attributes; what this mount tells is not for programs that copy."""

        async def get(path: bytes) -> Sequence[XAttrNameT]:
            found = await self._federation.find(path)
            answers = await self._federation.ask(
                _bearers(found), lambda server: self._client.xattrs(server, path)
            )
            _raise_any(answers.values())
            texts = {
                text for listed in answers.values() if isinstance(listed, dict) for text in listed
            }
            names = (unescape(text) for text in sorted(texts))
            return [XAttrNameT(_USER + name) for name in names if not name.startswith(RESERVED)]

        return await self._at(self._node(inode), get)

    @change
    async def setxattr(
        self, inode: InodeT, name: XAttrNameT, value: bytes, ctx: RequestContext
    ) -> None:
        """Set a user's attribute, at all servers that hold the file."""
        text = _text_to_set(name)

        async def set_at(server: Server, path: bytes) -> None:
            await self._client.set_xattrs(server, path, {text: escape(value)})

        await self._at_holders(inode, set_at)

    @change
    async def removexattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> None:
        """Remove a user's attribute, at all servers that hold the file."""
        text = _text_to_set(name)

        async def remove_at(server: Server, path: bytes) -> None:
            await self._client.remove_xattrs(server, path, [text])

        await self._at_holders(inode, remove_at)

    async def _at_holders(
        self, inode: int, call: Callable[[Server, bytes], Awaitable[None]]
    ) -> None:
        async def at(path: bytes) -> None:
            found = await self._federation.find_everywhere(path)
            answers = await self._federation.ask(found.holders, lambda server: call(server, path))
            self._federation.changed(path)
            _raise_any(answers.values())

        await self._at(self._node(inode), at)

    async def _told(self, node: Node, name: bytes) -> bytes:
        """What this mount tells of a file: it is asked for by name only."""
        await self._files.settle(node)
        return await self._at(node, lambda path: self.virtual(path, name))


def _bearers(found: Found) -> tuple[Server, ...]:
    """Whom to ask for attributes. A directory was made at some servers later than at others."""
    return found.holders if found.is_directory else found.holders[:1]


def _text(name: bytes) -> str:
    """How servers name a user's attribute; ENODATA if it cannot be one."""
    text = escape(name.removeprefix(_USER))
    if not text or len(text) > _NAME_TEXT_MAX or name.removeprefix(_USER).startswith(RESERVED):
        raise FUSEError(errno.ENODATA)
    return text


def _text_to_set(name: bytes) -> str:
    if not name.startswith(_USER):
        raise FUSEError(errno.ENOTSUP)
    if name.removeprefix(_USER).startswith(RESERVED):
        raise FUSEError(errno.EPERM)
    text = escape(name.removeprefix(_USER))
    if not text:
        raise FUSEError(errno.EINVAL)
    if len(text) > _NAME_TEXT_MAX:
        raise FUSEError(errno.ERANGE)
    return text


def _raise_any(answers: Iterable[object]) -> None:
    for answered in answers:
        if isinstance(answered, CallError):
            raise answered
