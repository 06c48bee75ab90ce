"""Which mounts are ours, and what the daemons behind them say of themselves.

Asks by virtual attributes that the root of an xrootdfs mount has, never waits long for the answer,
and changes nothing.
"""

from __future__ import annotations

import errno
import json
import os
import queue
import threading
from typing import Any, Final

from xrootdfs import mountinfo
from xrootdfs.errors import UnusableError
from xrootdfs.mountinfo import MountEntry

DAEMON_ATTRIBUTE: Final = "user.xrootd.daemon"
STATUS_ATTRIBUTE: Final = "user.xrootd.status"
ANSWER_SECONDS: Final = 10.0

NO_ATTRIBUTE: Final = (errno.ENODATA, errno.ENOTSUP)
_DEAD: Final = (errno.ENOTCONN, errno.ECONNABORTED)


def is_ours(entry: MountEntry) -> bool:
    """An xrootdfs mount, alive or dead? One with another subtype must be alive to be known."""
    if entry.ours or not entry.type.startswith("fuse."):
        return entry.ours
    try:
        return bool(ask(entry.path, DAEMON_ATTRIBUTE))
    except OSError:
        return False


def all_mounted() -> list[str]:
    """Mountpoints of all xrootdfs mounts of this host, sorted."""
    return sorted({entry.path for entry in mountinfo.mounts() if entry.ours})


def find_daemon(mountpoint: str, subtype: str = "xrootdfs") -> dict[str, Any] | None:
    """What the daemon of a mount says of itself; None if the mount is dead.

    `subtype`: a dead mount of this type is ours, too. UnusableError.
    """
    return _told(mountpoint, DAEMON_ATTRIBUTE, subtype)


def find_status(mountpoint: str) -> dict[str, Any] | None:
    """How a mount fares, in its own words (`xrootdfs status --json`); None if it is dead."""
    return _told(mountpoint, STATUS_ATTRIBUTE, "xrootdfs")


def ask(path: str, attribute: str) -> bytes:
    """Value of an attribute; TimeoutError after ten seconds. OSError."""
    answers: queue.Queue[bytes | OSError] = queue.Queue()

    def work() -> None:
        try:
            answers.put(os.getxattr(path, attribute))
        except OSError as error:
            answers.put(error)

    # A daemon that hangs must not hang those who ask after it: such a thread is left behind.
    threading.Thread(target=work, daemon=True).start()
    try:
        answer = answers.get(timeout=ANSWER_SECONDS)
    except queue.Empty:
        raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT), path) from None
    if isinstance(answer, OSError):
        raise answer
    return answer


def _told(mountpoint: str, attribute: str, subtype: str) -> dict[str, Any] | None:
    entry = mountinfo.mounted_at(mountpoint)
    if entry is None or not entry.type.startswith("fuse."):
        raise _not_ours(mountpoint)
    try:
        told = json.loads(ask(entry.path, attribute))
    except OSError as error:
        ours = entry.ours or entry.type == f"fuse.{subtype}"
        if error.errno in _DEAD and ours:
            return None
        if not ours:
            raise _not_ours(mountpoint) from None
        raise UnusableError(f"{mountpoint}: the daemon does not answer: {error.strerror}") from None
    return dict(told)


def _not_ours(mountpoint: str) -> UnusableError:
    return UnusableError(f"{mountpoint}: not an xrootdfs mount")
