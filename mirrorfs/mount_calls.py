"""System calls about mounts, as functions that raise OSError.

Descriptors stand for mounts where they can: a path may mean another mount a moment later. It
decides nothing.
"""

from __future__ import annotations

import ctypes
import errno
import os
import time
from collections.abc import Iterable, Mapping
from typing import Final

MNT_DETACH: Final = 2
UMOUNT_NOFOLLOW: Final = 8
MOVE_MOUNT_BENEATH: Final = 0x200

_MOVE_MOUNT: Final = 429  # the same numbers on all architectures but alpha
_FSOPEN: Final = 430
_FSCONFIG: Final = 431
_FSMOUNT: Final = 432
_CLOEXEC: Final = 1  # of fsopen(2) and fsmount(2)
_SET_FLAG: Final = 0
_SET_STRING: Final = 1
_CREATE: Final = 6
_FROM_EMPTY_PATH: Final = 0x4
_TO_EMPTY_PATH: Final = 0x40
_CLONE_NEWNS: Final = 0x20000
_AGAIN_SECONDS = 0.02
_MS_REC: Final = 0x4000
_MS_PRIVATE: Final = 0x40000

FLAGS: Final[Mapping[str, int]] = {
    "ro": 1,
    "nosuid": 2,
    "nodev": 4,
    "noexec": 8,
    "sync": 16,
    "dirsync": 128,
    "noatime": 1024,
    "nodiratime": 2048,
}
"""Of mount(2); statvfs has the same numbers."""

_ATTRIBUTES: Final[Mapping[str, int]] = {
    "ro": 0x1,
    "nosuid": 0x2,
    "nodev": 0x4,
    "noexec": 0x8,
    "noatime": 0x10,
    "nodiratime": 0x80,
}
"""Of fsmount(2)."""

_OF_THE_FILE_SYSTEM: Final = ("ro", "sync", "dirsync")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.mount.argtypes = (
    *(ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p),
)


def _failed(path: str | None = None) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code), path)


def mount(source: str, path: str, kind: str, words: Iterable[str], data: str) -> None:
    """mount(2) at `path`; `words` are among `FLAGS`."""
    flags = sum(FLAGS[word] for word in set(words))
    texts = [os.fsencode(text) for text in (source, path, kind)]
    if _libc.mount(*texts, flags, os.fsencode(data)) != 0:
        raise _failed(path)


def make(kind: str, values: Mapping[str, str | None], words: Iterable[str]) -> int:
    """A descriptor of a new mount that is nowhere yet; a value of None is a switch.

    ENOSYS before Linux 5.2.
    """
    words = set(words)
    context = _call(_FSOPEN, os.fsencode(kind), _CLOEXEC)
    try:
        switches = [(word, None) for word in _OF_THE_FILE_SYSTEM if word in words]
        for key, value in [*values.items(), *switches]:
            if value is None:
                _call(_FSCONFIG, context, _SET_FLAG, os.fsencode(key), None, 0)
            else:
                text = os.fsencode(value)
                _call(_FSCONFIG, context, _SET_STRING, os.fsencode(key), text, 0)
        _call(_FSCONFIG, context, _CREATE, None, None, 0)
        attributes = sum(flag for word, flag in _ATTRIBUTES.items() if word in words)
        return _call(_FSMOUNT, context, _CLOEXEC, attributes)
    finally:
        os.close(context)


def put_beneath(mount: int, top: int) -> None:
    """Put a mount made by `make` beneath the mount whose root the descriptor `top` is.

    OSError before Linux 6.5.
    """
    how = _FROM_EMPTY_PATH | _TO_EMPTY_PATH | MOVE_MOUNT_BENEATH
    _call(_MOVE_MOUNT, mount, b"", top, b"", how)


def put_on(mount: int, top: int) -> None:
    """The same, but on top of it. OSError."""
    _call(_MOVE_MOUNT, mount, b"", top, b"", _FROM_EMPTY_PATH | _TO_EMPTY_PATH)


def detach(root: int) -> None:
    """Take the mount whose root this descriptor is out of the tree, busy or not."""
    path = f"/proc/self/fd/{root}"
    if _libc.umount2(os.fsencode(path), MNT_DETACH) != 0:
        raise _failed(path)


def unmount(path: str, flags: int = 0) -> None:
    """umount2(2); never through a symlink."""
    if _libc.umount2(os.fsencode(path), flags | UMOUNT_NOFOLLOW) != 0:
        raise _failed(path)


def unmount_soon(path: str, seconds: float) -> None:
    """The same; for so long it is waited for whoever uses it for a moment still."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return unmount(path)
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() >= deadline:
                raise
        time.sleep(_AGAIN_SECONDS)


def leave_mounts() -> None:
    """From now on this process has a mount table of its own, and what it does there stays there."""
    if _libc.unshare(_CLONE_NEWNS) != 0:
        raise _failed()
    if _libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None) != 0:
        raise _failed("/")


def mount_id(descriptor: int) -> int:
    """Of the mount a descriptor is on, as mountinfo tells it; asks no file system."""
    with open(f"/proc/self/fdinfo/{descriptor}", "rb") as stream:
        for line in stream:
            key, _, value = line.partition(b":")
            if key == b"mnt_id":
                return int(value)
    raise OSError(0, "no mnt_id", f"/proc/self/fdinfo/{descriptor}")


def _call(number: int, *arguments: int | bytes | None) -> int:
    """A system call with arguments as C has them."""
    converted = [
        ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments
    ]
    result: int = _libc.syscall(ctypes.c_long(number), *converted)
    if result < 0:
        raise _failed()
    return result
