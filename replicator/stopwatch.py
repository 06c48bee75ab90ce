"""What each thread spends its time on: at the source, at the site, in copies by the kernel.

Cheap enough to run always (two looks at the clock a call). Whoever carries out a step compares what
its own thread had spent before and after, so it does not matter how many threads there are.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from typing import Any, Final, Literal, TypeVar, cast

T = TypeVar("T")
Side = Literal["source", "site"]


class Spent(threading.local):
    """Nanoseconds this thread has spent, and the file it is copying.

    Attributes:
        source, site: in calls there. copy: in copies by the kernel, which are both at once.
        depth: of calls inside calls: only the outermost counts.
        size, copied: bytes of the file being copied, and how many of them are there.
    """

    def __init__(self) -> None:
        self.source = self.site = self.copy = 0
        self.depth = 0
        self.progress = Progress()


class Progress:
    """How far the copy is that a thread makes; read by others."""

    __slots__ = ("copied", "size")

    def __init__(self) -> None:
        self.size = self.copied = 0


SPENT: Final = Spent()
clock: Final = time.perf_counter_ns


class _Timed:
    """Stands for another object, and times the calls of its methods."""

    def __init__(self, inner: object, side: Side) -> None:
        self.__dict__["_inner"] = inner
        self.__dict__["_side"] = side

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, name)
        if not callable(value):
            return value
        timed = _timed(value, self._side)
        self.__dict__[name] = timed  # from now on it is found without this detour
        return timed

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._inner, name, value)


def _timed(call: Callable[..., Any], side: Side) -> Callable[..., Any]:
    @functools.wraps(call)
    def timed(*arguments: Any, **named: Any) -> Any:
        spent = SPENT
        if spent.depth:
            return call(*arguments, **named)
        spent.depth = 1
        others = spent.source + spent.copy if side == "site" else spent.site + spent.copy
        began = clock()
        try:
            return call(*arguments, **named)
        finally:
            lasted = clock() - began
            spent.depth = 0
            if side == "site":
                spent.site += lasted - (spent.source + spent.copy - others)
            else:
                spent.source += lasted - (spent.site + spent.copy - others)

    return timed


def timed(inner: T, side: Side) -> T:
    """The same object to all who use it; what they spend in its methods is noted."""
    return cast("T", _Timed(inner, side))
