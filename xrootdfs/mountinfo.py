"""What is mounted where, as /proc/self/mountinfo tells it: it answers even where a mount is dead.

Reads that one file; asks no file system anything.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Final

FILE_SYSTEM_TYPE: Final = "fuse.xrootdfs"

_ESCAPE = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One mount: where, of which type, what it calls its source, its st_dev."""

    path: str
    type: str
    source: str
    device: int

    @property
    def ours(self) -> bool:
        """An xrootdfs mount, alive or dead."""
        return self.type == FILE_SYSTEM_TYPE


def parse(data: bytes) -> list[MountEntry]:
    """The mounts, in the order of mounting."""
    entries = []
    for line in data.splitlines():
        left, _, right = line.partition(b" - ")
        fields, tail = left.split(b" "), right.split(b" ")
        major, _, minor = fields[2].partition(b":")
        entries.append(
            MountEntry(
                path=_text(fields[4]),
                type=_text(tail[0]),
                source=_text(tail[1]),
                device=os.makedev(int(major), int(minor)),
            )
        )
    return entries


def mounts() -> list[MountEntry]:
    """The mounts this process sees."""
    with open("/proc/self/mountinfo", "rb") as stream:
        return parse(stream.read())


def resolved(path: str) -> str:
    """The path without symlinks. A mountpoint itself is not looked at: what hangs would hang us."""
    directory, name = os.path.split(os.path.abspath(path))
    near = os.path.join(os.path.realpath(directory), name)
    return near if any(entry.path == near for entry in mounts()) else os.path.realpath(path)


def mounted_at(path: str) -> MountEntry | None:
    """The topmost mount with exactly that mountpoint."""
    real = resolved(path)
    return next((entry for entry in reversed(mounts()) if entry.path == real), None)


def _text(field: bytes) -> str:
    return os.fsdecode(_ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), field))
