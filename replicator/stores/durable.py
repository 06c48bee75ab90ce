"""Some objects and directories of a directory site, made durable without all the rest.

With many bytes on their way to the disk, syncing the whole file system would wait for all of them.
The descriptors are its own, opened when the change was done, so that a later thread can sync them.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Hashable, Iterable

from replicator import system_calls
from replicator.stores.base import UnsyncedError

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOATIME | os.O_CLOEXEC
_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_ALL_ABOVE = 64
"""More files than that are not synced one by one, but with their file system."""


class DescriptorSyncing:
    """Syncing (base) of names in open directories."""

    def __init__(self, where: bytes, wanted: Iterable[tuple[int, bytes | None]]) -> None:
        """`where`: the site, for errors. OSError."""
        self._where = where
        self._files: list[int] = []
        self._directories: dict[tuple[int, int], int] = {}
        self._all = False
        try:
            for directory, name in wanted:
                self._add(directory, name)
        except BaseException:
            self.close()
            raise

    def _add(self, directory: int, name: bytes | None) -> None:
        if name is None:
            self._add_directory(os.open(".", _READ | os.O_DIRECTORY, dir_fd=directory))
            return
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            looked = os.open(name, _LOOK, dir_fd=directory)
            try:
                kind = stat.S_IFMT(os.fstat(looked).st_mode)
            finally:
                os.close(looked)
            if kind == stat.S_IFREG:
                self._files.append(os.open(name, _READ, dir_fd=directory))
            elif kind == stat.S_IFDIR:
                self._add_directory(os.open(name, _READ | os.O_DIRECTORY, dir_fd=directory))
            else:  # what cannot be opened is synced with all the rest
                self._all = True
                if not self._directories:
                    self._add_directory(os.open(".", _READ | os.O_DIRECTORY, dir_fd=directory))

    def _add_directory(self, descriptor: int) -> None:
        found = os.fstat(descriptor)
        if (found.st_dev, found.st_ino) in self._directories:
            os.close(descriptor)
        else:
            self._directories[found.st_dev, found.st_ino] = descriptor

    def begin(self) -> None:
        """See Syncing. What goes wrong shows in `finish`."""
        for descriptor in self._files:
            with contextlib.suppress(OSError):
                system_calls.begin_writing(descriptor)

    def finish(self, seen: set[Hashable]) -> None:
        """See Syncing."""
        try:
            if self._directories and (self._all or len(self._files) > _ALL_ABOVE):
                system_calls.syncfs(next(iter(self._directories.values())))
            for descriptor in self._files:
                os.fsync(descriptor)
            for key, descriptor in self._directories.items():
                if key not in seen:
                    os.fsync(descriptor)
                    seen.add(key)
        except OSError as error:
            message = f"cannot sync {os.fsdecode(self._where)!r}: {error.strerror}"
            raise UnsyncedError.of(message, error.errno or 0) from error

    def close(self) -> None:
        """See Syncing."""
        for descriptor in (*self._files, *self._directories.values()):
            os.close(descriptor)
        self._files.clear()
        self._directories.clear()
