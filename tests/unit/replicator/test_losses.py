"""What power cuts may have taken."""

from __future__ import annotations

from mirrorfs.journal.record import ObjectId, SequenceNumber, Tag
from mirrorfs.journal.segment import Incarnation
from replicator.losses import SAVED_AHEAD, Losses
from replicator.schedule import Incarnations
from replicator.site_state import decode_state
from replicator.stores.base import Mark
from tests.support.mirror import Mirror
from tests.unit.replicator.test_step import follow, mirror, names, save_file

__all__ = ["mirror"]

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


def lose(mirror: Mirror, *lost: bytes) -> None:
    """The power of the site was cut: names and marks of these files survived, their content did
    not."""
    for place, node in mirror.site():
        if place.name in lost:
            node.data = b""


def test_killed_after_a_power_cut_of_the_site_before_anything_was_copied(mirror: Mirror) -> None:
    tree, root = mirror.tree, mirror.tree.root_thing
    mirror.engine.save()
    lost = save_file(tree, root, b"lost")
    follow(mirror)
    lose(mirror, b"lost")
    state = decode_state(mirror.store.inner.files["state"])
    state.boot = "the boot before"
    mirror.start(state)
    mirror.engine.save()  # as whoever drives it does
    mirror.crash()
    follow(mirror)
    assert names(mirror) == {b"lost": lost.content}


def test_after_a_power_cut_of_the_site_the_initial_copy_copies_again(mirror: Mirror) -> None:
    """No record tells of those copies: their change times would prove them whole."""
    tree, root = mirror.tree, mirror.tree.root_thing
    lost = save_file(tree, root, b"lost")
    mirror.start_anew()
    mirror.engine.save()
    follow(mirror)
    lose(mirror, b"lost")
    state = decode_state(mirror.store.inner.files["state"])
    state.boot = "the boot before"
    mirror.start(state)
    follow(mirror)
    assert names(mirror) == {b"lost": lost.content}


def test_a_site_that_could_not_be_synced_is_copied_to_again(mirror: Mirror) -> None:
    tree, root = mirror.tree, mirror.tree.root_thing
    mirror.engine.save()
    lost = save_file(tree, root, b"lost")
    follow(mirror)
    lose(mirror, b"lost")
    state = decode_state(mirror.store.inner.files["state"])
    mirror.start(state, unsynced=True)
    follow(mirror)
    assert names(mirror) == {b"lost": lost.content}


def test_content_that_the_source_lost_is_kept_wherever_the_copy_is(mirror: Mirror) -> None:
    """Here in limbo: the object has another name now, and no record says so."""
    tree, root = mirror.tree, mirror.tree.root_thing
    mirror.engine.save()
    thing = save_file(tree, root, b"before")
    follow(mirror)
    content, head = thing.content, tree.head
    tree.rename(root, b"before", root, b"after")
    mirror.lose_tail(head)
    thing.content = b""
    thing.contents.append((tree.clock, b""))
    mirror.engine.step.bench.losses.source_cut(tree.tag, 1)
    follow(mirror)
    assert names(mirror) == {b"after": b""}
    assert [node.data for node in mirror.store.inner.kept.values()] == [content]
