"""What must hold before a mount is tried; each refusal is one line.

Only looks: nothing is made, mounted or changed here, and no server is asked.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat

from xrootdfs import mounted, mountinfo
from xrootdfs.errors import NotPermittedError, RefusedError, UnusableError

_FUSE_DEVICE = os.makedev(10, 229)


def check_permissions() -> None:
    """/dev/fuse; and root, or the program that mounts for others. NotPermittedError."""
    try:
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        device = os.fstat(fd).st_rdev
        os.close(fd)
        if device != _FUSE_DEVICE:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
    except OSError as error:
        raise NotPermittedError(
            f"/dev/fuse: {error.strerror}: the kernel module fuse must be usable here"
        ) from None
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        raise NotPermittedError("mount: not permitted: only root may mount without fusermount3")


def check_mountpoint(path: str) -> None:
    """A directory on which nothing of ours is mounted. UnusableError, RefusedError."""
    entry = mountinfo.mounted_at(path)
    if entry is not None and mounted.is_ours(entry):
        try:
            mounted.ask(path, mounted.DAEMON_ATTRIBUTE)
        except OSError as error:
            raise _unusable(error, path) from None
        raise RefusedError(f"mountpoint: {path}: xrootdfs is mounted there already")
    try:
        found = os.stat(path)
    except OSError as error:
        raise _unusable(error, path) from None
    if not stat.S_ISDIR(found.st_mode):
        raise UnusableError(f"mountpoint: {path}: not a directory")


def _unusable(error: OSError, path: str) -> UnusableError | RefusedError:
    if error.errno == errno.ENOTCONN:
        return RefusedError(f"mountpoint: {path}: a dead mount: run 'xrootdfs umount {path}' first")
    return UnusableError(f"mountpoint: {path}: {error.strerror}")
