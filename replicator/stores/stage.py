"""Renames of a directory site, atomic where the file system allows it.

Works on descriptors of directories and single names. What needs a spare name (an exchange where the
file system has none, a link over something) finds it in the stage directory. Errors are OSError.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
from collections.abc import Iterator
from typing import Final

from replicator import system_calls

NAME_BYTES_MAX: Final = 255
_DIRECTORY_SLOT: Final = b"D"
DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NOATIME | os.O_CLOEXEC
_NO_FLAGS_HERE: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})
_OTHER_TYPE: Final = frozenset({errno.EISDIR, errno.ENOTDIR})


class Stage:
    """The stage directory. `fd` is the caller's."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._numbers = itertools.count()

    def slot(self, *, directory: bool = False) -> bytes:
        """A free name in it, which tells whether it is for a `directory`."""
        return (_DIRECTORY_SLOT + b"%x" if directory else b"%x") % next(self._numbers)

    def clear(self, slot: bytes) -> None:
        """Remove what is there, if anything."""
        remove(self.fd, slot)

    def commit(self, slot: bytes, directory: int, name: bytes) -> None:
        """Move a staged object to its place, replacing anything but a directory with entries."""
        times = _directory_times(self.fd, slot) if slot.startswith(_DIRECTORY_SLOT) else None
        try:
            replace(self.fd, slot, directory, name)
        except OSError as error:
            if error.errno not in _OTHER_TYPE:
                raise
            # A directory and something else: no rename replaces that, but an exchange does.
            _refuse_entries(directory, name)
            self._exchange(self.fd, slot, directory, name)
            self.clear(slot)
        _restore_times(directory, name, times)

    def move(self, source: int, name: bytes, target: int, to_name: bytes) -> None:
        """Rename, replacing anything but a directory with entries; of two names of one object the
        old one goes."""
        if name == to_name and os.path.sameopenfile(source, target):
            os.stat(name, dir_fd=source, follow_symlinks=False)
            return
        times = _directory_times(source, name)
        try:
            replace(source, name, target, to_name)
        except OSError as error:
            if error.errno not in _OTHER_TYPE:
                raise
            self._move_over_other_type(source, name, target, to_name)
        _restore_times(target, to_name, times)
        if _same_object(source, name, target, to_name):
            os.unlink(name, dir_fd=source)  # rename(2) did nothing

    def link(self, source: int, name: bytes, target: int, to_name: bytes) -> None:
        """Another name of an object, replacing anything but a directory."""
        with contextlib.suppress(FileExistsError):
            _link(source, name, target, to_name)
            return
        slot = self.slot()
        _link(source, name, self.fd, slot)
        try:
            replace(self.fd, slot, target, to_name)
        finally:  # it is still there after an error, and when both were one object already
            self.clear(slot)

    def exchange(self, source: int, name: bytes, target: int, to_name: bytes) -> None:
        """Exchange two places; by three renames where the file system cannot do it in one."""
        times = _directory_times(source, name), _directory_times(target, to_name)
        self._exchange(source, name, target, to_name)
        _restore_times(target, to_name, times[0])
        _restore_times(source, name, times[1])

    def _exchange(self, source: int, name: bytes, target: int, to_name: bytes) -> None:
        try:
            system_calls.rename(source, name, target, to_name, system_calls.RENAME_EXCHANGE)
        except OSError as error:
            if error.errno not in _NO_FLAGS_HERE or self._can_exchange():
                raise
            self._exchange_by_renames(source, name, target, to_name)

    def _can_exchange(self) -> bool:
        """Whether the file system knows RENAME_EXCHANGE at all."""
        one, other = self.slot(), self.slot()
        for slot in (one, other):
            os.mkdir(slot, 0o700, dir_fd=self.fd)
        try:
            system_calls.rename(self.fd, one, self.fd, other, system_calls.RENAME_EXCHANGE)
        except OSError:
            return False
        else:
            return True
        finally:
            self.clear(one)
            self.clear(other)

    def _exchange_by_renames(self, source: int, name: bytes, target: int, to_name: bytes) -> None:
        if _same_object(source, name, target, to_name):
            return
        slot = self.slot()
        with contextlib.ExitStack() as undo:
            for step in (
                (source, name, self.fd, slot),
                (target, to_name, source, name),
                (self.fd, slot, target, to_name),
            ):
                replace(*step)
                undo.callback(replace, step[2], step[3], step[0], step[1])
            undo.pop_all()

    def _move_over_other_type(self, source: int, name: bytes, target: int, to_name: bytes) -> None:
        """What stands there is taken away first: for a moment the place is empty."""
        _refuse_entries(target, to_name)
        slot = self.slot()
        replace(target, to_name, self.fd, slot)
        try:
            replace(source, name, target, to_name)
        except BaseException:
            replace(self.fd, slot, target, to_name)
            raise
        self.clear(slot)


