"""What the site has of an object: the best copy first."""

from __future__ import annotations

import stat

from mirrorfs.journal.record import Place
from replicator import schedule
from replicator.moves import Bench, Mode
from replicator.schedule import ContentState
from replicator.sitemap import Copy
from replicator.view import SourceObject

_RANKS = (ContentState.STALE, ContentState.COMING, ContentState.CURRENT)


def ranked_copies(
    bench: Bench, found: SourceObject, mode: Mode, empty: Place | None = None
) -> tuple[list[Copy], ContentState]:
    """The copies, and what the best is worth. `empty`: see SiteMap.copies."""
    ranked: list[tuple[int, tuple[bool, bool, int], Copy]] = []
    for copy in bench.map.copies(found.id, empty):
        mark = copy.entry.mark
        if mark is not None and schedule.same_kind(found, copy.entry):
            state = ContentState.CURRENT
            if stat.S_ISREG(found.mode):
                state = bench.content_state(mark, found, mode, arriving=True)
            recency = schedule.recency(mark, found.ctime_ns)
            ranked.append((_RANKS.index(state), recency, copy))
    ranked.sort(key=lambda each: each[:2], reverse=True)
    if ranked:
        return [each[2] for each in ranked], _RANKS[ranked[0][0]]
    if stat.S_ISREG(found.mode):
        return [], bench.content_state(None, found, mode, arriving=True)
    return [], ContentState.STALE
