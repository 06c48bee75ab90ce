"""The workers of one site: threads in which bytes move, and nothing is decided.

Threads are started as they are needed, up to a fixed number, and end with the site. Who has nothing
else to do helps with the extents of a large file.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from replicator.order import CopyQueue
from replicator.pace import NS, Pace
from replicator.staging import Copying
from replicator.view import SourceChangedError

_LATE_SECONDS = 1.0
"""How often it is looked whether a file is late, or whether to go on waiting."""

_NAP_SECONDS = 0.25
"""How often somebody who waits for bandwidth looks whether he is still to go on."""

_Run: TypeAlias = Callable[[Copying], None]


@dataclass(slots=True, eq=False)
class _Shared:
    """Parts of one file: those nobody has begun, how many are under way, what went wrong first."""

    left: deque[Callable[[], None]]
    busy: int = 0
    error: BaseException | None = None


class Threads:
    """staging.Workers by threads.

    Attributes:
        closing: nothing more is begun.
    """

    def __init__(self, count: int, bandwidth: int, wake: Callable[[], None]) -> None:
        """So many; they read so many bytes a second at most, all together (0: as they come).
        `wake` is called from them, whenever one has something for `landed`."""
        self._count = count
        self._wake = wake
        self._changed = threading.Condition()
        self._queue: CopyQueue[tuple[Copying, _Run]] = CopyQueue(count)
        self._shared: deque[_Shared] = deque()
        self._landed: deque[Copying] = deque()
        self._threads = 0
        self._busy = 0
        self.closing = False
        self._failure: BaseException | None = None
        self._pace = Pace(bandwidth) if bandwidth else None
        self._pacing = threading.Condition()

    @property
    def busy(self) -> int:
        """How many are at work."""
        return self._busy

    def begin(self, copying: Copying, run: _Run) -> None:
        """See Workers."""
        with self._changed:
            self._queue.add((copying, run), copying.size, copying.since_ns, copying.deadline_ns)
            self._call(len(self._queue))

    def _call(self, wanted: int) -> None:
        """Have so many more at work, if there may be."""
        missing = wanted - (self._threads - self._busy)
        for _ in range(min(missing, self._count - self._threads)):
            self._threads += 1
            threading.Thread(target=self._work, daemon=True).start()
        self._changed.notify(wanted)

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
            self._changed.wait_for(lambda: self._landed or self._failure is not None, _LATE_SECONDS)

    def close(self) -> None:
        """End them; what they are at is finished first, since its descriptors are the site's."""
        with self._changed:
            self.closing = True
            self._changed.notify_all()
        with self._pacing:
            self._pacing.notify_all()
        with self._changed:
            while self._busy:
                self._changed.wait()

    # parts of large files ----------------------------------------------------------------------

    def share(self, parts: Sequence[Callable[[], None]]) -> None:
        """See Workers: the caller is one of those who do them."""
        shared = _Shared(deque(parts))
        with self._changed:
            self._shared.append(shared)
            self._call(len(parts) - 1)
            while shared.left:
                self._do_part(shared)
            while shared.busy:
                self._changed.wait()
            self._shared.remove(shared)
        if shared.error is not None:
            raise shared.error

    def _do_part(self, shared: _Shared) -> None:
        """One of them; called, and left, with the lock."""
        part = shared.left.popleft()
        shared.busy += 1
        self._changed.release()
        error = None
        try:
            part()
        except BaseException as raised:  # noqa: BLE001 - it is raised where it is awaited
            error = raised
        self._changed.acquire()
        shared.busy -= 1
        if error is not None:
            shared.error = shared.error or error
            shared.left.clear()
        if not shared.busy:
            self._changed.notify_all()

    def _help(self) -> bool:
        """Do a part of somebody's file, in one of the large files' places; whether there was one.
        Called, and left, with the lock."""
        shared = next((each for each in self._shared if each.left), None)
        if shared is None or not self._queue.lend():
            return False
        self._busy += 1
        self._do_part(shared)
        self._busy -= 1
        self._queue.done(True)
        self._changed.notify_all()
        return True

    # bandwidth ---------------------------------------------------------------------------------

    def allow(self, count: int, go_on: Callable[[], None] | None) -> int:
        """See Workers."""
        if go_on is not None:
            go_on()
        if self._pace is None:
            return count
        with self._pacing:
            if go_on is None:
                self._pace.spend(count, time.monotonic_ns())
                return count
            while True:
                allowed, wait_ns = self._pace.take(count, time.monotonic_ns())
                if allowed:
                    return allowed
                if self.closing:
                    raise SourceChangedError("the site is being closed")
                self._pacing.wait(min(_NAP_SECONDS, wait_ns / NS))
                go_on()

    def idle(self, size: int) -> bool:
        """See Workers."""
        if self._pace is None:
            return True
        with self._pacing:
            return self._pace.has(size, time.monotonic_ns())

    # the threads -------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._changed:
                while (taken := self._queue.take(time.time_ns())) is None and not self.closing:
                    if not self._help():
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
