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
_THREADS_MAX = 4096


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

    A process is remembered by its open environment in /proc. That is the one of its memory, and
    reads as empty once that is gone: so nothing is taken for true after an exec, or of a process
    that only has the pid of the old one.
    """

    def __init__(self, variables: tuple[str, ...], processes_max: int) -> None:
        """`processes_max`: how many to remember, with a descriptor for each."""
        self._prefixes = tuple(os.fsencode(name) + b"=" for name in variables)
        self._processes_max = max(1, min(processes_max, _CACHED_MAX))
        self._known: dict[int, tuple[int, str]] = {}
        self._process_of: dict[int, int] = {}

    def who(self, thread: int, uid: int) -> Who:
        """The process of that thread as records name it; where nothing can be read, no job."""
        known = self._known.get(thread)
        if known is not None:
            environment, job = known
            with contextlib.suppress(OSError):
                if os.pread(environment, 1, 0):
                    return Who(thread, uid, job)
            self._drop(thread)
        pid = self._process_of.get(thread)
        if pid is not None and os.access(b"/proc/%d/task/%d" % (pid, thread), os.F_OK):
            return self.who(pid, uid)
        pid, parent = _process(thread)
        if pid != thread:
            if len(self._process_of) >= _THREADS_MAX:
                self._process_of.clear()
            self._process_of[thread] = pid
            return self.who(pid, uid)
        self._process_of.pop(thread, None)
        return Who(pid, uid, self._learn(pid, parent))

    def close(self) -> None:
        """Forget all processes."""
        while self._known:
            self._drop(next(iter(self._known)))

    def _learn(self, pid: int, parent: int) -> str:
        try:
            environment = os.open(b"/proc/%d/environ" % pid, os.O_RDONLY)
        except OSError:
            return ""
        job = ""
        try:
            job = self._job(_read(environment))
            if not system_calls.share_memory(pid, parent):
                self._keep(pid, environment, job)
                environment = -1
        except OSError:
            pass  # it has just ended
        finally:
            if environment >= 0:
                os.close(environment)
        return job

    def _job(self, environment: bytes) -> str:
        variables = environment.split(b"\0")
        for prefix in self._prefixes:
            for variable in variables:
                if variable.startswith(prefix) and len(variable) > len(prefix):
                    return variable[len(prefix) :].decode("utf-8", "replace")
        return ""

    def _keep(self, pid: int, environment: int, job: str) -> None:
        if len(self._known) >= self._processes_max:
            self._drop(next(iter(self._known)))
        self._known[pid] = environment, job

    def _drop(self, pid: int) -> None:
        environment, _ = self._known.pop(pid)
        os.close(environment)


def _read(descriptor: int) -> bytes:
    pieces = []
    while piece := os.read(descriptor, 65536):
        pieces.append(piece)
    return b"".join(pieces)


def _process(thread: int) -> tuple[int, int]:
    """The process a thread belongs to, and the parent of that."""
    try:
        descriptor = os.open(b"/proc/%d/status" % thread, os.O_RDONLY)
        try:
            status = _read(descriptor)
        finally:
            os.close(descriptor)
        pid = int(status.split(b"\nTgid:\t", 1)[1].split(b"\n", 1)[0])
        parent = int(status.split(b"\nPPid:\t", 1)[1].split(b"\n", 1)[0])
    except (OSError, IndexError, ValueError):
        return thread, 0
    return pid, parent
