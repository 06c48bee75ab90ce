"""Stands before the `os` module in one module under test, and lets chosen calls fail."""

from __future__ import annotations

import errno
import os

NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
FAILED = OSError(errno.EIO, os.strerror(errno.EIO))


class FailingSystem:
    """`os`, but the calls named in `failing` raise that error, or write so many bytes only."""

    def __init__(self) -> None:
        self.failing: dict[str, OSError | int] = {}

    def __getattr__(self, name: str) -> object:
        failure = self.failing.get(name)
        if failure is None:
            return getattr(os, name)

        def fail(fd: int, *arguments: bytes, **_: object) -> int:
            if isinstance(failure, OSError):
                raise failure
            return os.write(fd, arguments[0][:failure])

        return fail
