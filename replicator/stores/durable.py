"""Some objects and directories of a directory site, made durable without all the rest.

With many bytes on their way to the disk, syncing the whole file system would wait for all of them.
The descriptors are its own, opened when the change was done, so that a later thread can sync them.
What comes in the place of such a file comes after its content.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Hashable, Iterable
from typing import Final

from replicator import system_calls
from replicator.stores.base import UnsyncedError

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOATIME | os.O_CLOEXEC
_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_ALL_ABOVE = 64
"""More files than that are not synced one by one, but with their file system."""


_ORDERED: Final = frozenset({0xEF53, 0x58465342})
"""ext4 and XFS: a name never comes to the disk before content that was written out before."""


class Order:
    """What takes the place of a file is on the disk before it does: a power cut must not leave an
    empty file where there was one that jobs were promised.

    Attributes:
        kept: that matters here.
    """

    def __init__(self, root: int) -> None:
        """`root`: the site's. OSError."""
        self.kept = False
        ordered = system_calls.file_system_type(root) in _ORDERED
        self._write_out = system_calls.write_out if ordered else os.fdatasync

    def keep(self, directory: int, name: bytes, to_directory: int, to_name: bytes) -> None:
        """Called before what is at the first of these names goes to the second."""
        if not self.kept or not _is_file(to_directory, to_name) or not _is_file(directory, name):
            return
        descriptor = os.open(name, _READ, dir_fd=directory)
        try:
            self._write_out(descriptor)
        except OSError as error:
            message = f"cannot sync {os.fsdecode(name)!r}: {error.strerror}"
            raise UnsyncedError.of(message, error.errno or 0) from error
        finally:
            os.close(descriptor)


def _is_file(directory: int, name: bytes) -> bool:
    try:
        return stat.S_ISREG(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


class DescriptorSyncing:
    """Syncing (base) of names in open directories."""

    def __init__(
        self, where: bytes, wanted: Iterable[tuple[int, bytes | None]], *, whole: bool = False
    ) -> None:
        """`where`: the site, for errors. `whole`: all the rest with them. OSError."""
        self._where = where
        self._files: list[int] = []
        self._directories: dict[tuple[int, int], int] = {}
        self._all = whole
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
