"""Unmount, and wait until the daemon behind the mount has ended: then its journal is complete.

It ends no process itself: a daemon ends when the kernel lets its mount go.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select

from mirrorfs import covered, mount_calls, mountinfo
from mirrorfs.errors import NotPermittedError, RefusedError, UnusableError
from mirrorfs.journal.control_client import ControlClient, ControlError, NotRunningError
from mirrorfs.mounted import find_daemon

_MNT_DETACH = mount_calls.MNT_DETACH
_RELEASED_SECONDS = 2.0
"""So long they may take to see their answers."""


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
        for _ in covered.dead_at(path, subtype):  # on an old Linux they are stacked
            _umount(path, _MNT_DETACH)
        return f"{mountpoint}: dead mount removed"
    pid, supervisor = daemon["pid"], daemon.get("supervisor", 0)
    with contextlib.ExitStack() as stack:
        pidfds = []
        try:
            pidfds.append(os.pidfd_open(pid))
            stack.callback(os.close, pidfds[-1])
            if supervisor:
                pidfds.append(os.pidfd_open(supervisor))
                stack.callback(os.close, pidfds[-1])
        except ProcessLookupError:
            if not pidfds:
                raise UnusableError(
                    f"{mountpoint}: its daemon is not of this host's processes"
                ) from None
        if lazy:
            _umount(path, _MNT_DETACH)
        else:
            _umount_released(path, daemon.get("journal"))
        for _ in covered.dead_at(path, subtype):
            _umount(path, _MNT_DETACH)
        if lazy:
            return f"{mountpoint}: detached; mirrorfs (process {pid}) ends with the last user"
        for pidfd in pidfds:
            select.select([pidfd], [], [])
        return f"{mountpoint}: unmounted"


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


def _umount_released(path: str, journal: str | None) -> None:
    """Jobs that wait for sites keep the mount busy: they have their answers then."""
    try:
        _umount(path, 0)
    except RefusedError:
        try:
            with ControlClient(journal or "") as client:
                waited = client.release()
        except (OSError, ControlError, NotRunningError):
            waited = False
        if not waited:
            raise
        with contextlib.suppress(OSError):
            mount_calls.unmount_soon(path, _RELEASED_SECONDS)
            return
        raise


def _umount(path: str, flags: int) -> None:
    try:
        mount_calls.unmount(path, flags)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise RefusedError(
                f"{path}: in use: end its users ('fuser -vm {path}'), or -l to detach it"
            ) from None
        raise UnusableError(f"{path}: {error.strerror}") from None
