"""Every kind of change a job can make, one each: in a directory prepared for it.

`prepare` makes what they need; each operation then works on it once, and may fail with OSError when
the mount dies below it.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from tests.support.churn import acl, rename

_NOREPLACE, _EXCHANGE = 1, 2
_LARGE: Final = bytes(300_000)


def prepare(at: Path) -> None:
    """What the operations work on."""
    for name in ("", "empty", "full", "other"):
        (at / name).mkdir(parents=True)
    for name in ("file", "second", "full/in", "other/old"):
        (at / name).write_bytes(os.fsencode(name) * 1000)
    os.link(at / "second", at / "other" / "hard")
    os.symlink("file", at / "symlink")
    os.setxattr(at / "file", "user.a", b"value")


@contextlib.contextmanager
def _opened(path: Path, flags: int, mode: int = 0o644) -> Iterator[int]:
    descriptor = os.open(path, flags, mode)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _create(at: Path) -> None:
    with _opened(at / "new", os.O_WRONLY | os.O_CREAT | os.O_EXCL):
        pass


def _write_new(at: Path) -> None:
    with _opened(at / "new", os.O_WRONLY | os.O_CREAT | os.O_EXCL) as descriptor:
        os.write(descriptor, b"content")


def _write_large(at: Path) -> None:
    with _opened(at / "new", os.O_WRONLY | os.O_CREAT | os.O_EXCL) as descriptor:
        os.write(descriptor, _LARGE)


def _make_directory(at: Path) -> None:
    (at / "new").mkdir()


def _make_tree(at: Path) -> None:
    """What is new is changed before its own entry in the activity log is durable."""
    (at / "new").mkdir()
    (at / "new/sub").mkdir()
    _write_new(at / "new/sub")
    os.replace(at / "new/sub", at / "new/moved")


def _make_fifo(at: Path) -> None:
    os.mkfifo(at / "new")


def _make_device(at: Path) -> None:
    os.mknod(at / "new", stat.S_IFCHR | 0o600, os.makedev(250, 1))


def _make_socket(at: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        here = os.getcwd()
        os.chdir(at)  # the path may be too long for an address
        try:
            made.bind("new")
        finally:
            os.chdir(here)


def _symlink(at: Path) -> None:
    os.symlink("nowhere", at / "new")


def _link(at: Path) -> None:
    os.link(at / "file", at / "new")


def _link_across(at: Path) -> None:
    os.link(at / "file", at / "other/new")


def _unlink(at: Path) -> None:
    os.unlink(at / "file")


def _unlink_one_of_two(at: Path) -> None:
    os.unlink(at / "second")


def _unlink_one_of_two_while_it_changes(at: Path) -> None:
    with _opened(at / "second", os.O_WRONLY) as descriptor:
        os.write(descriptor, b"changed")
        os.unlink(at / "second")
        os.write(descriptor, b"again")


def _write_without_name(at: Path) -> None:
    with _opened(at / "file", os.O_WRONLY) as descriptor:
        os.unlink(at / "file")
        os.write(descriptor, b"nameless")


def _remove_directory(at: Path) -> None:
    (at / "empty").rmdir()


def _rename(at: Path) -> None:
    os.replace(at / "file", at / "new")


def _rename_over(at: Path) -> None:
    os.replace(at / "file", at / "second")


def _rename_across(at: Path) -> None:
    os.replace(at / "file", at / "other/new")


def _rename_across_over(at: Path) -> None:
    os.replace(at / "file", at / "other/old")


def _rename_if_free(at: Path) -> None:
    rename(os.fsencode(at / "file"), os.fsencode(at / "new"), _NOREPLACE)


def _exchange(at: Path) -> None:
    rename(os.fsencode(at / "file"), os.fsencode(at / "other/old"), _EXCHANGE)


def _exchange_with_directory(at: Path) -> None:
    rename(os.fsencode(at / "file"), os.fsencode(at / "other"), _EXCHANGE)


def _move_directory(at: Path) -> None:
    os.replace(at / "full", at / "other/new")


def _move_directory_over(at: Path) -> None:
    os.replace(at / "full", at / "empty")


def _replace_by_new(at: Path) -> None:
    _write_new(at)
    os.replace(at / "new", at / "file")


def _overwrite(at: Path) -> None:
    with _opened(at / "file", os.O_WRONLY) as descriptor:
        os.write(descriptor, b"changed")


def _append(at: Path) -> None:
    with _opened(at / "second", os.O_WRONLY | os.O_APPEND) as descriptor:
        os.write(descriptor, b"appended")


def _two_handles(at: Path) -> None:
    with (
        _opened(at / "file", os.O_WRONLY) as one,
        _opened(at / "file", os.O_WRONLY | os.O_APPEND) as other,
    ):
        os.write(one, b"one")
        os.write(other, b"other")


def _write_and_sync(at: Path) -> None:
    with _opened(at / "file", os.O_WRONLY) as descriptor:
        os.write(descriptor, b"changed")
        os.fsync(descriptor)
        os.write(descriptor, b"again")


def _open_empty(at: Path) -> None:
    with _opened(at / "file", os.O_WRONLY | os.O_TRUNC) as descriptor:
        os.write(descriptor, b"short")


def _open_empty_to_read(at: Path) -> None:
    with _opened(at / "file", os.O_RDONLY | os.O_TRUNC):
        pass


def _truncate(at: Path) -> None:
    os.truncate(at / "file", 5)


def _grow(at: Path) -> None:
    with _opened(at / "file", os.O_WRONLY) as descriptor:
        os.ftruncate(descriptor, 1 << 20)


def _allocate(at: Path) -> None:
    """The C library writes, since the mount has no fallocate."""
    with _opened(at / "file", os.O_RDWR) as descriptor:
        os.posix_fallocate(descriptor, 0, 20_000)


def _store_by_mapping(at: Path) -> None:
    with _opened(at / "file", os.O_RDWR) as descriptor:
        mapping = mmap.mmap(descriptor, 4000)
    try:
        mapping[100:106] = b"stored"
        mapping.flush()
        mapping[200:206] = b"stored"
    finally:
        mapping.close()


def _set_mode(at: Path) -> None:
    os.chmod(at / "file", 0o600)


def _set_mode_of_directory(at: Path) -> None:
    os.chmod(at / "full", 0o700)


def _set_owner(at: Path) -> None:
    os.chown(at / "file", 1000, 1001)


def _set_owner_of_symlink(at: Path) -> None:
    os.chown(at / "symlink", 1000, 1001, follow_symlinks=False)


def _set_times(at: Path) -> None:
    os.utime(at / "file", ns=(1, 123_456_789))


def _set_times_of_directory(at: Path) -> None:
    os.utime(at / "full", ns=(1, 123_456_789))


def _set_xattr(at: Path) -> None:
    os.setxattr(at / "file", "user.b", b"new")


def _remove_xattr(at: Path) -> None:
    os.removexattr(at / "file", "user.a")


def _set_acl(at: Path) -> None:
    os.setxattr(at / "file", "system.posix_acl_access", acl(1006, 6))


def _set_default_acl(at: Path) -> None:
    os.setxattr(at / "full", "system.posix_acl_default", acl(1005, 5))


OPERATIONS: Final[tuple[Callable[[Path], None], ...]] = (
    *(_create, _write_new, _write_large, _make_directory, _make_tree, _make_fifo, _make_device),
    *(_make_socket, _symlink, _link, _link_across, _unlink, _unlink_one_of_two),
    *(_unlink_one_of_two_while_it_changes, _write_without_name, _remove_directory),
    *(_rename, _rename_over, _rename_across, _rename_across_over, _rename_if_free, _exchange),
    *(_exchange_with_directory, _move_directory, _move_directory_over, _replace_by_new),
    *(_overwrite, _append, _two_handles, _write_and_sync, _open_empty, _open_empty_to_read),
    *(_truncate, _grow, _allocate, _store_by_mapping, _set_mode, _set_mode_of_directory),
    *(_set_owner, _set_owner_of_symlink, _set_times, _set_times_of_directory),
    *(_set_xattr, _remove_xattr, _set_acl, _set_default_acl),
)
