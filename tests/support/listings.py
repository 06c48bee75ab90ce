"""Which directories of a real tree are listed, whoever does it: told by the kernel (inotify(7))."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_IN_ACCESS: Final = 0x1
_IN_Q_OVERFLOW: Final = 0x4000
_IN_ONLYDIR: Final = 0x0100_0000
_EVENT: Final = struct.Struct("iIII")

_libc = ctypes.CDLL(None, use_errno=True)


class Listings:
    """Directories below some, at the time it is made."""

    def __init__(self, trees: Iterable[Path]) -> None:
        self._descriptor = _checked(_libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))
        self._watched: dict[int, str] = {}
        directories = [above for tree in trees for above, _, _ in os.walk(tree)]
        for path in directories:
            number = _libc.inotify_add_watch(
                self._descriptor, os.fsencode(path), _IN_ACCESS | _IN_ONLYDIR
            )
            self._watched[_checked(number)] = path

    def __len__(self) -> int:
        return len(self._watched)

    def listed(self) -> set[str]:
        """Those that were listed since this was asked last, and not what is in them."""
        found = set[str]()
        while True:
            try:
                data = os.read(self._descriptor, 1 << 16)
            except BlockingIOError:
                return found
            at = 0
            while at < len(data):
                number, mask, _, length = _EVENT.unpack_from(data, at)
                assert not mask & _IN_Q_OVERFLOW, "more events than the kernel keeps"
                if length == 0:  # of the directory itself
                    found.add(self._watched[number])
                at += _EVENT.size + length

    def close(self) -> None:
        """Watch no more."""
        os.close(self._descriptor)


@contextmanager
def listings(*trees: Path) -> Iterator[Listings]:
    """Watch all directories in these."""
    made = Listings(trees)
    try:
        yield made
    finally:
        made.close()


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
