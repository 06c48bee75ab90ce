"""Processes that hold a tree: open files, directories, shared mappings of what is in it.

Only looks, into /proc; never asks the file system that is looked for, which may hang. Processes of
other hosts, and those that /proc does not show, cannot be seen.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from mirrorfs import mountinfo, system_calls

_SHOWN_MAX: Final = 5


@dataclass(frozen=True, slots=True)
class Holder:
    """A process: its id, its name, when it was started (a number of the kernel's)."""

    pid: int
    command: str
    started: int

    def __str__(self) -> str:
        return f"{self.pid} ({self.command})"

    @property
    def lives(self) -> bool:
        """It has not ended."""
        found = _describe(self.pid)
        return found is not None and found.started == self.started


def of_tree(source: str, device: int, exempt: Container[int]) -> list[Holder]:
    """Processes that hold something of the tree at that path, on the file system with that st_dev.

    Where the tree is a whole file system, whatever they call it in their mount table.
    """
    real = os.path.realpath(source)
    whole = any(
        (entry.path, entry.root, entry.device) == (real, "/", device)
        for entry in mountinfo.mounts()
    )
    inside = os.fsencode(real).rstrip(b"/") + b"/"

    def is_there(link: str) -> bool:
        try:
            path = os.readlink(os.fsencode(link))
        except OSError:
            return False
        if not path.startswith(b"/") or (link.endswith("/root") and path == b"/"):
            return False
        if not whole and not (path + b"/").startswith(inside):
            return False
        return _device(link) == device  # not of a mount over it

    return _found(is_there, exempt)


def of_mount(device: int, exempt: Container[int] = ()) -> list[Holder]:
    """Processes that use the mount with that st_dev, detached or not."""
    return _found(lambda link: _device(link) == device, exempt)


def words(holders: Sequence[Holder]) -> str:
    """Some of them by name."""
    more = len(holders) - _SHOWN_MAX
    shown = ", ".join(map(str, holders[:_SHOWN_MAX]))
    return f"{shown} and {more} more" if more > 0 else shown


def _found(is_there: Callable[[str], bool], exempt: Container[int]) -> list[Holder]:
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) in exempt:
            continue
        if any(map(is_there, _links(f"/proc/{name}"))):
            holder = _describe(int(name))
            if holder is not None:
                found.append(holder)
    return sorted(found, key=lambda holder: holder.pid)


def _links(process: str) -> Iterator[str]:
    """Of all that a process holds; those of private mappings, which change nothing, left out."""
    yield f"{process}/cwd"
    yield f"{process}/root"
    with contextlib.suppress(OSError):  # it is gone
        for number in os.listdir(f"{process}/fd"):
            yield f"{process}/fd/{number}"
    with contextlib.suppress(OSError), open(f"{process}/maps", "rb") as stream:
        for line in stream:
            span, mode, *_, path = line.split(b" ", 5)
            if mode.endswith(b"s") and path.lstrip().startswith(b"/"):
                first, _, end = span.decode().partition("-")
                yield f"{process}/map_files/{int(first, 16):x}-{int(end, 16):x}"


def _device(link: str) -> int:
    try:
        return system_calls.device_of(os.fsencode(link))
    except OSError:
        return -1


def _describe(pid: int) -> Holder | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read().decode(errors="replace")
    except OSError:
        return None
    name, _, rest = text.partition("(")[2].rpartition(")")
    state, *fields = rest.split()
    return None if state == "Z" else Holder(pid, name, int(fields[18]))
