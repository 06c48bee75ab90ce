"""The file system as the kernel asks for it: one short handler a request; here those on names.

A protocol adapter. Checks arguments, keeps the node table in step with what was done, answers. What
is done at the servers is `changes`, what is known of them `federation`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat as modes
from collections.abc import Sequence

from pyfuse3 import (
    EntryAttributes,
    FileInfo,
    FileNameT,
    FlagT,
    FUSEError,
    InodeT,
    ModeT,
    RequestContext,
)

from xrootdfs.attribute_requests import AttributeRequests
from xrootdfs.content_requests import ContentRequests
from xrootdfs.directory_requests import DirectoryRequests
from xrootdfs.emulation import Emulated
from xrootdfs.errors import CallError
from xrootdfs.inodes import Node
from xrootdfs.names import check_name
from xrootdfs.serving import ServingOptions, answer, change

__all__ = ["Operations", "ServingOptions"]

_RENAME_NOREPLACE = 1
_FILE_AT_ONCE = os.O_CREAT | os.O_EXCL


class Operations(AttributeRequests, ContentRequests, DirectoryRequests):
    """Answers the kernel's requests for one mount. Single-threaded (trio's thread)."""

    @answer
    async def lookup(
        self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        """What stands there; "nothing" is an answer too, which the kernel may keep."""
        directory = self._node(parent_inode)
        try:
            check_name(name)
        except CallError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise
            return self._nothing()  # no server can have it
        path = self._path_in(directory, name)
        known = directory.children.get(name)
        changes = None if known is None else known.changes
        try:
            found = await self._federation.find(path)
            attributes = await self._keeper.of(path, found)
        except CallError as error:
            if error.errno == errno.ENOENT:
                return self._nothing()
            raise
        node = self._table.meet(directory, name, is_directory=attributes.is_directory)
        node.lookups += 1
        if node is not known:
            changes = None
        return self._entry(node, self._seen(node, found, attributes, changes))

    def _nothing(self) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = 0
        entry.entry_timeout = self.options.negative_timeout
        return entry

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        """The kernel dropped references."""
        try:
            for number, count in inode_list:
                self._table.forget(number, count)
        except Exception as error:  # noqa: BLE001 - no request may end the mount
            self.failure("forget", error)

    # -- making ----------------------------------------------------------------------------------

    @change
    async def create(
        self,
        parent_inode: InodeT,
        name: FileNameT,
        mode: ModeT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> tuple[FileInfo, EntryAttributes]:
        """Make and open a file; or open it, if another client has just made it."""
        directory = self._node(parent_inode)
        check_name(name)
        async with self._moving.making(directory):
            try:
                return await self._create(directory, name, mode, flags, ctx)
            except CallError as error:
                if error.errno != errno.EEXIST:
                    raise
            self._federation.forget(self._path_in(directory, name))
            # ESTALE has the kernel look again, and check permission.
            raise FUSEError(errno.EEXIST if flags & os.O_EXCL else errno.ESTALE)

    async def _create(
        self, directory: Node, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        path = self._path_in(directory, name)
        if flags & os.O_EXCL and await self._exists_now(path):
            raise FUSEError(errno.EEXIST)
        kept = await self._new(directory, modes.S_IMODE(mode), ctx)
        node = self._meet_new(directory, name, is_directory=False)
        node.handles += 1  # it stays until it is known what became of it
        try:
            copy = await self._changes.create(
                path, kept, lambda server: self._files.copy(node, server)
            )
        except BaseException:
            node.handles -= 1
            self._table.remove(directory, name)
            raise
        handle = self._files.created(node, copy, append=bool(flags & os.O_APPEND))
        node.handles -= 1
        found = await self._federation.find(path)
        attributes = handle.file.attributes = await self._keeper.of(path, found)
        node.lookups += 1
        return self._opened(handle), self._entry(node, attributes)

    @change
    async def mkdir(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext
    ) -> EntryAttributes:
        """Make a directory."""
        directory = self._node(parent_inode)
        check_name(name)
        async with self._moving.making(directory):
            path = self._path_in(directory, name)
            kept = await self._new(directory, modes.S_IMODE(mode), ctx, is_directory=True)
            await self._changes.make_directory(path, kept)
            return await self._made(directory, name, path)

    @change
    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        """Make a symlink, which the servers keep as an empty file with attributes."""
        directory = self._node(parent_inode)
        check_name(name)
        if not self.options.emulate:
            raise FUSEError(errno.EPERM)
        async with self._moving.making(directory):
            path = self._path_in(directory, name)
            if await self._exists_now(path):
                raise FUSEError(errno.EEXIST)
            kept = await self._new(directory, 0o777, ctx, link=target)
            node = self._meet_new(directory, name, is_directory=False)
            try:
                await self._changes.make_symlink(
                    path, kept, lambda server: self._files.copy(node, server)
                )
            except BaseException:
                self._table.remove(directory, name)
                raise
            return await self._made(directory, name, path)

    @change
    async def mknod(
        self,
        parent_inode: InodeT,
        name: FileNameT,
        mode: ModeT,
        rdev: int,
        ctx: RequestContext,
    ) -> EntryAttributes:
        """Make a file; there are no fifos, sockets and devices in a federation."""
        if not modes.S_ISREG(mode):
            raise FUSEError(errno.EPERM)
        info, entry = await self.create(parent_inode, name, mode, _FILE_AT_ONCE, ctx)
        await self.release(info.fh)
        return entry

    @change
    async def link(
        self,
        inode: InodeT,
        new_parent_inode: InodeT,
        new_name: FileNameT,
        ctx: RequestContext,
    ) -> EntryAttributes:
        """There are no hard links in a federation."""
        raise FUSEError(errno.EPERM)

    async def _new(
        self,
        directory: Node,
        mode: int,
        ctx: RequestContext,
        *,
        is_directory: bool = False,
        link: bytes | None = None,
    ) -> Emulated:
        """What is kept of something new: it belongs to the caller, or to the group that a
        set-group-id directory gives it."""
        above = await self._attributes(directory)
        gid = ctx.gid
        if above.mode & modes.S_ISGID:
            gid = above.gid
            mode |= modes.S_ISGID if is_directory and self.options.emulate else 0
        return self._keeper.owned(mode, ctx.uid, gid, link)

    def _meet_new(self, directory: Node, name: bytes, *, is_directory: bool) -> Node:
        """A node for what is being made; one that was known by that name is something else."""
        self._table.remove(directory, name)
        return self._table.meet(directory, name, is_directory=is_directory)

    async def _made(self, directory: Node, name: bytes, path: bytes) -> EntryAttributes:
        found = await self._federation.find(path)
        attributes = await self._keeper.of(path, found)
        node = self._table.meet(directory, name, is_directory=attributes.is_directory)
        node.lookups += 1
        return self._entry(node, attributes)

    async def _exists_now(self, path: bytes) -> bool:
        if self._federation.absent_just_now(path):
            return False
        try:
            await self._federation.find(path, fresh=True)
        except CallError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        return True

    # -- removing and renaming -------------------------------------------------------------------

    @change
    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        """Remove anything but a directory. Who has it open goes on using it."""
        directory = self._node(parent_inode)
        async with self._moving.making(directory):
            await self._hold(directory.children.get(name))
            await self._changes.remove_file(self._path_in(directory, name))
            self._table.remove(directory, name)

    @change
    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        """Remove an empty directory."""
        directory = self._node(parent_inode)
        async with contextlib.AsyncExitStack() as stack:
            node = directory.children.get(name)
            if node is not None:
                await stack.enter_async_context(self._moving.moving(node))
            await stack.enter_async_context(self._moving.making(directory))
            await self._changes.remove_directory(self._path_in(directory, name))
            self._table.remove(directory, name)

    @change
    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> None:
        """Move a name, over another one or not; there is no exchange."""
        if flags & ~_RENAME_NOREPLACE:
            raise FUSEError(errno.EINVAL)
        old, new = self._node(parent_inode_old), self._node(parent_inode_new)
        check_name(name_new)
        node = old.children.get(name_old)
        replace = not flags & _RENAME_NOREPLACE
        await self._hold(new.children.get(name_new))
        if node is not None and node.directory:
            async with self._moving.moving(node), self._moving.making(new):
                await self._rename((old, name_old), (new, name_new), replace=replace)
        else:
            async with self._moving.making(new):
                await self._rename((old, name_old), (new, name_new), replace=replace)

    async def _rename(
        self, old: tuple[Node, bytes], new: tuple[Node, bytes], *, replace: bool
    ) -> None:
        await self._changes.rename(self._path_in(*old), self._path_in(*new), replace=replace)
        self._table.move(*old, *new)

    async def _hold(self, node: Node | None) -> None:
        """A file whose name goes is used on by who has it open: by what is open at the servers."""
        file = None if node is None else self._files.get(node)
        if file is not None:
            await file.hold()
