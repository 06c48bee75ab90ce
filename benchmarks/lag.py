"""How long after its close a small file is whole at a site, with one file on its way at a time.

The site's directory is watched with inotify, and what arrives is read: whole is every byte of it.
The next file is written when the last one is whole. "Seen empty" are files that stood at the site
before that, as they were in the source between the job's open and its write. With `--kept` there
are other files beside them, which the site has from the beginning.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import select
import struct
import sys
import time
from pathlib import Path
from statistics import median, quantiles
from types import TracebackType

from benchmarks import _support, _workshop
from benchmarks._workshop import BenchmarkError, Workshop

_IN_MOVED_TO, _IN_CREATE = 0x80, 0x100
_PATIENCE_SECONDS = 60.0
_NANOSECONDS_PER_MILLISECOND = 1_000_000

_libc = ctypes.CDLL(None, use_errno=True)


class _Arrivals:
    """The names that appear in a directory."""

    def __init__(self, directory: Path) -> None:
        self._descriptor = _checked(_libc.inotify_init1(os.O_CLOEXEC))
        events = _IN_MOVED_TO | _IN_CREATE
        _checked(_libc.inotify_add_watch(self._descriptor, os.fsencode(directory), events))

    def __enter__(self) -> _Arrivals:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    def expect(self, name: bytes) -> None:
        """Wait for that name; BenchmarkError if it does not come."""
        while True:
            readable, _, _ = select.select([self._descriptor], [], [], _PATIENCE_SECONDS)
            if not readable:
                raise BenchmarkError(f"{os.fsdecode(name)}: not at the site in a minute")
            if name in _names(os.read(self._descriptor, 1 << 16)):
                return


def _names(events: bytes) -> list[bytes]:
    """The names in inotify(7) events."""
    names, at = [], 0
    while at < len(events):
        size = struct.unpack_from("iIII", events, at)[3]
        names.append(events[at + 16 : at + 16 + size].rstrip(b"\0"))
        at += 16 + size
    return names


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _lags(jobs: Path, site: Path, files: int) -> tuple[list[float], int]:
    """Milliseconds from close to whole; and how many were seen at the site before they were."""
    lags, early = [], 0
    with _Arrivals(site) as arrivals:
        for number in range(files):
            name = b"f%05d" % number
            data = _support.content(number)
            descriptor = os.open(jobs / os.fsdecode(name), os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            os.write(descriptor, data)
            os.close(descriptor)
            closed = time.monotonic_ns()
            arrivals.expect(name)
            while (site / os.fsdecode(name)).read_bytes() != data:
                early += 1
                arrivals.expect(name)
            lags.append((time.monotonic_ns() - closed) / _NANOSECONDS_PER_MILLISECOND)
    return lags, early


def measure(workshop: Workshop, given: argparse.Namespace) -> None:
    """All rounds through one mount and one replicator, print the table."""
    source, mountpoint, journal, site = map(
        workshop.directory, ("source", "mount", "journal", "site")
    )
    rows = [["round", "p50", "p90", "p99", "max", "seen empty"]]
    lags: list[float] = []
    early = 0
    _support.write_tree(source, given.kept)
    with workshop.mirrorfs(source, mountpoint, journal):
        workshop.replicator(journal, "site", site)
        for number in range(given.rounds):
            (mountpoint / str(number)).mkdir()
            _workshop.wait(journal, "site")
            some, empty = _lags(mountpoint / str(number), site / str(number), given.files)
            rows.append(_row(str(number + 1), some, empty))
            lags += some
            early += empty
    rows.append(_row("all", lags, early))
    print(f"lag, ms from close to whole at a directory site; {_support.machine()}")
    print(
        f"{given.rounds} rounds of {given.files} files of 4 KiB, one after the other,"
        f" beside {given.kept:,}; no peer\n"
    )
    _support.print_table(rows)


def _row(name: str, lags: list[float], early: int) -> list[str]:
    cuts = quantiles(lags, n=100, method="inclusive") if len(lags) > 1 else lags * 99
    shown = (median(lags), cuts[89], cuts[98], max(lags))
    return [name, *(f"{lag:.1f}" for lag in shown), str(early)]


if __name__ == "__main__":
    sys.exit(
        _workshop.main(measure, _support.parse_arguments("lag of a small file", 3, 300, kept=1))
    )
