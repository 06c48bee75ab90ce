"""Open files: what the kernel calls them, and the descriptors behind them.

A file stays open for its job however many there are: a descriptor that was not used lately may be
closed, and is opened again when its file is used. Which one goes, and when, is decided here and in
`objects`; this module opens nothing and knows no requests.
"""

from __future__ import annotations

import os
from typing import Final

from mirrorfs.backing_tree import BackingTree, wants_write
from mirrorfs.inodes import NO_DESCRIPTOR, Node

_ONCE: Final = os.O_CREAT | os.O_EXCL | os.O_TRUNC
_SLOW: Final = os.O_SYNC | os.O_DSYNC


class Handle:
    """An open file.

    Attributes:
        node: the object.
        flags: of open(2), to open it again with.
        writable: it may be written.  synchronous: each write waits for the disk.
        descriptor: the descriptor, or NO_DESCRIPTOR.
        referenced: it was used since the last search for descriptors to close.
        pid: the process that opened it.
        busy: system calls in other threads that use the descriptor now.
        error: what closing the descriptor told, for the next flush to tell.
    """

    __slots__ = (
        "busy",
        "descriptor",
        "error",
        "flags",
        "node",
        "pid",
        "referenced",
        "synchronous",
        "writable",
    )

    def __init__(self, node: Node, flags: int, descriptor: int, pid: int) -> None:
        self.node = node
        self.pid = pid
        self.flags = flags & ~_ONCE
        self.writable = wants_write(flags)
        self.synchronous = bool(flags & _SLOW)
        self.descriptor = descriptor
        self.referenced = True
        self.busy = 0
        self.error: OSError | None = None


class Handles:
    """All open files, by the numbers the kernel knows them by."""

    def __init__(self, tree: BackingTree) -> None:
        self._tree = tree
        self._numbered: dict[int, Handle] = {}
        self._open: dict[Handle, None] = {}
        self._last = 0

    def __len__(self) -> int:
        return len(self._numbered)

    def __getitem__(self, number: int) -> Handle:
        return self._numbered[number]

    def get(self, number: int) -> Handle | None:
        """The same; None if there is none."""
        return self._numbered.get(number)

    @property
    def held(self) -> int:
        """How many descriptors they hold."""
        return len(self._open)

    def add(self, node: Node, flags: int, descriptor: int, pid: int) -> int:
        """A file was opened. Returns its number."""
        self._last += 1
        handle = Handle(node, flags, descriptor, pid)
        self._numbered[self._last] = handle
        self._open[handle] = None
        return self._last

    def opened_again(self, handle: Handle, descriptor: int) -> None:
        """It has a descriptor again."""
        handle.descriptor = descriptor
        self._open[handle] = None

    def remove(self, number: int) -> Handle:
        """Close it."""
        handle = self._numbered.pop(number)
        if handle.descriptor >= 0:
            del self._open[handle]
            self._tree.close_descriptor(handle.descriptor)
            handle.descriptor = NO_DESCRIPTOR
        return handle

    def close_coldest(self, wanted: int, needed: Handle | None) -> None:
        """Close up to `wanted` descriptors that can be opened again, first those not used lately.

        To a nameless object its node's descriptor is the only way; where there is none, its
        handle keeps its own.
        """
        spared: list[Handle] = []
        found: list[Handle] = []
        for handle in self._open:
            if len(found) == wanted:
                break
            node = handle.node
            if handle is needed or handle.busy or not (node.named or node.descriptor >= 0):
                continue
            if handle.referenced:
                handle.referenced = False
                spared.append(handle)
            else:
                found.append(handle)
        for handle in found + spared[: wanted - len(found)]:
            del self._open[handle]
            descriptor, handle.descriptor = handle.descriptor, NO_DESCRIPTOR
            try:
                self._tree.close_descriptor(descriptor)
            except OSError as error:
                handle.error = error

    def close(self) -> None:
        """Close all."""
        for number in list(self._numbered):
            self.remove(number)
