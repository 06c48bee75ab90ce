"""How much may be removed at a site: beyond that deletions wait for an operator.

What is counted is what is taken away for good, or goes to `kept`, because the source has it no
more; not what is replaced, nor what moves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from mirrorfs.journal.record import ObjectId, SequenceNumber
from replicator.held import DeletionError, HeldSteps
from replicator.planner import PlaceItem, ReconcileItem

HELD_MAX: Final = 10_000
"""So many wait in the held set; then the site waits as a whole."""

_LOOK_AGAIN_SECONDS: Final = 60.0
_MINUTE_NS: Final = 60_000_000_000
_HOUR_MINUTES: Final = 60


class Deletions:
    """Those of one site.

    Attributes:
        most: so many are allowed in an hour; 0: any number.
    """

    def __init__(
        self,
        most: int,
        held: HeldSteps,
        clock_ns: Callable[[], int],
        before: Iterable[tuple[int, int]] = (),
    ) -> None:
        """Go on after those `before` (see `state`)."""
        self.most = most
        self._held = held
        self._clock_ns = clock_ns
        self._minutes = dict(before)

    def state(self) -> list[tuple[int, int]]:
        """What is to be remembered: minutes since 1970, and how many were removed in each."""
        self._forget()
        return list(self._minutes.items())

    def _forget(self) -> int:
        now = self._clock_ns() // _MINUTE_NS
        for minute in [each for each in self._minutes if each <= now - _HOUR_MINUTES]:
            del self._minutes[minute]
        return now

    def left(self, item: PlaceItem) -> int | None:
        """How many may be removed for that step now; None: any number. While one waits, all do."""
        if not self.most or self._held.is_ordered(item):
            return None
        if self._held.deletions:
            return None if self._held.deletions >= HELD_MAX and self._held.lets_delete else 0
        self._forget()
        return max(0, self.most - sum(self._minutes.values()))

    def refuse(self) -> DeletionError:
        """More are not allowed."""
        return DeletionError(
            f"held: more than {self.most} deletions in an hour: "
            "'replicator retry' of the site lets them go on"
        )

    def count(self, removed: int) -> None:
        """So many were removed."""
        if self.most and removed:
            minute = self._forget()
            self._minutes[minute] = self._minutes.get(minute, 0) + removed

    @property
    def too_many(self) -> bool:
        """Whether no more of them can be held: nothing goes on before an operator says so."""
        return self._held.deletions >= HELD_MAX and not self._held.lets_delete

    def refuse_emptied(self, root: ObjectId) -> None:
        """A comparison finds nothing in the source, and something at the site: it may be the wrong
        disk. Raises DeletionError unless an operator has been asked."""
        if not self._held.is_ordered(ReconcileItem(root, True, (SequenceNumber(0), 0))):
            raise DeletionError(
                "held: the source is empty, the site is not: "
                "'replicator retry' of the site has all of it removed",
                _LOOK_AGAIN_SECONDS,
            )
