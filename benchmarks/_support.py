"""What the benchmarks share: their arguments, the files they write, their tables."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

FILE_BYTES = 4096
PER_DIRECTORY = 100


def write_files(directory: Path, count: int) -> None:
    """Files of FILE_BYTES, no two alike."""
    for number in range(count):
        descriptor = os.open(directory / f"f{number:05}", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        os.write(descriptor, content(number))
        os.close(descriptor)


def write_tree(above: Path, count: int) -> list[Path]:
    """So many of them, in new directories of PER_DIRECTORY."""
    files = []
    for first in range(0, count, PER_DIRECTORY):
        directory = above / f"d{first:07}"
        directory.mkdir()
        here = min(PER_DIRECTORY, count - first)
        write_files(directory, here)
        files += [directory / f"f{number:05}" for number in range(here)]
    return files


def content(number: int) -> bytes:
    """What the file of that number holds."""
    return (b"%015d\n" % number) * (FILE_BYTES // 16)


def parse_arguments(purpose: str, rounds: int, files: int, **more: int) -> argparse.Namespace:
    """`where`, `rounds` and `files`, and `more` with these defaults, from the command line."""
    parser = argparse.ArgumentParser(description=purpose)
    parser.add_argument("--where", type=Path, default=tempfile.gettempdir(), metavar="DIR")
    parser.add_argument("--rounds", type=int, default=rounds, help=f"default {rounds}")
    parser.add_argument("--files", type=int, default=files, help=f"in each round; default {files}")
    for name, default in more.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    arguments = parser.parse_args()
    for name in ("rounds", "files", *more):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name}: at least 1")
    if not arguments.where.is_dir():
        parser.error(f"--where: {arguments.where}: not a directory")
    return arguments


def machine() -> str:
    """Cores, memory, kernel: what a number must be read with."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    kernel = ".".join(os.uname().release.split(".")[:2])
    return f"{len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB memory, Linux {kernel}"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median of the ratios of the same rounds."""
    return median(one / other for one, other in zip(ours, theirs, strict=True))


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """A Markdown table; the first row is its head, the first column its names."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    for number, row in enumerate(rows):
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print(f"| {' | '.join(cells)} |")
        if number == 0:
            print(f"| {' | '.join(['---', *(['---:'] * (len(row) - 1))])} |")
