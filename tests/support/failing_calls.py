"""System calls about what is below a directory: counted, and one of them fails, once or for ever.

All of `os`, `fcntl` and our own `system_calls` that a site store uses, in every thread; calls about
anything else (source, journal) are left alone.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest

from replicator import system_calls
from replicator.stores import site_root

LOOKS: Final = (
    *("listdir", "stat", "fstat", "statvfs", "getxattr", "listxattr", "pread", "lseek"),
    *("readlink", "flock", "handle_of", "open_handle", "read"),
)
"""Calls that change nothing, apart from `open` without O_CREAT."""
CHANGES: Final = (
    *("open", "mkdir", "mknod", "symlink", "link", "replace", "unlink", "rmdir", "ftruncate"),
    *("chown", "chmod", "fchmod", "utime", "setxattr", "removexattr", "pwrite", "write"),
    *("copy_file_range", "ioctl", "fsync", "fdatasync", "rename", "syncfs", "close"),
)
_OF_MODULES: Final = (
    (fcntl, ("ioctl", "flock")),
    (system_calls, ("handle_of", "open_handle", "rename", "syncfs")),
)
_LOOK_ERRORS: Final = (errno.EIO, errno.ESTALE, errno.EINTR, errno.ENOMEM)
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_OPENED = re.compile(rb"/proc/self/fd/(\d+)(/.*)?", re.DOTALL)
SHORT: Final = 0
"""In the place of an errno: less is written, or copied, than was to be."""


def errors(call: str) -> tuple[int, ...]:
    """What that call may fail with."""
    if call.removesuffix(" look") in LOOKS or call.endswith(" look"):
        return _LOOK_ERRORS
    found: tuple[int, ...] = (*_LOOK_ERRORS, errno.EROFS, *_FULL)
    if call == "setxattr":  # that an attribute finds no room is not to be had by pretending
        found = (*_LOOK_ERRORS, errno.EROFS, errno.EDQUOT)
    return (*found, SHORT) if call in ("pwrite", "write", "copy_file_range") else found


class FailingCalls:
    """Of one process.

    Attributes:
        calls: those that were made, by name.
        fail_at: which of them fails, from 1 on; 0: none.
        errno: with that, or SHORT.
        for_ever: so do all that follow of the same name, about the same object.
        met: name and object of the first that failed.
    """

    def __init__(self, below: str) -> None:
        self._below = os.fsencode(below)
        self.calls: list[str] = []
        self.fail_at = self.errno = 0
        self.for_ever = False
        self.met: tuple[str, bytes] | None = None

    @contextmanager
    def failing(self, call: int, code: int, *, for_ever: bool) -> Iterator[None]:
        """That one does, meanwhile."""
        self.calls, self.met = [], None
        self.fail_at, self.errno, self.for_ever = call, code, for_ever
        try:
            with self.counted():
                yield
        finally:
            self.fail_at = 0

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Calls are, meanwhile."""
        with pytest.MonkeyPatch.context() as patch:
            self._readlink, self._close = os.readlink, os.close
            names = [each for each in (*LOOKS, *CHANGES) if hasattr(os, each) and each != "read"]
            for module, each in ((os, names), *_OF_MODULES):
                for name in each:
                    patch.setattr(module, name, self._failing(name, getattr(module, name)))
            patch.setattr(site_root, "open", self._open_file, raising=False)
            yield

    def _failing(self, name: str, real: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            where = self._where(name, arguments, options)
            if not where.startswith(self._below) or (name == "close" and not _writes(arguments[0])):
                return real(*arguments, **options)
            told = name
            if name == "open" and not arguments[1] & os.O_CREAT:
                told = "open look"
            if not self._fails(told, where):
                return real(*arguments, **options)
            if name == "close":
                real(*arguments)
            if self.errno == SHORT:
                return real(*_less(name, arguments), **options)
            raise OSError(self.errno, os.strerror(self.errno))

        return call

    def _fails(self, name: str, where: bytes) -> bool:
        self.calls.append(name)
        reserved = self._below + b"/.mirrorfs/stage/"
        about = name, reserved if where.startswith(reserved) else where
        if self.fail_at and len(self.calls) == self.fail_at and self.errno in errors(name):
            self.met = about
            return True
        return self.for_ever and self.met == about

    def _where(self, name: str, arguments: Any, options: Any) -> bytes:
        """The path of what a call is about."""
        if name == "copy_file_range":
            return self._path(arguments[1])
        if name == "rename":  # renameat2
            return self._path(arguments[0]) + b"/" + bytes(arguments[1])
        above = options.get("dir_fd", options.get("src_dir_fd"))
        if name == "symlink":
            return self._joined(arguments[1], above)
        return self._joined(arguments[0] if arguments else b"", above)

    def _joined(self, path: Any, above: int | None) -> bytes:
        if isinstance(path, int):
            return self._path(path)
        name = os.fsencode(path)
        opened = _OPENED.fullmatch(name)
        if opened is not None:
            return self._path(int(opened[1])) + (opened[2] or b"")
        return name if above is None else self._path(above) + b"/" + name

    def _path(self, descriptor: int) -> bytes:
        try:
            return os.fsencode(str(self._readlink(f"/proc/self/fd/{descriptor}")))
        except OSError:
            return b""

    def _open_file(self, descriptor: int, *arguments: Any, **options: Any) -> Any:
        return _File(open(descriptor, *arguments, **options), self, self._path(descriptor))


class _File:
    """A file object whose reads and writes are counted, too."""

    def __init__(self, file: Any, calls: FailingCalls, where: bytes) -> None:
        self._file = file
        self._calls = calls
        self._where = where

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _fail(self, name: str) -> bool:
        if not self._calls._fails(name, self._where):
            return False
        if self._calls.errno == SHORT:
            return True
        raise OSError(self._calls.errno, os.strerror(self._calls.errno))

    def fileno(self) -> int:
        return int(self._file.fileno())

    def read(self) -> Any:
        self._fail("read")
        return self._file.read()

    def write(self, data: Any) -> Any:
        return self._file.write(data[: (len(data) + 1) // 2] if self._fail("write") else data)


def _writes(descriptor: int) -> bool:
    """Whether it was open for writing: then closing it may fail, over a network."""
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    return flags & os.O_ACCMODE != os.O_RDONLY and not flags & os.O_PATH


def _less(name: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Half of it, and one byte at least."""
    if name == "copy_file_range":
        source, target, count, *rest = arguments
        return source, target, (count + 1) // 2, *rest
    target, data, *rest = arguments
    return target, data[: (len(data) + 1) // 2], *rest
