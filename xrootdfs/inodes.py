"""The names the kernel knows through the mount: a tree of nodes with references.

Pure. A node stays while the kernel holds a lookup of it, a handle is open on it, or a node below
it stays. Paths are computed by walking up, so that renaming a directory costs the same whatever is
below it. There are no hard links in a federation: a node has one name, or none after its removal.
"""

from __future__ import annotations

import hashlib
from typing import Final

ROOT_NUMBER: Final = 1
"""The kernel's name for the root."""

_NUMBER_MASK: Final = (1 << 63) - 1


class Node:
    """One file, directory or symlink.

    Attributes:
        number: what the kernel calls it.
        directory: it is one.
        lookups: references the kernel holds.
        handles: open handles.
        parent, name: where it is; parent is None for the root, and once it was removed.
        children: for a directory, the known names in it.
        changes: of its content through this mount; what was asked before the last one is old.
        told: size and modification time that the kernel was told last.
        version: of the content that the kernel may have pages of; None: of which is not known.
    """

    __slots__ = (
        "changes",
        "children",
        "directory",
        "handles",
        "lookups",
        "name",
        "number",
        "parent",
        "told",
        "version",
    )

    def __init__(self, number: int, *, directory: bool) -> None:
        self.number = number
        self.directory = directory
        self.lookups = 0
        self.handles = 0
        self.changes = 0
        self.told: tuple[int, int] | None = None
        self.version: object = None
        self.parent: Node | None = None
        self.name = b""
        self.children: dict[bytes, Node] = {}

    def __repr__(self) -> str:
        return f"<node {self.number} {self.name!r}>"

    @property
    def removed(self) -> bool:
        """It has no name any more."""
        return self.parent is None and self.number != ROOT_NUMBER


class InodeTable:
    """All nodes. Numbers come from paths: a name looked up again after the kernel forgot it mostly
    gets the number that it had, in other mounts too. No two nodes share one."""

    def __init__(self) -> None:
        self.root = Node(ROOT_NUMBER, directory=True)
        self.nodes: dict[int, Node] = {ROOT_NUMBER: self.root}

    def path(self, node: Node) -> bytes | None:
        """Path relative to the root (the root: empty); None when it, or a directory above it, was
        removed."""
        parts: list[bytes] = []
        while node is not self.root:
            if node.parent is None:
                return None
            parts.append(node.name)
            node = node.parent
        parts.reverse()
        return b"/".join(parts)

    def path_in(self, directory: Node, name: bytes) -> bytes | None:
        """Path of a name in a directory; None when the directory was removed."""
        path = self.path(directory)
        if path is None:
            return None
        return path + b"/" + name if path else name

    def meet(self, directory: Node, name: bytes, *, is_directory: bool) -> Node:
        """The node of that name, new if it was not known, or known as something else."""
        node = directory.children.get(name)
        if node is not None:
            if node.directory == is_directory:
                return node
            self.remove(directory, name)
        node = Node(self._free_number(directory, name), directory=is_directory)
        self.nodes[node.number] = node
        node.parent, node.name = directory, name
        directory.children[name] = node
        return node

    def remove(self, directory: Node, name: bytes) -> Node | None:
        """That name is gone. Returns its node, if it was known."""
        node = directory.children.pop(name, None)
        if node is None:
            return None
        node.parent, node.name = None, b""
        self.leave_unused(node)
        self.leave_unused(directory)
        return node

    def move(self, directory: Node, name: bytes, to_directory: Node, to_name: bytes) -> None:
        """A name became another one, displacing what stood there."""
        node = directory.children.get(name)
        if node is not None and to_directory.children.get(to_name) is node:
            return
        to_directory.handles += 1  # it stays while what it held goes
        self.remove(to_directory, to_name)
        if node is not None:
            del directory.children[name]
            node.parent, node.name = to_directory, to_name
            to_directory.children[to_name] = node
            self.leave_unused(directory)
        self.closed(to_directory)

    def forget(self, number: int, count: int) -> None:
        """The kernel dropped `count` references."""
        node = self.nodes.get(number)
        if node is not None:
            node.lookups = max(0, node.lookups - count)
            self.leave_unused(node)

    def closed(self, node: Node) -> None:
        """One handle less."""
        node.handles -= 1
        self.leave_unused(node)

    def leave_unused(self, node: Node | None) -> None:
        """Take out a node if nobody needs it, then each directory above that stayed for it only."""
        while node is not None and not (node.lookups or node.handles or node.children):
            if node is self.root or self.nodes.get(node.number) is not node:
                return
            del self.nodes[node.number]
            above = node.parent
            if above is not None:
                del above.children[node.name]
                node.parent = None
            node = above

    def _free_number(self, directory: Node, name: bytes) -> int:
        path = self.path_in(directory, name) or name
        digest = hashlib.blake2b(path, digest_size=8).digest()
        number = int.from_bytes(digest, "big") & _NUMBER_MASK
        while number <= ROOT_NUMBER or number in self.nodes:
            number = (number + 1) & _NUMBER_MASK
        return number
