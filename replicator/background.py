"""Leave the terminal: a child goes on, and the parent learns whether it came up.

For init scripts, which have no service manager; that of others is told by `notify`. Knows nothing
of what the child does.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import logging.handlers
import os
import socket
import time
import traceback
from collections.abc import Callable, Container
from dataclasses import dataclass
from io import TextIOWrapper
from typing import Final, NoReturn

_READY: Final = b"ready"
_LOCK_TRIES: Final = 10
_LOCK_SECONDS: Final = 0.05
_LOG_BYTES_MAX: Final = 1 << 20
_LOG_FORMAT: Final = "%(asctime)s %(levelname)s %(message)s"


@dataclass(frozen=True)
class Surroundings:
    """Where a process in the background leaves its traces.

    Attributes:
        log: what it says goes to this file, of at most 1 MiB, with one predecessor (`log`.1).
        pid_file: holds its process id, and a lock (flock) for as long as it lives.
    """

    log: str
    pid_file: str | None = None


class BackgroundError(Exception):
    """Why the child did not come up, in one line, with the exit code for it."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def start(surroundings: Surroundings, work: Callable[[Callable[[], None]], int]) -> None:
    """Run `work(ready)` in a child of its own session; return once it called `ready`.

    The result of `work` is the child's exit code; what it raises must have `exit_code`, as our own
    errors have. Raises BackgroundError with what the child said if it ended before it was ready.
    """
    lock = _lock(surroundings.pid_file) if surroundings.pid_file else None
    reading, writing = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        _close_inherited({writing, lock})
        _child(work, writing, surroundings.log, lock)
    os.close(writing)
    if lock is not None:
        os.close(lock)
    with open(reading, "rb") as stream:
        said = stream.read()
    if said == _READY:
        return
    _, status = os.waitpid(pid, 0)
    code, _, message = said.decode(errors="surrogateescape").partition(" ")
    if not message:
        ended = os.waitstatus_to_exitcode(status)
        raise BackgroundError(f"ended unexpectedly with status {ended}: see {surroundings.log}", 70)
    raise BackgroundError(message, int(code))


def notify() -> None:
    """Tell a service manager that we are at work: READY=1, as in sd_notify(3). Never fails."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    if address[0] == "@":
        address = "\0" + address[1:]
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as stream,
    ):
        stream.sendto(f"READY=1\nMAINPID={os.getpid()}\n".encode(), os.fsencode(address))


def _lock(pid_file: str) -> int:
    """The pid file, locked. BackgroundError."""
    try:
        lock = os.open(pid_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise BackgroundError(f"{pid_file}: {error.strerror}", 73) from None
    for _ in range(_LOCK_TRIES):  # somebody may just be looking whether it is locked
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        time.sleep(_LOCK_SECONDS)
    running = os.pread(lock, 20, 0).decode(errors="replace").strip()
    os.close(lock)
    raise BackgroundError(f"{pid_file}: process {running} runs already", 69)


def _child(
    work: Callable[[Callable[[], None]], int], writing: int, log: str, lock: int | None
) -> NoReturn:
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

    code = 70
    try:
        os.setsid()
        os.chdir("/")
        if lock is not None:
            os.truncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        _log_to(log)
        code = work(ready)
    except BaseException as error:
        code = _code_of(error)
        if told:
            logging.getLogger(__name__).critical("ended by %r", error, exc_info=code == 70)
        elif code == 70:
            os.write(2, traceback.format_exc().encode(errors="backslashreplace"))
        tell(f"{code} {error}".encode(errors="surrogateescape"))
    logging.shutdown()
    if lock is not None:
        with contextlib.suppress(OSError):
            os.truncate(lock, 0)
    os._exit(code)


def _code_of(error: BaseException) -> int:
    """The exit code it carries; 70 for what is a fault."""
    code = getattr(error, "exit_code", None)
    return code if isinstance(code, int) else 70


class _LogError(Exception):
    """The log cannot be written."""

    exit_code = 73


class _PrivateHandler(logging.handlers.RotatingFileHandler):
    """Its files are for root alone, whatever the umask."""

    def _open(self) -> TextIOWrapper:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        fd = os.open(self.baseFilename, flags, 0o600)
        return open(fd, "a", encoding=self.encoding, errors="backslashreplace")


def _log_to(file: str) -> None:
    try:
        handler = _PrivateHandler(file, maxBytes=_LOG_BYTES_MAX, backupCount=1, encoding="utf-8")
    except OSError as error:
        raise _LogError(f"{file}: {error.strerror}") from None
    handler.setFormatter(logging.Formatter(_LOG_FORMAT))
    logging.raiseExceptions = False  # a full disk must not fill standard error as well
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)


def _close_inherited(kept: Container[int | None]) -> None:
    """Hold nothing of the caller's: locks, pipes, mounts."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in kept:
            with contextlib.suppress(OSError):
                os.close(int(name))
