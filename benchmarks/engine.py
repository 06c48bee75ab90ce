"""What one request through mirrorfs costs, beside no FUSE and beside bindfs, in one run.

One client, one file after the other, files of 4 KiB. In each round each of the four does the same
on a tree of its own, and who begins changes from round to round. What is not created here was made
before the mount, so the first look at each of these files, the stat, meets a mount that does not
know it yet. The file system beneath knows all of them. A file is made in each directory before the
clock starts: the activity log, without which mirrorfs is measured, too, knows them then.

The time has two parts: the work, and waking who waits for it on another core, which is dear on a
virtual machine. With everything on one core there is only the first. The second table of each pair
has what the daemons take of a processor.
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
_CONTESTANTS = ["native", "bindfs", "mirrorfs", "no activity log"]


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


_READS = (_create, _read, _rewrite)
"""For these the daemon reads once itself: the content, or whether the writer's process lives."""


class _Daemon:
    """What a process has used so far; all 0 if there is none."""

    def __init__(self, mountpoint: Path) -> None:
        """Of the process that serves there: the child of the one that was told to mount."""
        wanted = os.fsencode(mountpoint)
        found = [
            int(number)
            for number in filter(str.isdigit, os.listdir("/proc"))
            if wanted in _words(number)
        ]
        self._pid = next((pid for pid in found if _parent(pid) in found), min(found, default=None))

    def used(self) -> tuple[float, int]:
        """Microseconds of processors, and system calls that read."""
        if self._pid is None:
            return 0.0, 0
        clock = (~self._pid << 3) | 2  # clock_getcpuclockid(3)
        nanoseconds = time.clock_gettime_ns(clock)
        counters = dict(
            line.split(": ") for line in Path(f"/proc/{self._pid}/io").read_text().splitlines()
        )
        return nanoseconds / _NANOSECONDS_PER_MICROSECOND, int(counters["syscr"])


def _parent(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:  # it has ended
        return 0
    return int(stat[1])


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
    for each in _OPERATIONS:
        paths = [os.fsencode(tree / each.part / f"f{number:05}") for number in range(files)]
        processor, reads = daemon.used()
        began = time.perf_counter_ns()
        for path in paths:
            each.do(path, data)
        ended = time.perf_counter_ns()
        processor_now, reads_now = daemon.used()
        own = files if each.do in _READS else 0
        took[each.name] = _Took(
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
) -> dict[tuple[str, str], list[_Took]]:
    """Alternate the contestants."""
    took: dict[tuple[str, str], list[_Took]] = defaultdict(list)
    for number in range(given.rounds):
        turn = number % len(_CONTESTANTS)
        for name in _CONTESTANTS[turn:] + _CONTESTANTS[:turn]:
            source = workshop.directory(f"{name.replace(' ', '-')}-{number}-{label}")
            for part in ("old", "new"):
                (source / part).mkdir()
            _support.write_files(source / "old", given.files)
            tree, mounted = _mount(workshop, name, source)
            with mounted:
                for operation, each in _work(tree, given.files, _Daemon(tree)).items():
                    took[operation, name].append(each)
    return took


def _print(title: str, took: dict[tuple[str, str], list[_Took]]) -> None:
    ratios = [f"mirrorfs / {name}" for name in _CONTESTANTS[1::2]]
    times = [[title, *_CONTESTANTS, *ratios, "mirrorfs, a request"]]
    daemons = [f"{name}: processor" for name in _CONTESTANTS[1:]]
    processor = [[title, *daemons, "mirrorfs: requests", "mirrorfs: processor, a request"]]
    for each in _OPERATIONS:
        of = {name: [t.microseconds for t in took[each.name, name]] for name in _CONTESTANTS}
        row = [each.name, *(f"{median(of[name]):.1f}" for name in _CONTESTANTS)]
        row += [f"{_support.ratio(of['mirrorfs'], of[n]):.2f}" for n in _CONTESTANTS[1::2]]
        times.append([*row, f"{median(of['mirrorfs']) / each.requests:.1f}"])
        ours = took[each.name, "mirrorfs"]
        row = [each.name]
        row += [f"{median(t.processor for t in took[each.name, n]):.1f}" for n in _CONTESTANTS[1:]]
        row.append(f"{median(t.requests for t in ours):.2f}")
        processor.append([*row, f"{median(t.processor / max(t.requests, 1) for t in ours):.1f}"])
    for table in (times, processor):
        print()
        _support.print_table(table)


if __name__ == "__main__":
    sys.exit(_workshop.main(measure, _support.parse_arguments("cost of a request", 6, 1000)))
