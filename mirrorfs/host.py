"""What doctor asks of the host: its kernel, its clock, its limits, who uses a tree.

Only looks. Each function is one check, or a fact that checks need.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator, Set
from typing import Final

from mirrorfs import mountinfo, system_calls
from mirrorfs.findings import Finding, ok, warning

_KERNEL_MIN: Final = (5, 4)
_PASSTHROUGH: Final = (6, 9)
_DESCRIPTORS_MIN: Final = 16384
_SHOWN_MAX: Final = 5


def kernel() -> Finding:
    """Version and what of FUSE it has."""
    release = os.uname().release
    number = tuple(int(part) for part in release.split("-")[0].split(".")[:2] if part.isdigit())
    if number < _KERNEL_MIN:
        oldest = ".".join(map(str, _KERNEL_MIN))
        return warning("kernel", f"Linux {release}: older than tested", f"use {oldest} or newer")
    has = "has" if number >= _PASSTHROUGH else "has no"
    return ok("kernel", f"Linux {release}, {has} FUSE passthrough (this engine does not use it)")


def descriptors() -> Finding:
    """How many files a mirrorfs may have open."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < _DESCRIPTORS_MIN:
        do = "raise LimitNOFILE= of the unit, or nofile in limits.conf"
        return warning("descriptors", f"{hard} allowed: objects will be opened again often", do)
    return ok("descriptors", f"{hard} allowed")


def clock() -> Finding:
    """Whether something keeps it right."""
    state, error_us = system_calls.clock_state()
    if state is None:
        return ok("clock", "its state is not told here")
    if not state:
        do = "run chronyd, ntpd or systemd-timesyncd: times in the journal and lags are by it"
        return warning("clock", "not synchronised", do)
    return ok("clock", f"synchronised, within {error_us / 1000:.1f} ms at most")


def file_system_type(device: int) -> str:
    """Of a mounted file system."""
    kinds = (entry.type for entry in mountinfo.mounts() if entry.device == device)
    return next(kinds, "a file system that is not among the mounts")


def users(source: str, root: int, ours: Set[int]) -> Iterator[Finding]:
    """Processes that hold the raw source: what they change, a mount does not see."""
    device = os.fstat(root).st_dev
    found = sorted(set(_holding(os.path.realpath(source), device)) - ours)
    if not found:
        yield ok("processes", f"{source}: none holds it past the mount")
        return
    names = [f"{pid} ({_command(pid)})" for pid in found[:_SHOWN_MAX]]
    more = f" and {len(found) - _SHOWN_MAX} more" if len(found) > _SHOWN_MAX else ""
    what = f"{source}: held by {', '.join(names)}{more}: a mount does not see what they change"
    yield warning("processes", what, "end them, or start them again through the mount")


def _holding(source: str, device: int) -> Iterator[int]:
    """Processes with a directory or an open file there, on the file system below."""
    for name in os.listdir("/proc"):
        if name.isdigit() and any(
            _is_there(link, source, device) for link in _links(f"/proc/{name}")
        ):
            yield int(name)


def _links(process: str) -> Iterator[str]:
    yield f"{process}/cwd"
    yield f"{process}/root"
    try:
        for number in os.listdir(f"{process}/fd"):
            yield f"{process}/fd/{number}"
    except OSError:  # it is gone
        return


def _is_there(link: str, source: str, device: int) -> bool:
    try:
        path = os.readlink(link)
        if path != source and not path.startswith(source.rstrip("/") + "/"):
            return False
        if link.endswith("/root") and path == "/":
            return False
        return os.stat(link).st_dev == device  # not of a mount over it
    except OSError:
        return False


def _command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return "?"
