"""Requests on open files."""

from __future__ import annotations

import contextlib
import errno
import os
import stat as modes

import pyfuse3
import trio
from pyfuse3 import FileHandleT, FileInfo, FlagT, FUSEError, InodeT, RequestContext

from xrootdfs import emulation
from xrootdfs.attributes import Change
from xrootdfs.errors import CallError
from xrootdfs.inodes import Node
from xrootdfs.open_files import Handle, OpenFile
from xrootdfs.serving import Serving, answer, change

_OWNER_RW = modes.S_IRUSR | modes.S_IWUSR


class ContentRequests(Serving):
    """Handlers of these requests."""

    @answer
    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        """Open a file. What the servers say of it then is what the kernel goes by."""
        node = self._node(inode)
        writable = flags & os.O_ACCMODE != os.O_RDONLY or bool(flags & os.O_TRUNC)
        try:
            handle = await self._open(node, flags, writable=writable)
        except CallError as error:
            if not error.missing:
                raise
            self._federation.forget(self._path(node))  # it is elsewhere than it was
            handle = await self._open(node, flags, writable=writable)
        try:
            if flags & os.O_TRUNC:
                await self._empty(node, handle.file, ctx.uid)
            direct = await self._agree_with_kernel(node, handle)
        except BaseException:
            await self._release(handle)
            raise
        info = self._opened(handle)
        info.direct_io = direct
        version = handle.file.version
        info.keep_cache = version is not None and version == node.version
        node.version = version
        return info

    async def _open(self, node: Node, flags: int, *, writable: bool) -> Handle:
        path = self._path(node)
        find = self._federation.find_everywhere if writable else self._federation.find
        found = await find(path)
        attributes = await self._keeper.of(path, found)
        if not modes.S_ISREG(attributes.mode):
            raise FUSEError(errno.EISDIR if attributes.is_directory else errno.ELOOP)
        append = bool(flags & os.O_APPEND)
        handle = await self._files.open(node, found.current, writable=writable, append=append)
        file = handle.file
        if file.attributes is None:
            file.attributes = attributes
        if file.mtime_ns is None and file.size != found.stat.size:
            self._federation.changed(path)  # by another client: what was known is older
        return handle

    def _opened(self, handle: Handle) -> FileInfo:
        self._handle_number += 1
        self._handles[self._handle_number] = handle
        return FileInfo(fh=FileHandleT(self._handle_number), keep_cache=False)

    async def _empty(self, node: Node, file: OpenFile, uid: int) -> None:
        """O_TRUNC; it ends set-user-id and set-group-id as well, which the kernel leaves to us."""
        await file.truncate(0)
        if uid == 0 or file.attributes is None:
            return
        mode = modes.S_IMODE(file.attributes.mode)
        kept = mode & ~modes.S_ISUID
        if mode & modes.S_IXGRP:
            kept &= ~modes.S_ISGID
        if kept != mode:
            await self._change(node, Change(mode=kept))

    async def _agree_with_kernel(self, node: Node, handle: Handle) -> bool:
        """The kernel may know an older size: up to it it reads, and at it it appends. Returns
        whether this handle is to do without the kernel's pages."""
        if node.told is None or node.told[0] == handle.file.size:
            return False
        node.told = None
        await trio.to_thread.run_sync(_forget_attributes, node.number)
        return handle.append

    async def _change(self, node: Node, wanted: Change) -> None:
        """Set attributes of a file or directory, at all servers that hold it."""
        file = self._files.get(node)
        if wanted.times:  # they are kept beside the servers' own, which must not move any more
            await self._files.settle(node)
        if node.removed:
            return  # nobody will see them

        async def set_at(path: bytes) -> None:
            found = await self._federation.find_everywhere(path)
            await self._keeper.change(path, found, wanted)
            self._federation.changed(path)

        await self._at(node, set_at)
        if file is not None and wanted.times:
            file.times_void = False

    @answer
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        """Bytes of an open file."""
        handle = self._handles[fh]
        return await handle.file.read(handle, off, size)

    @answer
    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        """Change an open file."""
        handle = self._handles[fh]
        return await handle.file.write(handle, off, buf)

    @answer
    async def flush(self, fh: FileHandleT) -> None:
        """close(2) of one descriptor: what was written is at the servers before it returns, and
        what went wrong is told. The only handle closes the file there: other programs may be
        waiting for that. It is opened again if the job has another descriptor and goes on."""
        handle = self._handles[fh]
        if not handle.writable:
            return
        file = handle.file
        await file.settle()
        file.writer.check(handle.failures)
        if not file.written or len(file.handles) > 1 or file.node.removed:
            return
        await self._void_times(file)
        attributes = file.attributes
        if attributes is not None and attributes.mode & _OWNER_RW == _OWNER_RW:
            await file.close_copies()

    async def _void_times(self, file: OpenFile) -> None:
        """Times that were set do not survive a write, not even one within the same second."""
        if not file.times_void:
            return
        file.times_void = False
        path = self._table.path(file.node)
        marked = [
            copy.server
            for copy in file.copies
            if copy.stat is not None and emulation.is_marked(copy.stat.mode)
        ]
        if path is not None and marked:
            await self._keeper.drop_times(path, marked)
            self._federation.changed(path)

    @answer
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        """Have an open file on the servers' disks."""
        handle = self._handles[fh]
        await handle.file.sync()
        handle.file.writer.check(handle.failures)

    @change
    async def release(self, fh: FileHandleT) -> None:
        """The last reference to an open file is gone, memory mappings included."""
        await self._release(self._handles.pop(fh))


def _forget_attributes(number: int) -> None:
    """In another thread: the kernel may answer by asking."""
    with contextlib.suppress(OSError):  # it does not know the inode any more
        pyfuse3.invalidate_inode(InodeT(number), attr_only=True)
