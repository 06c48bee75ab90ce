"""The process beside an engine: it waits for it, and starts it again when it dies.

It holds the source's root and the connection to the kernel, and nothing of the mount itself. When
an engine dies its mount is replaced at once: who looks a name up there waits until the next engine
answers, instead of getting an error. A clean end, or an orderly refusal, is the end of both.
Killed, it leaves the engine serving, and nobody starts that one again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, NoReturn, Protocol

from mirrorfs import background
from mirrorfs.background import READY, ChildError
from mirrorfs.errors import CannotWriteError, UnusableError
from mirrorfs.restarts import WINDOW_SECONDS, Life, Restarts

_log = logging.getLogger(__name__)

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_PASSING: Final = frozenset({70, UnusableError.exit_code, CannotWriteError.exit_code})
"""What an engine that is started again may refuse, and a later try may cure."""


class Mount(Protocol):
    """What is kept alive."""

    def serve(self, connection: int, life: Life, ready: Callable[[], None]) -> None:
        """In a process of its own: the engine, until it is unmounted. MirrorfsError."""

    def connect(self) -> int:
        """A connection to the kernel for the first engine."""

    def renew(self) -> int | None:
        """The engine died: a new connection, whose mount is in place of the old one; None if that
        was unmounted. OSError."""

    def remove(self) -> None:
        """Take the mount away, whose engine does not run. OSError."""

    def release(self) -> None:
        """The locks: another may have the source now."""

    def kept(self) -> list[int]:
        """Descriptors that the engine needs, too."""

    def begin_log(self) -> None:
        """Let the log go where it shall."""


@dataclass(slots=True)
class _Engine:
    """One engine. `said`: READY, a refusal, or nothing, as far as it was read."""

    pid: int
    pidfd: int
    pipe: int
    said: bytes = b""
    is_silent: bool = False

    @property
    def is_ready(self) -> bool:
        return self.said == READY

    def listen(self) -> None:
        """Read what it says."""
        data = os.read(self.pipe, 1 << 16)
        self.said += data
        self.is_silent = not data or self.is_ready

    def reap(self) -> None:
        """It has ended."""
        os.waitpid(self.pid, 0)
        os.close(self.pidfd)
        os.close(self.pipe)


@dataclass(frozen=True, slots=True)
class _End:
    """How an engine ended: its exit code, or the signal that killed it; in words."""

    code: int
    signal: int
    words: str

    @property
    def is_passing(self) -> bool:
        """It died, or what it refused may be otherwise soon."""
        return bool(self.signal) or self.code in _PASSING


class Supervisor:
    """Of one mount."""

    def __init__(self, mount: Mount, *, leave_streams: bool) -> None:
        """`leave_streams`: the terminal is let go once the first engine is ready."""
        self._mount = mount
        self._life = Life(supervisor=os.getpid())
        self._leave_streams = leave_streams
        self._restarts = Restarts()
        self._signals = 0
        self._is_told = False
        self._wakes, waking = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for number in _SIGNALS:
            signal.signal(number, self._note)
        signal.set_wakeup_fd(waking, warn_on_full_buffer=False)

    def run(self, ready: Callable[[], None]) -> None:
        """Until the clean end of an engine. ChildError: it was refused, or given up."""
        connection = self._mount.connect()
        up = False

        def is_ready() -> None:
            nonlocal up
            if not up:
                ready()
            else:
                self._say(logging.WARNING, f"the engine was restarted: {self._life.reason}")
            up = True

        while True:
            engine = self._start(connection)
            self._watch(engine, is_ready)
            end = _end_of(engine)
            if end.code == end.signal == 0:
                self._leave(engine, connection)
                return
            if not up or self._is_told or not end.is_passing:
                self._leave(engine, connection)
                self._fail(end, up)
                return
            connection = self._renew(engine, end, connection)
            if self._rest(end):
                self._remove()
                os.close(connection)
                self._mount.release()
                return

    def _start(self, connection: int) -> _Engine:
        reading, writing = os.pipe2(os.O_CLOEXEC)
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            os.setsid()  # a terminal's signals come from us only
            background.close_inherited(writing, connection, *self._mount.kept())
            leave = background.leave_streams if self._leave_streams else lambda: None
            background.live(
                lambda ready: self._mount.serve(connection, self._life, ready), writing, leave
            )
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        os.close(writing)
        return _Engine(pid, os.pidfd_open(pid), reading)

    def _watch(self, engine: _Engine, is_ready: Callable[[], None]) -> None:
        """Until it has ended. Signals to us are for it."""
        while True:
            wanted = [engine.pidfd, self._wakes]
            if not engine.is_silent:
                wanted.append(engine.pipe)
            found, _, _ = select.select(wanted, [], [])
            if engine.pipe in found:
                engine.listen()
                if engine.is_ready:
                    is_ready()
            for _ in range(self._received()):
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(engine.pidfd, signal.SIGTERM)
            if engine.pidfd in found:
                while not engine.is_silent:
                    engine.listen()
                return

    def _renew(self, engine: _Engine, end: _End, connection: int) -> int:
        """The next engine's connection, with its mount in place, or ChildError."""
        renewed: int | None = connection
        try:
            if engine.is_ready:  # else nothing was read from the connection
                renewed = self._mount.renew()
        except OSError as error:
            self._leave(engine, connection)
            self._give_up(f"{end.words}; its mount cannot be replaced: {error.strerror}")
        if renewed is None:
            self._leave(engine, connection)
            self._give_up(f"{end.words}, after its mount was taken away")
        if renewed != connection:
            os.close(connection)  # what still waits for the one that died gets an error now
        engine.reap()
        assert renewed is not None
        return renewed

    def _rest(self, end: _End) -> bool:
        """Wait before the next engine is started, or give up (ChildError); True: told to end."""
        self._life = replace(
            self._life,
            restarts=self._life.restarts + 1,
            last_ns=time.time_ns(),
            reason=end.words,
        )
        pause = self._restarts.died(time.monotonic())
        if pause is None:
            number, minutes = self._restarts.number, WINDOW_SECONDS / 60
            self._mount.release()
            self._give_up(f"{end.words}: {number} deaths within {minutes:.0f} minutes: given up")
        self._say(logging.ERROR, f"{end.words}; it is started again in {pause:g} s")
        deadline = time.monotonic() + pause
        while not self._received():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            select.select([self._wakes], [], [], left)
        return True

    def _leave(self, engine: _Engine, connection: int) -> None:
        """No more engine. The locks are free before the process is gone: who waits for them takes
        it for their holder."""
        os.close(connection)
        self._mount.release()
        engine.reap()

    def _fail(self, end: _End, up: bool) -> None:
        """Say why there is no mount; ChildError. Silent if we were told to end, and it did."""
        if not up:
            raise ChildError(end.words, end.code or 70)
        if not self._is_told:
            self._say(logging.ERROR, f"not started again: {end.words}")
            raise ChildError(end.words, end.code)
        self._remove()
        if end.signal not in _SIGNALS:
            self._give_up(f"{end.words}, while it was being ended")

    def _give_up(self, reason: str) -> NoReturn:
        self._say(logging.CRITICAL, reason)
        raise ChildError(reason, 70)

    def _remove(self) -> None:
        with contextlib.suppress(OSError):
            self._mount.remove()

    def _note(self, number: int, frame: object) -> None:
        self._signals += 1
        self._is_told = True

    def _received(self) -> int:
        """So many signals came since the last call."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._wakes, 4096)
        found, self._signals = self._signals, 0
        return found

    def _say(self, level: int, text: str) -> None:
        """The engine writes the same log, and may rename it: it is opened for each line."""
        with contextlib.suppress(OSError):
            self._mount.begin_log()
            _log.log(level, "%s", text)
        background.end_log()


def _end_of(engine: _Engine) -> _End:
    """How it ended; it stays to be reaped."""
    status = os.waitid(os.P_PIDFD, engine.pidfd, os.WEXITED | os.WNOWAIT)
    assert status is not None
    if status.si_code != os.CLD_EXITED:
        number = status.si_status
        return _End(0, number, f"the engine was killed by {signal.Signals(number).name}")
    code = status.si_status
    refused = None if engine.is_ready else background.refusal(engine.said)
    return _End(code, 0, str(refused or f"the engine ended unexpectedly with exit code {code}"))
