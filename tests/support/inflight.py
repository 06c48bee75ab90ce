"""Operations that are always in flight: jobs that repeat one thing each while faults come and go.

What each attempt took, and which errno it gave, is kept. An answer that is wrong is kept as well:
it is the one thing that must never happen.
"""

from __future__ import annotations

import errno
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

_PAUSE_SECONDS: Final = 0.02  # so that the jobs do not take the machine from those they ask
PATIENCE_SECONDS: Final = 90.0


class WrongAnswerError(Exception):
    """It said that all was well, and it was not."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One operation, ended. Times of the monotonic clock; errno 0: it was done."""

    began: float
    ended: float
    errno: int

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended - self.began


class Job(threading.Thread):
    """Does the same again and again.

    Attributes:
        wrong: wrong answers, in words.
    """

    def __init__(self, name: str, act: Callable[[int], None]) -> None:
        """act: is told how often it has been called; OSError: it failed."""
        super().__init__(name=name, daemon=True)
        self.wrong: list[str] = []
        self._act = act
        self._attempts: list[Attempt] = []
        self._changed = threading.Condition()
        self._ending = threading.Event()

    def run(self) -> None:
        """Until the end."""
        for number in itertools.count():
            began = time.monotonic()
            failed = 0
            try:
                self._act(number)
            except OSError as error:
                failed = error.errno or errno.EIO
            except WrongAnswerError as error:
                self.wrong.append(str(error))
            with self._changed:
                self._attempts.append(Attempt(began, time.monotonic(), failed))
                self._changed.notify_all()
            if self._ending.wait(_PAUSE_SECONDS):
                return

    def end(self) -> None:
        """Begin nothing more."""
        self._ending.set()

    def between(self, since: float, until: float) -> list[Attempt]:
        """Attempts that were going on in that time."""
        with self._changed:
            return [a for a in self._attempts if a.ended >= since and a.began < until]

    def await_attempts(
        self, count: int, since: float, *, failed: bool | None = None
    ) -> list[Attempt]:
        """So many attempts that began later than that (only failed ones, only good ones).

        Raises:
            AssertionError: they do not come.
        """
        found: list[Attempt] = []

        def there() -> bool:
            later = [a for a in self._attempts if a.began >= since]
            found[:] = [a for a in later if failed is None or bool(a.errno) is failed]
            return len(found) >= count

        with self._changed:
            came = self._changed.wait_for(there, PATIENCE_SECONDS)
        assert came, f"{self.name}: {len(found)} of {count} came in {PATIENCE_SECONDS} s"
        return found[:count]


class Ending(Protocol):
    """A thread that ends when it is told to."""

    def start(self) -> None: ...
    def end(self) -> None: ...
    def join(self, timeout: float | None = None) -> None: ...
    def is_alive(self) -> bool: ...


@contextmanager
def working(jobs: Sequence[Ending], free: Callable[[], None]) -> Iterator[None]:
    """All of them at work. free: at the end, whatever it takes so that no call waits any more."""
    for job in jobs:
        job.start()
    try:
        yield
    finally:
        for job in jobs:
            job.end()
        for job in jobs:
            job.join(PATIENCE_SECONDS)
        if any(job.is_alive() for job in jobs):
            free()
            for job in jobs:
                job.join()


def worst(attempts: Sequence[Attempt]) -> str:
    """The longest time and every errno, as a cell of a table."""
    if not attempts:
        return "-"
    names = {errno.errorcode[a.errno] if a.errno else "ok" for a in attempts}
    return f"{max(a.seconds for a in attempts):.2f} s {' '.join(sorted(names))}"


def check(condition: bool, what: str) -> None:
    """A wrong answer, unless."""
    if not condition:
        raise WrongAnswerError(what)


def forget_content(descriptor: int) -> None:
    """Nothing of this file stays in the kernel's cache: the next read asks the file system."""
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
