"""A process that ends daemons and removes their directory when the process that made them dies.

The owner tells it pids through a pipe. When that pipe ends, by `close` or because the owner is no
more, even by kill -9, what is still known is killed. Run as a program this module is the guard:
only the standard library.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

_PATIENCE_MILLISECONDS = 5000


class Guard:
    """A running guard and the pipe to it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        )

    def add(self, pid: int) -> None:
        """From now on this process ends with us."""
        self._tell(f"add {pid}")

    def forget(self, pid: int) -> None:
        """It has ended."""
        self._tell(f"forget {pid}")

    def remove_at_end(self, directory: Path) -> None:
        """This directory is removed at the end."""
        self._tell(f"directory {directory}")

    def close(self) -> None:
        """End everything now."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.wait()

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        with self._lock:
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()


def _main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    pidfds: dict[int, int] = {}
    directories: list[str] = []
    for line in sys.stdin:
        word, _, rest = line.rstrip("\n").partition(" ")
        if word == "directory":
            directories.append(rest)
        elif word == "add":
            with contextlib.suppress(ProcessLookupError):
                pidfds[int(rest)] = os.pidfd_open(int(rest))
        elif int(rest) in pidfds:
            os.close(pidfds.pop(int(rest)))
    for pidfd in pidfds.values():
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    for pidfd in pidfds.values():
        ended = select.poll()
        ended.register(pidfd, select.POLLIN)
        ended.poll(_PATIENCE_MILLISECONDS)
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    _main()
