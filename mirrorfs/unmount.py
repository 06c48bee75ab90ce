"""Unmount, and wait until the daemon behind the mount has ended: then its journal is complete.

Finds the daemon by a virtual attribute of the mount's root. It ends no process itself: a daemon
ends when the kernel lets its mount go.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import select

from mirrorfs import mountinfo
from mirrorfs.errors import NotPermittedError, RefusedError, UnusableError

DAEMON_ATTRIBUTE = "trusted.mirrorfs.daemon"

_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8
_libc = ctypes.CDLL(None, use_errno=True)


def find_daemon(mountpoint: str) -> dict[str, object] | None:
    """What the daemon of a mount says of itself; None if the mount is dead. UnusableError."""
    entry = mountinfo.mounted_at(mountpoint)
    if entry is None or not entry.ours:
        raise UnusableError(f"{mountpoint}: not a mirrorfs mount")
    try:
        told = json.loads(os.getxattr(entry.path, DAEMON_ATTRIBUTE))
    except OSError as error:
        if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
            return None
        raise UnusableError(f"{mountpoint}: the daemon does not answer: {error.strerror}") from None
    return dict(told)


def unmount(mountpoint: str, *, lazy: bool) -> str:
    """Unmount, wait for the daemon's end, and say what was done.

    `lazy`: detach a busy mount too; its daemon ends with the last user, and is not waited for.
    Raises UnusableError (no mirrorfs mount), RefusedError (busy), NotPermittedError.
    """
    if os.geteuid() != 0:
        raise NotPermittedError("umount: not permitted: only root may unmount")
    daemon = find_daemon(mountpoint)
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


def _umount(path: str, flags: int) -> None:
    if _libc.umount2(os.fsencode(path), flags | _UMOUNT_NOFOLLOW) == 0:
        return
    code = ctypes.get_errno()
    if code == errno.EBUSY:
        raise RefusedError(
            f"{path}: in use: end its users ('fuser -vm {path}'), or -l to detach it"
        )
    raise UnusableError(f"{path}: {os.strerror(code)}")
