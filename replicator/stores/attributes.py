"""Owner, extended attributes, mode and times of an object of the site, in the one right order.

Objects are given as in `replicator.xattrs`. What the site's file
system cannot keep is counted, not failed: it is the site's fidelity debt. Foreign errors pass as
OSError.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from typing import Final

from replicator.stores.base import Attributes, Mark, SiteEntry
from replicator.xattrs import At, read_xattrs

MARK: Final = b"trusted.mirrorfs.mark"

_REFUSED: Final = frozenset({errno.EOPNOTSUPP, errno.EPERM, errno.EACCES, errno.EINVAL})
"""A file system that does not keep this attribute, or lets nobody set it."""

_TOO_LARGE: Final = frozenset({errno.ENOSPC, errno.E2BIG, errno.ERANGE})
"""Either the attributes of one object take more than its file system can hold, or it is full."""


def entry_of(found: os.stat_result, mark: Mark | None) -> SiteEntry:
    """What stat(2) told of an object, and the mark it bears."""
    return SiteEntry(
        identity=(found.st_dev, found.st_ino),
        mode=found.st_mode,
        uid=found.st_uid,
        gid=found.st_gid,
        size=found.st_size,
        mtime_ns=found.st_mtime_ns,
        rdev=found.st_rdev,
        links=found.st_nlink,
        mark=mark,
    )


def read_mark(at: At) -> Mark | None:
    """The object's mark, if it bears one."""
    try:
        return Mark.decode(os.getxattr(at, MARK))
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return None
        raise


def write_mark(at: At, mark: Mark) -> None:
    """Replace the object's mark."""
    os.setxattr(at, MARK, mark.encode())


def dress(at: At, attributes: Attributes, mark: Mark) -> int:
    """Give a new object everything; how many attributes were refused.

    The mark first: where space for attributes is short, it is the one that must fit.
    """
    write_mark(at, mark)
    os.chown(at, attributes.uid, attributes.gid)
    debt = sum(not _set(at, name, value) for name, value in attributes.xattrs.items())
    _mode_and_times(at, attributes.mode, attributes)
    return debt


def change(at: At, old: os.stat_result, attributes: Attributes, mark: Mark) -> int:
    """Make the attributes of an object of the tree so; how many were refused.

    The mark last: it says that all the rest is done.
    """
    if (old.st_uid, old.st_gid) != (attributes.uid, attributes.gid):
        os.chown(at, attributes.uid, attributes.gid)
    debt = _change_xattrs(at, attributes.xattrs)
    _mode_and_times(at, old.st_mode, attributes)
    write_mark(at, mark)
    return debt


def _change_xattrs(at: At, wanted: Mapping[bytes, bytes]) -> int:
    debt = 0
    present = read_xattrs(at)
    for name in present.keys() - wanted.keys():
        try:
            os.removexattr(at, name)
        except OSError as error:
            if error.errno in _REFUSED:
                debt += 1
            elif error.errno != errno.ENODATA:
                raise
    for name, value in wanted.items():
        if present.get(name) != value:
            debt += not _set(at, name, value)
    return debt


def _set(at: At, name: bytes, value: bytes) -> bool:
    """Set an attribute; False when the file system refuses it."""
    try:
        os.setxattr(at, name, value)
    except OSError as error:
        if error.errno in _REFUSED:
            return False
        if error.errno in _TOO_LARGE and _has_space(at):
            return False
        raise
    return True


def _has_space(at: At) -> bool:
    room = os.statvfs(at)
    return room.f_bavail > 0 and (room.f_favail > 0 or room.f_files == 0)


def _mode_and_times(at: At, kind: int, attributes: Attributes) -> None:
    if not stat.S_ISLNK(kind):  # those have no mode of their own
        os.chmod(at, stat.S_IMODE(attributes.mode))
    os.utime(at, ns=(attributes.atime_ns, attributes.mtime_ns))
