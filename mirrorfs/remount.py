"""Change what the kernel does for a mount that is there: `mount -o remount,ro` and the like.

The daemon behind it is only asked: its own options hold until it is unmounted.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterable, Mapping
from typing import Any, Final

from mirrorfs.config import changed_option
from mirrorfs.errors import NotPermittedError, RefusedError, UnusableError
from mirrorfs.journal.control_client import ControlClient
from mirrorfs.mount_calls import FLAGS as _FLAGS
from mirrorfs.mounted import find_daemon

_MS_REMOUNT: Final = 32

_UNTOLD: Final = frozenset({"dirsync", "nodiratime"})
"""What statvfs does not say of a mount of ours."""

_libc = ctypes.CDLL(None, use_errno=True)


def remount(mountpoint: str, options: Mapping[str, Any]) -> None:
    """Let these options of `read_options` hold; those not named stay as they are.

    An option of our own may be named if it says what holds already, as a line of fstab does.
    Raises RefusedError (another value; a change to read-only while files are open for writing),
    UnusableError, NotPermittedError.
    """
    if os.geteuid() != 0:
        raise NotPermittedError("mount: not permitted: only root may mount")
    told = find_daemon(mountpoint)
    if told is None:
        raise RefusedError(f"{mountpoint}: a dead mount: run 'mirrorfs umount {mountpoint}' first")
    changed = changed_option(told["options"], {k: v for k, v in options.items() if k != "remount"})
    if changed is not None:
        raise RefusedError(
            f"{mountpoint}: remount: {changed} until it is unmounted: {', '.join(_FLAGS)} and their"
            " opposites may change"
        )
    path = os.path.realpath(mountpoint)
    switches = dict(options.get("kernel_options", {}))
    switches.update(dict.fromkeys(told["restrictions"], True))
    with ControlClient(told["journal"]) as daemon:
        found = os.statvfs(path).f_flag
        held = {word for word, flag in _FLAGS.items() if found & flag} - _UNTOLD
        held.update(_UNTOLD & set(daemon.status().kernel_options))
        holding = tuple(word for word in _FLAGS if switches.get(word, word in held))
        _remount(mountpoint, path, holding)
        daemon.remounted(holding)


def _remount(mountpoint: str, path: str, holding: Iterable[str]) -> None:
    flags = _MS_REMOUNT
    for word in holding:
        flags |= _FLAGS[word]
    if _libc.mount(None, os.fsencode(path), None, flags, None) != 0:
        raise _refusal(mountpoint, ctypes.get_errno())


def _refusal(mountpoint: str, code: int) -> RefusedError | UnusableError:
    if code == errno.EBUSY:
        return RefusedError(
            f"{mountpoint}: remount: in use: files are open for writing ('fuser -vm {mountpoint}')"
        )
    return UnusableError(f"{mountpoint}: remount: {os.strerror(code)}")
