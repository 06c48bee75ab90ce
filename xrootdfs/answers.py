"""What servers answer, as values.

Pure. The binding's dicts and the protocol's texts come in; nothing of them goes further.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any

from xrootdfs.errors import CallError, Origin
from xrootdfs.values import Kind, Space, Stat

_IS_DIRECTORY, _IS_OTHER, _IS_PENDING = 2, 4, 64
_IS_READABLE, _IS_WRITABLE, _IS_EXECUTABLE = 16, 32, 1


def stat_of(told: Mapping[str, Any]) -> Stat:
    """A stat as the binding gives it. Servers before version 5 tell neither mode nor owner."""
    flags = told["flags"]
    kind = Kind.FILE
    if flags & _IS_DIRECTORY:
        kind = Kind.DIRECTORY
    elif flags & _IS_OTHER:
        kind = Kind.OTHER
    extended = told.get("extended", False)
    return Stat(
        kind=kind,
        size=told["size"],
        mode=int(told["mode"], 8) if extended else _mode_of(flags),
        mtime=told["modtime"],
        ctime=told["ctime"] if extended else told["modtime"],
        atime=told["atime"] if extended else told["modtime"],
        owner=told["owner"] if extended else "",
        group=told["group"] if extended else "",
        pending=bool(flags & _IS_PENDING),
        id=told["id"],
    )


def _mode_of(flags: int) -> int:
    mode = 0o444 if flags & _IS_READABLE else 0
    mode |= 0o200 if flags & _IS_WRITABLE else 0
    return mode | (0o111 if flags & _IS_EXECUTABLE or flags & _IS_DIRECTORY else 0)


def space_of(data: bytes) -> Space:
    """The answer to a query for space: `oss.space=…&oss.free=…&…`."""
    items = dict(
        item.split("=", 1) for item in data.rstrip(b"\0").decode().split("&") if "=" in item
    )
    try:
        return Space(total=int(items["oss.space"]), free=int(items["oss.free"]))
    except (KeyError, ValueError):
        raise CallError(errno.EIO, f"space: {data!r}", Origin.ANSWERED) from None
