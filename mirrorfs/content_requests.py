"""Requests on open files and directories.

A change of content is unrecorded from before its system call until a record was made after it:
at flush, before close(2) returns; at fsync; at release, for what a memory mapping wrote later.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import Final

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
from mirrorfs.engine import Engine, Handle, answer, answer_later, change
from mirrorfs.inodes import Node
from mirrorfs.listing import Listing, Name

_KEEPS_DIRECTORY_TIMES: Final = frozenset({"noatime", "nodiratime"})
_INLINE_BYTES_MAX: Final = 128 << 10
"""A larger read or write goes to a thread: it would keep all other requests waiting."""


class ContentRequests(Engine):
    """Handlers of these requests."""

    @change
    def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        """Open a file."""
        node = self._objects.node(inode)
        self._hold(node)
        where = self._objects.descriptor(node)
        if not truncates(flags):
            opened = self._tree.open_file(where, self._at_source(flags))
            return self._opened(node, opened, flags, ctx)
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
        writable = wants_write(flags)
        self._files[descriptor] = Handle(node, writable=writable)
        if writable:
            node.who = self._jobs.who(ctx.pid, ctx.uid)
        self._objects.handle_opened(node)
        if self._options.shared:  # size and times may be another node's by now
            with contextlib.suppress(OSError):  # the kernel has no inode yet: a new file
                pyfuse3.invalidate_inode(node.number, attr_only=True)
        return FileInfo(fh=descriptor, keep_cache=self._keeps_pages)

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
        if self._threads or size > _INLINE_BYTES_MAX:
            return await trio.to_thread.run_sync(self._tree.read, fh, size, off)
        return self._tree.read(fh, size, off)

    @answer_later
    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        """Change an open file. Unrecorded from before the call to the record after it."""
        node = self._files[fh].node
        self.recorder.mark_dirty(node)
        if self._threads or len(buf) > _INLINE_BYTES_MAX:
            node.writes += 1  # a record made meanwhile may not have seen it
            try:
                return await trio.to_thread.run_sync(self._tree.write, fh, buf, off)
            finally:
                node.writes -= 1
        return self._tree.write(fh, buf, off)

    @answer_later
    async def flush(self, fh: FileHandleT) -> None:
        """close(2) of one descriptor: what was written is in the journal before it returns."""
        handle = self._files[fh]
        if not handle.writable:
            return
        try:
            if self._threads:
                await trio.to_thread.run_sync(self._tree.report_write_errors, fh)
            else:
                self._tree.report_write_errors(fh)
        finally:
            if handle.node.dirty:
                self.recorder.content(handle.node)

    @answer_later
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        """Make an open file durable."""
        node = self._files[fh].node
        try:
            await trio.to_thread.run_sync(self._tree.sync, fh, datasync)
        finally:
            if node.dirty:
                self.recorder.content(node)

    @answer
    def release(self, fh: FileHandleT) -> None:
        """The last reference to an open file is gone, memory mappings included."""
        node = self._files.pop(fh).node
        try:
            if node.dirty:
                self.recorder.content(node)
        finally:
            self._tree.close_descriptor(fh)
            self._objects.handle_closed(node)

    # -- directories -----------------------------------------------------------------------------

    @answer
    def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        """Open a directory."""
        node = self._objects.node(inode)
        keeps = not self.kernel_options.isdisjoint(_KEEPS_DIRECTORY_TIMES)
        where = self._objects.descriptor(node)
        descriptor = self._tree.open_directory(where, os.O_NOATIME if keeps else 0)
        self._listings[descriptor] = Listing(self._tree, node, descriptor)
        self._objects.handle_opened(node)
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
        entry = self._attributes(node.number, node.generation, attributes)
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
        entry = self._attributes(node.number, node.generation, attributes)
        return pyfuse3.readdir_reply(token, name.name, entry, name.following)

    @answer
    def releasedir(self, fh: FileHandleT) -> None:
        """Close a directory."""
        node = self._listings.pop(fh).node
        self._tree.close_descriptor(fh)
        self._objects.handle_closed(node)

    @answer_later
    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        """Make a directory durable."""
        await trio.to_thread.run_sync(self._tree.sync, fh, datasync)
