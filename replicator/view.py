"""The source tree as the replicator looks at it: protocols, values and errors, no I/O.

Everything is addressed by object id, or by a directory object and a name in it; there are no paths
to open. What is answered is the source at that moment: it may have changed when the answer arrives,
and whoever copies must look again. `replicator.source` is the real one; the model tree of the tests
stands in for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import NamedTuple, Protocol, Self, TypeAlias

from mirrorfs.journal.record import ObjectId, Place
from replicator.stores.base import Attributes, Content


class SourceError(Exception):
    """The source could not be read.

    Attributes:
        errno: the errno behind it.
        transient: looking again later, with nothing changed by an operator, may help.
    """

    def __init__(self, message: str, errno: int, *, transient: bool) -> None:
        super().__init__(message)
        self.errno = errno
        self.transient = transient


class SourceChangedError(Exception):
    """An object changed while it was read, what was read is worth nothing: look again."""


class SourceRefusedError(Exception):
    """This is not the source tree the journal describes, or it cannot be used: say why."""


class SourceStat(NamedTuple):
    """What stat(2) says of an object, sizes in bytes, times in ns since 1970."""

    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    atime_ns: int
    ctime_ns: int
    rdev: int
    links: int


class SourceObject(Protocol):
    """One object, held open: it stays the same object whatever happens to its names.

    A context manager; leaving it gives the descriptor back. The fields are those of the moment it
    was opened; `stat` looks again. All methods may raise SourceError.
    """

    @property
    def id(self) -> ObjectId:
        """Its identity."""

    @property
    def mode(self) -> int:
        """st_mode."""

    @property
    def uid(self) -> int:
        """Owner."""

    @property
    def gid(self) -> int:
        """Group."""

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def mtime_ns(self) -> int:
        """Modification time."""

    @property
    def atime_ns(self) -> int:
        """Access time."""

    @property
    def ctime_ns(self) -> int:
        """Change time."""

    @property
    def rdev(self) -> int:
        """Device number of a device node."""

    @property
    def links(self) -> int:
        """Link count; 0: it has no name any more."""

    def seen(self) -> SourceStat:
        """The same as it was when it was opened: nothing is looked at."""

    def stat(self) -> SourceStat:
        """The same as it is now."""

    def xattrs(self) -> dict[bytes, bytes]:
        """Its extended attributes as `Attributes.xattrs` defines them."""

    def target(self) -> bytes:
        """Where a symlink points."""

    def attributes(self, now: SourceStat | None = None) -> Attributes:
        """All that a copy gets beyond its content, as it is now; `now` if that was asked before."""

    def content(self) -> AbstractContextManager[Content]:
        """The content of a regular file, open for reading without touching its access time."""

    def close(self) -> None:
        """Give the descriptor back (twice does no harm)."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


Steps: TypeAlias = list[tuple[ObjectId, bytes, ObjectId]]


class SourceTree(Protocol):
    """The source. The reserved name at its root is never shown.

    All methods may raise SourceError.
    """

    @property
    def partial(self) -> bool:
        """Whether there is more than it shows: what has records need not be there."""

    @property
    def root(self) -> SourceObject:
        """The root directory; it stays open, leaving it as a context does not close it."""

    def open(self, id: ObjectId) -> SourceObject | None:
        """The object of that id; None when it does not exist (any more) or has no name left."""

    def lookup(self, directory: SourceObject, name: bytes) -> SourceObject | None:
        """The object at that place, symlinks not followed; None if there is none."""

    def ancestors(self, directory: SourceObject) -> Steps | None:
        """The way from the root down to a directory: (parent, name, child) for every step.

        Empty for the root itself, None if it is not below the root (any more). Every step held
        when it was looked at; with renames going on, not necessarily all at one moment.
        """

    def path_key(self, directory: SourceObject) -> bytes | None:
        """Something cheap that changes when the directory moves, itself or with an ancestor: equal
        key and equal id mean that it stands under the same names. The directories above it may be
        others, made again under the old names. None: cannot be told."""

    def settle_delay(self, ctime_ns: int) -> float:
        """Seconds until that change time is old enough that any later change of its object gives
        another one. 0: it is already."""

    def is_quiet(self, ctime_ns: int) -> bool:
        """Whether that change time is so old that the change behind it is surely complete."""

    def list(self, directory: SourceObject) -> list[bytes]:
        """The names in a directory, in no order; none if it was removed meanwhile."""

    def hides(self, id: ObjectId, places: Iterable[Place]) -> bool:
        """Whether it is at one of these places, but not shown there."""
