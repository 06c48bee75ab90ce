"""The objects the kernel knows through the mount: their names, references and unrecorded changes.

Pure: the table holds numbers and names; opening and closing descriptors is the caller's. A node
stays while the kernel holds a lookup of it, a handle is open on it, or a node below it stays.
Paths are computed by walking up, so that renaming a directory costs the same whatever is below it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from mirrorfs.journal.record import Change, ObjectId, Who

if TYPE_CHECKING:
    from mirrorfs.activity import Entry

ROOT_NUMBER: Final = 1
"""The kernel's name for the root node, whatever its inode number is."""

NO_DESCRIPTOR: Final = -1


class Node:
    """One object, whatever its number of names.

    Attributes:
        number: what the kernel calls it; the inode number (InodeTable.number_of).
        generation: goes up when the number turns out to name another object.
        identity: its object id; None until somebody asked.
        descriptor: open O_PATH descriptor, or NO_DESCRIPTOR.
        referenced: it was used since the last search for descriptors to close.
        removed: its last name was removed.
        told: the kernel was told its attributes since it was last told that they are others now.
        directory: it is one.
        lookups: references the kernel holds.
        handles: open handles, for whatever access.
        dirty: its content changed and no record says so yet.
        writes: system calls in other threads that are changing its content now.
        who: the process that last opened it for writing.
        parent, name: one of its names; None when none is known. Further ones are in `aliases`.
        children: for a directory, the known names in it.
        activity: for a directory, the entry of `activity` that its last change relied on.
        through: for a directory, the sites that it names itself for write-through; None until
            somebody asked. inherited: those it has from above, as of so many `moves` of the table.
        due: the last record of its content, until a close has waited for the sites to have it.
    """

    __slots__ = (
        "activity",
        "aliases",
        "children",
        "descriptor",
        "directory",
        "dirty",
        "due",
        "generation",
        "handles",
        "identity",
        "inherited",
        "lookups",
        "name",
        "number",
        "parent",
        "referenced",
        "removed",
        "through",
        "told",
        "who",
        "writes",
    )

    def __init__(self, number: int, *, directory: bool, descriptor: int = NO_DESCRIPTOR) -> None:
        self.number = number
        self.generation = 0
        self.identity: ObjectId | None = None
        self.descriptor = descriptor
        self.referenced = True
        self.removed = False
        self.told = False
        self.directory = directory
        self.lookups = 0
        self.handles = 0
        self.dirty = False
        self.writes = 0
        self.who: Who | None = None
        self.parent: Node | None = None
        self.name = b""
        self.aliases: dict[tuple[Node, bytes], None] | None = None
        self.children: dict[bytes, Node] = {}
        self.activity: Entry | None = None
        self.through: tuple[str, ...] | None = None
        self.inherited: tuple[int, tuple[str, ...]] | None = None
        self.due: tuple[int, Change] | None = None

    def __repr__(self) -> str:
        return f"<node {self.number} {self.name!r}>"

    @property
    def named(self) -> bool:
        """A name of it is known; the root never has one."""
        return self.parent is not None

    def names(self) -> Iterator[tuple[Node, bytes]]:
        """All known names: directory and name in it."""
        if self.parent is not None:
            yield self.parent, self.name
        if self.aliases:
            yield from self.aliases

    def other_name(self, directory: Node, name: bytes) -> tuple[Node, bytes] | None:
        """A known name besides this one."""
        for place in self.names():
            if place[0] is not directory or place[1] != name:
                return place
        return None


