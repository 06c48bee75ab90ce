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


class Account:
    """What a thread has spent, in nanoseconds, and the file it is copying.

    Attributes:
        source, site: in calls there. copy: in copies by the kernel, which are both at once.
        inside: in a call: of calls inside calls only the outermost counts.
        size, copied: bytes of the file being copied, and how many of them are there.
    """

    __slots__ = ("copied", "copy", "inside", "site", "size", "source")

    def __init__(self) -> None:
        self.source = self.site = self.copy = 0
        self.size = self.copied = 0
        self.inside = False


class _Here(threading.local):
    def __init__(self) -> None:
        self.account = Account()


_here: Final = _Here()
clock: Final = time.perf_counter_ns


def here() -> Account:
    """The account of this thread; others may read it."""
    return _here.account


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
    at_site = side == "site"

    @functools.wraps(call)
    def timed(*arguments: Any, **named: Any) -> Any:
        account = _here.account
        if account.inside:
            return call(*arguments, **named)
        account.inside = True
        elsewhere = account.source + account.copy
        began = clock()
        try:
            return call(*arguments, **named)
        finally:
            account.inside = False
            lasted = clock() - began
            if at_site:  # what it read of the source, or had the kernel copy, is not its own
                account.site += lasted - (account.source + account.copy - elsewhere)
            else:
                account.source += lasted

    return timed


def timed(inner: T, side: Side) -> T:
    """The same object to all who use it; what they spend in its methods is noted."""
    return cast("T", _Timed(inner, side))
