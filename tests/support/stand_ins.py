"""What a mirror of a model tree has in place of a site and its workers, both under control."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import Any

from replicator.staging import Copying
from replicator.stores.base import Directory, StoreError, Syncing
from replicator.stores.memory import MemoryStore, Node

WRITES = ("stage", "set_attributes", "set_mark", "set_directory_times", "append_file", "write_file")
MUTATIONS = ("commit", "extend", "move", "exchange", "link", "remove", "keep")


class CrashError(BaseException):
    """The replicator is killed here."""


class StrangeError(BaseException):
    """The site shows what it must not. (Nothing holds it up on its way to the test.)"""


class WatchedStore:
    """A memory store that tells of every change, and can crash or fail before one."""

    def __init__(self, inner: MemoryStore, after: Callable[[], None]) -> None:
        self.inner = inner
        self.after = after
        self.crash_in = -1
        self.fail_in = -1
        self.errno = errno.EIO
        self.synced: list[Node] = []

    def syncing(
        self, wanted: Iterable[tuple[Directory, bytes | None]], *, whole: bool = False
    ) -> Syncing:
        """See SiteStore. Notes what that is about, as if it were done at once."""
        known = list(wanted)
        for directory, name in known:
            assert isinstance(directory, Node)
            found = directory if name is None else (directory.children or {}).get(name)
            self.synced += [] if found is None else [found]
        self.synced += self.inner.nodes() if whole else []
        return self.inner.syncing(known)

    def upset(self) -> None:
        """Crash or fail, if it is time."""
        if self.crash_in == 0:
            raise CrashError
        if self.fail_in == 0:
            raise StoreError.of("the disk", self.errno)
        self.crash_in -= 1
        self.fail_in -= 1

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.inner, name)
        if name not in MUTATIONS and name not in WRITES:
            return method

        def watched(*args: Any, **options: Any) -> Any:
            self.upset()
            result = method(*args, **options)
            if name in MUTATIONS:
                self.after()
            return result

        return watched


class FakeWorkers:
    """Workers that do as they are told: copy now, tell of it later.

    Attributes:
        waiting: what they were given, and have not begun.
        done: what was copied, and is not told of yet.
        copied: how often something was copied.
    """

    def __init__(self, random: Random) -> None:
        self.random = random
        self.waiting: list[tuple[Copying, Callable[[Copying], None]]] = []
        self.done: list[Copying] = []
        self.told: list[Copying] = []
        self.copied = 0

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.done)

    def share(self, parts: Sequence[Callable[[], None]]) -> None:
        for part in self.random.sample(parts, len(parts)):
            part()

    def allow(self, count: int, go_on: Callable[[], None] | None) -> int:
        if go_on is not None:
            go_on()
        return count

    def idle(self, size: int) -> bool:
        return True

    def begin(self, copying: Copying, run: Callable[[Copying], None]) -> None:
        self.waiting.append((copying, run))

    def copy(self) -> None:
        """Copy one of those that wait."""
        if self.waiting:
            copying, run = self.waiting.pop(self.random.randrange(len(self.waiting)))
            self.copied += 1
            run(copying)
            self.done.append(copying)

    def tell(self) -> None:
        """`landed` tells of one that was copied."""
        if self.done:
            self.told.append(self.done.pop(self.random.randrange(len(self.done))))

    def landed(self) -> list[Copying]:
        told, self.told = self.told, []
        return told

    def wait(self) -> None:
        while not self.told:
            assert self.waiting or self.done, "nothing is being copied"
            self.copy()
            self.tell()
