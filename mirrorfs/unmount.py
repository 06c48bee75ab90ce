"""Unmount, and wait until the daemon behind the mount has ended: then its journal is complete.

It ends no process itself: a daemon ends when the kernel lets its mount go.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select

from mirrorfs import mountinfo
from mirrorfs.errors import NotPermittedError, RefusedError, UnusableError
from mirrorfs.mounted import find_daemon

_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8
_libc = ctypes.CDLL(None, use_errno=True)


def unmount(mountpoint: str, *, lazy: bool = False, subtype: str = "mirrorfs") -> str:
    """Unmount, wait for the daemon's end, and say what was done.

    `lazy`: detach a busy mount too; its daemon ends with the last user, and is not waited for.
    `subtype`: see `find_daemon`.
    Raises UnusableError (no mirrorfs mount), RefusedError (busy), NotPermittedError.
    """
    _check_permission()
    daemon = find_daemon(mountpoint, subtype)
    path = os.path.realpath(mountpoint)
    if daemon is None:
        _umount(path, _MNT_DETACH)
        return f"{mountpoint}: dead mount removed"
    pid = daemon["pid"]
    assert isinstance(pid, int)
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        raise UnusableError(f"{mountpoint}: its daemon is not of this host's processes") from None
    try:
        _umount(path, _MNT_DETACH if lazy else 0)
        if not lazy:
            select.select([pidfd], [], [])
            return f"{mountpoint}: unmounted"
        return f"{mountpoint}: detached; mirrorfs (process {pid}) ends with the last user"
    finally:
        os.close(pidfd)


def remove_dead(mountpoint: str, *, subtype: str = "mirrorfs") -> str | None:
    """Take a dead mount away, and say so; a live one, and what others mounted, is let be.

    NotPermittedError.
    """
    _check_permission()
    entry = mountinfo.mounted_at(mountpoint)
    if entry is None or not (entry.ours or entry.type == f"fuse.{subtype}"):
        return None
    if find_daemon(mountpoint, subtype) is not None:
        return None
    return unmount(mountpoint, subtype=subtype)


def _check_permission() -> None:
    if os.geteuid() != 0:
        raise NotPermittedError("umount: not permitted: only root may unmount")


def _umount(path: str, flags: int) -> None:
    if _libc.umount2(os.fsencode(path), flags | _UMOUNT_NOFOLLOW) == 0:
        return
    code = ctypes.get_errno()
    if code == errno.EBUSY:
        raise RefusedError(
            f"{path}: in use: end its users ('fuser -vm {path}'), or -l to detach it"
        )
    raise UnusableError(f"{path}: {os.strerror(code)}")
