"""The processes behind requests: creating as one of them, its groups, its batch job.

Owns this thread's file system ids and the cache of job ids. Decides nothing about permission: the
kernel has done that before a request arrives.
"""

from __future__ import annotations

import contextlib
import os
import signal
from types import TracebackType

from mirrorfs import system_calls
from mirrorfs.journal.record import Who

_CAP_SYS_RESOURCE = 24
_CACHED_MAX = 256


def prepare_thread() -> None:
    """Let this thread create objects as others, with its own capabilities, within their quotas.

    For the thread that serves requests, before it starts any other. OSError EPERM if not root.
    """
    system_calls.keep_capabilities_over_uid_changes()
    system_calls.drop_effective_capability(_CAP_SYS_RESOURCE)


class ActingAs:
    """What is created inside the `with` block belongs to that user and group. No await in it."""

    __slots__ = ("_change", "_gid", "_uid")

    def __init__(self, uid: int, gid: int) -> None:
        self._change = bool(uid or gid)
        self._uid = uid
        self._gid = gid

    def __enter__(self) -> None:
        if self._change:
            system_calls.set_file_system_ids(self._uid, self._gid)

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._change:
            system_calls.set_file_system_ids(0, 0)


def is_killed(pid: int) -> bool:
    """The process has been killed, and cannot end before the request it made is answered."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            pending = [line.split()[1] for line in file if line.startswith((b"SigPnd", b"ShdPnd"))]
    except OSError:
        return False
    return any(int(signals, 16) >> (signal.SIGKILL - 1) & 1 for signals in pending)


def in_group(pid: int, gid: int) -> bool:
    """The process has that supplementary group. A process that is gone has none."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            for line in file:
                if line.startswith(b"Groups:"):
                    return b"%d" % gid in line.split()[1:]
    except OSError:
        return False
    return False


class Jobs:
    """The batch job a process belongs to, by the first of some variables in its environment.

    A process is remembered by its directory in /proc, whose names vanish with it, so that a pid
    that is used again is never taken for the old process.
    """

    def __init__(self, variables: tuple[str, ...]) -> None:
        self._prefixes = tuple(os.fsencode(name) + b"=" for name in variables)
        self._known: dict[int, tuple[int, str]] = {}

    def who(self, pid: int, uid: int) -> Who:
        """That process as records name it; an unreadable environment is no job."""
        known = self._known.get(pid)
        if known is not None:
            descriptor, job = known
            if os.access(b"environ", os.F_OK, dir_fd=descriptor):
                return Who(pid, uid, job)
            self._drop(pid)
        return Who(pid, uid, self._learn(pid))

    def close(self) -> None:
        """Forget all processes."""
        while self._known:
            self._drop(next(iter(self._known)))

    def _learn(self, pid: int) -> str:
        try:
            descriptor = os.open(b"/proc/%d" % pid, os.O_PATH | os.O_DIRECTORY)
        except OSError:
            return ""
        job = ""
        with contextlib.suppress(OSError):
            job = self._job(descriptor)
        if len(self._known) >= _CACHED_MAX:
            self._drop(next(iter(self._known)))
        self._known[pid] = descriptor, job
        return job

    def _job(self, process: int) -> str:
        descriptor = os.open(b"environ", os.O_RDONLY, dir_fd=process)
        with open(descriptor, "rb") as file:
            environment = file.read().split(b"\0")
        for prefix in self._prefixes:
            for variable in environment:
                if variable.startswith(prefix) and len(variable) > len(prefix):
                    return variable[len(prefix) :].decode("utf-8", "replace")
        return ""

    def _drop(self, pid: int) -> None:
        descriptor, _ = self._known.pop(pid)
        os.close(descriptor)
