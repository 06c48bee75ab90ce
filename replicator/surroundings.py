"""What the engine of a site needs of the world, and how it says that going on is of no use now."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random

from mirrorfs.journal.record import SequenceNumber, Tag
from replicator.commit_order import CommitOrder
from replicator.copying import GROWN_BYTES_MIN, SMALL_BYTES
from replicator.observer import Observer, Unobserved
from replicator.planner import Item, PlaceItem, ReconcileItem
from replicator.staging import Workers
from replicator.stores.base import StoreError, UnsyncedError
from replicator.under_way import UnderWay
from replicator.view import SourceError
from replicator.window import Window
from replicator.wording import size

_TRIES_MAX = 5


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
        tick: called now and then during long steps; may raise CutOffError to stop them.
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
        grown_bytes_min: copies from this size on are appended to, if their file has only grown.
        deadline_ns: how long after its record a file of that path is late.
        commit_order: in which order changes become visible.
        observer: is told what is done.
        anew: the site is to have another part of the source than before: all is compared.
        under_way: what is being done, for after a death.
        deletes_max: so many objects may be removed in an hour; 0: any number.
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
    grown_bytes_min: int = GROWN_BYTES_MIN
    deadline_ns: Callable[[bytes], int] = lambda _: 300_000_000_000
    commit_order: CommitOrder = CommitOrder.DIRECTORY
    mount: int = 1
    log: Callable[[], tuple[Tag, int]] = lambda: (Tag(0), 0)
    unsynced: bool = False
    names_max: int = 64
    observer: Observer = field(default_factory=Unobserved)
    anew: bool = False
    under_way: UnderWay = field(default_factory=UnderWay)
    deletes_max: int = 0
    window: Window = field(default_factory=Window)


@contextlib.contextmanager
def trouble(what: str) -> Iterator[None]:
    """Errors of site and source that get here are trouble: what was tried stays to do."""
    try:
        yield
    except (StoreError, SourceError) as error:
        no_space = isinstance(error, StoreError) and error.no_space
        raise TroubleError(str(error), what, no_space=no_space) from error


def why(error: Exception, free: int | None, needed: int) -> str:
    """An error in words, with the step it stopped. `free`: bytes at the site; None: not known.
    `needed`: by the file that was being copied; 0: it was none."""
    if not isinstance(error, TroubleError):
        return str(error)
    if not error.no_space:
        return f"{error} (at {error.item})"
    left = "" if free is None else f", {size(free)} free"
    need = f"{size(needed)} needed" if needed else "the site is full"
    return f"waiting for space: {need}{left}, for {error.item}"


def describe(item: Item) -> str:
    """An item in words, for people."""
    path = item.path
    if path is None and isinstance(item, PlaceItem):
        path = item.place.name
    shown = "?" if path is None else "/" + path.decode(errors="backslashreplace")
    return f"reconcile {shown}" if isinstance(item, ReconcileItem) else shown


def again(error: StoreError | SourceError, tries: int) -> bool:
    """Whether to try the same again, after so many tries, before it is given up."""
    if isinstance(error, StoreError) and (error.no_space or isinstance(error, UnsyncedError)):
        return True
    return error.transient and tries < _TRIES_MAX
