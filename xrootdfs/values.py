"""The values that all parts speak of: servers, what they say about a path, listings.

Pure. Paths are bytes relative to the mount, without a slash at either end; the mount's root is b"".
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

ROOT: Final = b""


@dataclass(frozen=True, slots=True, order=True)
class Server:
    """A data server: its address, `host:port`, and where the mount's root is on it."""

    address: str
    prefix: bytes = b"/"

    def __str__(self) -> str:
        return self.address

    def path(self, path: bytes) -> bytes:
        """Absolute path on this server of a path in the mount."""
        if not path:
            return self.prefix
        return self.prefix + path if self.prefix.endswith(b"/") else self.prefix + b"/" + path


class Kind(enum.Enum):
    """What a name stands for."""

    FILE = "file"
    DIRECTORY = "directory"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Stat:
    """What one server says about a path.

    Attributes:
        size: in bytes.
        mode: permission bits.
        mtime, ctime, atime: in seconds since the epoch.
        owner, group: names at the server, "" if it tells none.
        pending: is made but not kept yet: it goes if its writer dies before closing it.
        id: what the server knows the object by.
    """

    kind: Kind
    size: int
    mode: int
    mtime: int
    ctime: int
    atime: int
    owner: str = ""
    group: str = ""
    pending: bool = False
    id: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """A name, as the servers that hold it describe it.

    Attributes:
        stat: of the newest copy.
        holders: who has it as that kind of thing, the one that `stat` is of first.
        current: those of the holders whose copy has the size of the newest; the same order.
        contrary: who has something of another kind there (a directory for a file).
    """

    stat: Stat
    holders: tuple[Server, ...]
    current: tuple[Server, ...]
    contrary: tuple[Server, ...] = ()

    @property
    def is_directory(self) -> bool:
        """A directory, on whichever servers."""
        return self.stat.kind is Kind.DIRECTORY

    @property
    def differing(self) -> bool:
        """The copies are not all the same."""
        return bool(self.contrary) or len(self.current) < len(self.holders)


@dataclass(frozen=True, slots=True)
class Listing:
    """A directory, merged.

    Attributes:
        entries: by name, sorted.
        holders: servers that have the directory.
        silent: servers that did not answer: what they alone hold is not in `entries`.
        passed_over: more such servers, down for so long that the operator's options let them
            count as empty.
    """

    entries: dict[bytes, Found]
    holders: tuple[Server, ...]
    silent: tuple[Server, ...] = ()
    passed_over: tuple[Server, ...] = ()

    @property
    def complete(self) -> bool:
        """Every server answered, or may be passed over."""
        return not self.silent


@dataclass(frozen=True, slots=True)
class Space:
    """Room at one server, or at several, in bytes."""

    total: int
    free: int
