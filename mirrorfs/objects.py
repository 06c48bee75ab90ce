"""The objects the kernel holds, joined to the source: nodes, their descriptors and their ids.

Opens an O_PATH descriptor of a node when one is needed, and closes those not used lately when
there are too many; a node without one is opened again by its id, an open file through its node.
Makes no records and answers no requests. Everything here happens between two awaits of the one
thread that serves requests.
"""

from __future__ import annotations

import errno
import logging
import os
import stat

from mirrorfs.backing_tree import BackingTree
from mirrorfs.handles import Handle, Handles
from mirrorfs.inodes import NO_DESCRIPTOR, InodeTable, Node, coldest
from mirrorfs.journal.record import ObjectId, Place

log = logging.getLogger(__name__)

_SLOW_TO_CLOSE_BLOCKS = 64 << 11
"""A removed file of more 512-byte blocks (64 MiB) is not closed while others wait."""


class Objects:
    """All objects known at the moment, and what is open of them.

    Attributes:
        table: the nodes.
        files: the open files; the descriptors they hold count too.
        listings: open directories, of one descriptor each.
        slow_to_close: descriptors of large removed files, for another thread to close.
    """

    def __init__(self, tree: BackingTree, descriptors_max: int, *, shared: bool = False) -> None:
        """`shared`: others change the source, too: known names are looked at again."""
        self.table = InodeTable(tree.root_inode)
        self.files = Handles(tree)
        self.listings = 0
        self.slow_to_close: list[int] = []
        self._tree = tree
        self._shared = shared
        self._open: dict[Node, None] = {}
        self._step = max(16, descriptors_max // 10)
        self._descriptors_max = self._close_above = max(64, descriptors_max)
        self._refuse_from = self._descriptors_max + self._descriptors_max // 16
        self._foreign_devices: set[int] = set()
        self.table.root.descriptor = tree.root
        self.table.root.identity = tree.root_id
        self.table.root.lookups = 1

    def close(self) -> None:
        """Close all descriptors but the root's."""
        self.files.close()
        for node in self._open:
            self._tree.close_descriptor(node.descriptor)
            node.descriptor = NO_DESCRIPTOR
        self._open.clear()
        for descriptor in self.slow_to_close:
            self._tree.close_descriptor(descriptor)
        self.slow_to_close.clear()

    def node(self, number: int) -> Node:
        """The node the kernel calls so. OSError ESTALE if there is none."""
        node = self.table.nodes.get(number)
        if node is None:
            raise OSError(errno.ESTALE, "unknown inode")
        return node

    def descriptor(self, node: Node) -> int:
        """An O_PATH descriptor of it. OSError ESTALE: it was replaced behind the mount."""
        node.referenced = True
        return node.descriptor if node.descriptor >= 0 else self._reopen(node)

    def identity(self, node: Node) -> ObjectId:
        """Its object id."""
        if node.identity is None:
            node.identity = self._tree.object_id(self.descriptor(node))
        return node.identity

    def place(self, directory: Node, name: bytes) -> Place:
        """A name in a directory as records say it."""
        return Place(self.identity(directory), name)

    def known_place(self, node: Node) -> Place | None:
        """One of its known names."""
        return None if node.parent is None else self.place(node.parent, node.name)

    def look(self, directory: Node, name: bytes) -> tuple[Node, os.stat_result]:
        """What stands there now. The caller counts a lookup of it, or releases it.

        Raises FileNotFoundError, and OSError EXDEV for another file system mounted there.
        """
        where = self.descriptor(directory)
        try:
            attributes = self._tree.attributes_at(where, name)
        except FileNotFoundError:
            if name in directory.children:
                self.unbind(directory, name)
            raise
        return self.meet(directory, name, attributes), attributes

    def known(self, directory: Node, name: bytes) -> Node:
        """The node there as far as the table knows and may be believed, else as `look` finds it."""
        node = None if self._shared else directory.children.get(name)
        return self.look(directory, name)[0] if node is None else node

    def meet(
        self,
        directory: Node,
        name: bytes,
        attributes: os.stat_result,
        identity: ObjectId | None = None,
    ) -> Node:
        """The node of an object seen at a place, made if it is new. Its id, if known already."""
        if attributes.st_dev != self._tree.device:
            self._refuse_device(directory, name, attributes.st_dev)
        number = self.table.number_of(attributes.st_ino)
        node = self.table.nodes.get(number)
        if node is None:
            node = self.table.add(number, directory=stat.S_ISDIR(attributes.st_mode))
        elif node.descriptor < 0 and node.identity is not None:
            # Nothing kept the kernel below from using the number again for another object.
            identity = identity or self._tree.object_id(self.descriptor(directory), name)
            if identity != node.identity:
                node.generation += 1
                node.directory = stat.S_ISDIR(attributes.st_mode)
        if identity is not None:
            node.identity = identity
        if directory.children.get(name) is not node:
            self._leave(self.table.bind(directory, name, node))
        return node

    def unbind(self, directory: Node, name: bytes) -> None:
        """That name is gone."""
        self._leave(self.table.unbind(directory, name))

    def move(self, directory: Node, name: bytes, to_directory: Node, to_name: bytes) -> None:
        """A name became another one."""
        self._leave(self.table.move(directory, name, to_directory, to_name))

    def exchange(self, directory: Node, name: bytes, to_directory: Node, to_name: bytes) -> None:
        """Two names changed their objects."""
        self._leave(self.table.exchange(directory, name, to_directory, to_name))

    def release(self, node: Node) -> None:
        """Let go of a node that was looked up without counting a lookup."""
        if not node.lookups:
            self._leave(self.table.leave_unused(node))

    def forget(self, number: int, count: int) -> None:
        """The kernel dropped so many references."""
        self._leave(self.table.forget(number, count))

    def oldest_names(self, wanted: int) -> list[tuple[int, bytes]]:
        """Names of that many files, the ones known for longest first: directory's number, name.

        Not of directories, which may be some process's own, and not of what is open.
        """
        found: list[tuple[int, bytes]] = []
        for node in self.table.nodes.values():
            if len(found) >= wanted:
                break
            if not node.directory and not node.handles and not node.dirty:
                found += [(directory.number, name) for directory, name in node.names()]
        return found

    def room(self) -> None:
        """Before something is opened that may have to stay open.

        OSError ENFILE: what has no name, and is open, leaves no room.
        """
        if self._held < self._refuse_from:
            return
        self._close_some()
        if self._held >= self._refuse_from:
            raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))

    def opened(self, node: Node, flags: int, descriptor: int, pid: int) -> int:
        """A file was opened by that process. Returns the number of its handle."""
        node.handles += 1
        number = self.files.add(node, flags, descriptor, pid)
        self._close_some(node, self.files[number])
        return number

    def file(self, handle: Handle) -> int:
        """The descriptor of an open file. OSError ESTALE: it was removed behind the mount."""
        handle.referenced = True
        if handle.descriptor < 0:
            descriptor = self._tree.open_file(self.descriptor(handle.node), handle.flags)
            self.files.opened_again(handle, descriptor)
            self._close_some(handle.node, handle)
        return handle.descriptor

    def closed(self, number: int) -> None:
        """The last user of an open file is gone."""
        node = self.files[number].node
        try:
            self.files.remove(number)
        finally:
            self._leave(self.table.closed(node))

    def listing_opened(self, node: Node) -> None:
        """A directory was opened."""
        node.handles += 1
        self.listings += 1
        self._close_some(node)

    def listing_closed(self, node: Node) -> None:
        """It was closed."""
        self.listings -= 1
        self._leave(self.table.closed(node))

    def _reopen(self, node: Node) -> int:
        if node.identity is not None:
            descriptor = self._tree.reopen(node.identity)
        elif node.parent is not None:
            descriptor = self._tree.find(self.descriptor(node.parent), node.name)
            if self.table.number_of(self._tree.attributes(descriptor).st_ino) != node.number:
                self._tree.close_descriptor(descriptor)
                raise OSError(errno.ESTALE, "replaced behind the mount")
        else:
            raise OSError(errno.ESTALE, "no way to this object is known")
        node.descriptor = descriptor
        self._open[node] = None
        self._close_some(node)
        return descriptor

    @property
    def _held(self) -> int:
        return len(self._open) + self.files.held + self.listings

    def _close_some(self, needed: Node | None = None, in_use: Handle | None = None) -> None:
        """Stay below the limit; where everything open is needed, do not search each time."""
        held = self._held
        if held <= self._close_above:
            return
        wanted = held - self._descriptors_max + self._step
        if self.files.held > self._descriptors_max // 2:
            self.files.close_coldest(wanted // 2, in_use)
        for node in coldest(self._open, wanted):
            if node is needed or node.descriptor < 0:
                continue
            try:
                self.identity(node)  # the way back
            except OSError:
                continue
            self._tree.close_descriptor(node.descriptor)
            node.descriptor = NO_DESCRIPTOR
            del self._open[node]
        if self._held > self._descriptors_max:
            self.files.close_coldest(self._held - self._descriptors_max + self._step, in_use)
        self._close_above = max(self._descriptors_max, self._held + self._step // 2)

    def _leave(self, nodes: list[Node]) -> None:
        for node in nodes:
            descriptor = node.descriptor
            if descriptor < 0:
                continue
            node.descriptor = NO_DESCRIPTOR
            del self._open[node]
            if node.removed and self._slow(descriptor):
                self.slow_to_close.append(descriptor)
            else:
                self._tree.close_descriptor(descriptor)

    def _slow(self, descriptor: int) -> bool:
        return self._tree.attributes(descriptor).st_blocks > _SLOW_TO_CLOSE_BLOCKS

    def _refuse_device(self, directory: Node, name: bytes, device: int) -> None:
        if device not in self._foreign_devices:
            self._foreign_devices.add(device)
            path = self.table.path_in(directory, name) or name
            log.warning(
                "%s: another file system is mounted there; it is hidden and not mirrored",
                os.fsdecode(path),
            )
        raise OSError(errno.EXDEV, "another file system")
