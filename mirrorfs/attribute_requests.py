"""Requests about attributes: mode, owner, size, times, extended attributes, ACLs.

Each change makes the system call, appends the record and answers, without an await between. Some
take several calls: the record is owed from before the first, and made even if one of them fails.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Sequence
from typing import Final

from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileNameT,
    FUSEError,
    InodeT,
    RequestContext,
    SetattrFields,
    StatvfsData,
    XAttrNameT,
)

from mirrorfs import capture
from mirrorfs.callers import in_group
from mirrorfs.config import OFF, read_sites
from mirrorfs.engine import Engine, answer, change
from mirrorfs.inodes import Node
from mirrorfs.through import THROUGH_XATTR

DAEMON_XATTR: Final = b"trusted.mirrorfs.daemon"
"""Virtual attribute of the mount's root: what `EngineOptions.status` says."""

_EFFECTIVE_XATTR: Final = b"user.mirrorfs.write-through"
"""Virtual attribute: the sites for which a change of that object waits."""

_ACL_XATTR: Final = b"system.posix_acl_access"


class AttributeRequests(Engine):
    """Handlers of these requests."""

    @answer
    def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        """Attributes as the source has them now."""
        node = self._objects.node(inode)
        attributes = self._tree.attributes(self._objects.descriptor(node))
        return self._attributes(node, attributes)

    @change
    def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        """Set size, owner, mode and times, as many as the request names."""
        node = self._objects.node(inode)
        self._hold(node)
        others = (
            fields.update_uid
            or fields.update_gid
            or fields.update_mode
            or fields.update_atime
            or fields.update_mtime
        )
        descriptor = self._objects.descriptor(node)
        from_outside = (
            ctx.uid != 0
            and (fields.update_size or fields.update_uid or fields.update_gid)
            and not node.directory
            and self._from_outside(descriptor, ctx)
        )
        others = others or from_outside
        self.recorder.owed = True
        try:
            if fields.update_size:
                self._set_size(node, attr.st_size, fh)
            if others:
                self._set_attributes(descriptor, attr, fields)
            if from_outside:
                self._clear_set_group_id(descriptor)
        finally:
            if fields.update_size:
                attributes = self.recorder.content(node, self._jobs.who(ctx.pid, ctx.uid))
            if others:
                attributes = self.recorder.attributes(node)
        if fields.update_size and fh is not None:
            self.recorder.told.clear()  # its close waits for the sites
        if not fields.update_size and not others:  # nothing that we keep
            self.recorder.owed = False
            attributes = self._tree.attributes(descriptor)
        return self._attributes(node, attributes)

    def _set_size(self, node: Node, size: int, fh: int | None) -> None:
        handle = None if fh is None else self._objects.files.get(fh)
        if handle is not None and handle.writable:
            self._tree.truncate_open(self._objects.file(handle), size)
        else:
            self._tree.truncate(self._objects.descriptor(node), size)

    def _set_attributes(
        self, descriptor: int, attr: EntryAttributes, fields: SetattrFields
    ) -> None:
        """Owner before mode: a change of owner clears the set-id bits."""
        if fields.update_uid or fields.update_gid:
            uid = attr.st_uid if fields.update_uid else -1
            gid = attr.st_gid if fields.update_gid else -1
            self._tree.set_owner(descriptor, uid, gid)
        if fields.update_mode:
            self._tree.set_mode(descriptor, attr.st_mode)
        if fields.update_atime or fields.update_mtime:
            atime_ns = attr.st_atime_ns if fields.update_atime else None
            mtime_ns = attr.st_mtime_ns if fields.update_mtime else None
            self._tree.set_times(descriptor, atime_ns, mtime_ns)

    @answer
    def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        """What a symlink says."""
        return self._tree.target(self._objects.descriptor(self._objects.node(inode)))

    @answer
    def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        """Value of an extended attribute; mirrorfs's own do not exist, but virtual ones."""
        node = self._objects.node(inode)
        if capture.reserved_xattr(name):
            if name == DAEMON_XATTR and node is self._objects.table.root:
                return self._options.status()
            if name == THROUGH_XATTR:
                value = self._named_sites(node) if node.directory else None
            elif name == _EFFECTIVE_XATTR:
                value = ",".join(self.through.sites(node) or (OFF,)).encode()
            else:
                value = self._virtual.value(node, name) if self._virtual else None
            if value is not None:
                return value
            raise FUSEError(errno.ENODATA)
        return self._tree.xattr(self._objects.descriptor(node), name)

    @answer
    def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[XAttrNameT]:
        """Names of extended attributes; trusted ones for root alone, as the kernel has it."""
        names = self._tree.xattrs(self._objects.descriptor(self._objects.node(inode)))
        return [
            name
            for name in names
            if not capture.reserved_xattr(name)
            and (ctx.uid == 0 or not name.startswith(b"trusted."))
        ]

    @change
    def setxattr(self, inode: InodeT, name: XAttrNameT, value: bytes, ctx: RequestContext) -> None:
        """Set an extended attribute or an ACL."""
        node = self._objects.node(inode)
        if name == THROUGH_XATTR:
            self._name_sites(node, value, ctx)
            return
        if capture.reserved_xattr(name):
            raise FUSEError(errno.EPERM)
        self._hold(node)
        descriptor = self._objects.descriptor(node)
        with self.recorder.change:
            self._tree.set_xattr(descriptor, name, value)
        self._outdated(node)
        try:
            if name == _ACL_XATTR and ctx.uid != 0 and self._from_outside(descriptor, ctx):
                self._clear_set_group_id(descriptor)
        finally:
            self.recorder.xattr(node, name)

    def _from_outside(self, descriptor: int, ctx: RequestContext) -> bool:
        """Somebody outside its group changes an object with set-group-id: that ends it.

        In requests that set attributes the kernel does so where the group may execute the file.
        """
        attributes = self._tree.attributes(descriptor)
        if not attributes.st_mode & stat.S_ISGID or ctx.gid == attributes.st_gid:
            return False
        return not in_group(ctx.pid, attributes.st_gid)

    def _clear_set_group_id(self, descriptor: int) -> None:
        mode = self._tree.attributes(descriptor).st_mode
        self._tree.set_mode(descriptor, mode & ~stat.S_ISGID)

    @change
    def removexattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> None:
        """Remove an extended attribute or an ACL."""
        node = self._objects.node(inode)
        if name == THROUGH_XATTR:
            self._name_sites(node, None, ctx)
            return
        if capture.reserved_xattr(name):
            raise FUSEError(errno.EPERM)
        self._hold(node)
        descriptor = self._objects.descriptor(node)
        with self.recorder.change:
            self._tree.remove_xattr(descriptor, name)
        self._outdated(node)
        self.recorder.xattr(node, name)

    def _name_sites(self, node: Node, value: bytes | None, ctx: RequestContext) -> None:
        """Set or remove THROUGH_XATTR. The record tells why the change time is another one."""
        if ctx.uid != 0:
            raise FUSEError(errno.EPERM)
        if not self.through.options.possible:
            raise FUSEError(errno.EOPNOTSUPP)
        sites: tuple[str, ...] = ()
        if value is not None:
            try:
                sites = read_sites(value.decode())
            except ValueError:
                raise FUSEError(errno.EINVAL) from None
        if not node.directory:
            raise FUSEError(errno.ENOTDIR if value is not None else errno.ENODATA)
        self._hold(node)
        descriptor = self._objects.descriptor(node)
        with self.recorder.change:
            if value is None:
                self._tree.remove_xattr(descriptor, THROUGH_XATTR)
            else:
                self._tree.set_xattr(descriptor, THROUGH_XATTR, value)
        self._outdated(node)
        node.through = sites
        self.through.named(sites)
        self.recorder.attributes(node)
        self.recorder.told.clear()  # nobody waits for that

    @answer
    def statfs(self, ctx: RequestContext) -> StatvfsData:
        """Sizes of the file system below."""
        source = self._tree.statistics()
        answer = StatvfsData()
        answer.f_bsize = source.f_bsize
        answer.f_frsize = source.f_frsize
        answer.f_blocks = source.f_blocks
        answer.f_bfree = source.f_bfree
        answer.f_bavail = source.f_bavail
        answer.f_files = source.f_files
        answer.f_ffree = source.f_ffree
        answer.f_favail = source.f_favail
        answer.f_namemax = source.f_namemax
        return answer
