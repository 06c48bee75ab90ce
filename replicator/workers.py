"""The workers of one site: threads in which bytes move, and nothing is decided.

Threads are started as they are needed, up to a fixed number, and end with the site.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TypeAlias

from replicator.order import CopyQueue
from replicator.staging import Copying

_LATE_SECONDS = 1.0
"""How often it is looked whether a file is late."""

_Run: TypeAlias = Callable[[Copying], None]


class Threads:
    """staging.Workers by threads.

    Attributes:
        closing: nothing more is begun.
    """

    def __init__(self, count: int, deadline_seconds: float, wake: Callable[[], None]) -> None:
        """So many; `wake` is called from them, whenever one has something for `landed`."""
        self._count = count
        self._wake = wake
        self._changed = threading.Condition()
        self._queue: CopyQueue[tuple[Copying, _Run]] = CopyQueue(count, int(deadline_seconds * 1e9))
        self._landed: deque[Copying] = deque()
        self._threads = 0
        self._busy = 0
        self.closing = False
        self._failure: BaseException | None = None

    @property
    def busy(self) -> int:
        """How many are at work."""
        return self._busy

    def begin(self, copying: Copying, run: _Run) -> None:
        """See Workers."""
        with self._changed:
            self._queue.add((copying, run), copying.size, copying.since_ns)
            if self._threads < self._count and self._threads - self._busy < len(self._queue):
                self._threads += 1
                threading.Thread(target=self._work, daemon=True).start()
            self._changed.notify()

    def landed(self) -> list[Copying]:
        """See Workers."""
        if self._failure is not None:
            raise self._failure
        found = []
        while self._landed:
            found.append(self._landed.popleft())
        return found

    def wait(self) -> None:
        """See Workers."""
        with self._changed:
            if not self._landed and self._failure is None:
                self._changed.wait(_LATE_SECONDS)

    def close(self) -> None:
        """End them; what they are at is finished first, since its descriptors are the site's."""
        with self._changed:
            self.closing = True
            self._changed.notify_all()
            while self._busy:
                self._changed.wait()

    def _work(self) -> None:
        while True:
            with self._changed:
                while (taken := self._queue.take(time.time_ns())) is None and not self.closing:
                    self._changed.wait(_LATE_SECONDS if self._queue else None)
                if self.closing or taken is None:
                    return
                self._busy += 1
            (copying, run), counted = taken
            try:
                run(copying)
            except BaseException as error:  # noqa: BLE001 - it is raised where it is awaited
                self._failure = error
            finally:
                with self._changed:
                    self._busy -= 1
                    self._queue.done(counted)
                    self._landed.append(copying)
                    self._changed.notify_all()
            self._wake()
