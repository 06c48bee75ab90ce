"""The mirrorfs before this one: unmounted already, it may still be bringing its journal to an end.

`umount` and `mount` in one breath must work; whoever is mounted is not waited for.
"""

from __future__ import annotations

import os
import time
from typing import Final

from mirrorfs import mountinfo
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
            if time.monotonic() > deadline or not _is_ending(journal):
                raise
            time.sleep(_LOOK_SECONDS)
        else:
            return


def _is_ending(journal: str) -> bool:
    """Does a process of that journal live that is mounted nowhere?"""
    try:
        with open(os.path.join(journal, LOCK_NAME), "rb") as stream:
            pid = int(stream.read().split(b" ")[0])
        os.kill(pid, 0)
        with ControlClient(journal) as client:
            mountpoint = client.status().mountpoint
    except NotRunningError:
        return True
    except (OSError, ValueError, ControlError):
        return False
    return mountinfo.mounted_at(os.fsdecode(mountpoint)) is None
