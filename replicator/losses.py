"""What power cuts may have taken: content of copies that were not synced, and of the source itself.

Pure. A file system that loses power keeps names and attributes in order, but not content: a file
may be empty, or old, under the times of the new. So two proofs fail then: a copy's mark does not
show that the copy is whole, and an equal change time not that source and copy are the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from mirrorfs.journal.record import Tag
from replicator.schedule import Incarnations
from replicator.stores.base import Mark

SAVED_AHEAD: Final = 1 << 20
"""So many states may have been tried to be saved, in vain, after the one that was found."""
_CUTS_MAX: Final = 64


class Losses:
    """The power cuts of one site and its source.

    Attributes:
        site: states after which copies of the site may be lost: the first, and past the last.
        source: incarnations that began after a power cut of the source, and the change time from
            which on content of the source may have been lost in it.
    """

    def __init__(
        self,
        site: Iterable[tuple[int, int]] = (),
        source: Iterable[tuple[Tag, int]] = (),
    ) -> None:
        """Go on with these."""
        self.site = list(site)
        self.source = list(source)

    def site_cut(self, saved: int) -> int:
        """The site stopped when that was the last saved state; the number to go on with."""
        after = saved + SAVED_AHEAD
        self.site = [*self.site, (saved, after)][-_CUTS_MAX:]
        return after

    def source_cut(self, tag: Tag, since_ns: int) -> None:
        """That incarnation began with a source that may have lost what was changed since."""
        if (tag, since_ns) not in self.source:
            self.source = [*self.source, (tag, since_ns)][-_CUTS_MAX:]

    def of_site(self, mark: Mark) -> bool:
        """Whether the copy with that mark may have lost its content."""
        return any(first <= mark.saved < after for first, after in self.site)

    def of_source(self, mark: Mark, ctime_ns: int, incarnations: Incarnations) -> bool:
        """Whether an object with that change time may have lost content since it was copied."""
        return any(
            ctime_ns >= since_ns and incarnations.precedes(mark, tag)
            for tag, since_ns in self.source
        )
