"""What one request through mirrorfs costs, beside no FUSE and beside bindfs, in one run.

And beside mirrorfs without its activity log: what that costs where directories are warm. And how
much of a processor the daemons take.

One client, one file after the other, files of 4 KiB. In each round each of the three does the same
on a tree of its own, and who begins changes from round to round. What is not created here was made
before the mount, so the first look at each of these files, the stat, meets a mount that does not
know it yet. The file system beneath knows all of them. A file is made in each directory before the
clock starts, so that the directory is known to be changing.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks import _support, _workshop
from benchmarks._support import FILE_BYTES
from benchmarks._workshop import Workshop

_NANOSECONDS_PER_MICROSECOND = 1000
_MICROSECONDS_PER_SECOND = 1_000_000
_NAMES = ("native", "bindfs", "mirrorfs", "no activity log")
_DAEMONS = ("bindfs", "mirrorfs")


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


class _Daemon:
    """What a process has used so far; all 0 if there is none."""

    def __init__(self, mountpoint: Path) -> None:
        """Of the process that was told to mount there."""
        wanted = os.fsencode(mountpoint)
        found = [
            int(number)
            for number in filter(str.isdigit, os.listdir("/proc"))
            if wanted in _words(number)
        ]
        self._pid = found[0] if found else None

    def used(self) -> tuple[float, int]:
        """Microseconds of processors, and system calls that read."""
        if self._pid is None:
            return 0.0, 0
        stat = Path(f"/proc/{self._pid}/stat").read_bytes().rpartition(b")")[2].split()
        ticks = int(stat[11]) + int(stat[12])
        counters = dict(
            line.split(": ") for line in Path(f"/proc/{self._pid}/io").read_text().splitlines()
        )
        per_second = os.sysconf("SC_CLK_TCK")
        return ticks * _MICROSECONDS_PER_SECOND / per_second, int(counters["syscr"])


def _words(number: str) -> list[bytes]:
    try:
        return Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0")
    except OSError:  # it has ended
        return []


class _Took(NamedTuple):
    """One operation, on the mean.

    Attributes:
        microseconds: from call to answer, all its calls.
        processor: microseconds of the daemon's.
        requests: that the daemon read.
    """

    microseconds: float
    processor: float
    requests: float


def _work(tree: Path, files: int, daemon: _Daemon) -> dict[str, _Took]:
    """What each operation took: the mean over the files."""
    data = b"x" * FILE_BYTES
    took = {}
    for part in ("old", "new"):
        _create(os.fsencode(tree / part / "first"), data)
    for name, part, operation in _OPERATIONS:
        paths = [os.fsencode(tree / part / f"f{number:05}") for number in range(files)]
        processor, reads = daemon.used()
        began = time.perf_counter_ns()
        for path in paths:
            operation(path, data)
        ended = time.perf_counter_ns()
        processor_now, reads_now = daemon.used()
        own = files if operation is _read else 0  # the daemon's, of the content
        took[name] = _Took(
            (ended - began) / files / _NANOSECONDS_PER_MICROSECOND,
            (processor_now - processor) / files,
            (reads_now - reads - own) / files,
        )
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
    activity = name == "mirrorfs"
    return mountpoint, workshop.mirrorfs(source, mountpoint, journal, activity=activity)


def measure(workshop: Workshop, given: argparse.Namespace) -> None:
    """Alternate the contestants, print the tables."""
    took: dict[tuple[str, str], list[_Took]] = defaultdict(list)
    for number in range(given.rounds):
        turn = number % len(_NAMES)
        for name in _NAMES[turn:] + _NAMES[:turn]:
            source = workshop.directory(f"{name.replace(' ', '-')}-{number}")
            for part in ("old", "new"):
                (source / part).mkdir()
            _support.write_files(source / "old", given.files)
            tree, mounted = _mount(workshop, name, source)
            with mounted:
                for operation, each in _work(tree, given.files, _Daemon(tree)).items():
                    took[operation, name].append(each)
    print(f"{_support.machine()}")
    print(f"medians of {given.rounds} rounds of {given.files} files; ratios within a round\n")
    _print_times(took)
    print()
    _print_processor(took)


def _print_times(took: Mapping[tuple[str, str], list[_Took]]) -> None:
    rows = [["µs per operation", *_NAMES, "mirrorfs / bindfs", "mirrorfs / no activity log"]]
    for operation, _, _ in _OPERATIONS:
        of = {name: [each.microseconds for each in took[operation, name]] for name in _NAMES}
        row = [operation, *(f"{median(of[name]):.1f}" for name in _NAMES)]
        row += [f"{_support.ratio(of['mirrorfs'], of[name]):.2f}" for name in _NAMES[1::2]]
        rows.append(row)
    _support.print_table(rows)


def _print_processor(took: Mapping[tuple[str, str], list[_Took]]) -> None:
    """Of the daemons. The kernel's clock for it has ticks of 10 ms: the more files, the better."""
    head = [f"{name}: processor" for name in _DAEMONS]
    rows = [["µs per operation", *head, "mirrorfs: requests", "mirrorfs: processor per request"]]
    for operation, _, _ in _OPERATIONS:
        processor = [median(e.processor for e in took[operation, name]) for name in _DAEMONS]
        ours = took[operation, "mirrorfs"]
        requests = median(each.requests for each in ours)
        each_request = median(each.processor / max(each.requests, 1) for each in ours)
        row = [operation, *(f"{each:.1f}" for each in processor)]
        rows.append([*row, f"{requests:.2f}", f"{each_request:.1f}"])
    _support.print_table(rows)


if __name__ == "__main__":
    sys.exit(_workshop.main(measure, _support.parse_arguments("cost of a request", 6, 1000)))
