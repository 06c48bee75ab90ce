"""Unmount, and wait until the daemon behind the mount has ended: then all it wrote is at servers.

It ends no process itself: a daemon ends when the kernel lets its mount go.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import shutil
import subprocess
from typing import Final

from xrootdfs import mountinfo
from xrootdfs.errors import NotPermittedError, RefusedError, UnusableError
from xrootdfs.mounted import find_daemon
from xrootdfs.mountinfo import FILE_SYSTEM_TYPE

_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8
_FUSERMOUNT: Final = "fusermount3"
_libc = ctypes.CDLL(None, use_errno=True)


def unmount(mountpoint: str, *, lazy: bool = False, subtype: str = "xrootdfs") -> str:
    """Unmount, wait for the daemon's end, and say what was done.

    `lazy`: detach a busy mount too; its daemon ends with the last user, and is not waited for.
    `subtype`: see `find_daemon`.
    Raises UnusableError (no xrootdfs mount), RefusedError (busy), NotPermittedError.
    """
    path = mountinfo.resolved(mountpoint)
    try:
        daemon = find_daemon(mountpoint, subtype)
    except UnusableError:
        entry = mountinfo.mounted_at(mountpoint)
        if not lazy or entry is None or entry.type not in (f"fuse.{subtype}", FILE_SYSTEM_TYPE):
            raise
        detach(path, lazy=True)
        return f"{mountpoint}: detached; its daemon did not answer"
    if daemon is None:
        detach(path, lazy=True)
        return f"{mountpoint}: dead mount removed"
    pid = int(daemon["pid"])
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        raise UnusableError(f"{mountpoint}: its daemon is not of this host's processes") from None
    try:
        detach(path, lazy=lazy)
        if not lazy:
            select.select([pidfd], [], [])
            return f"{mountpoint}: unmounted"
        return f"{mountpoint}: detached; xrootdfs (process {pid}) ends with the last user"
    finally:
        os.close(pidfd)


def remove_dead(mountpoint: str, *, subtype: str = "xrootdfs") -> str | None:
    """Take a dead mount away, and say so; a live one, and what others mounted, is let be."""
    entry = mountinfo.mounted_at(mountpoint)
    if entry is None or not (entry.ours or entry.type == f"fuse.{subtype}"):
        return None
    if find_daemon(mountpoint, subtype) is not None:
        return None
    return unmount(mountpoint, subtype=subtype)


def detach(path: str, *, lazy: bool) -> None:
    """Only unmount; `lazy` even if it is in use. RefusedError if it is, UnusableError."""
    if os.geteuid() != 0:
        _umount_as_user(path, lazy=lazy)
        return
    flags = _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)
    if _libc.umount2(os.fsencode(path), flags) == 0:
        return
    code = ctypes.get_errno()
    if code == errno.EBUSY:
        raise _busy(path)
    raise UnusableError(f"{path}: {os.strerror(code)}")


def _umount_as_user(path: str, *, lazy: bool) -> None:
    program = shutil.which(_FUSERMOUNT)
    if program is None:
        raise NotPermittedError(f"umount: not permitted: only root may where no {_FUSERMOUNT} is")
    words = [program, "-u", *(["-z"] if lazy else []), "--", path]
    done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        said = " ".join(done.stderr.split())
        raise _busy(path) if "busy" in said else UnusableError(f"{path}: {said}")


def _busy(path: str) -> RefusedError:
    return RefusedError(f"{path}: in use: end its users ('fuser -vm {path}'), or -l to detach it")
