"""What one request through mirrorfs costs, beside no FUSE and beside bindfs, in one run.

One client, one file after the other, files of 4 KiB. In each round each of the three does the same
on a tree of its own, and who begins changes from round to round. What is not created here was made
before the mount, so the first look at each of these files, the stat, meets a mount that does not
know it yet. The file system beneath knows all of them.

The time has two parts: the work, and waking who waits for it on another core, which is dear on a
virtual machine. With everything on one core there is only the first.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks import _support, _workshop
from benchmarks._support import FILE_BYTES
from benchmarks._workshop import Workshop

_NANOSECONDS_PER_MICROSECOND = 1000
_CONTESTANTS = ["native", "bindfs", "mirrorfs"]


def _create(path: bytes, data: bytes) -> None:
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    os.write(descriptor, data)
    os.close(descriptor)


def _stat(path: bytes, _data: bytes) -> None:
    os.lstat(path)


def _read(path: bytes, _data: bytes) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.read(descriptor, 2 * FILE_BYTES)
    os.close(descriptor)


def _rewrite(path: bytes, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    os.write(descriptor, data)
    os.close(descriptor)


def _rename(path: bytes, _data: bytes) -> None:
    os.replace(path, path + b".renamed")


def _unlink(path: bytes, _data: bytes) -> None:
    os.unlink(path + b".renamed")


class _Operation(NamedTuple):
    """`part` of the tree it is done in; `requests` the kernel sends to mirrorfs for it."""

    name: str
    part: str
    do: Callable[[bytes, bytes], None]
    requests: int


_OPERATIONS = (
    # LOOKUP, GETATTR of the directory, CREATE, GETXATTR, WRITE, FLUSH, RELEASE
    _Operation("create, write 4 KiB, close", "new", _create, 7),
    # LOOKUP
    _Operation("stat, cold", "old", _stat, 1),
    # OPEN, READ, FLUSH, RELEASE
    _Operation("open, read, close", "old", _read, 4),
    # OPEN, GETXATTR, WRITE, FLUSH, RELEASE
    _Operation("open, write 4 KiB, close", "old", _rewrite, 5),
    # LOOKUP, GETATTR of the directory, RENAME
    _Operation("rename", "old", _rename, 3),
    # GETATTR of the directory, UNLINK
    _Operation("unlink", "old", _unlink, 2),
)


def _work(tree: Path, files: int) -> dict[str, float]:
    """Microseconds for each operation: the mean over the files."""
    data = b"x" * FILE_BYTES
    took = {}
    for each in _OPERATIONS:
        paths = [os.fsencode(tree / each.part / f"f{number:05}") for number in range(files)]
        began = time.perf_counter_ns()
        for path in paths:
            each.do(path, data)
        took[each.name] = (time.perf_counter_ns() - began) / files / _NANOSECONDS_PER_MICROSECOND
    return took


def _mount(
    workshop: Workshop, name: str, source: Path
) -> tuple[Path, AbstractContextManager[None]]:
    """Where that contestant shows its source, and what mounts it."""
    if name == "native":
        return source, nullcontext()
    mountpoint = workshop.directory(f"{source.name}-mount")
    if name == "bindfs":
        return mountpoint, workshop.bindfs(source, mountpoint)
    journal = workshop.directory(f"{source.name}-journal")
    return mountpoint, workshop.mirrorfs(source, mountpoint, journal)


def measure(workshop: Workshop, given: argparse.Namespace) -> None:
    """One table on all cores, one with client and file system on the same core."""
    cores = os.sched_getaffinity(0)
    print(f"µs per operation; {_support.machine()}")
    print(f"medians of {given.rounds} rounds of {given.files} files; ratios within a round")
    for title, chosen in (("on all cores", cores), ("on one core", {max(cores)})):
        os.sched_setaffinity(0, chosen)
        try:
            _print(title, _measure(workshop, given, title.replace(" ", "-")))
        finally:
            os.sched_setaffinity(0, cores)


def _measure(
    workshop: Workshop, given: argparse.Namespace, label: str
) -> dict[tuple[str, str], list[float]]:
    """Alternate the contestants."""
    took: dict[tuple[str, str], list[float]] = defaultdict(list)
    for number in range(given.rounds):
        turn = number % len(_CONTESTANTS)
        for name in _CONTESTANTS[turn:] + _CONTESTANTS[:turn]:
            source = workshop.directory(f"{name}-{number}-{label}")
            for part in ("old", "new"):
                (source / part).mkdir()
            _support.write_files(source / "old", given.files)
            tree, mounted = _mount(workshop, name, source)
            with mounted:
                for operation, microseconds in _work(tree, given.files).items():
                    took[operation, name].append(microseconds)
    return took


def _print(title: str, took: dict[tuple[str, str], list[float]]) -> None:
    rows = [[title, *_CONTESTANTS, "mirrorfs / bindfs", "mirrorfs, a request"]]
    for each in _OPERATIONS:
        of = {name: took[each.name, name] for name in _CONTESTANTS}
        ratio = _support.ratio(of["mirrorfs"], of["bindfs"])
        request = median(of["mirrorfs"]) / each.requests
        times = (f"{median(of[name]):.1f}" for name in _CONTESTANTS)
        rows.append([each.name, *times, f"{ratio:.2f}", f"{request:.1f}"])
    print()
    _support.print_table(rows)


if __name__ == "__main__":
    sys.exit(_workshop.main(measure, _support.parse_arguments("cost of a request", 6, 1000)))
