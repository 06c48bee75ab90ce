"""What the engine of a site needs of the world, and how it says that going on is of no use now."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random

from mirrorfs.journal.record import SequenceNumber, Tag
from replicator.commit_order import CommitOrder
from replicator.copying import SMALL_BYTES
from replicator.planner import Item, PlaceItem, ReconcileItem
from replicator.staging import Workers
from replicator.stores.base import StoreError
from replicator.view import SourceError
from replicator.window import Window


class TroubleError(Exception):
    """The site or the source cannot be worked with now; try again later.

    Attributes:
        no_space: the site is full.
        item: what was tried, in words.
    """

    def __init__(self, reason: str, item: str, *, no_space: bool) -> None:
        super().__init__(reason)
        self.item = item
        self.no_space = no_space


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the engine needs of the world.

    Attributes:
        clock_ns: nanoseconds since 1970.  sleep: waits so many seconds.
        head: the newest record of the journal.
        tick: called now and then during long steps; may raise to stop them.
        boot: id of this boot of the host.
        mount: which mount of the site's file system this is; 0 if that is not known.
        log: the activity log of the journal: the incarnation it tells of, and the generation that
            is surely on its disk.
        unsynced: the site could not be synced: what was copied since the saved state may be lost.
        random: for jitter.
        names_max: so many names are compared before records are looked at again.
        workers: where bytes move.
        copies_max: so many files may be copied, or have been, before the turn of their steps.
        inline_bytes: files up to this size are copied on the spot, while the site is quick.
        commit_order: in which order changes become visible.
        window: how far records are read ahead.
    """

    clock_ns: Callable[[], int]
    head: Callable[[], SequenceNumber]
    sleep: Callable[[float], None]
    tick: Callable[[], None]
    boot: str
    random: Random
    workers: Workers
    copies_max: int = 32
    inline_bytes: int = SMALL_BYTES
    commit_order: CommitOrder = CommitOrder.DIRECTORY
    mount: int = 1
    log: Callable[[], tuple[Tag, int]] = lambda: (Tag(0), 0)
    unsynced: bool = False
    names_max: int = 64
    window: Window = field(default_factory=Window)


@contextlib.contextmanager
def trouble(what: str) -> Iterator[None]:
    """Errors of site and source that get here are trouble: what was tried stays to do."""
    try:
        yield
    except (StoreError, SourceError) as error:
        no_space = isinstance(error, StoreError) and error.no_space
        raise TroubleError(str(error), what, no_space=no_space) from error


def describe(item: Item) -> str:
    """An item in words, for people."""
    path = item.path
    if path is None and isinstance(item, PlaceItem):
        path = item.place.name
    shown = "?" if path is None else "/" + path.decode(errors="backslashreplace")
    return f"reconcile {shown}" if isinstance(item, ReconcileItem) else shown
