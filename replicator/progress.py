"""Whether a site makes progress, by looking at it now and then. Pure."""

from __future__ import annotations

from typing import Final

STALLED_SECONDS: Final = 60.0
"""Without progress for so long, with work waiting, a site is stalled."""
STOP_SECONDS: Final = 30.0
STOP_NOW_SECONDS: Final = 5.0
"""One that is to stop (at once), and makes no progress for so long, is left as it is."""


class Progress:
    """Of one site.

    Attributes:
        seconds: for how long there has been none, with work waiting all the time.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since: float | None = None
        self._seen: object = None

    def look(self, seen: object, now: float, *, waits: bool) -> None:
        """`seen` changes with any progress; `waits`: there is something to do. `now`: seconds."""
        if not waits or seen != self._seen or self._since is None:
            self._since = now if waits else None
            self._seen = seen
        self.seconds = 0.0 if self._since is None else now - self._since

    @property
    def stalled(self) -> bool:
        """Whether an operator is to be told."""
        return self.seconds >= STALLED_SECONDS

    def is_lost(self, stopping: float, *, at_once: bool) -> bool:
        """Whether one that was to stop so many seconds ago will not."""
        patience = STOP_NOW_SECONDS if at_once else STOP_SECONDS
        return min(self.seconds, stopping) >= patience
