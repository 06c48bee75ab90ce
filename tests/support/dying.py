"""What a process leaves that is killed at its n-th change of a file system, without a process: from
that call on no call changes anything."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from replicator import system_calls

_CHANGES = (
    *("open", "mkdir", "mknod", "symlink", "link", "replace", "unlink", "rmdir", "ftruncate"),
    *("chown", "chmod", "utime", "setxattr", "removexattr", "pwrite", "copy_file_range"),
    *("fsync", "fdatasync"),
)
_OURS = ("rename", "syncfs")


class KilledError(BaseException):
    """That was the end."""


@contextmanager
def killed_at(call: int) -> Iterator[list[str]]:
    """Dead before that call (from 1); the calls made until then, by name."""
    made: list[str] = []

    def counted(name: str, real: Any) -> Any:
        def act(*args: Any, **options: Any) -> Any:
            if name == "open" and not args[1] & os.O_CREAT:
                return real(*args, **options)
            made.append(name)
            if len(made) >= call:
                raise KilledError
            return real(*args, **options)

        return act

    with pytest.MonkeyPatch.context() as patch:
        for module, names in ((os, _CHANGES), (system_calls, _OURS)):
            for name in names:
                patch.setattr(module, name, counted(name, getattr(module, name)))
        yield made


def moments(attempt: Any) -> int:
    """Call `attempt` with the number of a call to be killed at, until it outlives that; how many
    there were. It gives back whether it was killed."""
    call = 1
    while attempt(call):
        call += 1
    return call - 1
