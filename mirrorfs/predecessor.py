"""The mirrorfs before this one: unmounted already, it may still be bringing its journal to an end.

`umount` and `mount` in one breath must work; whoever is mounted is not waited for.
"""

from __future__ import annotations

import os
import time
from typing import Final

from mirrorfs import holders, mountinfo
from mirrorfs.errors import RefusedError
from mirrorfs.journal.control_client import ControlClient, ControlError, NotRunningError
from mirrorfs.journal.writer import LOCK_NAME
from mirrorfs.volume import VolumeDirectory

_PATIENCE_SECONDS: Final = 10.0
_LOOK_SECONDS: Final = 0.02


def lock(directory: VolumeDirectory, journal: str) -> None:
    """Lock the source; wait a while for the last mirrorfs of the same journal. RefusedError."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            directory.lock()
        except RefusedError:
            detached = _ending(journal)
            if detached is None:
                raise
            if time.monotonic() > deadline:
                raise _in_use(detached) from None
            time.sleep(_LOOK_SECONDS)
        else:
            return


def _ending(journal: str) -> int | None:
    """A process of that journal lives that is mounted nowhere: st_dev of the mount it still serves,
    0 if that is not told any more; None: there is none."""
    try:
        with open(os.path.join(journal, LOCK_NAME), "rb") as stream:
            pid = int(stream.read().split(b" ")[0])
        os.kill(pid, 0)
        with ControlClient(journal) as client:
            status = client.status()
    except NotRunningError:
        return 0
    except (OSError, ValueError, ControlError):
        return None
    found = mountinfo.mounted_at(os.fsdecode(status.mountpoint))
    return status.device if found is None or found.device != status.device else None


def _in_use(device: int) -> RefusedError:
    """Who keeps it from ending."""
    users = holders.of_mount(device) if device else []
    by = f", used by {holders.words(users)}" if users else ""
    return RefusedError(
        f"the mount before this one was detached and still serves its last users{by}: mount again"
        " when they have ended"
    )
