"""How fast a burst of small files that waits in the journal comes to a site, beside `cp -a`,
`rsync -a` and lsyncd, in one run.

In each round the files are written through the mount while no replicator runs, in directories of
100; then one is started, and what counts is the time until nothing at the site changes any more:
since its start, and since the first change it made. `cp` and `rsync` copy the same files to an
empty directory each. lsyncd watches a tree, with the shortest delay it has that gathers changes (a
second), into which `cp -a` brings the same files; its time is from the start of that `cp`. All
copies are compared at the end. Also told: the processor time of each for one file, and the time
until what was copied is on the disk: for the replicator, until `replicator wait now` returns, which
began with it; for `cp` and `rsync`, until the file system has been synced after them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks import _support, _workshop
from benchmarks._workshop import BenchmarkError, Workshop

_SECOND_NS = 1_000_000_000
_LOOK_SECONDS = 0.1

_STARTED = "replicator, since its start"
_WORKED = "replicator, since its first change"
_SAVED = "replicator, until `replicator wait now` returned"
_LSYNCD = "lsyncd (delay = 1)"
_COPIES = ("cp -a", "rsync -a")
_SYNCED = " and sync"


def _changes(tree: Path) -> tuple[int, int]:
    """When something in it was changed first and last, in nanoseconds of the real-time clock."""
    times = [
        os.lstat(os.path.join(above, name)).st_ctime_ns
        for above, directories, files in os.walk(tree)
        for name in (*directories, *files)
    ]
    return min(times), max(times)


def _entries(tree: Path) -> int:
    return sum(len(directories) + len(files) for _, directories, files in os.walk(tree))


class _Round:
    """One round. Attributes: seconds, processor: by contestant."""

    def __init__(self, workshop: Workshop, base: Path, jobs: Path, files: int) -> None:
        self.seconds: dict[str, float] = {}
        self.processor: dict[str, float] = {}
        self._workshop = workshop
        self._base = base
        self._jobs = jobs
        self._files = files

    def replicator(self, journal: Path, site: Path) -> Path:
        """The files of the journal; where they are."""
        began = time.time_ns()
        with self._workshop.follower(journal, "site", site) as process:
            _workshop.wait(journal, "site")
            self.seconds[_SAVED] = (time.time_ns() - began) / _SECOND_NS
            self.processor[_WORKED] = _workshop.processor_seconds(process)
        copy = site / self._jobs.name
        first, last = _changes(copy)
        self.seconds[_STARTED] = (last - began) / _SECOND_NS
        self.seconds[_WORKED] = (last - first) / _SECOND_NS
        return copy

    def copied(self, words: str) -> Path:
        """By a command."""
        copy = self._workshop.directory(f"{self._base.name}/{words.split()[0]}")
        before, began = os.times(), time.monotonic()
        _workshop.run(*words.split(), f"{self._jobs}/.", f"{copy}/")
        self.seconds[words] = time.monotonic() - began
        after = os.times()
        _workshop.run("sync", "--file-system", copy)
        self.seconds[words + _SYNCED] = time.monotonic() - began
        spent = after.children_user + after.children_system
        self.processor[words] = spent - before.children_user - before.children_system
        return copy

    def lsyncd(self) -> Path:
        """By lsyncd, from a tree of its own."""
        watched = self._workshop.directory(f"{self._base.name}/watched")
        copy = self._workshop.directory(f"{self._base.name}/lsyncd")
        configuration = self._workshop.base / "lsyncd.conf"
        configuration.write_text(
            "settings { nodaemon = true }\n"
            f'sync {{ default.rsync, source = "{watched}", target = "{copy}", delay = 1,'
            " rsync = { archive = true } }\n"
        )
        wanted = _entries(self._jobs)
        with self._workshop.running(("lsyncd", configuration), "lsyncd"):
            (watched / "first").touch()
            _until(lambda: (copy / "first").exists())  # it watches, and has nothing else to do
            began = time.time_ns()
            _workshop.run("cp", "-a", f"{self._jobs}/.", f"{watched}/")
            _until(lambda: _entries(copy) >= wanted + 1)
            _until(lambda: not _differs(self._jobs, copy))
        self.seconds[_LSYNCD] = (_changes(copy)[1] - began) / _SECOND_NS
        (copy / "first").unlink()
        return copy


def _differs(one: Path, other: Path) -> bool:
    try:
        _workshop.run("diff", "--recursive", "--brief", "--exclude=first", one, other)
    except BenchmarkError:
        return True
    return False


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _workshop.PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise BenchmarkError("lsyncd: not done in time")
        time.sleep(_LOOK_SECONDS)


def measure(workshop: Workshop, given: argparse.Namespace) -> None:
    """The rounds, print the table."""
    source, mountpoint, journal, site = map(
        workshop.directory, ("source", "mount", "journal", "site")
    )
    if shutil.which("lsyncd") is None:
        raise BenchmarkError("lsyncd: not installed", 66)
    seconds: dict[str, list[float]] = defaultdict(list)
    processor: dict[str, list[float]] = defaultdict(list)
    with workshop.mirrorfs(source, mountpoint, journal):
        with workshop.follower(journal, "site", site):
            _workshop.wait(journal, "site")
        for number in range(given.rounds):
            name = f"round{number}"
            (mountpoint / name).mkdir()
            _support.write_tree(mountpoint / name, given.files)
            base = workshop.directory(f"copies-{name}")
            one = _Round(workshop, base, source / name, given.files)
            contestants: list[Callable[[], Path]] = [
                partial(one.replicator, journal, site),
                *(partial(one.copied, peer) for peer in _COPIES),
                one.lsyncd,
            ]
            for each in contestants if number % 2 == 0 else reversed(contestants):
                os.sync()  # what another has written is not written back in this one's time
                copy = each()
                _workshop.run("diff", "--recursive", "--brief", source / name, copy)
            for name, took in one.seconds.items():
                seconds[name].append(took)
            for name, took in one.processor.items():
                processor[name].append(took)
    _print(seconds, processor, given)


def _print(
    seconds: dict[str, list[float]], processor: dict[str, list[float]], given: argparse.Namespace
) -> None:
    print(f"{given.files} files of 4 KiB that wait in the journal; {_support.machine()}")
    print(f"medians of {given.rounds} rounds; ratios within a round\n")
    peers = (*_COPIES, _LSYNCD)
    rows = [["what", "seconds", "files/s", *(f"/ {each}" for each in peers), "processor, µs/file"]]
    for what in (_STARTED, _WORKED, *peers):
        took = median(seconds[what])
        ratios = [f"{_support.ratio(seconds[what], seconds[peer]):.2f}" for peer in peers]
        spent = f"{median(processor[what]) / given.files * 1e6:.0f}" if what in processor else ""
        rows.append([what, f"{took:.2f}", f"{given.files / took:,.0f}", *ratios, spent])
    _support.print_table(rows)
    print()
    synced = [each + _SYNCED for each in _COPIES]
    rows = [["on the disk", "seconds", "files/s", *(f"/ {each}" for each in synced)]]
    for what in (_SAVED, *synced):
        took = median(seconds[what])
        ratios = [f"{_support.ratio(seconds[what], seconds[peer]):.2f}" for peer in synced]
        rows.append([what, f"{took:.2f}", f"{given.files / took:,.0f}", *ratios])
    _support.print_table(rows)


if __name__ == "__main__":
    sys.exit(
        _workshop.main(
            measure, _support.parse_arguments("a burst that waits in the journal", 4, 5000)
        )
    )
