"""A mirrorfs that kills itself at a chosen system call: before it, after it, or in the middle.

As a program it is `mirrorfs`, with the calls counted that change something: of the source, the
journal or the activity log. Which call is the last stands in a page of memory that it shares with
the test:

    python -m tests.support.crashing PAGE ARGUMENT...

`Crashing` is the other side: a mount by that program.
"""

from __future__ import annotations

import functools
import mmap
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from mirrorfs.journal.control_client import ControlClient
from tests.support.mounts import ROOT, Mounted

_PAGE_BYTES: Final = 4096
_BEFORE, _AFTER, _WITHIN, _CALLS, _NAMES = range(5)
"""Words of the page: kill before, after or in the middle of this call (of a write only); the number
of the next call, 0 if none are counted; and their names begin there."""

_OS: Final = (
    *("mkdir", "mknod", "symlink", "link", "replace", "unlink", "rmdir", "truncate", "ftruncate"),
    *("chown", "chmod", "setxattr", "removexattr", "write", "pwrite", "fsync", "fdatasync"),
)
_OURS: Final = ("rename_with_flags", "set_times", "sync_file_system")


class Page:
    """Memory shared between test and daemon."""

    def __init__(self, path: Path | str) -> None:
        with open(path, "r+b") as file:
            self._bytes = mmap.mmap(file.fileno(), _PAGE_BYTES)
        self._words = memoryview(self._bytes).cast("q")

    def arm(self, *, before: int = 0, after: int = 0, within: int = 0) -> None:
        """Count from here on; die at that call (0: live on)."""
        self._bytes[_NAMES * 8 :] = bytes(_PAGE_BYTES - _NAMES * 8)
        self._words[_CALLS] = 1
        self._words[_BEFORE], self._words[_AFTER], self._words[_WITHIN] = before, after, within

    def disarm(self) -> list[str]:
        """Count no more; the calls that were made, by name, the one that was the last included."""
        self._words[_BEFORE] = self._words[_AFTER] = self._words[_WITHIN] = self._words[_CALLS] = 0
        return self._bytes[_NAMES * 8 :].rstrip(b"\0").decode().split()

    def begin(self, name: str, call: Callable[..., Any], args: tuple[Any, ...]) -> int:
        """A call begins: its number; 0 if none are counted."""
        number = self._words[_CALLS]
        if not number or threading.current_thread().name == "journal-sync":
            return 0
        self._words[_CALLS] = number + 1
        names = self._bytes[_NAMES * 8 :].rstrip(b"\0") + name.encode() + b" "
        self._bytes[_NAMES * 8 :] = names.ljust(_PAGE_BYTES - _NAMES * 8, b"\0")
        torn = number == self._words[_WITHIN] and name == "write"
        if torn:
            call(args[0], args[1][: len(args[1]) // 2], *args[2:])
        if torn or number == self._words[_BEFORE]:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    def end(self, number: int) -> None:
        """It has ended."""
        if number and number == self._words[_AFTER]:
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class Crashing(Mounted):
    """A mount whose daemon can be told where to die.

    Attributes:
        page_file: where the page is.
    """

    page_file: Path = field(default_factory=Path)

    def mount(self) -> None:
        """Mount it by the program of this module."""
        if not self.page_file.exists():
            self.page_file.write_bytes(bytes(_PAGE_BYTES))
        options = ",".join(("restart=off", f"journal={self.journal}", *self.options))
        subprocess.run(
            [
                *(sys.executable, "-m", "tests.support.crashing", self.page_file),
                *("mount", self.source, self.mountpoint, "-o", options),
            ],
            stdin=subprocess.DEVNULL,
            check=True,
            cwd=ROOT,
        )
        with ControlClient(str(self.journal)) as client:
            self.pid = client.status().pid
        self._pidfds.append(os.pidfd_open(self.pid))

    @functools.cached_property
    def page(self) -> Page:
        """The page, once it was mounted."""
        return Page(self.page_file)

    def died(self) -> bool:
        """After `disarm`: has it died? A request tells: nothing before it is still under way."""
        try:
            os.statvfs(self.mountpoint)
        except OSError:
            select.select(self._pidfds[-1:], [], [])
            return True
        return False


def _counted(page: Page, module: Any, name: str, wanted: Callable[..., bool]) -> None:
    call = getattr(module, name)

    @functools.wraps(call)
    def counted(*args: Any, **kwargs: Any) -> Any:
        if not wanted(*args):
            return call(*args, **kwargs)
        number = page.begin(name, call, args)
        result = call(*args, **kwargs)
        page.end(number)
        return result

    setattr(module, name, counted)


def _always(*_: Any) -> bool:
    return True


def _makes(_path: Any, flags: int, *_: Any) -> bool:
    return bool(flags & (os.O_CREAT | os.O_TRUNC))


def _main() -> None:
    page = Page(sys.argv[1])
    _counted(page, os, "open", _makes)
    for name in _OS:
        _counted(page, os, name, _always)
    from mirrorfs import cli, system_calls  # after that: some keep the functions as they find them

    for name in _OURS:
        _counted(page, system_calls, name, _always)
    cli.main(sys.argv[2:])


if __name__ == "__main__":
    _main()
