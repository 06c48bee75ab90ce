"""An open directory being listed, in the order and with the positions of the file system below.

Positions are the source's own, so that a listing stays right while names come and go, and after
seekdir(3). Reads a piece at a time, whatever the size of the directory.
"""

from __future__ import annotations

from typing import NamedTuple

from mirrorfs.backing_tree import BackingTree
from mirrorfs.inodes import Node


class Name(NamedTuple):
    """One name in a directory; `following` is the position after it."""

    name: bytes
    inode: int
    kind: int
    following: int


class Listing:
    """Names of one open directory from some position on.

    Attributes:
        node: the directory.
    """

    __slots__ = ("_at", "_descriptor", "_position", "_read", "_tree", "node")

    def __init__(self, tree: BackingTree, node: Node, descriptor: int) -> None:
        self.node = node
        self._tree = tree
        self._descriptor = descriptor
        self._read: list[tuple[bytes, int, int, int]] = []
        self._at = 0
        self._position: int | None = None  # of _read[_at]; None: unknown

    def seek(self, position: int) -> None:
        """The next name is the one at that position (0: the first). The start is read anew."""
        if position == 0 or position != self._position:
            self._read = self._tree.list(self._descriptor, position)
            self._at = 0
            self._position = position

    def peek(self) -> Name | None:
        """The next name; None at the end."""
        if self._at == len(self._read):
            if not self._read:
                return None
            self._read = self._tree.list(self._descriptor, None)
            self._at = 0
            if not self._read:
                return None
        return Name(*self._read[self._at])

    def advance(self) -> None:
        """Go on to the name after the next one."""
        self._position = self._read[self._at][3]
        self._at += 1
