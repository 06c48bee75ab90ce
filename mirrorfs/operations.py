"""The python engine: one short handler for each FUSE request; here those on names.

A protocol adapter. Each changing handler makes the system call on the source, appends the record,
updates the node table and answers, in this order and without an await between: that is what makes
the order of records, names and answers one. From the system call on it owes a record. What changes
is done in `backing_tree`, which record it makes in `capture`.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Sequence

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

from mirrorfs.attribute_requests import AttributeRequests
from mirrorfs.callers import ActingAs
from mirrorfs.capture import RENAME_EXCHANGE, RENAME_NOREPLACE, RESERVED
from mirrorfs.content_requests import ContentRequests
from mirrorfs.engine import EngineOptions, answer, change
from mirrorfs.inodes import Node
from mirrorfs.recorder import Journal, UnreliableError

__all__ = ["EngineOptions", "Journal", "Operations"]


class Operations(AttributeRequests, ContentRequests):
    """Answers the kernel's requests for one source tree. Single-threaded (trio's thread)."""

    @answer
    def lookup(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> EntryAttributes:
        """What stands there; "nothing" is an answer too, for the kernel to keep."""
        directory = self._objects.node(parent_inode)
        try:
            if name == RESERVED and directory is self._objects.table.root:
                raise FileNotFoundError(errno.ENOENT, "reserved")
            return self._entry(*self._objects.look(directory, name))
        except FileNotFoundError:
            missing = EntryAttributes()
            missing.st_ino = 0
            missing.entry_timeout = self._options.negative_timeout
            return missing

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        """The kernel dropped references."""
        try:
            for number, count in inode_list:
                self._objects.forget(number, count)
            self._shed_again()
        except Exception as error:  # noqa: BLE001 - no request may end the daemon
            self.failure("forget", error)
        if self._objects.slow_to_close:
            self._background.set()

    @change
    def create(
        self,
        parent_inode: InodeT,
        name: FileNameT,
        mode: ModeT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> tuple[FileInfo, EntryAttributes]:
        """Make and open a file."""
        directory = self._directory_for(parent_inode, name, errno.EACCES)
        self._objects.room()
        where = self._objects.descriptor(directory)
        self._objects.identity(directory)
        try:
            with self.recorder.change:
                as_caller = ActingAs(ctx.uid, ctx.gid)
                descriptor = self._tree.create(where, name, self._at_source(flags), mode, as_caller)
        except FileExistsError:
            # Made behind the mount. ESTALE has the kernel look again, and check permission.
            raise FUSEError(errno.EEXIST if flags & os.O_EXCL else errno.ESTALE) from None
        try:
            attributes = self._tree.attributes(descriptor)
            identity = self._tree.object_id(descriptor)
            self.recorder.made(directory, name, identity, attributes, dirty=True)
            node = self._objects.meet(directory, name, attributes, identity)
            self.recorder.mark_dirty(node)  # its flush is what says that the file is complete
            self._changed_names(directory)
            return self._opened(node, descriptor, flags, ctx), self._entry(node, attributes)
        except BaseException:
            self._tree.close_descriptor(descriptor)
            raise

    @change
    def mkdir(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext
    ) -> EntryAttributes:
        """Make a directory."""
        directory = self._directory_for(parent_inode, name, errno.EACCES)
        where = self._objects.descriptor(directory)
        with self.recorder.change:
            self._tree.make_directory(where, name, mode, ActingAs(ctx.uid, ctx.gid))
        entry = self._made(directory, name)
        self.recorder.born(self._objects.node(entry.st_ino))
        return entry

    @change
    def mknod(
        self,
        parent_inode: InodeT,
        name: FileNameT,
        mode: ModeT,
        rdev: int,
        ctx: RequestContext,
    ) -> EntryAttributes:
        """Make a file, fifo, socket or device."""
        directory = self._directory_for(parent_inode, name, errno.EACCES)
        where = self._objects.descriptor(directory)
        with self.recorder.change:
            self._tree.make_special(where, name, mode, rdev, ActingAs(ctx.uid, ctx.gid))
        return self._made(directory, name)

    @change
    def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        """Make a symlink."""
        directory = self._directory_for(parent_inode, name, errno.EACCES)
        where = self._objects.descriptor(directory)
        with self.recorder.change:
            self._tree.make_symlink(where, name, target, ActingAs(ctx.uid, ctx.gid))
        return self._made(directory, name)

    def _made(self, directory: Node, name: bytes) -> EntryAttributes:
        """Record and answer an object that was just made."""
        where = self._objects.descriptor(directory)
        attributes = self._tree.attributes_at(where, name)
        identity = self._tree.object_id(where, name)
        self.recorder.made(directory, name, identity, attributes)
        self._changed_names(directory)
        return self._entry(self._objects.meet(directory, name, attributes, identity), attributes)

    @change
    def link(
        self,
        inode: InodeT,
        new_parent_inode: InodeT,
        new_name: FileNameT,
        ctx: RequestContext,
    ) -> EntryAttributes:
        """Give an object another name."""
        node = self._objects.node(inode)
        directory = self._directory_for(new_parent_inode, new_name, errno.EACCES)
        self._objects.identity(node)
        self._objects.identity(directory)
        descriptor, where = self._objects.descriptor(node), self._objects.descriptor(directory)
        with self.recorder.change:
            self._tree.link(descriptor, where, new_name)
        attributes = self.recorder.linked(node, directory, new_name)
        self._objects.meet(directory, new_name, attributes)
        self._changed_names(directory)
        return self._entry(node, attributes)

    @change
    def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        """Remove a name of anything but a directory."""
        self._remove(parent_inode, name, self._tree.remove)

    @change
    def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        """Remove an empty directory."""
        self._remove(parent_inode, name, self._tree.remove_directory)

    def _remove(self, parent: int, name: bytes, remove: Callable[[int, bytes], None]) -> None:
        directory = self._directory_for(parent, name, errno.ENOENT)
        node = self._objects.known(directory, name)
        try:
            self._hold_over_removal(node)
            self._objects.identity(directory)
            where = self._objects.descriptor(directory)
            self._rely_without_name(node)
            with self.recorder.change:
                remove(where, name)
            try:
                attributes = self.recorder.removed(node, directory, name)
                node.removed = node.directory or attributes.st_nlink == 0
            finally:
                self._objects.unbind(directory, name)
            self._changed_names(directory)
        finally:
            self._objects.release(node)

    def _rely_without_name(self, node: Node) -> None:
        """It is about to lose a name by which a recovery would have found its content."""
        if node.dirty:
            attributes = self._tree.attributes(self._objects.descriptor(node))
            if not self.recorder.relies_without_name(node, attributes.st_nlink):
                raise UnreliableError

    @change
    def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> None:
        """Move a name, over another one (or not: NOREPLACE), or exchange two."""
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE):
            raise FUSEError(errno.EINVAL)
        old = self._directory_for(parent_inode_old, name_old, errno.ENOENT)
        new = self._directory_for(parent_inode_new, name_new, errno.EACCES)
        node = self._objects.known(old, name_old)
        displaced: Node | None = None
        try:
            with contextlib.suppress(FileNotFoundError):
                displaced = self._objects.known(new, name_new)
            self._rename(node, displaced, (old, name_old), (new, name_new), flags)
        finally:
            self._objects.release(node)
            if displaced is not None:
                self._objects.release(displaced)

    def _rename(
        self,
        node: Node,
        displaced: Node | None,
        old: tuple[Node, bytes],
        new: tuple[Node, bytes],
        flags: int,
    ) -> None:
        self._hold(node)
        if displaced is not None:
            self._hold_over_removal(displaced)
            self._rely_without_name(displaced)
        if not self.recorder.relies_moving(node):
            raise UnreliableError
        if flags & RENAME_EXCHANGE and displaced and not self.recorder.relies_moving(displaced):
            raise UnreliableError
        for directory in (old[0], new[0]):
            self._objects.identity(directory)
        old_at, new_at = self._objects.descriptor(old[0]), self._objects.descriptor(new[0])
        with self.recorder.change:
            self._tree.rename(old_at, old[1], new_at, new[1], flags)
        try:
            attributes = self.recorder.renamed(node, displaced, old, new, flags)
            if displaced is not None and attributes is not None and not flags & RENAME_EXCHANGE:
                displaced.removed = displaced.directory or attributes.st_nlink == 0
        finally:
            if flags & RENAME_EXCHANGE:
                self._objects.exchange(*old, *new)
            elif displaced is not node:
                self._objects.move(*old, *new)
        self._outdated(node, *([displaced] if displaced is not None else []))
        self._changed_names(old[0], new[0])
