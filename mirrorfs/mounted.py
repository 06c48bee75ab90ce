"""Which mounts are ours, and what the daemons behind them say of themselves.

Asks the mount named, by a virtual attribute that only the root of a mirrorfs mount has. Changes
nothing.
"""

from __future__ import annotations

import errno
import json
import os
from typing import Any, Final

from mirrorfs import mountinfo
from mirrorfs.errors import UnusableError
from mirrorfs.mountinfo import MountEntry

DAEMON_ATTRIBUTE: Final = "trusted.mirrorfs.daemon"

_DEAD: Final = (errno.ENOTCONN, errno.ECONNABORTED)


def is_ours(entry: MountEntry) -> bool:
    """A mirrorfs mount, alive or dead? One with another subtype must be alive to be known."""
    if entry.ours or not entry.type.startswith("fuse."):
        return entry.ours
    try:
        return bool(os.getxattr(entry.path, DAEMON_ATTRIBUTE))
    except OSError:
        return False


def find_daemon(mountpoint: str, subtype: str = "mirrorfs") -> dict[str, Any] | None:
    """What the daemon of a mount says of itself; None if the mount is dead.

    `subtype`: a dead mount of this type is ours, too. UnusableError.
    """
    entry = mountinfo.mounted_at(mountpoint)
    if entry is None or not entry.type.startswith("fuse."):
        raise _not_ours(mountpoint)
    try:
        told = json.loads(os.getxattr(entry.path, DAEMON_ATTRIBUTE))
    except OSError as error:
        ours = entry.ours or entry.type == f"fuse.{subtype}"
        if error.errno in _DEAD and ours:
            return None
        if not ours:
            raise _not_ours(mountpoint) from None
        raise UnusableError(f"{mountpoint}: the daemon does not answer: {error.strerror}") from None
    return dict(told)


def _not_ours(mountpoint: str) -> UnusableError:
    return UnusableError(f"{mountpoint}: not a mirrorfs mount")