def open_directory(directory: int, name: bytes) -> int | None:
    """A descriptor of that directory; None if there is none (a symlink to one is none)."""
    try:
        return os.open(name, DIRECTORY, dir_fd=directory)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise


def names(directory: int) -> list[bytes]:
    """The entries of an open directory; none if it was removed."""
    try:
        return [os.fsencode(name) for name in os.listdir(directory)]
    except FileNotFoundError:
        return []


def replace(source: int, name: bytes, target: int, to_name: bytes) -> None:
    """rename(2). ENOTEMPTY, as everywhere else, where a file system says EEXIST."""
    try:
        os.replace(name, to_name, src_dir_fd=source, dst_dir_fd=target)
    except FileExistsError as error:
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY)) from error


def remove(directory: int, name: bytes) -> None:
    """unlink(2) or rmdir(2). A missing name is success."""
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        return
    except IsADirectoryError:
        os.rmdir(name, dir_fd=directory)


def put_away(source: int, name: bytes, kept: int, path: list[bytes]) -> None:
    """Move an object to that path below `kept`, making its directories; a name that is taken gets
    a number, one that is too long is cut."""
    with contextlib.ExitStack() as opened:
        target = kept
        for part in path[:-1]:
            target = _kept_directory(target, part)
            opened.callback(os.close, target)
        for free in _numbered(path[-1]):
            if _move_to_free(source, name, target, free):
                return


def _kept_directory(parent: int, name: bytes) -> int:
    for free in _numbered(name):
        with contextlib.suppress(FileExistsError):
            os.mkdir(free, 0o700, dir_fd=parent)
        fd = open_directory(parent, free)
        if fd is not None:
            return fd
    raise AssertionError


def _move_to_free(source: int, name: bytes, target: int, to_name: bytes) -> bool:
    """Move unless something stands there already."""
    try:
        system_calls.rename(source, name, target, to_name, system_calls.RENAME_NOREPLACE)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_FLAGS_HERE:
            raise
        with contextlib.suppress(FileNotFoundError):
            os.stat(to_name, dir_fd=target, follow_symlinks=False)
            return False
        replace(source, name, target, to_name)
    return True


def _numbered(name: bytes) -> Iterator[bytes]:
    """A name, then the same with numbers, each no longer than a name may be."""
    yield name[:NAME_BYTES_MAX]
    for number in itertools.count(1):
        suffix = b".%d" % number
        yield name[: NAME_BYTES_MAX - len(suffix)] + suffix


def _link(source: int, name: bytes, target: int, to_name: bytes) -> None:
    os.link(name, to_name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)


def _directory_times(directory: int, name: bytes) -> tuple[int, int] | None:
    """Access and modification time of a directory; None for anything else."""
    found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    return (found.st_atime_ns, found.st_mtime_ns) if stat.S_ISDIR(found.st_mode) else None


def _restore_times(directory: int, name: bytes, times: tuple[int, int] | None) -> None:
    """Some file systems (XFS) take a rename for a change of the renamed directory itself."""
    if times is not None and _directory_times(directory, name) != times:
        os.utime(name, ns=times, dir_fd=directory, follow_symlinks=False)


def _same_object(source: int, name: bytes, target: int, to_name: bytes) -> bool:
    """Whether both names stand, for one object."""
    try:
        return os.path.samestat(
            os.stat(name, dir_fd=source, follow_symlinks=False),
            os.stat(to_name, dir_fd=target, follow_symlinks=False),
        )
    except FileNotFoundError:
        return False


def _refuse_entries(directory: int, name: bytes) -> None:
    """ENOTEMPTY if that is a directory with entries."""
    fd = open_directory(directory, name)
    if fd is None:
        return
    try:
        if names(fd):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
    finally:
        os.close(fd)
