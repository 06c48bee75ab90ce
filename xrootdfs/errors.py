"""What goes wrong, as exceptions: refusals with their exit code, and failed calls with their errno.

Pure. A refusal (`XrootdfsError`) is the one line an operator reads. A failed call to a server
(`CallError`) is an OSError: its errno is what a job gets, its `origin` says how much is known. The
tables follow XProtocol.hh and XrdClStatus.hh; where upstream's own map would mislead a job (ENODEV
for a directory that is not empty) they differ from it.
"""

from __future__ import annotations

import enum
import errno
import re
from collections.abc import Mapping
from typing import Any, Final


class XrootdfsError(Exception):
    """Base of the refusals; `exit_code` is what the command ends with."""

    exit_code = 70


class UsageError(XrootdfsError):
    """A wrong option or argument."""

    exit_code = 64


class UnusableError(XrootdfsError):
    """Something named does not exist or cannot serve (redirector, prefix, mountpoint)."""

    exit_code = 66


class RefusedError(XrootdfsError):
    """In use: a mountpoint that is busy, or mounted already."""

    exit_code = 69


class NotPermittedError(XrootdfsError):
    """A permission of ours is missing: not root, no /dev/fuse."""

    exit_code = 77


class Origin(enum.Enum):
    """Who says that a call failed."""

    ANSWERED = "answered"
    """The server: what it says about its files is true."""
    UNSENT = "unsent"
    """Nobody: no connection came about, so it was not carried out. Counts against the server."""
    UNREACHABLE = "unreachable"
    """Its connection: the server said nothing, and may have carried it out. Counts against it."""
    LATE = "late"
    """A deadline: the call may yet have been carried out. Counts against the server."""
    LOCAL = "local"
    """This host: the call was not understood or not sent. Says nothing about the server."""


class CallError(OSError):
    """A call to a server that failed; compare `errno`, not the class (it is no FileNotFoundError).

    Attributes:
        origin: who says so.
        reason: the words, for logs.
    """

    def __init__(self, code: int, reason: str, origin: Origin = Origin.LOCAL) -> None:
        super().__init__(code, reason)
        self.origin = origin
        self.reason = reason

    @property
    def silent(self) -> bool:
        """The server did not answer: nothing is known of what it holds."""
        return self.origin is not Origin.ANSWERED

    @property
    def unsure(self) -> bool:
        """Silent, and it may have carried the call out, or may do so later."""
        return self.origin in (Origin.UNREACHABLE, Origin.LATE)

    @property
    def missing(self) -> bool:
        """The server says that it does not have the name, or one of the directories above it."""
        return not self.silent and self.errno in (errno.ENOENT, errno.ENOTDIR)


SERVER_ERRNO: Final[Mapping[int, int]] = {
    3000: errno.EINVAL,  # ArgInvalid
    3001: errno.EINVAL,  # ArgMissing
    3002: errno.ENAMETOOLONG,  # ArgTooLong
    3003: errno.EBUSY,  # FileLocked: another client writes it
    3004: errno.EBADF,  # FileNotOpen
    3005: errno.EIO,  # FSError: see the text
    3006: errno.EINVAL,  # InvalidRequest
    3007: errno.EIO,  # IOError
    3008: errno.ENOMEM,  # NoMemory
    3009: errno.ENOSPC,  # NoSpace
    3010: errno.EACCES,  # NotAuthorized
    3011: errno.ENOENT,  # NotFound
    3012: errno.EIO,  # ServerError
    3013: errno.ENOTSUP,  # Unsupported
    3014: errno.EHOSTUNREACH,  # noserver
    3015: errno.EINVAL,  # NotFile
    3016: errno.EISDIR,  # isDirectory
    3017: errno.ECANCELED,  # Cancelled
    3018: errno.EEXIST,  # ItExists
    3019: errno.EIO,  # ChkSumErr
    3020: errno.EINPROGRESS,  # inProgress
    3021: errno.EDQUOT,  # overQuota
    3022: errno.EACCES,  # SigVerErr
    3023: errno.EACCES,  # DecryptErr
    3024: errno.EAGAIN,  # Overloaded
    3025: errno.EROFS,  # fsReadOnly
    3026: errno.EIO,  # BadPayload
    3027: errno.ENODATA,  # AttrNotFound
    3028: errno.EACCES,  # TLSRequired
    3029: errno.EIO,  # noReplicas
    3030: errno.EACCES,  # AuthFailed
    3031: errno.EIO,  # Impossible
    3032: errno.EBUSY,  # Conflict
    3033: errno.EIO,  # TooManyErrs
    3034: errno.ETIMEDOUT,  # ReqTimedOut
}
"""What a server's error number means to a job. Any other: EIO."""

FS_ERROR: Final = 3005
_LEVEL: Final = re.compile(r"^\[[A-Z]+\] (Server responded with an error: )?")
_SERVER_ANSWERED: Final = 400

FS_ERRNO: Final[Mapping[str, int]] = {
    "argument list too long": errno.E2BIG,
    "cannot allocate memory": errno.ENOMEM,
    "connection timed out": errno.ETIMEDOUT,
    "device or resource busy": errno.EBUSY,
    "directory not empty": errno.ENOTEMPTY,
    "disk quota exceeded": errno.EDQUOT,
    "file exists": errno.EEXIST,
    "file name too long": errno.ENAMETOOLONG,
    "file too large": errno.EFBIG,
    "input/output error": errno.EIO,
    "invalid argument": errno.EINVAL,
    "invalid cross-device link": errno.EXDEV,
    "is a directory": errno.EISDIR,
    "no data available": errno.ENODATA,
    "no space left on device": errno.ENOSPC,
    "no such file or directory": errno.ENOENT,
    "not a directory": errno.ENOTDIR,
    "numerical result out of range": errno.ERANGE,
    "operation not permitted": errno.EPERM,
    "operation not supported": errno.ENOTSUP,
    "permission denied": errno.EACCES,
    "read-only file system": errno.EROFS,
    "resource temporarily unavailable": errno.EAGAIN,
    "stale file handle": errno.ESTALE,
    "text file busy": errno.ETXTBSY,
    "too many levels of symbolic links": errno.ELOOP,
    "too many links": errno.EMLINK,
}
"""The end of the text of error 3005, into which servers fold what else their file system says."""

