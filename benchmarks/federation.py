"""A mounted federation beside Debian's C++ xrootdfs, on the same federation, in one run.

A redirector and three data servers on loopback, set up to wait as little as they can: at a site
with the defaults the redirector's wait, which the C++ program has for every new file, is five
seconds instead of one. In each round each of the two does the same with files of its own, mounted
anew before what must be cold, and who begins changes from round to round. The data servers' disks
are not cold.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import median

from benchmarks import _support, _workshop
from benchmarks._support import FILE_BYTES
from benchmarks._workshop import BenchmarkError, Workshop
from tests.support.federation import Federation
from tests.support.federation_node import FederationError

_PEER = "C++"
_OURS = "xrootdfs"
_LARGE_BYTES = 256 << 20
_BLOCK_BYTES = 1 << 20
_SMALL_FILES = 1000
# The C++ program makes one file a second: a few say as much as many.
_CREATED = {_PEER: 10, _OURS: 1000}
_HOPELESS_SECONDS = 45.0
_MEGABYTE = 1e6

_OPERATIONS = {
    "create, write 4 KiB, close": "/s",
    "stat, cold": "/s",
    "open, read 4 KiB, close": "/s",
    "unlink": "/s",
    "ls -l of a large directory, cold": "s",
    "write 256 MiB, 1 MiB at a time": "MB/s",
    "read 256 MiB, 1 MiB at a time": "MB/s",
}
_SERVER_KILLED = {
    "killed: stat of a file on another": "s",
    "killed: ls of a directory on all": "s",
    "back: stat of a file it has": "s",
}

Took = dict[tuple[str, str], list[float]]


class _Contest:
    """The federation, and what both contestants find there."""

    def __init__(self, workshop: Workshop, federation: Federation, files: int) -> None:
        self.workshop = workshop
        self.federation = federation
        self.files = files
        self.took: Took = defaultdict(list)

    def prepare(self, tree: str) -> None:
        """What is not written through a mount, spread over the data servers."""
        servers = self.federation.servers
        for number in range(self.files):
            servers[number % len(servers)].put(f"/{tree}/many/f{number:05}", b"")
        for number in range(_SMALL_FILES):
            content = _support.content(number)
            servers[number % len(servers)].put(f"/{tree}/small/f{number:05}", content)

    def mounted(self, name: str) -> AbstractContextManager[Path]:
        """The whole federation, mounted by that contestant."""
        if name == _PEER:
            return self.workshop.peer_xrootdfs(self.federation.url)
        return self.workshop.xrootdfs(self.federation.url)

    def time(self, name: str, operation: str, amount: float, act: Callable[[], None]) -> None:
        """What that took; as a rate, unless the unit is seconds."""
        began = time.perf_counter()
        act()
        seconds = time.perf_counter() - began
        in_seconds = (_OPERATIONS | _SERVER_KILLED)[operation] == "s"
        self.took[operation, name].append(seconds if in_seconds else amount / seconds)


def _create(directory: Path, count: int) -> None:
    for number in range(count):
        path = directory / f"f{number:05}"
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        os.write(descriptor, _support.content(number))
        os.close(descriptor)


def _stat(directory: Path) -> None:
    for number in range(_SMALL_FILES):
        os.lstat(directory / f"f{number:05}")


def _read_small(directory: Path) -> None:
    for number in range(_SMALL_FILES):
        descriptor = os.open(directory / f"f{number:05}", os.O_RDONLY)
        read = os.read(descriptor, 2 * FILE_BYTES)
        os.close(descriptor)
        if read != _support.content(number):
            raise BenchmarkError(f"{directory}/f{number:05}: wrong content")


def _unlink(directory: Path) -> None:
    for number in range(_SMALL_FILES):
        os.unlink(directory / f"f{number:05}")


def _list(directory: Path, files: int) -> None:
    listed = _workshop.run("ls", "-l", directory)
    if len(listed.splitlines()) != files + 1:
        raise BenchmarkError(f"{directory}: {len(listed.splitlines()) - 1} of {files} are listed")


def _write(path: Path, block: bytes) -> None:
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY, 0o644)
    for _ in range(_LARGE_BYTES // _BLOCK_BYTES):
        os.write(descriptor, block)
    os.close(descriptor)


def _read(path: Path, block: bytes) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    while part := os.read(descriptor, _BLOCK_BYTES):
        if part[:100] != block[:100]:
            raise BenchmarkError(f"{path}: wrong content")
    os.close(descriptor)


def _round(contest: _Contest, name: str, number: int) -> None:
    tree = f"{name}-{number}"
    contest.prepare(tree)
    block = os.urandom(_BLOCK_BYTES)
    new, small = Path(tree, "new"), Path(tree, "small")
    with contest.mounted(name) as top:
        (top / new).mkdir()
        count = _CREATED[name]
        contest.time(name, "create, write 4 KiB, close", count, lambda: _create(top / new, count))
        _write_first(top / tree)
        contest.time(
            name,
            "write 256 MiB, 1 MiB at a time",
            _LARGE_BYTES / _MEGABYTE,
            lambda: _write(top / tree / "large", block),
        )
    with contest.mounted(name) as top:
        contest.time(name, "stat, cold", _SMALL_FILES, lambda: _stat(top / small))
        contest.time(
            name, "open, read 4 KiB, close", _SMALL_FILES, lambda: _read_small(top / small)
        )
        contest.time(
            name,
            "read 256 MiB, 1 MiB at a time",
            _LARGE_BYTES / _MEGABYTE,
            lambda: _read(top / tree / "large", block),
        )
        contest.time(name, "unlink", _SMALL_FILES, lambda: _unlink(top / small))
        os.unlink(top / tree / "large")
    with contest.mounted(name) as top:
        contest.time(
            name,
            "ls -l of a large directory, cold",
            contest.files,
            lambda: _list(top / tree / "many", contest.files),
        )


def _write_first(directory: Path) -> None:
    """Connections are made, and threads started, by whoever is the first to write."""
    (directory / "first").write_bytes(b"first")


def _kill(contest: _Contest, name: str) -> None:
    """A data server dies while the mount is in use."""
    victim, other, *_ = contest.federation.servers
    tree = f"killed-{name}"
    for server in contest.federation.servers:
        for number in range(3):
            server.put(f"/{tree}/{server.name}/f{number}", b"")
    with contest.mounted(name) as top:
        for server in contest.federation.servers:
            os.lstat(top / tree / server.name / "f0")
        victim.kill()
        try:
            _ask(contest, name, "killed: stat of a file on another", top / tree / other.name / "f1")
            _ask(contest, name, "killed: ls of a directory on all", top / tree, list_it=True)
        finally:
            victim.start()
            contest.federation.wait_ready()
        _ask(contest, name, "back: stat of a file it has", top / tree / victim.name / "f1")


def _ask(
    contest: _Contest, name: str, operation: str, path: Path, *, list_it: bool = False
) -> None:
    """Until it is answered, well or with an error; or until it is hopeless."""
    program = "ls" if list_it else "stat"
    process = subprocess.Popen(
        [program, path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )

    def wait() -> None:
        try:
            process.wait(_HOPELESS_SECONDS)
        except subprocess.TimeoutExpired:
            contest.workshop.abandon(process)

    contest.time(name, operation, 1, wait)


def _cell(values: list[float], unit: str) -> str:
    if not values:
        return "-"
    middle = median(values)
    if unit == "s" and middle >= _HOPELESS_SECONDS:
        return f"> {_HOPELESS_SECONDS:.0f} s"
    digits = 0 if middle >= 20 else 2 if middle >= 1 else 3
    return f"{middle:.{digits}f} {unit}"


def _ratio(theirs: list[float], ours: list[float], unit: str) -> str:
    """How often better; a lower bound where the other gave no answer at all."""
    better = (theirs, ours) if unit == "s" else (ours, theirs)
    least = "> " if unit == "s" and median(theirs) >= _HOPELESS_SECONDS else ""
    ratio = _support.ratio(*better)
    return f"{least}{ratio:.{0 if ratio >= 20 else 2}f}"


def measure(workshop: Workshop, given: argparse.Namespace) -> None:
    """Alternate the contestants, print the table."""
    names = [_PEER, _OURS] if workshop.has_peer_xrootdfs() else [_OURS]
    if _PEER not in names:
        sys.stderr.write("Debian's xrootd-fuse is not installed: measuring without a peer\n")
    try:
        with Federation() as federation:
            contest = _Contest(workshop, federation, given.files)
            for number in range(given.rounds):
                turn = number % len(names)
                for name in names[turn:] + names[:turn]:
                    _round(contest, name, number)
            for name in names:
                _kill(contest, name)
    except FederationError as error:
        raise BenchmarkError(str(error)) from None

    print(f"{_support.machine()}; a redirector and three data servers on loopback")
    print(f"medians of {given.rounds} rounds, {given.files} files in the large directory;")
    print("ratios within a round, above one: better\n")
    rows = [["operation", *names, *(["ratio"] if _PEER in names else [])]]
    for operation, unit in (_OPERATIONS | _SERVER_KILLED).items():
        of = {name: contest.took[operation, name] for name in names}
        row = [operation, *(_cell(of[name], unit) for name in names)]
        if _PEER in names:
            row.append(_ratio(of[_PEER], of[_OURS], unit))
        rows.append(row)
    _support.print_table(rows)


if __name__ == "__main__":
    sys.exit(_workshop.main(measure, _support.parse_arguments("a mounted federation", 3, 10_000)))
