"""How far a site reads ahead of what it has applied: what bounds its memory, whatever its backlog.

Pure. Whatever waits for a record that is not read yet leaves the plan, and so makes room for it:
a window that is full never stands in its own way.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Window:
    """What may be in memory before no more records are taken in.

    Attributes:
        items: places and objects in the plan.
        hints: objects of which records tell that are not behind the saved cursor.
        records: records from the working cursor on.
        held: steps held for records still to come; beyond, their directories are held instead, to
            be compared when those have been read.
    """

    items: int = 20_000
    hints: int = 60_000
    records: int = 100_000
    held: int = 10_000

    def room(self, *, items: int, hints: int, records: int) -> int:
        """How many records may be taken in, with so much in memory."""
        return max(0, min(self.items - items, self.hints - hints, self.records - records))
