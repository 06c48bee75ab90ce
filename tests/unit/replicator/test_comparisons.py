"""Several comparisons at once, and what fails in them."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from mirrorfs.journal.record import Place
from replicator.stores.base import StoreError
from replicator.surroundings import TroubleError
from replicator.view import SourceError
from tests.support.comparing import (
    ALL,
    DIRECTORY,
    Listings,
    grow,
    mirror,
    recorded,
    save_file,
    settle,
    site_names,
    unrecorded,
)
from tests.support.mirror import Mirror, assert_equal
from tests.support.model_tree import ModelObject, Thing
from tests.support.stand_ins import CrashError

__all__ = ["mirror"]

# several -----------------------------------------------------------------------------------------


def test_a_small_comparison_does_not_wait_for_a_large_one(mirror: Mirror) -> None:
    tree, root = mirror.tree, mirror.tree.root_thing
    grow(tree, root, depth=2)
    mirror.start_anew()
    for _ in range(5):
        mirror.engine.work(1)
    late = root.names[b"d2"].names[b"d1"]
    tree.reconcile(late, whole=False)
    mirror.feed(ALL)
    listings = Listings(tree)
    while len(mirror.engine.state.comparing) != 2:
        mirror.engine.work(1)
        mirror.engine.save()
    mirror.crash()
    while len(mirror.engine.state.comparing) == 2:
        mirror.engine.work(1)
        mirror.engine.save()
    assert late.id in listings.take()
    assert mirror.engine.state.initial
    assert mirror.engine.state.clean == -1
    settle(mirror)
    assert_equal(mirror, 0)


def test_the_same_again_begins_anew_and_only_once(mirror: Mirror) -> None:
    tree, root = mirror.tree, mirror.tree.root_thing
    grow(tree, root, depth=1)
    settle(mirror)
    for _ in range(3):
        tree.reconcile(root, whole=True)
        save_file(tree, root, b"between%d" % tree.head)  # or they would be one
    mirror.feed(ALL)
    most = 0
    while mirror.engine.work(1):
        mirror.engine.save()
        most = max(most, len(mirror.engine.state.comparing))
    assert most == 1
    assert_equal(mirror, 0)


def test_the_clean_cursor_stays_below_what_is_being_compared(mirror: Mirror) -> None:
    tree, root = mirror.tree, mirror.tree.root_thing
    grow(tree, root, depth=1)
    settle(mirror)
    at = tree.head
    tree.reconcile(root, whole=True)
    save_file(tree, root, b"live")
    mirror.feed(ALL)
    while mirror.engine.plan.next() is not None:
        mirror.engine.work(1)
    mirror.engine.save()
    assert mirror.engine.state.comparing
    assert mirror.engine.state.version == 2
    assert (mirror.engine.state.working, mirror.engine.state.clean) == (tree.head, at)
    settle(mirror)
    assert mirror.engine.state.clean == tree.head
    assert mirror.engine.state.version == 1


# failures ----------------------------------------------------------------------------------------


def failing_list(mirror: Mirror, bad: Thing, times: int, *, transient: bool) -> None:
    """Listing that directory fails so often."""
    left = [times]
    real = mirror.tree.list

    def failing(directory: ModelObject) -> list[bytes]:
        if directory.id == bad.id and left[0] > 0:
            left[0] -= 1
            raise SourceError("cannot list", errno.EIO, transient=transient)
        return real(directory)

    mirror.tree.list = failing  # type: ignore[method-assign]


def work_off(mirror: Mirror) -> int:
    """Work until nothing is to be done now; how often there was trouble."""
    trouble = 0
    mirror.feed(ALL)
    while True:
        try:
            if not mirror.engine.work(ALL):
                return trouble
        except TroubleError:
            trouble += 1


@pytest.mark.parametrize("whole", [True, False])
def test_what_fails_for_good_is_held_and_the_others_go_on(mirror: Mirror, whole: bool) -> None:
    tree, root = mirror.tree, mirror.tree.root_thing
    grow(tree, root, depth=1)
    settle(mirror)
    failing_list(mirror, root.names[b"d1"], 5, transient=True)
    for each in (root, root.names[b"d1"]) if not whole else (root,):
        tree.reconcile(each, whole=whole)
    assert work_off(mirror) == 4, "five tries"
    (held,) = mirror.engine.held
    assert (held.kind, held.directory) == ("reconcile", root.names[b"d1"].id)
    assert held.whole is whole
    mirror.engine.save()
    assert mirror.engine.state.clean < tree.head
    tree.reconcile(root.names[b"d1"], whole=False)
    work_off(mirror)
    assert bool(mirror.engine.held) is whole, "one by itself does not settle all below"
    mirror.now += 100_000_000_000
    work_off(mirror)
    assert not mirror.engine.held
    assert_equal(mirror, 0)


def test_a_name_that_fails_is_held_and_the_others_go_on(mirror: Mirror) -> None:
    tree, root = mirror.tree, mirror.tree.root_thing
    grow(tree, root, depth=1)
    mirror.start_anew()
    real = mirror.store.inner.commit

    def failing(staged: Any, directory: Any, name: bytes) -> None:
        if name == b"d1" and directory is mirror.store.inner.root():
            raise StoreError.of("the disk", errno.EIO)
        real(staged, directory, name)

    mirror.store.inner.commit = failing  # type: ignore[method-assign]
    assert work_off(mirror) >= 4
    kinds = {(held.kind, held.name) for held in mirror.engine.held}
    assert ("place", b"d1") in kinds
    assert set(site_names(mirror, root)) == {b"d0", b"d2"}
    mirror.store.inner.commit = real  # type: ignore[method-assign]
    for _ in range(3):
        mirror.now += 100_000_000_000
        work_off(mirror)
    assert not mirror.engine.held
    settle(mirror)
    assert_equal(mirror, 0)


def test_names_of_what_was_removed_elsewhere_are_followed_after_a_kill(mirror: Mirror) -> None:
    """A change made by one of two names, which is then removed: the other shows it, too."""
    tree, root = mirror.tree, mirror.tree.root_thing
    one, two = (tree.create(root, name, DIRECTORY) for name in (b"one", b"two"))
    thing = save_file(tree, one, b"a")
    tree.link(thing, two, b"b")
    settle(mirror)
    unrecorded(tree)
    tree.write(thing)
    tree.flush(thing)
    tree.unlink(one, b"a")
    recorded(tree)
    tree.reconcile(one, whole=False)
    mirror.feed(ALL)
    mirror.store.crash_in = 1  # the note; what it is about
    with pytest.raises(CrashError):
        mirror.engine.work(ALL)
    mirror.store.inner.remove(mirror.engine.step.bench.map.find(one.id), b"a")
    mirror.crash()
    settle(mirror)
    assert site_names(mirror, two) == {b"b": thing.content}
    assert Place(two.id, b"b") in {place for place, _ in mirror.site()}
    assert_equal(mirror, 0)
