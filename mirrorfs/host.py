"""What doctor asks of the host: its kernel, its clock, its limits, who uses a tree.

Only looks. Each function is one check, or a fact that checks need.
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator, Set
from typing import Final

from mirrorfs import holders, mountinfo, system_calls
from mirrorfs.findings import Finding, ok, warning
from mirrorfs.site_reports import read_reports

_KERNEL_MIN: Final = (5, 4)
_PASSTHROUGH: Final = (6, 9)
_DESCRIPTORS_MIN: Final = 16384


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
    found = holders.of_tree(source, os.fstat(root).st_dev, ours)
    if not found:
        yield ok("processes", f"{source}: none holds it past the mount")
        return
    what = f"{source}: held by {holders.words(found)}: a mount does not see what they change"
    yield warning("processes", what, "end them, or start them again through the mount")


def replicators(journal: str) -> set[int]:
    """Replicators of this host that follow that journal: they hold the source, and only read."""
    here = os.uname().nodename
    found = set()
    for _, report in read_reports(journal):
        if report is None or report.host != here:
            continue
        with contextlib.suppress(OSError), open(f"/proc/{report.pid}/cmdline", "rb") as file:
            if b"replicator" in file.read():
                found.add(report.pid)
    return found
