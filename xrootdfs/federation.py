"""The servers as one tree: find a name, list a directory, know who holds what.

Asks the servers in parallel and lets `namespace` decide what their answers and their silences mean.
Every error is a CallError with the errno for the job. Changes nothing on any server; whoever does
tells it afterwards (`created`, `changed`, `removed`, `renamed`), before the job has its answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from xrootdfs.errors import CallError
from xrootdfs.topology import Topology
from xrootdfs.values import Found, Listing, Server, Space, Stat
from xrootdfs.xrd import Client

T = TypeVar("T")


class Federation:
    """What the mount knows and finds out."""

    client: Client
    topology: Topology

    async def find(self, path: bytes, *, fresh: bool = False) -> Found:
        """What is at a path: from what is known, or from the first servers that have it.

        `fresh`: ask, whatever is known. Raises ENOENT only when nobody can have it; ENOTDIR; EIO or
        ETIMEDOUT when a server that might have it is silent.
        """
        ...

    async def find_everywhere(self, path: bytes) -> Found:
        """The same, but every server is asked and heard: for changes, which concern all copies.

        Raises EIO also for what was found while a silent server might hold another copy.
        """
        ...

    async def exists(self, path: bytes) -> bool:
        """Is there anything? As `find_everywhere`; EIO if that cannot be known."""
        ...

    async def list(self, path: bytes, *, fresh: bool = False) -> Listing:
        """A directory, merged, with what every server says of the entries.

        An incomplete one (`Listing.silent`) is no error here: give its entries, then EIO.
        Raises ENOENT, ENOTDIR, EIO as `find`.
        """
        ...

    async def ask(
        self, servers: Iterable[Server], call: Callable[[Server], Awaitable[T]]
    ) -> dict[Server, T | CallError]:
        """Call for each server at once; wait for all, each within its deadline."""
        ...

    async def space(self) -> Space:
        """Room on all servers that answer, summed; known for ten seconds."""
        ...

    def takers(self) -> tuple[Server, ...]:
        """Servers that can be given something new now: those that are up; else suspect ones."""
        ...

    # What was changed through this mount

    def created(self, path: bytes, server: Server, stat: Stat) -> None:
        """A new name, or another holder of it. A new directory is known to be empty."""
        ...

    def changed(self, path: bytes) -> None:
        """Its size, times or attributes: they are asked for again; its holders stay known."""
        ...

    def removed(self, path: bytes) -> None:
        """The name is gone everywhere, with all that was below it."""
        ...

    def renamed(self, old: bytes, new: bytes) -> None:
        """The name, and all below it, is elsewhere; what was at `new` is gone."""
        ...

    def forget(self, path: bytes) -> None:
        """After an error, or in doubt: know nothing of this path, of its place in listings."""
        ...
