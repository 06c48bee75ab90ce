"""What was answered before a change, and is looked at after it, is not kept."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.mounts import Mounting, mounting

__all__ = ["mounting"]

pytestmark = pytest.mark.fuse

LISTS = """
import mmap, os, sys
directory, board, processor = sys.argv[1:]
os.sched_setaffinity(0, {int(processor)})
with open(board, "r+b") as file:
    said = mmap.mmap(file.fileno(), 0)
while True:
    while said[0] == said[1]:
        pass
    os.listdir(directory)
    said[1] = said[0]
"""
HINDERS = """
import mmap, os, sys
board, processor = sys.argv[1:]
os.sched_setaffinity(0, {int(processor)})
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
with open(board, "r+b") as file:
    said = mmap.mmap(file.fileno(), 0)
while os.read(0, 1):
    os.write(1, b"!")
    while said[2]:
        pass
"""


class Lister:
    """Lists a directory on a processor of its own when asked to, and can be kept from it: then an
    answer has come, and is not looked at. What is asked of it is byte 0 of `said`, what it has done
    byte 1; byte 2: it is kept from working."""

    def __init__(self, stack: ExitStack, directory: Path, board: Path, processor: int) -> None:
        board.write_bytes(bytes(3))
        file = stack.enter_context(board.open("r+b"))
        self._said = stack.enter_context(mmap.mmap(file.fileno(), 0))
        for script, words in ((LISTS, (directory, board)), (HINDERS, (board,))):
            process = subprocess.Popen(
                [sys.executable, "-c", script, *words, str(processor)],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
        self._hinders = process

    def list(self, meanwhile: Callable[[], None], pause_ns: int) -> None:
        """Have it begin, do something while it is kept from going on, and wait for its end."""
        assert self._hinders.stdin is not None
        assert self._hinders.stdout is not None
        self._said[0] = (self._said[0] + 1) % 256
        began = time.monotonic_ns()
        while time.monotonic_ns() - began < pause_ns:
            pass
        self._said[2] = 1
        try:
            self._hinders.stdin.write(b"?")
            assert self._hinders.stdout.read(1) == b"!"
            meanwhile()
        finally:
            self._said[2] = 0
        while self._said[1] != self._said[0]:
            os.sched_yield()


def test_times_of_a_directory_asked_for_before_it_was_changed(
    mounting: Mounting, tmp_path: Path
) -> None:
    """The kernel keeps the times of a directory until it hears of a change; who asked before the
    change, and hears after it, must not make it keep the old ones."""
    mounted = mounting()
    directory = mounted.mountpoint / "directory"
    directory.mkdir()
    for number in range(20):  # an answer takes its time
        (mounted.mountpoint / f"{number}").mkdir()
    here, there = sorted(os.sched_getaffinity(0))[:2]
    assert mounted.pid is not None
    os.sched_setaffinity(mounted.pid, {here})
    with ExitStack() as stack:
        lister = Lister(stack, mounted.mountpoint, tmp_path / "board", there)
        for number in range(1200):
            (directory / "it").mkdir()
            directory.stat()  # from now on the kernel knows
            lister.list((directory / "it").rmdir, 300_000 + number % 400 * 2_000)
            told, is_so = directory.stat(), (mounted.source / "directory").stat()
            assert (told.st_mtime_ns, told.st_ctime_ns) == (is_so.st_mtime_ns, is_so.st_ctime_ns)
