"""Decisions about one step: what makes a place true, given what source and site hold.

Pure: no look at source or site happens here; `step` looks, asks, and carries out.
"""

from __future__ import annotations

import enum
import stat
from collections.abc import Sequence

from mirrorfs.journal.record import ObjectId, SequenceNumber, Tag
from mirrorfs.journal.segment import Incarnation
from replicator.planner import Hints, PlaceItem
from replicator.stores.base import Attributes, Mark, MarkFlag, SiteEntry
from replicator.view import SourceObject


class Incarnations:
    """The starts of the journal's writer, as far as they are known.

    Sequences of different incarnations cannot be compared as numbers: the tail of one may have
    been lost in a power cut, and its sequences used again.
    """

    def __init__(self, ended: Sequence[Incarnation], current: Tag) -> None:
        """Take those that have ended, oldest first, and the one that writes now."""
        self._order = {each.tag: index for index, each in enumerate(ended)}
        self._last: dict[Tag, SequenceNumber] = {each.tag: each.last for each in ended}
        self._order[current] = len(ended)

    def holds(self, mark: Mark) -> bool:
        """Whether the journal still has (or had, and did not lose) the records it speaks of."""
        if mark.tag not in self._order:
            return False
        last = self._last.get(mark.tag)
        return last is None or mark.sequence <= last

    def precedes(self, mark: Mark, tag: Tag) -> bool:
        """Whether a copy with that mark was read before that incarnation began."""
        mine, theirs = self._order.get(mark.tag), self._order.get(tag)
        return mine is None or theirs is None or mine < theirs

    def covers(self, mark: Mark, write: tuple[Tag, SequenceNumber]) -> bool:
        """Whether a copy with that mark was read after that `write` record was made."""
        if mark.tag == write[0]:
            return mark.sequence >= write[1]
        theirs, ours = self._order.get(write[0]), self._order.get(mark.tag)
        return theirs is not None and ours is not None and ours > theirs


class ContentState(enum.Enum):
    """What is known of a copy's content."""

    CURRENT = enum.auto()
    """It is what the source object holds."""
    STALE = enum.auto()
    """It may differ: copy it."""
    COMING = enum.auto()
    """Somebody is writing; a `write` record will follow when it is worth copying."""


def content_state(
    mark: Mark | None,
    ctime_ns: int,
    hints: Hints,
    incarnations: Incarnations,
    *,
    trust: bool,
    wait: bool = True,
    arriving: bool = False,
    lost: bool = False,
    unproven: bool = False,
) -> ContentState:
    """What to think of a regular file's copy that bears `mark` (None: there is no copy).

    Args:
        ctime_ns: change time of the source object now.
        hints: what recent records say of the object.
        incarnations: those of the journal.
        trust: whether records tell every change. Without (reconcile), only an unchanged change
            time shows that the content is unchanged.
        wait: whether a writer that is at work may be waited for; he has not ended in a minute.
        arriving: the copy is to be shown at another place. Then the records must account for the
            change time the source object has now: the source may be ahead of the records read, and
            an older content must not appear where the object never had it.
        lost: the copy may have lost its content (the site stopped before it was synced).
        unproven: the source may have lost content since the copy was read, and kept its change
            time (it stopped before the content was synced).
    """
    if mark is None or MarkFlag.CONTENT not in mark.flags:
        copied = False
    else:
        copied = incarnations.holds(mark) and not lost
    proven = copied and mark is not None and MarkFlag.AHEAD not in mark.flags and not unproven
    if proven and mark is not None and mark.ctime_ns == ctime_ns and ctime_ns != 0:
        return ContentState.CURRENT
    if hints.unsettled and wait:
        return ContentState.COMING
    if hints.write is not None and (
        not copied or mark is None or not incarnations.covers(mark, hints.write)
    ):
        return ContentState.STALE
    if not trust:
        return ContentState.STALE
    if copied and arriving and hints.settled_ctime_ns != ctime_ns:
        return ContentState.COMING
    return ContentState.CURRENT if copied else ContentState.STALE


def recency(mark: Mark | None, ctime_ns: int) -> tuple[bool, bool, int]:
    """Sorts copies of one object that has that change time now: the one read last is greatest.

    Sequences do not tell: after a replay a copy is marked with a lower one than before.
    """
    if mark is None or MarkFlag.CONTENT not in mark.flags:
        return (False, False, 0)
    return (True, mark.ctime_ns == ctime_ns, mark.ctime_ns)


def absent_until(item: PlaceItem, arriving: ObjectId) -> SequenceNumber | None:
    """Sequence at which the object now standing at a place came, if the place was empty before.

    A place that was emptied and filled again is shown empty first, and filled at the record that
    filled it: a flag file that was removed, and made again after the data it announces were
    rewritten, must not appear before them. None: show what stands there now.
    """
    if item.arrived is None or item.arrived[1] != arriving:
        return None
    came = item.arrived[0]
    if came <= item.position[0]:
        return None
    if any(item.position[0] <= at < came for at in item.vacated):
        return came
    return None


def is_empty(item: PlaceItem) -> bool:
    """Whether the place was left empty, as far as records tell."""
    came = -1 if item.arrived is None else item.arrived[0]
    return max(item.vacated, default=-1) > came


def same_kind(source: SourceObject, entry: SiteEntry) -> bool:
    """Whether the copy is of the object's type (and device number)."""
    if stat.S_IFMT(source.mode) != stat.S_IFMT(entry.mode):
        return False
    if stat.S_ISCHR(source.mode) or stat.S_ISBLK(source.mode):
        return source.rdev == entry.rdev
    return True


def is_copy(source: SourceObject, entry: SiteEntry | None) -> bool:
    """Whether that entry is a copy of this very object."""
    return (
        entry is not None
        and entry.mark is not None
        and entry.mark.object == source.id
        and same_kind(source, entry)
    )


def attributes_differ(wanted: Attributes, entry: SiteEntry) -> bool:
    """Whether owner, mode or times (as far as lstat(2) shows them) are not as wanted.

    Directory times are set last, and a symlink has no mode of its own.
    """
    if (wanted.uid, wanted.gid) != (entry.uid, entry.gid):
        return True
    if not stat.S_ISLNK(wanted.mode) and stat.S_IMODE(wanted.mode) != stat.S_IMODE(entry.mode):
        return True
    return not stat.S_ISDIR(wanted.mode) and wanted.mtime_ns != entry.mtime_ns


def looks_like(source: SourceObject, entry: SiteEntry) -> bool:
    """Whether something without a mark may be taken as a copy: type, size and time agree.

    Symlinks are cheaper made than compared.
    """
    if not same_kind(source, entry) or stat.S_ISLNK(source.mode):
        return False
    if stat.S_ISREG(source.mode):
        return (source.size, source.mtime_ns) == (entry.size, entry.mtime_ns)
    return True
