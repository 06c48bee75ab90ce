"""What comparisons may have missed, and for how long that matters.

A directory that moves while a comparison is under way, from where it has not looked yet to where it
has, is seen by it in neither place. So until every record of that time was applied, a directory
that arrives somewhere is looked into, unless a comparison was in it, and in all below it, since the
newest of them began; and files are compared unless their copy is newer than the gap in the records
the comparison was for.

Moments are numbers that grow, of no other meaning.
"""

from __future__ import annotations

from collections.abc import Callable

from mirrorfs.journal.record import ObjectId, SequenceNumber, Tag

_LATE_NS = 1_000_000_000
"""The record of a move may be appended a moment after the move could be seen."""

_KNOWN_MAX = 1 << 16


class Sightings:
    """When directories were last compared. The oldest are forgotten: they are compared again."""

    def __init__(self) -> None:
        self._known: dict[ObjectId, int] = {}

    def add(self, directory: ObjectId, now: int) -> None:
        """That directory was compared."""
        self._known.pop(directory, None)
        self._known[directory] = now
        if len(self._known) > _KNOWN_MAX:
            del self._known[next(iter(self._known))]

    def since(self, directory: ObjectId, moment: int) -> bool:
        """Whether it was compared after that moment."""
        return self._known.get(directory, -1) > moment


class Escape:
    """The time in which what comparisons missed still comes.

    Attributes:
        keep: what is found gone in this time is kept.
        gap: copies read before that record may be older than records tell; None: none may.
        seen: directories compared with all below them.
    """

    def __init__(self, clock_ns: Callable[[], int], head: Callable[[], SequenceNumber]) -> None:
        """`clock_ns`: nanoseconds since 1970. `head`: the newest record of the journal."""
        self._clock_ns = clock_ns
        self._head = head
        self.keep = False
        self.gap: tuple[Tag, SequenceNumber] | None = None
        self.seen = Sightings()
        self._made = Sightings()
        self._moment = 0
        self._began = 0
        self._under_way = False
        self._closes_ns: int | None = None
        self._until: SequenceNumber | None = None

    def now(self) -> int:
        """A moment later than all before."""
        self._moment += 1
        return self._moment

    @property
    def open(self) -> bool:
        """Whether a comparison is under way, or records of its time are still to be applied."""
        return self._under_way or self._closes_ns is not None

    @property
    def under_way(self) -> bool:
        """Whether a comparison is."""
        return self._under_way

    def begin(self, gap: tuple[Tag, SequenceNumber], *, keep: bool) -> int:
        """A comparison begins, because of a gap in the records; the moment."""
        self.keep = self.keep or keep
        tag, sequence = gap
        self.gap = tag, sequence if self.gap is None else max(sequence, self.gap[1])
        self._under_way = True
        self._began = self.now()
        return self._began

    def end(self) -> None:
        """No comparison is under way any more."""
        self._under_way = False
        self._closes_ns = self._clock_ns() + _LATE_NS
        self._until = None

    def saw(self, directory: ObjectId) -> None:
        """That directory, and all below it, was compared."""
        self.seen.add(directory, self.now())

    def missed(self, directory: ObjectId) -> bool:
        """Whether that directory, which has moved, may have been missed."""
        made = self._made.since(directory, self._began)
        return self.open and not made and not self.compared(directory)

    def compared(self, directory: ObjectId) -> bool:
        """Whether that directory was compared, with all below it, since the last gap."""
        return self.seen.since(directory, self._began)

    def ahead(self, known: SequenceNumber, known_ns: int, ctime_ns: int) -> bool:
        """Whether an object that changed then may have moved by a record not read yet, if those up
        to `known`, which was made at `known_ns`, are read."""
        return ctime_ns >= known_ns - _LATE_NS and known < self._head()

    def made(self, directory: ObjectId) -> None:
        """That directory was made by its `mkdir` record: what it holds has records, too."""
        if self.open:
            self._made.add(directory, self.now())

    def passed(self, working: SequenceNumber) -> None:
        """The working cursor has come so far."""
        if self._under_way or self._closes_ns is None or self._clock_ns() < self._closes_ns:
            return
        if self._until is None:
            self._until = self._head()
        if working >= self._until:
            self._closes_ns, self.keep, self.gap = None, False, None
