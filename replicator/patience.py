"""How long steps wait for one that is held in the same directory, before they pass it.

Pure. What a writer is about to complete, or what the next records explain, is nearly always there
in a moment. A file that is open for hours must not hold up its directory for longer than that: in
each minute all steps of a directory together wait some seconds at most.
"""

from __future__ import annotations

from typing import Final

from mirrorfs.journal.record import ObjectId
from replicator.planner import Item

_LIMIT_NS: Final = 5_000_000_000
_WINDOW_NS: Final = 60_000_000_000
_KNOWN_MAX: Final = 4096


class Patience:
    """Of one site."""

    def __init__(self) -> None:
        self._waiting: dict[Item, tuple[ObjectId, int]] = {}
        self._used: dict[ObjectId, tuple[int, int]] = {}
        self._over: set[Item] = set()

    def __len__(self) -> int:
        return len(self._waiting)

    def wait(self, item: Item, directory: ObjectId, now_ns: int) -> bool:
        """Whether that step, in that directory, waits on; if not, it does not wait again."""
        if item in self._over:
            return False
        at, since_ns = self._waiting.setdefault(item, (directory, now_ns))
        if now_ns < since_ns + self._left(at, since_ns):
            return True
        self.end(item, now_ns)
        self._over.add(item)
        return False

    def _left(self, directory: ObjectId, since_ns: int) -> int:
        began_ns, used_ns = self._used.get(directory, (since_ns, 0))
        return _LIMIT_NS if since_ns - began_ns >= _WINDOW_NS else _LIMIT_NS - used_ns

    def leave(self, item: Item, now_ns: int) -> None:
        """It was done, or is held itself."""
        self.end(item, now_ns)
        self._over.discard(item)

    def end(self, item: Item, now_ns: int) -> None:
        """It does not wait any more."""
        if item not in self._waiting:
            return
        directory, since_ns = self._waiting.pop(item)
        began_ns, used_ns = self._used.pop(directory, (since_ns, 0))
        if since_ns - began_ns >= _WINDOW_NS:
            began_ns, used_ns = since_ns, 0
        self._used[directory] = began_ns, used_ns + now_ns - since_ns
        if len(self._used) > _KNOWN_MAX:
            del self._used[next(iter(self._used))]

    def items(self) -> list[Item]:
        """Those that wait."""
        return list(self._waiting)

    def due_ns(self) -> list[int]:
        """When they pass."""
        return [at + self._left(directory, at) for directory, at in self._waiting.values()]
