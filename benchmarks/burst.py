"""How long a burst of small files takes to be at a site, beside `cp -a` and `rsync -a`, in one run.

In each round the files are written through the mount as fast as one client can, in directories of
100, while the replicator follows. The peers then copy the same files from the source tree below the
mount, to an empty directory each, after the writing has ended; all copies are compared at the end.
Nobody is asked to sync what it wrote; the replicator does (its cursor speaks of what is on disk).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import defaultdict
from pathlib import Path
from statistics import median

from benchmarks import _support, _workshop
from benchmarks._workshop import Workshop

_NANOSECONDS_PER_SECOND = 1_000_000_000

_WRITTEN = "written through the mount (first open to last close)"
_EQUAL = "site equal, after the last close"
_TOTAL = "site equal, after the first open"
_WAITED = "`replicator wait now` returned, after the last close"
_WAIT_ALONE = "`replicator wait now` when there is nothing to wait for"
_PEERS = ("cp -a", "rsync -a")


def _last_change(tree: Path) -> int:
    """When something in it was changed last, in nanoseconds of the real-time clock."""
    latest = tree.stat().st_ctime_ns
    for above, directories, files in os.walk(tree):
        for name in (*directories, *files):
            latest = max(latest, os.lstat(os.path.join(above, name)).st_ctime_ns)
    return latest


def _burst(jobs: Path, site: Path, journal: Path, files: int) -> dict[str, float]:
    """Seconds; `jobs` is a new directory of the mount, `site` the same at the site."""
    began = time.time_ns()
    _support.write_tree(jobs, files)
    closed = time.time_ns()
    _workshop.wait(journal, "site")
    waited = time.time_ns()
    _workshop.wait(journal, "site")
    alone = time.time_ns() - waited
    equal = _last_change(site)
    nanoseconds = {
        _WRITTEN: closed - began,
        _EQUAL: max(0, equal - closed),  # the clock of change times is a coarse one
        _TOTAL: equal - began,
        _WAITED: waited - closed,
        _WAIT_ALONE: alone,
    }
    return {name: value / _NANOSECONDS_PER_SECOND for name, value in nanoseconds.items()}


def _copy(peer: str, tree: Path, copy: Path) -> float:
    """Seconds that the peer needs to copy the content of `tree`."""
    began = time.monotonic()
    _workshop.run(*peer.split(), f"{tree}/.", f"{copy}/")
    return time.monotonic() - began


def measure(workshop: Workshop, given: argparse.Namespace) -> None:
    """The rounds, print the table."""
    source, mountpoint, journal, site = map(
        workshop.directory, ("source", "mount", "journal", "site")
    )
    seconds: dict[str, list[float]] = defaultdict(list)
    with workshop.mirrorfs(source, mountpoint, journal):
        workshop.replicator(journal, "site", site)
        for number in range(given.rounds):
            name = f"round{number}"
            (mountpoint / name).mkdir()
            _workshop.wait(journal, "site")
            burst = _burst(mountpoint / name, site / name, journal, given.files)
            copies = [site / name]
            for peer in _PEERS if number % 2 == 0 else reversed(_PEERS):
                copies.append(workshop.directory(f"{name}-{peer.split()[0]}"))
                seconds[peer].append(_copy(peer, source / name, copies[-1]))
            for what, took in burst.items():
                seconds[what].append(took)
            for copy in copies:
                _workshop.run("diff", "--recursive", "--brief", source / name, copy)
    _print(seconds, given)


def _print(seconds: dict[str, list[float]], given: argparse.Namespace) -> None:
    print(f"a burst of {given.files} files of 4 KiB; {_support.machine()}")
    print(f"medians of {given.rounds} rounds; ratios within a round\n")
    rows = [["what", "seconds", "files/s", "/ cp -a", "/ rsync -a"]]
    for what in (_WRITTEN, _EQUAL, _TOTAL, _WAITED, _WAIT_ALONE, *_PEERS):
        took = median(seconds[what])
        rate = f"{given.files / took:,.0f}" if what in (_WRITTEN, _TOTAL, *_PEERS) else ""
        ratios = [f"{_support.ratio(seconds[what], seconds[peer]):.2f}" for peer in _PEERS]
        rows.append([what, f"{took:.2f}", rate, *(["", ""] if what == _WAIT_ALONE else ratios)])
    _support.print_table(rows)


if __name__ == "__main__":
    sys.exit(_workshop.main(measure, _support.parse_arguments("a burst of small files", 4, 5000)))
