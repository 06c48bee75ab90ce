"""How fast bytes may be copied: a bucket of tokens, one for each byte. Pure: the time is given."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

NS: Final = 1_000_000_000
_PIECE_NS: Final = NS // 10
"""So much is read at once as passes in that time: more would come in bursts."""
_PIECE_BYTES_MIN: Final = 64 << 10


@dataclass(slots=True)
class Pace:
    """A rate for all that copy together.

    The bucket holds what passes in a second. It may be overdrawn: what was taken is paid back by
    waiting before the next.

    Attributes:
        rate: bytes a second.
    """

    rate: int
    _level: float = field(init=False)
    _at_ns: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._level = float(self.rate)

    def take(self, count: int, now_ns: int) -> tuple[int, int]:
        """Of so many bytes that somebody wants to read: those that may be read now (0: none), and
        if none, after how many nanoseconds to ask again."""
        self._fill(now_ns)
        if self._level <= 0:
            return 0, max(1, int((1 - self._level) * NS / self.rate))
        piece = min(count, max(_PIECE_BYTES_MIN, self.rate * _PIECE_NS // NS))
        self._level -= piece
        return piece, 0

    def spend(self, count: int, now_ns: int) -> None:
        """So many bytes are read now, whatever is left: others pay it back."""
        self._fill(now_ns)
        self._level -= count

    def has(self, count: int, now_ns: int) -> bool:
        """Whether so many bytes could be read now without waiting."""
        self._fill(now_ns)
        return self._level >= count

    def _fill(self, now_ns: int) -> None:
        """A clock that goes back gives nothing, and takes nothing."""
        passed = max(0, now_ns - self._at_ns)
        self._at_ns = now_ns
        self._level = min(float(self.rate), self._level + passed * self.rate / NS)
