"""Which parts of a large file are copied: kept beside its bytes, so that the next try goes on.

Pure. A file is cut into extents of one size. What is written down names the exact content it is of;
of any other it says nothing.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, Self

from replicator.stores.base import Version

_HEADER: Final = struct.Struct("<BQqqQQ16sH")
_FORMAT: Final = 1
_EXTENTS_MAX: Final = 8192
"""Their bits must fit into an extended attribute."""


@dataclass(slots=True)
class Extents:
    """The extents of a file.

    Attributes:
        version: what is copied.  boot: id (16 bytes) of the boot of the host it was read in.
        each: bytes of an extent; the last one may be shorter.
        done: bit n is set if extent n is copied.
    """

    version: Version
    boot: bytes
    each: int
    done: int = 0

    @classmethod
    def of(cls, version: Version, boot: bytes, each: int) -> Self:
        """None of them copied; at least `each` bytes, more where there would be too many."""
        return cls(version, boot, max(each, -(-version.size // _EXTENTS_MAX)))

    @property
    def count(self) -> int:
        """How many there are."""
        return -(-self.version.size // self.each)

    def missing(self) -> list[tuple[int, int, int]]:
        """(number, first byte, byte after the last) of those that are not copied."""
        size, each = self.version.size, self.each
        return [
            (number, number * each, min(size, (number + 1) * each))
            for number in range(self.count)
            if not self.done >> number & 1
        ]

    def finish(self, number: int) -> None:
        """That one is copied."""
        self.done |= 1 << number

    def finish_all(self) -> None:
        """All are."""
        self.done = (1 << self.count) - 1

    def encode(self) -> bytes:
        """The bytes kept in the attribute."""
        version = self.version
        header = _HEADER.pack(
            _FORMAT,
            version.size,
            version.mtime_ns,
            version.ctime_ns,
            version.tag,
            self.each,
            self.boot,
            len(version.object),
        )
        return header + version.object + self.done.to_bytes(-(-self.count // 8), "little")

    def resume(self, data: bytes) -> bool:
        """Take over what is done by those bytes, if they are of this very content."""
        fresh = Extents(self.version, self.boot, self.each)
        head = _HEADER.size + len(self.version.object)
        if len(data) != len(fresh.encode()) or data[:head] != fresh.encode()[:head]:
            return False
        done = int.from_bytes(data[head:], "little")
        if done >> self.count:
            return False
        self.done = done
        return True
