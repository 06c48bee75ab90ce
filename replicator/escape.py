"""What a reconcile may have missed, and for how long that matters.

A directory that moves while a reconcile is under way, from where it has not looked yet to where it
has, is seen by it in neither place. So until every record of that time was applied, a directory
that arrives somewhere is looked into, unless a reconcile was in it; and files are compared unless
their copy is newer than the gap in the records the reconcile was for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from mirrorfs.journal.record import ObjectId, SequenceNumber, Tag

_LATE_NS = 1_000_000_000
"""The record of a move may be appended a moment after the move could be seen."""


class Escape:
    """The time in which what a reconcile missed still comes.

    Attributes:
        keep: what is found gone in this time is kept.
        gap: copies read before that record may be older than records tell; None: none may.
    """

    def __init__(self, clock_ns: Callable[[], int], head: Callable[[], SequenceNumber]) -> None:
        """`clock_ns`: nanoseconds since 1970. `head`: the newest record of the journal."""
        self._clock_ns = clock_ns
        self._head = head
        self.keep = False
        self.gap: tuple[Tag, SequenceNumber] | None = None
        self._seen: set[ObjectId] = set()
        self._closes_ns: int | None = None
        self._until: SequenceNumber | None = None

    @property
    def open(self) -> bool:
        """Whether records of that time are still to be applied."""
        return self._closes_ns is not None

    def after_gap(
        self, gap: tuple[Tag, SequenceNumber], seen: Iterable[ObjectId], *, keep: bool
    ) -> None:
        """A reconcile because of a gap in the records has just ended; it was in those
        directories. What reconciles before it saw does not count any more."""
        self.keep = self.keep or keep
        self.gap = gap
        self._seen = set(seen)
        self._open()

    def after_doubt(self, seen: Iterable[ObjectId]) -> None:
        """Directories in doubt were reconciled. If that time was over nothing can have escaped: a
        directory that moved meanwhile is known with all it holds, or comes into doubt itself."""
        if self.open:
            self._seen.update(seen)
            self._open()

    def _open(self) -> None:
        self._closes_ns = self._clock_ns() + _LATE_NS
        self._until = None

    def missed(self, directory: ObjectId) -> bool:
        """Whether that directory, which has moved, may have been missed."""
        return self.open and directory not in self._seen

    def made(self, directory: ObjectId) -> None:
        """That directory was made by its `mkdir` record: what it holds has records, too."""
        if self.open:
            self._seen.add(directory)

    def passed(self, working: SequenceNumber) -> None:
        """The working cursor has come so far."""
        if self._closes_ns is None or self._clock_ns() < self._closes_ns:
            return
        if self._until is None:
            self._until = self._head()
        if working >= self._until:
            self._closes_ns, self.keep, self.gap = None, False, None
            self._seen.clear()
