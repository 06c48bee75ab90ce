"""Leave the terminal: a child goes on, and the parent learns whether it came up.

Knows nothing of what the child does.
"""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import traceback
from collections.abc import Callable
from io import TextIOWrapper
from typing import Final, NoReturn

from mirrorfs.errors import MirrorfsError

_LOG_BYTES_MAX = 1 << 20
_LOG_FORMAT = "%(asctime)s %(levelname)s %(message)s"
READY: Final = b"ready"
LOG_NAME: Final = "mirrorfs.log"
_LINE_BYTES_MAX: Final = 4096


class ChildError(MirrorfsError):
    """What the child said before it ended, with its exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def start(work: Callable[[Callable[[], None]], None]) -> None:
    """Run `work(ready)` in a child of its own session; return once it called `ready`.

    The child's standard streams go to /dev/null at that moment. Raises ChildError with the
    message and exit code of a MirrorfsError that ended the child before it.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _child(work, writing)
    os.close(writing)
    with open(reading, "rb") as stream:
        said = stream.read()
    if said == READY:
        return
    _, status = os.waitpid(pid, 0)
    ended = os.waitstatus_to_exitcode(status)
    raise refusal(said) or ChildError(f"ended unexpectedly with status {ended}", 70)


def end_log() -> None:
    """Let the log go, until it is begun again: another process may have it renamed meanwhile."""
    root = logging.getLogger()
    for handler in root.handlers[:]:
        root.removeHandler(handler)
        handler.close()


def log_to(file: str) -> None:
    """Send the log to a file of at most 1 MiB, with one predecessor (`file`.1)."""
    handler = _PrivateHandler(file, maxBytes=_LOG_BYTES_MAX, backupCount=1, encoding="utf-8")
    _log_with(handler)


def last_line(file: str) -> str:
    """Of such a log; "" if there is none."""
    try:
        with open(file, "rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - _LINE_BYTES_MAX))
            return b"".join(stream.read().splitlines()[-1:]).decode(errors="replace")
    except OSError:
        return ""


def log_to_terminal() -> None:
    """Send the log to standard error."""
    _log_with(logging.StreamHandler())


class _PrivateHandler(logging.handlers.RotatingFileHandler):
    """Its files are for root alone, whatever the umask."""

    def _open(self) -> TextIOWrapper:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        fd = os.open(self.baseFilename, flags, 0o600)
        return open(fd, "a", encoding=self.encoding, errors="backslashreplace")


def _log_with(handler: logging.Handler) -> None:
    handler.setFormatter(logging.Formatter(_LOG_FORMAT))
    logging.raiseExceptions = False  # a full disk must not fill standard error as well
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)


def close_inherited(*kept: int) -> None:
    """Hold nothing of the caller's: locks, pipes, other mounts; but the standard streams."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in kept:
            with contextlib.suppress(OSError):
                os.close(int(name))


def _child(work: Callable[[Callable[[], None]], None], writing: int) -> NoReturn:
    """The child's whole life; it never returns into its parent's code."""

    def begin(ready: Callable[[], None]) -> None:
        os.setsid()
        os.chdir("/")
        close_inherited(writing)
        work(ready)

    live(begin, writing, leave_streams)


def leave_streams() -> None:
    """From now on the standard streams are /dev/null."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    os.close(null)


def live(
    work: Callable[[Callable[[], None]], None], writing: int, at_ready: Callable[[], None]
) -> NoReturn:
    """Run `work(ready)` and end the process: READY goes to the pipe `writing`, or a message with
    its exit code."""
    told = False

    def tell(data: bytes) -> None:
        nonlocal told
        if not told:
            told = True
            with contextlib.suppress(BrokenPipeError):
                os.write(writing, data)
            os.close(writing)

    def ready() -> None:
        at_ready()
        tell(READY)

    code = 0
    try:
        work(ready)
    except MirrorfsError as error:
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
    logging.shutdown()
    os._exit(code)


def refusal(said: bytes) -> ChildError | None:
    """What a child said before it ended without READY; None if it said nothing."""
    code, _, message = said.decode(errors="surrogateescape").partition(" ")
    return ChildError(message, int(code)) if message else None