LOCAL_ERRNO: Final[Mapping[int, tuple[int, Origin]]] = {
    1: (errno.EAGAIN, Origin.UNREACHABLE),  # Retry
    2: (errno.EIO, Origin.LOCAL),  # Unknown
    3: (errno.EINVAL, Origin.LOCAL),  # InvalidOp
    4: (errno.EIO, Origin.LOCAL),  # Fcntl
    5: (errno.EIO, Origin.LOCAL),  # Poll
    6: (errno.EIO, Origin.LOCAL),  # Config
    7: (errno.EIO, Origin.LOCAL),  # Internal
    8: (errno.EINVAL, Origin.LOCAL),  # UnknownCommand
    9: (errno.EINVAL, Origin.LOCAL),  # InvalidArgs
    10: (errno.EINPROGRESS, Origin.LOCAL),  # InProgress
    11: (errno.EIO, Origin.LOCAL),  # Uninitialized
    12: (errno.EIO, Origin.LOCAL),  # OSError
    13: (errno.ENOTSUP, Origin.LOCAL),  # NotSupported
    14: (errno.EIO, Origin.LOCAL),  # DataError
    15: (errno.ENOTSUP, Origin.LOCAL),  # NotImplemented
    16: (errno.EIO, Origin.LOCAL),  # NoMoreReplicas
    17: (errno.EIO, Origin.LOCAL),  # PipelineFailed
    101: (errno.EHOSTUNREACH, Origin.UNSENT),  # InvalidAddr: its name has no address
    102: (errno.EHOSTUNREACH, Origin.UNREACHABLE),  # SocketError
    103: (errno.EHOSTUNREACH, Origin.UNREACHABLE),  # SocketTimeout
    104: (errno.EHOSTUNREACH, Origin.UNREACHABLE),  # SocketDisconnected
    105: (errno.EHOSTUNREACH, Origin.UNREACHABLE),  # PollerError
    106: (errno.EHOSTUNREACH, Origin.UNREACHABLE),  # SocketOptError
    107: (errno.EHOSTUNREACH, Origin.UNREACHABLE),  # StreamDisconnect
    108: (errno.EHOSTUNREACH, Origin.UNSENT),  # ConnectionError: refused, too
    109: (errno.EHOSTUNREACH, Origin.UNREACHABLE),  # InvalidSession
    110: (errno.EHOSTUNREACH, Origin.UNREACHABLE),  # TlsError
    201: (errno.EIO, Origin.UNREACHABLE),  # InvalidMessage
    202: (errno.EHOSTUNREACH, Origin.UNSENT),  # HandShakeFailed
    203: (errno.EACCES, Origin.UNSENT),  # LoginFailed
    204: (errno.EACCES, Origin.UNSENT),  # AuthFailed
    205: (errno.ENOTSUP, Origin.LOCAL),  # QueryNotSupported
    206: (errno.ETIMEDOUT, Origin.LATE),  # OperationExpired
    207: (errno.EIO, Origin.UNREACHABLE),  # OperationInterrupted
    208: (errno.EAGAIN, Origin.LOCAL),  # ThresholdExceeded
    301: (errno.EAGAIN, Origin.LOCAL),  # NoMoreFreeSIDs
    302: (errno.EIO, Origin.LOCAL),  # InvalidRedirectURL
    303: (errno.EIO, Origin.UNREACHABLE),  # InvalidResponse
    304: (errno.EIO, Origin.LOCAL),  # NotFound: of a local table, never of a file
    305: (errno.EIO, Origin.LOCAL),  # CheckSumError
    306: (errno.EIO, Origin.LOCAL),  # RedirectLimit
    307: (errno.EIO, Origin.LOCAL),  # CorruptedHeader
    401: (errno.EIO, Origin.LOCAL),  # Redirect
    402: (errno.EIO, Origin.LOCAL),  # LocalError
    500: (errno.EIO, Origin.LOCAL),  # ResponseNegative
}
"""What a status of the client library means, none of which says anything about a file."""


def error_of(status: Mapping[str, Any]) -> CallError:
    """The error that a status of the binding (not `ok`) stands for."""
    text = _LEVEL.sub("", " ".join(str(status.get("message", "")).split()))
    if status["code"] == _SERVER_ANSWERED:
        return CallError(server_errno(status["errno"], text), text, Origin.ANSWERED)
    code, origin = LOCAL_ERRNO.get(status["code"], (errno.EIO, Origin.LOCAL))
    return CallError(code, text, origin)


def server_errno(number: int, text: str) -> int:
    """Errno of a server's error number and text."""
    if number == FS_ERROR:
        return FS_ERRNO.get(text.rpartition(";")[2].strip().lower(), errno.EIO)
    return SERVER_ERRNO.get(number, errno.EIO)


def errno_of(error: BaseException) -> int:
    """The errno to answer a job's request with; EIO if the error carries none."""
    return (error.errno or errno.EIO) if isinstance(error, OSError) else errno.EIO
