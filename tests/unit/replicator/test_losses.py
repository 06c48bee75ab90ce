"""What power cuts may have taken."""

from __future__ import annotations

from mirrorfs.journal.record import ObjectId, SequenceNumber, Tag
from mirrorfs.journal.segment import Incarnation
from replicator.losses import SAVED_AHEAD, Losses
from replicator.schedule import Incarnations
from replicator.stores.base import Mark

OLD, NEW = Tag(1), Tag(2)
KNOWN = Incarnations([Incarnation(OLD, SequenceNumber(1), SequenceNumber(9))], NEW)


def mark(tag: Tag = OLD, saved: int = 0) -> Mark:
    return Mark(ObjectId(b"o"), tag, SequenceNumber(5), 50, saved=saved)


def test_copies_made_after_the_state_that_was_found() -> None:
    losses = Losses()
    assert not losses.of_site(mark(saved=7))
    after = losses.site_cut(7)
    assert [losses.of_site(mark(saved=n)) for n in (6, 7, 8, after - 1, after)] == [
        *(False, True, True, True, False),
    ]
    again = Losses(losses.site)
    assert again.site_cut(after) == after + SAVED_AHEAD
    assert [again.of_site(mark(saved=n)) for n in (6, 7, after)] == [False, True, True]


def test_only_the_newest_cuts_are_remembered() -> None:
    losses = Losses()
    for number in range(100):
        losses.site_cut(number)
        losses.source_cut(Tag(number + 1), number)
    assert len(losses.site) == len(losses.source) == 64


def test_what_the_source_may_have_lost() -> None:
    losses = Losses()
    assert not losses.of_source(mark(), 50, KNOWN)
    losses.source_cut(NEW, 40)
    losses.source_cut(NEW, 40)
    assert losses.source == [(NEW, 40)]
    assert losses.of_source(mark(), 40, KNOWN)
    assert not losses.of_source(mark(), 39, KNOWN)
    assert not losses.of_source(mark(NEW), 50, KNOWN)  # read after the cut
    assert losses.of_source(mark(Tag(3)), 50, KNOWN)  # nobody knows when it was read
    losses.source_cut(Tag(4), 10)
    assert losses.of_source(mark(NEW), 39, KNOWN)
