"""Keeps names from being made below a directory while it is being renamed.

The kernel holds the directory in which a name is made, not those above it. A server makes whatever
directories are missing: a file made with a path from before the rename would bring the old one
back, and be in it. Everything else finds the name missing, and looks again.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncIterator

import trio

from xrootdfs.inodes import Node


class Moving:
    """Names being made, and directories being renamed."""

    def __init__(self) -> None:
        self._making: Counter[Node] = Counter()
        self._moving: list[Node] = []
        self._changed = trio.Event()

    @contextlib.asynccontextmanager
    async def making(self, directory: Node) -> AsyncIterator[None]:
        """Names are made in this directory; its path stays while this lasts."""
        while any(_is_below(directory, moving) for moving in self._moving):
            await self._changed.wait()
        self._making[directory] += 1
        try:
            yield
        finally:
            self._making[directory] -= 1
            if not self._making[directory]:
                del self._making[directory]
            self._tell()

    @contextlib.asynccontextmanager
    async def moving(self, directory: Node) -> AsyncIterator[None]:
        """This directory is renamed; nothing is made below it while this lasts."""
        self._moving.append(directory)
        try:
            while any(_is_below(making, directory) for making in self._making):
                await self._changed.wait()
            yield
        finally:
            self._moving.remove(directory)
            self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


def _is_below(node: Node | None, above: Node) -> bool:
    while node is not None:
        if node is above:
            return True
        node = node.parent
    return False
