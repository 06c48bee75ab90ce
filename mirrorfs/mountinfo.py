"""What is mounted where, as /proc/self/mountinfo tells it: it answers even where a mount is dead.

Reads that one file; asks no file system anything.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Final

FILE_SYSTEM_TYPE: Final = "fuse.mirrorfs"

_ESCAPE = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One mount: where, of which type, what it calls its source, its st_dev.

    Attributes:
        id, parent: its number, and that of the mount it is put on.
        root: which directory of its file system it shows.
        words: "ro", "nosuid" and the like, of the mount and of its file system.
    """

    path: str
    type: str
    source: str
    device: int
    id: int = 0
    parent: int = 0
    root: str = "/"
    words: frozenset[str] = frozenset()

    @property
    def ours(self) -> bool:
        """A mirrorfs mount, alive or dead."""
        return self.type == FILE_SYSTEM_TYPE


def parse(data: bytes) -> list[MountEntry]:
    """The mounts, in the order the kernel tells them."""
    entries = []
    for line in data.splitlines():
        left, _, right = line.partition(b" - ")
        fields, tail = left.split(b" "), right.split(b" ")
        major, _, minor = fields[2].partition(b":")
        words = fields[5].split(b",") + (tail[2].split(b",") if len(tail) > 2 else [])
        entries.append(
            MountEntry(
                path=_text(fields[4]),
                type=_text(tail[0]),
                source=_text(tail[1]),
                device=os.makedev(int(major), int(minor)),
                id=int(fields[0]),
                parent=int(fields[1]),
                root=_text(fields[3]),
                words=frozenset(map(_text, words)),
            )
        )
    return entries


def mounts() -> list[MountEntry]:
    """The mounts this process sees."""
    with open("/proc/self/mountinfo", "rb") as stream:
        return parse(stream.read())


def mounted_at(path: str) -> MountEntry | None:
    """The topmost mount with exactly that mountpoint.

    What stands at `path` is asked only if there seems to be none: a mount may hang.
    """
    above, name = os.path.split(os.path.abspath(path))
    direct = os.path.join(os.path.realpath(above), name)
    found = stacked_at(direct) or stacked_at(os.path.realpath(path))
    return found[0] if found else None


def stacked_at(real: str) -> list[MountEntry]:
    """All mounts with that mountpoint (a path without symlinks), the topmost first.

    The order of the list says nothing: a mount may have been put beneath another.
    """
    left = [entry for entry in mounts() if entry.path == real]
    found: list[MountEntry] = []
    while left:
        parents = {entry.parent for entry in left}
        top = next((entry for entry in reversed(left) if entry.id not in parents), left[-1])
        left.remove(top)
        found.append(top)
    return found


def _text(field: bytes) -> str:
    return os.fsdecode(_ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), field))
