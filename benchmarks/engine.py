"""What one request through mirrorfs costs, beside no FUSE and beside bindfs, in one run.

One client, one file after the other, files of 4 KiB. In each round each of the three does the same
on a tree of its own, and who begins changes from round to round. What is not created here was made
before the mount, so the first look at each of these files, the stat, meets a mount that does not
know it yet. The file system beneath knows all of them.
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

from benchmarks import _support, _workshop
from benchmarks._support import FILE_BYTES
from benchmarks._workshop import Workshop

_NANOSECONDS_PER_MICROSECOND = 1000


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


_OPERATIONS: tuple[tuple[str, str, Callable[[bytes, bytes], None]], ...] = (
    ("create, write 4 KiB, close", "new", _create),
    ("stat, cold", "old", _stat),
    ("open, read, close", "old", _read),
    ("open, write 4 KiB, close", "old", _rewrite),
    ("rename", "old", _rename),
    ("unlink", "old", _unlink),
)


def _work(tree: Path, files: int) -> dict[str, float]:
    """Microseconds for each operation: the mean over the files."""
    data = b"x" * FILE_BYTES
    took = {}
    for name, part, operation in _OPERATIONS:
        paths = [os.fsencode(tree / part / f"f{number:05}") for number in range(files)]
        began = time.perf_counter_ns()
        for path in paths:
            operation(path, data)
        took[name] = (time.perf_counter_ns() - began) / files / _NANOSECONDS_PER_MICROSECOND
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
    """Alternate the contestants, print the table."""
    names = ["native", "bindfs", "mirrorfs"]
    took: dict[tuple[str, str], list[float]] = defaultdict(list)
    for number in range(given.rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            source = workshop.directory(f"{name}-{number}")
            for part in ("old", "new"):
                (source / part).mkdir()
            _support.write_files(source / "old", given.files)
            tree, mounted = _mount(workshop, name, source)
            with mounted:
                for operation, microseconds in _work(tree, given.files).items():
                    took[operation, name].append(microseconds)

    print(f"µs per operation; {_support.machine()}")
    print(f"medians of {given.rounds} rounds of {given.files} files; ratios within a round\n")
    rows = [["operation", *names, "mirrorfs / bindfs"]]
    for operation, _, _ in _OPERATIONS:
        of = {name: took[operation, name] for name in names}
        ratio = _support.ratio(of["mirrorfs"], of["bindfs"])
        rows.append([operation, *(f"{median(of[n]):.1f}" for n in names), f"{ratio:.2f}"])
    _support.print_table(rows)


if __name__ == "__main__":
    sys.exit(_workshop.main(measure, _support.parse_arguments("cost of a request", 6, 1000)))
