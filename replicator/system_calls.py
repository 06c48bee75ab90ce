"""System calls Python has no function for: handles, renameat2, syncfs, fstatfs.

Thin: bytes and descriptors in, plain values out, OSError on failure. No decisions are taken here.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import time
from dataclasses import dataclass
from typing import Any, Final

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2
AT_EMPTY_PATH: Final = 0x1000
FUSE_SUPER_MAGIC: Final = 0x65735546

_FS_IOC_GETFSUUID = 0x80111500
_HANDLE_BYTES_MAX = 128
_ENOMEM_SECONDS = (0, 0, 0, 0, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0)
_libc = ctypes.CDLL(None, use_errno=True)


# struct file_handle: bytes, type, and the handle behind them. Packed: a ctypes.Structure takes
# longer than the calls, which are made for each step.
_HANDLE = struct.Struct("=Ii")
_NO_HANDLE = _HANDLE.pack(_HANDLE_BYTES_MAX, 0) + bytes(_HANDLE_BYTES_MAX)


def _function(name: str, *arguments: Any) -> Any:
    function = getattr(_libc, name)
    function.argtypes = arguments
    function.restype = ctypes.c_int
    return function


_int, _name = ctypes.c_int, ctypes.c_char_p
_name_to_handle_at = _function(
    "name_to_handle_at", _int, _name, ctypes.c_char_p, ctypes.POINTER(_int), _int
)
_open_by_handle_at = _function("open_by_handle_at", _int, ctypes.c_char_p, _int)
_renameat2 = _function("renameat2", _int, _name, _int, _name, ctypes.c_uint)
_syncfs = _function("syncfs", _int)
_sync_file_range = _function("sync_file_range", _int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
_SYNC_FILE_RANGE_WRITE = 2
_SYNC_FILE_RANGE_ALL = 7  # wait for what is under way, begin with the rest, wait for it
_fstatfs = _function("fstatfs", _int, ctypes.c_char_p)
_statx = _function("statx", _int, _name, _int, ctypes.c_uint, ctypes.c_char_p)
_STATX_MNT_ID_UNIQUE = 0x4000
_STATX_MNT_ID_AT = 144


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


@dataclass(frozen=True, slots=True)
class Handle:
    """What name_to_handle_at(2) says of an object; `mount_id` is where it was found."""

    type: int
    handle: bytes
    mount_id: int


def begin_writing(descriptor: int) -> None:
    """Have what was written to that file go to the disk; does not wait for it."""
    _checked(_sync_file_range(descriptor, 0, 0, _SYNC_FILE_RANGE_WRITE))


def write_out(descriptor: int) -> None:
    """What was written to that file has gone to the disk when this returns. Not its inode."""
    _checked(_sync_file_range(descriptor, 0, 0, _SYNC_FILE_RANGE_ALL))


def handle_of(descriptor: int) -> Handle:
    """The file handle of an open object (O_PATH will do). EOPNOTSUPP: its file system has none."""
    buffer = ctypes.create_string_buffer(_NO_HANDLE, len(_NO_HANDLE))
    mount_id = _int()
    _checked(_name_to_handle_at(descriptor, b"", buffer, ctypes.byref(mount_id), AT_EMPTY_PATH))
    found = buffer.raw
    count, kind = _HANDLE.unpack_from(found)
    return Handle(kind, found[_HANDLE.size : _HANDLE.size + count], mount_id.value)


def open_handle(mount: int, handle_type: int, handle: bytes, flags: int) -> int:
    """A descriptor of the object; `mount` is one of the same mount, not O_PATH.

    ESTALE: it does not exist any more. Linux says ENOMEM, too, while the inode of an object that is
    gone is being given to a new one (iget_locked() in fs/inode.c): so it is asked again.
    """
    wanted = _HANDLE.pack(len(handle), handle_type) + handle
    for seconds in _ENOMEM_SECONDS:
        result = _open_by_handle_at(mount, wanted, flags | os.O_CLOEXEC)
        if result >= 0 or ctypes.get_errno() != errno.ENOMEM:
            break
        time.sleep(seconds)
    return _checked(result)


def rename(directory: int, name: bytes, to_directory: int, to_name: bytes, flags: int) -> None:
    """renameat2(2)."""
    _checked(_renameat2(directory, name, to_directory, to_name, flags))


def syncfs(descriptor: int) -> None:
    """Everything written to the file system of that descriptor is durable when this returns."""
    _checked(_syncfs(descriptor))


def mount_id(descriptor: int) -> int:
    """Id of the mount it was opened on, never used again in this boot; 0 if it cannot be told
    (before Linux 6.8)."""
    answer = ctypes.create_string_buffer(256)
    if _statx(descriptor, b"", AT_EMPTY_PATH, _STATX_MNT_ID_UNIQUE, answer) != 0:
        return 0
    if not struct.unpack_from("<I", answer.raw)[0] & _STATX_MNT_ID_UNIQUE:
        return 0
    found: int = struct.unpack_from("<Q", answer.raw, _STATX_MNT_ID_AT)[0]
    return found


def file_system_type(descriptor: int) -> int:
    """f_type of statfs(2)."""
    return _statfs(descriptor)[0]


def file_system_id(descriptor: int) -> int:
    """f_fsid of statfs(2), first word lowest."""
    return _statfs(descriptor)[1]


def _statfs(descriptor: int) -> tuple[int, int]:
    buffer = ctypes.create_string_buffer(256)
    _checked(_fstatfs(descriptor, buffer))
    kind, identity = struct.unpack_from("<q48xQ", buffer.raw)
    return kind, identity


def file_system_uuid(descriptor: int) -> bytes:
    """The file system's UUID (16 bytes); empty if it cannot be told."""
    answer = bytearray(17)
    try:
        fcntl.ioctl(descriptor, _FS_IOC_GETFSUUID, answer)
    except OSError:
        return b""
    return bytes(answer[1:17]) if answer[0] == 16 else b""
