"""Files that have only grown: the beginning is proven, byte for byte, and the rest appended.

Where the site's file system can share blocks, the new file is made of the blocks of the old one and
the rest, and takes its place by a rename as any other. Where it cannot, the rest is staged by
itself, and appended to the file where it stands: whoever reads it meanwhile sees a longer beginning
of its content. Errors are OSError, or as the source puts them.
"""

from __future__ import annotations

import enum
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from replicator import system_calls
from replicator.copying import begins_alike, clone, copied, copy_extent
from replicator.stores.attributes import change, write_mark
from replicator.stores.base import Attributes, Base, Content, Mark, MarkFlag, Version

TAIL_BYTES_MAX: Final = 64 << 20
"""Longer rests are not appended in place: steps are done one after the other, and this is one."""

_READ: Final = os.O_RDONLY | os.O_NOATIME | os.O_CLOEXEC
_APPEND: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOATIME | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class FileBase:
    """A file of the site: its handle, and how long it is."""

    type: int
    handle: bytes
    size: int


class Grown(enum.Enum):
    """What was staged."""

    NOTHING = enum.auto()
    WHOLE = enum.auto()
    TAIL = enum.auto()


def base_of(file: int) -> FileBase | None:
    """That regular file (O_PATH will do); None if it is none, or has no handle."""
    found = os.fstat(file)
    try:
        told = system_calls.handle_of(file)
    except OSError:
        return None
    if not stat.S_ISREG(found.st_mode):
        return None
    return FileBase(told.type, told.handle, found.st_size)


def grow(site: int, base: Base, content: Content, version: Version, stage: int) -> Grown:
    """Make the empty file `stage` what `content` is, of what `base` has of it; NOTHING: `base` is
    not its beginning, or that would be of no use. `site`: a descriptor of the site's root."""
    assert isinstance(base, FileBase)
    try:
        file = system_calls.open_handle(site, base.type, base.handle, _READ)
    except OSError:
        return Grown.NOTHING
    try:
        return _grow(file, base, content, version, stage)
    finally:
        os.close(file)


def _grow(file: int, base: FileBase, content: Content, version: Version, stage: int) -> Grown:
    found, source = os.fstat(file), content.fileno()
    if found.st_size != base.size or not base.size < version.size:
        return Grown.NOTHING
    if clone(source, stage):
        copied(source, stage, version.size)
        return Grown.WHOLE
    try:
        if not begins_alike(source, file, base.size, content.check):
            return Grown.NOTHING
    except OSError:  # it is the site's file that cannot be read
        return Grown.NOTHING
    whole = clone(file, stage)
    if not whole and version.size - base.size > TAIL_BYTES_MAX:
        return Grown.NOTHING
    os.ftruncate(stage, version.size)
    copy_extent(source, stage, base.size, version.size, content.check)
    copied(source, stage, version.size)
    return Grown.WHOLE if whole else Grown.TAIL


@dataclass(frozen=True, slots=True)
class Tail:
    """The rest of a file, staged at the offsets it will have.

    Attributes:
        stage, slot: where.  size: of the whole file.
        mark: the mark it gets, asked for when it is appended: no state is saved meanwhile.
    """

    stage: int
    slot: bytes
    base: FileBase
    size: int
    attributes: Attributes
    mark: Mark | Callable[[], Mark]

    def append_to(self, directory: int, name: bytes) -> int | None:
        """See SiteStore.extend; how many attributes were refused, None: it is not the base.

        A name more than one may be in `kept`, or an operator's: what was put there stays.
        """
        file = os.open(name, _APPEND, dir_fd=directory)
        try:
            if base_of(file) != self.base or os.fstat(file).st_nlink != 1:
                return None
            rest = os.open(self.slot, _READ, dir_fd=self.stage)
            try:
                return self._append(file, rest)
            finally:
                os.close(rest)
        finally:
            os.close(file)

    def _append(self, file: int, rest: int) -> int:
        told = self.mark() if callable(self.mark) else self.mark
        write_mark(file, replace(told, flags=told.flags & ~MarkFlag.CONTENT))
        os.fsync(file)
        copy_extent(rest, file, self.base.size, self.size)
        if os.fstat(file).st_size < self.size:  # it ends with a hole
            os.fdatasync(file)  # else a power cut might leave the hole, and not what is before it
            os.ftruncate(file, self.size)
        return change(file, os.fstat(file), self.attributes, told)
