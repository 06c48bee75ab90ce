"""What a close costs that waits for a site, beside one that does not.

One mount, one site; of two directories one is write-through. Each of the processes makes files in
both, one after the other, and measures from open to the end of close. So whatever else the machine
does, it does to both.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median, quantiles

from benchmarks import _support, _workshop
from benchmarks._workshop import Workshop

_XATTR = "trusted.mirrorfs.write-through"
_PROCESSES = (1, 8)

_JOB = """
import json, os, sys, time
waits, free, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
times = {waits: [], free: []}
for number in range(count):
    for top in (waits, free):
        began = time.monotonic_ns()
        with open(f"{top}/{os.getpid()}-{number}", "wb") as file:
            file.write(bytes(4096))
        times[top].append((time.monotonic_ns() - began) / 1e6)
print(json.dumps([times[waits], times[free]]))
"""


def _times(waits: Path, free: Path, processes: int, files: int) -> tuple[list[float], list[float]]:
    """Milliseconds of every file, waited for and not."""
    command: list[str | Path] = [sys.executable, "-c", _JOB, waits, free, str(files)]
    jobs = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(processes)]
    found: tuple[list[float], list[float]] = [], []
    for job in jobs:
        told = json.loads(job.communicate()[0])
        found[0].extend(told[0])
        found[1].extend(told[1])
    return found


_NAMES_JOB = """
import os, sys
for number in range(int(sys.argv[2])):
    os.mkdir(f"{sys.argv[1]}/{os.getpid()}-{number}")
"""


def _names_rate(directories: list[Path], files: int) -> float:
    """Changes of names a second, by one process in each of these directories."""
    began = time.monotonic()
    jobs = [
        subprocess.Popen([sys.executable, "-c", _NAMES_JOB, directory, str(files)])
        for directory in directories
    ]
    for job in jobs:
        job.wait()
    return len(jobs) * files / (time.monotonic() - began)


def _names_rows(top: Path, files: int) -> list[list[str]]:
    """In one directory, and in as many as there are processes."""
    rows = [["processes", "mkdir/s in one directory", "in one each"]]
    for processes in _PROCESSES:
        made = [top / f"{processes}-{number}" for number in range(processes + 1)]
        for each in made:
            each.mkdir(parents=True)
            os.setxattr(each, _XATTR, b"site")
        together = _names_rate(made[:1] * processes, files)
        rows.append([str(processes), f"{together:.0f}", f"{_names_rate(made[1:], files):.0f}"])
    return rows


def measure(workshop: Workshop, given: argparse.Namespace) -> None:
    """All rounds through one mount and one replicator, print the table."""
    source, mountpoint, journal, site = map(
        workshop.directory, ("source", "mount", "journal", "site")
    )
    rows = [["processes", "waits: p50", "p99", "does not: p50", "p99", "ratio of p50", "files/s"]]
    with workshop.mirrorfs(source, mountpoint, journal):
        workshop.replicator(journal, "site", site)
        for processes in _PROCESSES:
            waits, free = [], []
            for number in range(given.rounds):
                top = mountpoint / f"{processes}-{number}"
                for name in ("waits", "free"):
                    (top / name).mkdir(parents=True)
                os.setxattr(top / "waits", _XATTR, b"site")
                _workshop.wait(journal, "site")
                some = _times(top / "waits", top / "free", processes, given.files)
                waits += some[0]
                free += some[1]
            rows.append(_row(processes, waits, free))
        names = _names_rows(mountpoint / "names", given.files)
    print(f"a file of 4 KiB from open to the end of close, ms; {_support.machine()}")
    print(f"{given.rounds} rounds of {given.files} files a process\n")
    _support.print_table(rows)
    print()
    _support.print_table(names)


def _row(processes: int, waits: list[float], free: list[float]) -> list[str]:
    p50, p99 = _cuts(waits)
    other50, other99 = _cuts(free)
    rate = 1000 * processes / (sum(waits) / len(waits))
    shown = (f"{each:.1f}" for each in (p50, p99, other50, other99, p50 / other50))
    return [str(processes), *shown, f"{rate:.0f}"]


def _cuts(times: list[float]) -> tuple[float, float]:
    return median(times), quantiles(times, n=100, method="inclusive")[98]


if __name__ == "__main__":
    given = _support.parse_arguments("close that waits for a site", 3, 100)
    sys.exit(_workshop.main(measure, given))
