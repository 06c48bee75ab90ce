"""Leave the terminal: a child goes on, and the parent learns whether it came up.

Knows nothing of what the child does.
"""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import queue
import traceback
from collections.abc import Callable
from io import TextIOWrapper
from typing import NoReturn

from xrootdfs.errors import XrootdfsError

_LOG_BYTES_MAX = 1 << 20
_LOG_FORMAT = "%(asctime)s %(levelname)s %(message)s"
_READY = b"ready"
_SYSTEM_LOG = "/dev/log"
_WAITING_MAX = 1000

_listener: logging.handlers.QueueListener | None = None


class ChildError(XrootdfsError):
    """What the child said before it ended, with its exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def start(work: Callable[[Callable[[], None]], None]) -> None:
    """Run `work(ready)` in a child of its own session; return once it called `ready`.

    The child's standard streams go to /dev/null at that moment. Raises ChildError with the
    message and exit code of a XrootdfsError that ended the child before it.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _child(work, writing)
    os.close(writing)
    with open(reading, "rb") as stream:
        said = stream.read()
    if said == _READY:
        return
    _, status = os.waitpid(pid, 0)
    code, _, message = said.decode(errors="surrogateescape").partition(" ")
    if not message:
        ended = os.waitstatus_to_exitcode(status)
        raise ChildError(f"ended unexpectedly with status {ended}", 70)
    raise ChildError(message, int(code))


def log_to(file: str) -> None:
    """Send the log to a file of at most 1 MiB, with one predecessor (`file`.1). OSError."""
    handler = _PrivateHandler(file, maxBytes=_LOG_BYTES_MAX, backupCount=1, encoding="utf-8")
    _log_with(handler, logging.Formatter(_LOG_FORMAT))


def log_to_system(name: str) -> None:
    """Send the log to the system's, if there is one, as `name`.

    From a thread of its own: a system log that hangs must not hold up the mount.
    """
    global _listener
    try:
        system = logging.handlers.SysLogHandler(
            _SYSTEM_LOG, logging.handlers.SysLogHandler.LOG_DAEMON
        )
    except OSError:
        _log_with(logging.NullHandler(), logging.Formatter())
        return
    waiting: queue.Queue[logging.LogRecord] = queue.Queue(_WAITING_MAX)
    _listener = logging.handlers.QueueListener(waiting, system)
    _listener.start()
    form = logging.Formatter(f"{name}[{os.getpid()}]: %(levelname)s %(message)s")
    _log_with(logging.handlers.QueueHandler(waiting), form)


def log_to_terminal() -> None:
    """Send the log to standard error."""
    _log_with(logging.StreamHandler(), logging.Formatter(_LOG_FORMAT))


class _PrivateHandler(logging.handlers.RotatingFileHandler):
    """Its files are for root alone, whatever the umask."""

    def _open(self) -> TextIOWrapper:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        fd = os.open(self.baseFilename, flags, 0o600)
        return open(fd, "a", encoding=self.encoding, errors="backslashreplace")


def _log_with(handler: logging.Handler, formatter: logging.Formatter) -> None:
    handler.setFormatter(formatter)
    logging.raiseExceptions = False  # a full disk must not fill standard error as well
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)


def _close_inherited(kept: int) -> None:
    """Hold nothing of the caller's: locks, pipes, other mounts."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) != kept:
            with contextlib.suppress(OSError):
                os.close(int(name))


def _child(work: Callable[[Callable[[], None]], None], writing: int) -> NoReturn:
    """The child's whole life; it never returns into its parent's code."""
    told = False

    def tell(data: bytes) -> None:
        nonlocal told
        if not told:
            told = True
            os.write(writing, data)
            os.close(writing)

    def ready() -> None:
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        os.close(null)
        tell(_READY)

    code = 0
    try:
        os.setsid()
        os.chdir("/")
        _close_inherited(writing)
        work(ready)
    except XrootdfsError as error:
        code = error.exit_code
        if told:
            logging.getLogger(__name__).error("%s", error)
        tell(f"{code} {error}".encode(errors="surrogateescape"))
    except BaseException as error:  # the last line of defence: say it and end
        code = 70
        if told:
            logging.getLogger(__name__).critical("ended by %r", error, exc_info=True)
        else:
            traceback.print_exc()
        tell(f"{code} internal error: {error!r}".encode(errors="surrogateescape"))
    if _listener is not None:
        _listener.stop()
    logging.shutdown()
    os._exit(code)
