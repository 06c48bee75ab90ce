"""Requests on open files and directories.

A change of content is unrecorded from before its system call until a record was made after it:
at flush, before close(2) returns; at fsync; at release, for what a memory mapping wrote later.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable
from typing import Final, TypeVar, TypeVarTuple

import pyfuse3
import trio
from pyfuse3 import (
    FileHandleT,
    FileInfo,
    FlagT,
    InodeT,
    ReaddirToken,
    RequestContext,
)

from mirrorfs.backing_tree import truncates, wants_write
from mirrorfs.capture import RESERVED
from mirrorfs.engine import Engine, answer, answer_later, change
from mirrorfs.handles import Handle
from mirrorfs.inodes import Node
from mirrorfs.listing import Listing, Name

_KEEPS_DIRECTORY_TIMES: Final = frozenset({"noatime", "nodiratime"})
_Ts = TypeVarTuple("_Ts")
_R = TypeVar("_R")

_INLINE_BYTES_MAX: Final = 128 << 10
"""A larger read or write goes to a thread: it would keep all other requests waiting."""


class ContentRequests(Engine):
    """Handlers of these requests."""

    @answer_later
    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        """Open a file."""
        if truncates(flags):
            return await self._open_empty(inode, flags, ctx)
        if wants_write(flags):
            self.recorder.admit_writer()
        node = self._objects.node(inode)
        self._objects.room()
        self._hold(node)
        where = self._objects.descriptor(node)
        opened = self._tree.open_file(where, self._at_source(flags))
        return self._opened(node, opened, flags, ctx)

    @change
    def _open_empty(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        """The same, emptying it."""
        node = self._objects.node(inode)
        self._objects.room()
        self._hold(node)
        where = self._objects.descriptor(node)
        with self.recorder.change:
            descriptor = self._tree.open_file(where, self._at_source(flags))
        try:
            return self._emptied(node, descriptor, flags, ctx)
        except BaseException:
            self._tree.close_descriptor(descriptor)
            if node.dirty:  # there may be no other handle whose flush tells of it
                self.recorder.content(node)
            raise

    def _emptied(self, node: Node, descriptor: int, flags: int, ctx: RequestContext) -> FileInfo:
        """The same for a file that opening has emptied: its flush is what tells of it."""
        self.recorder.mark_dirty(node)
        if wants_write(flags):
            self.recorder.owed = False
        else:  # allowed, too, and never flushed
            self.recorder.content(node, self._jobs.who(ctx.pid, ctx.uid))
        if ctx.uid != 0:
            self._clear_set_ids(node)
        return self._opened(node, descriptor, flags, ctx)

    def _opened(self, node: Node, descriptor: int, flags: int, ctx: RequestContext) -> FileInfo:
        if wants_write(flags):
            node.who = self._jobs.who(ctx.pid, ctx.uid)
        if self._options.shared:  # size and times may be another node's by now
            with contextlib.suppress(OSError):  # the kernel has no inode yet: a new file
                pyfuse3.invalidate_inode(node.number, attr_only=True)
        number = self._objects.opened(node, flags, descriptor, ctx.pid)
        return FileInfo(fh=number, keep_cache=self._keeps_pages)

    def _clear_set_ids(self, node: Node) -> None:
        """Truncation by open ends set-user-id and set-group-id; the kernel leaves that to us."""
        descriptor = self._objects.descriptor(node)
        mode = self._tree.attributes(descriptor).st_mode
        kept = mode & ~stat.S_ISUID
        if mode & stat.S_IXGRP:
            kept &= ~stat.S_ISGID
        if kept != mode:
            with self.recorder.change:
                self._tree.set_mode(descriptor, kept)
            self.recorder.attributes(node)
            self._stale_attributes.append(node.number)
            self._background.set()

    @answer_later
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        """Bytes of an open file."""
        handle = self._objects.files[fh]
        descriptor = self._objects.file(handle)
        if self._threads or size > _INLINE_BYTES_MAX:
            return await self._in_thread(handle, self._tree.read, descriptor, size, off)
        return self._tree.read(descriptor, size, off)

    @answer_later
    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        """Change an open file. Unrecorded from before the call to the record after it."""
        handle = self._objects.files[fh]
        node = handle.node
        if self.recorder.degraded:
            await self.recorder.admitted((node,), handle.pid)
        while not self.recorder.relies((node,)):
            await self.recorder.become_reliable()
        descriptor = self._objects.file(handle)
        self.recorder.mark_dirty(node)
        if self._threads or len(buf) > _INLINE_BYTES_MAX or handle.synchronous:
            node.writes += 1  # a record made meanwhile may not have seen it
            try:
                return await self._in_thread(handle, self._tree.write, descriptor, buf, off)
            finally:
                node.writes -= 1
        return self._tree.write(descriptor, buf, off)

    @answer_later
    async def flush(self, fh: FileHandleT) -> None:
        """close(2) of one descriptor: what was written is in the journal before it returns."""
        handle = self._objects.files[fh]
        if not handle.writable:
            return
        try:
            error, handle.error = handle.error, None
            if error is not None:
                raise error
            if handle.descriptor < 0:
                pass  # nothing was written since
            elif self._threads:
                tell = self._tree.report_write_errors
                await self._in_thread(handle, tell, handle.descriptor)
            else:
                self._tree.report_write_errors(handle.descriptor)
        finally:
            if handle.node.dirty:
                self.recorder.content(handle.node)
        await self._written_through(handle.node, handle.pid)

    @answer_later
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        """Make an open file durable."""
        handle = self._objects.files[fh]
        try:
            descriptor = self._objects.file(handle)
            await self._in_thread(handle, self._tree.sync, descriptor, datasync)
        finally:
            if handle.node.dirty:
                self.recorder.content(handle.node)
        if self._options.through.fsync:
            await self._written_through(handle.node, handle.pid)

    async def _in_thread(self, handle: Handle, call: Callable[[*_Ts], _R], *arguments: *_Ts) -> _R:
        """A system call in another thread; the descriptor stays open meanwhile."""
        handle.busy += 1
        try:
            return await trio.to_thread.run_sync(call, *arguments)
        finally:
            handle.busy -= 1

    @answer
    def release(self, fh: FileHandleT) -> None:
        """The last reference to an open file is gone, memory mappings included."""
        node = self._objects.files[fh].node
        try:
            if node.dirty:
                self.recorder.content(node)
        finally:
            self._objects.closed(fh)

    # -- directories -----------------------------------------------------------------------------

    @answer
    def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        """Open a directory."""
        node = self._objects.node(inode)
        keeps = not self.kernel_options.isdisjoint(_KEEPS_DIRECTORY_TIMES)
        self._objects.room()
        where = self._objects.descriptor(node)
        descriptor = self._tree.open_directory(where, os.O_NOATIME if keeps else 0)
        self._listings[descriptor] = Listing(self._tree, node, descriptor)
        self._objects.listing_opened(node)
        return descriptor

    @answer
    def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        """Names from a position on, each with its attributes and one more lookup."""
        listing = self._listings[fh]
        listing.seek(start_id)
        while (name := listing.peek()) is not None:
            if not self._list(listing.node, name, token):
                return
            listing.advance()

    def _list(self, directory: Node, name: Name, token: ReaddirToken) -> bool:
        """Put one name into the answer; False if it does not fit."""
        if name.name in (b".", b".."):
            return self._list_dots(directory, name, token)
        if name.name == RESERVED and directory is self._objects.table.root:
            return True
        try:
            node, attributes = self._objects.look(directory, name.name)
        except OSError as error:  # removed since it was read, or another file system
            if error.errno in (errno.ENOENT, errno.EXDEV, errno.ESTALE):
                return True
            raise
        entry = self._attributes(node, attributes)
        if not pyfuse3.readdir_reply(token, name.name, entry, name.following):
            self._objects.release(node)
            return False
        self._count_lookup(node)
        return True

    def _list_dots(self, directory: Node, name: Name, token: ReaddirToken) -> bool:
        """The kernel takes no reference for these two."""
        node = directory
        if name.name == b".." and directory.parent is not None:
            node = directory.parent
        attributes = self._tree.attributes(self._objects.descriptor(node))
        entry = self._attributes(node, attributes)
        return pyfuse3.readdir_reply(token, name.name, entry, name.following)

    @answer
    def releasedir(self, fh: FileHandleT) -> None:
        """Close a directory."""
        node = self._listings.pop(fh).node
        self._tree.close_descriptor(fh)
        self._objects.listing_closed(node)

    @answer_later
    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        """Make a directory durable."""
        await trio.to_thread.run_sync(self._tree.sync, fh, datasync)
