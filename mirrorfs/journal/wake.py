"""Be woken when something in a directory changes: inotify, through the C library.

Tells only that something happened, never what: whoever is woken looks for himself.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

_IN_MODIFY = 0x2
_IN_MOVED_TO = 0x80
_IN_CREATE = 0x100
_IN_DELETE = 0x200
_EVENTS: Final = _IN_MODIFY | _IN_MOVED_TO | _IN_CREATE | _IN_DELETE
_DRAIN_BYTES = 65536

_libc = ctypes.CDLL(None, use_errno=True)


class DirectoryWatch:
    """Watches one directory, not what is below its subdirectories.

    Attributes:
        fd: readable when a file in it was written, made or removed since `drain`.
    """

    def __init__(self, directory_fd: int) -> None:
        """Begin to watch. OSError, for example when the user's inotify limit is reached."""
        self.fd: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise _error("inotify_init1")
        path = f"/proc/self/fd/{directory_fd}".encode()
        if _libc.inotify_add_watch(self.fd, path, _EVENTS) < 0:
            error = _error("inotify_add_watch")
            os.close(self.fd)
            raise error

    def drain(self) -> None:
        """Forget what has happened so far."""
        try:
            while len(os.read(self.fd, _DRAIN_BYTES)) == _DRAIN_BYTES:
                pass
        except BlockingIOError:
            return

    def close(self) -> None:
        """End the watch."""
        os.close(self.fd)


def _error(call: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{call}: {os.strerror(number)}")
