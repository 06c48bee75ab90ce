"""One large file: how fast it comes to a site, beside `cp`, in one run.

In each round `--files` files of `--mebibytes` are written through the mount while no replicator
runs; then one is started, and what counts is the time from when the first appears in the site's
stage until all stand at their places. `cp --reflink=never` copies the same files, which the page
cache holds, to the same file system; who begins changes from round to round. Before each the file
systems are synced. Both read from memory and write to it; neither syncs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from pathlib import Path
from statistics import median

from benchmarks import _support, _workshop
from benchmarks._workshop import BenchmarkError, Workshop

_MIB = 1 << 20
_LOOK_SECONDS = 0.0005


def _write(directory: Path, given: argparse.Namespace) -> None:
    directory.mkdir()
    block = os.urandom(_MIB)
    for number in range(given.files):
        with (directory / f"{number}").open("wb") as file:
            for _ in range(given.mebibytes):
                file.write(block)


def _replicated(workshop: Workshop, journal: Path, site: Path, names: list[str]) -> float:
    """Seconds from a file's first appearance in the stage to the last one's at its place."""
    stage = site / ".mirrorfs" / "stage"
    deadline = time.monotonic() + _workshop.PATIENCE_SECONDS
    with workshop.follower(journal, "site", site):
        began = 0.0
        while not all((site / name).exists() for name in names):
            if not began and os.listdir(stage):
                began = time.monotonic()
            if time.monotonic() > deadline:
                raise BenchmarkError(f"{names[0]}: not at the site in time")
            time.sleep(_LOOK_SECONDS)
        ended = time.monotonic()
        _workshop.wait(journal, "site")
    return ended - began


def _copied(source: Path, copy: Path) -> float:
    began = time.monotonic()
    _workshop.run("cp", "-r", "--reflink=never", source, copy)
    return time.monotonic() - began


def measure(workshop: Workshop, given: argparse.Namespace) -> None:
    """The rounds, print the table."""
    source, mountpoint, journal, site, copies = map(
        workshop.directory, ("source", "mount", "journal", "site", "copies")
    )
    ours, theirs = [], []
    with workshop.mirrorfs(source, mountpoint, journal):
        with workshop.follower(journal, "site", site):
            _workshop.wait(journal, "site")
        for number in range(given.rounds):
            name = f"large{number}"
            _write(mountpoint / name, given)
            names = [f"{name}/{file}" for file in range(given.files)]
            for who in (0, 1) if number % 2 == 0 else (1, 0):
                os.sync()
                if who == 0:
                    ours.append(_replicated(workshop, journal, site, names))
                else:
                    theirs.append(_copied(source / name, copies / name))
            for copy in (site / name, copies / name):
                _workshop.run("diff", "--recursive", "--brief", source / name, copy)
            for tree in (copies / name, mountpoint / name):
                shutil.rmtree(tree)
    print(f"{given.files} of {given.mebibytes} MiB; {_support.machine()}")
    print(f"medians of {given.rounds} rounds; ratios within a round\n")
    rows = [["what", "seconds", "MiB/s", "speed / cp"]]
    for what, took in (("replicator", ours), ("cp --reflink=never", theirs)):
        speed = f"{given.files * given.mebibytes / median(took):,.0f}"
        rows.append([what, f"{median(took):.2f}", speed, f"{_support.ratio(theirs, took):.2f}"])
    _support.print_table(rows)


if __name__ == "__main__":
    sys.exit(
        _workshop.main(measure, _support.parse_arguments("one large file", 5, 1, mebibytes=1024))
    )
