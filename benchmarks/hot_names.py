"""Names that are replaced all the time: `cp x.tmp; mv x.tmp x` on `--files` names for `--seconds`.

Two clients write each name anew through the mount, one after the other, as fast as they can, while
the replicator follows. Told: how many versions there were, and how many were copied (what is gone
when its turn comes is not); the most records the site was behind, looked at ten times a second, in
the first half of the time and in the second; how many copies were under way at once at most (files
in the site's stage, also looked at); and how long after the last close the site was equal. Once
with small files, which are copied on the spot, and once with files for workers.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from multiprocessing.synchronize import Event
from pathlib import Path

from benchmarks import _support, _workshop
from benchmarks._workshop import Workshop
from mirrorfs.journal.reader import JournalReader
from replicator.cursor import read_reports
from replicator.site_state import SiteReport, decode_state

_CLIENTS = 2
_LOOK_SECONDS = 0.1
_SIZES = (4096, 1 << 20)


def _rewrite(
    jobs: Path, numbers: range, size: int, end: Event, count: multiprocessing.Queue[int]
) -> None:
    """Until told to end: every name anew, again and again; how many versions."""
    done = 0
    while not end.is_set():
        for number in numbers:
            name = jobs / f"x{number:03}"
            temporary = f"{name}.tmp"
            descriptor = os.open(temporary, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
            os.write(descriptor, _support.content(done) * (size // _support.FILE_BYTES))
            os.close(descriptor)
            os.replace(temporary, name)
            done += 1
    count.put(done)


def _counters(journal: Path) -> dict[str, int]:
    found = read_reports(str(journal))["site"]
    assert isinstance(found, SiteReport), found
    return found.counters


class _Watch:
    """What is seen of the site while it is written to.

    Attributes:
        behind: the most records, in each half.  under_way: the most files in the stage.
    """

    def __init__(self, journal: Path, site: Path) -> None:
        self.behind = [0, 0]
        self.under_way = 0
        self.reader = JournalReader(str(journal))
        self._state = site / ".mirrorfs" / "state"
        self._stage = site / ".mirrorfs" / "stage"

    def look(self, half: int) -> None:
        behind = self.reader.head() - decode_state(self._state.read_bytes()).working
        self.behind[half] = max(self.behind[half], behind)
        self.under_way = max(self.under_way, len(os.listdir(self._stage)))

    def close(self) -> None:
        self.reader.close()


def _run(
    parent: Path, source: Path, journal: Path, site: Path, size: int, given: argparse.Namespace
) -> list[str]:
    """One size, in a new directory; its column."""
    name = f"{parent.name}/{size}"
    jobs = parent / f"{size}"
    jobs.mkdir(parents=True)
    _workshop.wait(journal, "site")
    time.sleep(1)  # its report is written every second
    before = _counters(journal)
    watch = _Watch(journal, site)
    first = watch.reader.head()
    context = multiprocessing.get_context("spawn")
    end, count = context.Event(), context.Queue()
    clients = [
        context.Process(
            target=_rewrite,
            args=(jobs, range(at, given.files, _CLIENTS), size, end, count),
            daemon=True,
        )
        for at in range(_CLIENTS)
    ]
    for each in clients:
        each.start()
    began = time.monotonic()
    while (passed := time.monotonic() - began) < given.seconds:
        watch.look(0 if passed < given.seconds / 2 else 1)
        time.sleep(_LOOK_SECONDS)
    end.set()
    versions = sum(count.get() for _ in clients)
    for each in clients:
        each.join()
    closed = time.monotonic()
    records = watch.reader.head() - first
    _workshop.wait(journal, "site")
    equal = time.monotonic() - closed
    watch.close()
    _workshop.run("diff", "--recursive", "--brief", source / name, site / name)
    time.sleep(2)
    after = _counters(journal)
    copied = after["files_copied"] - before["files_copied"]
    return [
        f"{versions:,}",
        f"{records:,}",
        f"{copied:,}",
        f"{watch.behind[0]:,}",
        f"{watch.behind[1]:,}",
        f"{watch.under_way}",
        f"{equal:.1f} s",
        f"{after['kept'] - before['kept']}",
    ]


def measure(workshop: Workshop, given: argparse.Namespace) -> None:
    """Both sizes, print the table."""
    source, mountpoint, journal, site = map(
        workshop.directory, ("source", "mount", "journal", "site")
    )
    mounted = workshop.mirrorfs(source, mountpoint, journal)
    with mounted, workshop.follower(journal, "site", site):
        _workshop.wait(journal, "site")
        columns = [
            _run(mountpoint / f"round{number}", source, journal, site, size, given)
            for size in _SIZES
            for number in range(given.rounds)
        ]
    print(f"{given.files} names for {given.seconds} s each; {_support.machine()}\n")
    names = (
        "versions written",
        "records",
        "copied",
        "records behind the saved cursor at most, first half",
        "... second half",
        "copies under way at most",
        "`replicator wait now` returned, after the last close",
        "put aside",
    )
    sizes = [f"{size // 1024} KiB" for size in _SIZES for _ in range(given.rounds)]
    rows = [["", *sizes]]
    rows += [list(row) for row in zip(names, *columns, strict=True)]
    _support.print_table(rows)


if __name__ == "__main__":
    sys.exit(
        _workshop.main(measure, _support.parse_arguments("names replaced", 1, 100, seconds=60))
    )
