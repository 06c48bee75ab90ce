"""How often, and how soon, an engine that died is started again; what the next one knows of it.

Pure: knows neither processes nor clocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

WINDOW_SECONDS: Final = 600.0
PAUSES_SECONDS: Final = (0.0, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 30.0, 30.0)
"""Before the first, second, ... restart within the window; after one death more it is given up."""


@dataclass(frozen=True, slots=True)
class Life:
    """What an engine is told by the process that started it.

    Attributes:
        supervisor: process id of the one that starts it again; 0: nobody does.
        restarts: how often that was done for this mount.
        last_ns: when, the last time, nanoseconds since 1970; `reason`: why.
    """

    supervisor: int = 0
    restarts: int = 0
    last_ns: int = 0
    reason: str = ""


class Restarts:
    """The deaths of late."""

    def __init__(self) -> None:
        self._deaths: list[float] = []

    def died(self, now: float) -> float | None:
        """Seconds to wait before it is started again; None: it is given up.

        `now`: seconds of a clock that is never set.
        """
        self._deaths = [at for at in self._deaths if now - at < WINDOW_SECONDS]
        self._deaths.append(now)
        number = len(self._deaths)
        return PAUSES_SECONDS[number - 1] if number <= len(PAUSES_SECONDS) else None

    @property
    def number(self) -> int:
        """So many deaths within the window."""
        return len(self._deaths)
