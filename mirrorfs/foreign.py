"""What fanotify(7) says was done to a file system, as values.

Pure: the bytes of a read in, events out. An event names a directory by its file handle and a name
in it; who is foreign, and what follows from it, is others' business.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

MODIFY: Final = 0x2
ATTRIBUTES: Final = 0x4
CLOSE_WRITE: Final = 0x8
MOVED_FROM: Final = 0x40
MOVED_TO: Final = 0x80
CREATE: Final = 0x100
DELETE: Final = 0x200
OVERFLOW: Final = 0x4000
ON_DIRECTORY: Final = 0x40000000

NAMES: Final = MOVED_FROM | MOVED_TO | CREATE | DELETE
WATCHED: Final = MODIFY | ATTRIBUTES | CLOSE_WRITE | NAMES | ON_DIRECTORY

_EVENT: Final = struct.Struct("=IBBHQii")
_INFORMATION: Final = struct.Struct("=BBH")
_HANDLE: Final = struct.Struct("=8xIi")  # after the file system's id
_DIRECTORY_AND_NAME: Final = 2
_DIRECTORY: Final = 3


class Event(NamedTuple):
    """Something was done to `name` in the directory with that handle.

    Attributes:
        mask: what: the constants above. With OVERFLOW nothing else is known.
        pid: who; 0: a process outside this namespace.
        handle: type and bytes of the directory's file handle; None if it is not known.
        name: b"." is the directory itself.
    """

    mask: int
    pid: int
    handle: tuple[int, bytes] | None
    name: bytes


def events(data: bytes) -> Iterator[Event]:
    """The events of one read(2), in their order."""
    at = 0
    while at < len(data):
        length, _, _, head, mask, _, pid = _EVENT.unpack_from(data, at)
        yield _event(data[at + head : at + length], mask, pid)
        at += length


def _event(information: bytes, mask: int, pid: int) -> Event:
    at = 0
    while at < len(information):
        kind, _, length = _INFORMATION.unpack_from(information, at)
        if kind in (_DIRECTORY_AND_NAME, _DIRECTORY):
            size, handle_type = _HANDLE.unpack_from(information, at + _INFORMATION.size)
            start = at + _INFORMATION.size + _HANDLE.size
            handle = information[start : start + size]
            name = b"."
            if kind == _DIRECTORY_AND_NAME:
                name = information[start + size : at + length].partition(b"\0")[0]
            return Event(mask, pid, (handle_type, handle), name)
        at += length
    return Event(mask, pid, None, b"")
