"""What mirrorfs refuses or fails to do, as exceptions that carry their exit code.

Pure. Each message is the one line an operator reads: what, where, and what is allowed. Errors of a
job's request are OSErrors with their errno, and never one of these.
"""

from __future__ import annotations

import errno
from typing import Final

_IN_DOUBT: Final = frozenset(
    {errno.EIO, errno.EINTR, errno.ETIMEDOUT, errno.EREMOTEIO, errno.ECOMM, errno.ENOTCONN}
)


class MirrorfsError(Exception):
    """Base of all of them; `exit_code` is what the command ends with."""

    exit_code = 70


class UsageError(MirrorfsError):
    """A wrong option or argument."""

    exit_code = 64


class ConfigurationError(MirrorfsError):
    """A volume file that says what is not allowed."""

    exit_code = 65


class UnusableError(MirrorfsError):
    """Something named does not exist or cannot serve (source, mountpoint, journal)."""

    exit_code = 66


class RefusedError(MirrorfsError):
    """In use, or not ours: a busy mountpoint, another volume's tree, a second writer."""

    exit_code = 69


class CannotWriteError(MirrorfsError):
    """A place that must be writable is not."""

    exit_code = 73


class CorruptJournalError(MirrorfsError):
    """A journal that must not be written on."""

    exit_code = 74


class NotPermittedError(MirrorfsError):
    """A permission of ours is missing: not root, no /dev/fuse."""

    exit_code = 77


def in_doubt(error: BaseException) -> bool:
    """After a system call or a piece of code failed so, what it was to change may be changed."""
    return not isinstance(error, OSError) or error.errno in _IN_DOUBT


def errno_of(error: OSError) -> int:
    """The errno to answer a request with; EIO if the error carries none.

    When it is the daemon that cannot open more files, the job has not too many of them.
    """
    return errno.ENFILE if error.errno == errno.EMFILE else error.errno or errno.EIO