class InodeTable:
    """All nodes, and the tree of the names known of them.

    `root_inode` is the inode number of the root. Numbers are inode numbers, except that the root
    is ROOT_NUMBER, and an object whose inode number is ROOT_NUMBER has the root's. `moves` counts
    what may have changed what directories inherit.
    """

    def __init__(self, root_inode: int) -> None:
        self._root_inode = root_inode
        self.moves = 0
        self.root = Node(ROOT_NUMBER, directory=True)
        self.nodes: dict[int, Node] = {ROOT_NUMBER: self.root}

    def number_of(self, inode: int) -> int:
        """The number of the object with that inode number."""
        if inode == self._root_inode:
            return ROOT_NUMBER
        return self._root_inode if inode == ROOT_NUMBER else inode

    def add(self, number: int, *, directory: bool) -> Node:
        """A new node of that number, with nothing known of it yet."""
        node = self.nodes[number] = Node(number, directory=directory)
        return node

    def bind(self, directory: Node, name: bytes, node: Node) -> list[Node]:
        """`name` in `directory` is that node. Returns nodes that left the table by this."""
        before = directory.children.get(name)
        if before is node:
            return []
        left = [] if before is None else self.unbind(directory, name)
        if node is self.root or (node.children and self._is_below(directory, node)):
            return left  # a foreign move made a circle: the lookups on the way will put it right
        if node.directory and node.parent is not None:
            left += self.unbind(node.parent, node.name)
        directory.children[name] = node
        if node.parent is None:
            node.parent, node.name = directory, name
        else:
            if node.aliases is None:
                node.aliases = {}
            node.aliases[directory, name] = None
        return left

    def unbind(self, directory: Node, name: bytes) -> list[Node]:
        """That name is gone. Returns nodes that left the table by this."""
        node = directory.children.pop(name, None)
        if node is None:
            return []
        self.moves += node.directory
        if node.parent is directory and node.name == name:
            node.parent, node.name = None, b""
            if node.aliases:
                (node.parent, node.name), _ = node.aliases.popitem()
        else:
            (node.aliases or {}).pop((directory, name), None)
        return self.leave_unused(directory) + self.leave_unused(node)

    def move(self, directory: Node, name: bytes, to_directory: Node, to_name: bytes) -> list[Node]:
        """A name became another one, displacing what stood there. Returns nodes that left."""
        node = directory.children.get(name)
        if node is None:
            return self.unbind(to_directory, to_name)
        if to_directory.children.get(to_name) is node:
            return []
        held = self._hold(directory, to_directory, node)
        left = self.unbind(directory, name)
        left += self.bind(to_directory, to_name, node)
        return left + self._let_go(held)

    def exchange(
        self, directory: Node, name: bytes, to_directory: Node, to_name: bytes
    ) -> list[Node]:
        """Two names changed their objects. Returns nodes that left the table by this."""
        here, there = directory.children.get(name), to_directory.children.get(to_name)
        held = self._hold(directory, to_directory, here, there)
        left = self.unbind(directory, name)
        left += self.unbind(to_directory, to_name)
        if here is not None:
            left += self.bind(to_directory, to_name, here)
        if there is not None:
            left += self.bind(directory, name, there)
        return left + self._let_go(held)

    def forget(self, number: int, count: int) -> list[Node]:
        """The kernel dropped `count` references. Returns nodes that left the table by this."""
        node = self.nodes.get(number)
        if node is None:
            return []
        node.lookups = max(0, node.lookups - count)
        return self.leave_unused(node)

    def closed(self, node: Node) -> list[Node]:
        """One handle less. Returns nodes that left the table by this."""
        node.handles -= 1
        return self.leave_unused(node)

    def path(self, node: Node) -> bytes | None:
        """Path relative to the root (the root: empty); None when it has no known name."""
        parts: list[bytes] = []
        while node is not self.root:
            if node.parent is None:
                return None
            parts.append(node.name)
            node = node.parent
        parts.reverse()
        return b"/".join(parts)

    def path_in(self, directory: Node, name: bytes) -> bytes | None:
        """Path of a name in a directory; None when the directory has no known name."""
        path = self.path(directory)
        if path is None:
            return None
        return path + b"/" + name if path else name

    def _hold(self, *nodes: Node | None) -> list[Node]:
        """These nodes stay in the table until `_let_go`."""
        held = [node for node in nodes if node is not None]
        for node in held:
            node.lookups += 1
        return held

    def _let_go(self, held: list[Node]) -> list[Node]:
        """Returns those of them, and of what is above them, that left the table by this."""
        for node in held:
            node.lookups -= 1
        left: list[Node] = []
        for node in held:
            if not node.lookups:
                left += self.leave_unused(node)
        return left

    def _is_below(self, node: Node | None, ancestor: Node) -> bool:
        while node is not None:
            if node is ancestor:
                return True
            node = node.parent
        return False

    def leave_unused(self, node: Node) -> list[Node]:
        """Take out a node if nobody needs it, then each directory above that stayed only for it."""
        left: list[Node] = []
        todo = [node]
        while todo:
            node = todo.pop()
            if node.lookups or node.handles or node.children or node is self.root:
                continue
            if self.nodes.get(node.number) is not node:
                continue
            del self.nodes[node.number]
            left.append(node)
            for directory, name in list(node.names()):
                directory.children.pop(name, None)
                todo.append(directory)
            node.parent, node.name, node.aliases = None, b"", None
        return left


def coldest(nodes: Iterable[Node], wanted: int) -> list[Node]:
    """Up to `wanted` nodes whose descriptor can be opened again, the ones not used lately first.

    Clears `referenced` on the way, so that the next call finds what was not used since. A nameless
    node keeps its descriptor: there may be no other way to it.
    """
    found: list[Node] = []
    spared: list[Node] = []
    for node in nodes:
        if len(found) == wanted:
            return found
        if not node.named:
            continue
        if node.referenced:
            node.referenced = False
            spared.append(node)
        else:
            found.append(node)
    return found + spared[: wanted - len(found)]
