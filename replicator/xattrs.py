"""Extended attributes of an object that is held open, ACLs among them.

An object is given as a descriptor open for reading or writing, or as the `/proc/self/fd` path of
an O_PATH descriptor, which means that very object, a symlink too. Errors are OSError.
"""

from __future__ import annotations

import errno
import os
from typing import Final, TypeAlias

At: TypeAlias = int | bytes

ALIASES: Final = frozenset({b"trusted.SGI_ACL_FILE", b"trusted.SGI_ACL_DEFAULT"})
"""XFS shows its ACLs a second time under these names; on another file system they would be junk."""


def path_of(descriptor: int) -> bytes:
    """The object an O_PATH descriptor stands for, for calls that do not take such descriptors."""
    return b"/proc/self/fd/%d" % descriptor


def read_xattrs(at: At) -> dict[bytes, bytes]:
    """All extended attributes but mirrorfs's own and ALIASES."""
    found: dict[bytes, bytes] = {}
    try:
        names = [os.fsencode(name) for name in os.listxattr(at)]
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return found
        raise
    for name in names:
        if name.split(b".", 2)[1:2] != [b"mirrorfs"] and name not in ALIASES:
            try:
                found[name] = os.getxattr(at, name)
            except OSError as error:
                if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
                    raise
    return found
