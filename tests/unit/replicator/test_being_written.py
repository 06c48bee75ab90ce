"""A new file appears whole or not at all, whatever became of the one that stood there before."""

from __future__ import annotations

import errno
from random import Random

import pytest

from replicator.surroundings import TroubleError
from tests.support.mirror import Mirror, assert_equal
from tests.support.model_tree import ModelTree, Thing

ALL = 1 << 30
SECOND = 1_000_000_000


def save_file(tree: ModelTree, parent: Thing, name: bytes) -> Thing:
    """A new file, written and closed."""
    thing = tree.create(parent, name)
    tree.write(thing)
    tree.flush(thing)
    return thing


def names(mirror: Mirror) -> dict[bytes, bytes]:
    """Name -> content of what stands in the site's root."""
    return {
        place.name: node.data for place, node in mirror.site() if place.directory == mirror.root
    }


def follow(mirror: Mirror) -> None:
    mirror.feed(ALL)
    mirror.work_off()


def fail_at(mirror: Mirror, thing: Thing) -> None:
    """The step of its place is held: it changes while it is read."""
    mirror.tree.meanwhile = lambda: mirror.tree.write(thing)
    follow(mirror)
    mirror.tree.meanwhile = lambda: None
    assert [held for held in mirror.engine.held if held.waiting or not held.tries] == []
    assert mirror.engine.held


@pytest.mark.parametrize("killed", [False, True], ids=["", "killed"])
def test_a_new_file_where_another_could_not_be_copied(killed: bool) -> None:
    mirror = Mirror(Random(1))
    tree, root = mirror.tree, mirror.tree.root_thing
    fail_at(mirror, save_file(tree, root, b"f"))
    tree.unlink(root, b"f")
    new = tree.create(root, b"f")
    tree.write(new)
    follow(mirror)
    assert names(mirror) == {}
    mirror.engine.save()
    if killed:
        mirror.crash()
    mirror.now += 40 * SECOND
    follow(mirror)
    assert names(mirror) == {}
    tree.write(new)
    tree.flush(new)
    follow(mirror)
    assert names(mirror) == {b"f": new.content}
    mirror.drain()
    assert_equal(mirror, 0)
    assert mirror.engine.held == []


def test_what_is_written_for_a_minute_is_looked_at_again_and_again() -> None:
    """Also if that fails: nothing says when the writer will have done."""
    mirror = Mirror(Random(1))
    tree, root = mirror.tree, mirror.tree.root_thing
    thing = tree.create(root, b"f")
    tree.write(thing)
    follow(mirror)
    mirror.now += 61 * SECOND
    mirror.tree.meanwhile = lambda: mirror.tree.write(thing)
    follow(mirror)
    mirror.tree.meanwhile = lambda: None
    assert names(mirror) == {}
    mirror.now += 10 * SECOND
    follow(mirror)
    assert names(mirror) == {b"f": thing.content}


def test_a_file_that_is_written_again_while_records_about_others_are_read() -> None:
    """What its records said is forgotten; what its step waits for is not."""
    mirror = Mirror(Random(1))
    tree, root = mirror.tree, mirror.tree.root_thing
    thing = save_file(tree, root, b"f")
    follow(mirror)
    before = thing.content
    tree.write(thing)
    tree.attributes(thing)
    follow(mirror)
    mirror.engine.save()
    tree.write(thing)
    save_file(tree, root, b"other")
    follow(mirror)
    assert names(mirror)[b"f"] == before
    tree.flush(thing)
    mirror.drain()
    assert_equal(mirror, 0)


@pytest.mark.parametrize("looked", range(1, 25))
def test_what_is_there_again_while_room_is_made_is_left_to_its_turn(looked: int) -> None:
    mirror = Mirror(Random(1), inline_bytes=-1)
    tree, root = mirror.tree, mirror.tree.root_thing
    save_file(tree, root, b"a")
    follow(mirror)
    tree.unlink(root, b"a")
    save_file(tree, root, b"b")
    mirror.feed(ALL)
    tree.rename(root, b"b", root, b"c")
    looks = 0

    def put_back() -> None:
        nonlocal looks
        looks += 1
        if looks == looked:
            tree.rename(root, b"c", root, b"b")

    tree.meanwhile = put_back
    mirror.store.fail_in, mirror.store.errno = 0, errno.ENOSPC
    with pytest.raises(TroubleError) as caught:
        mirror.engine.work(ALL)
    assert caught.value.no_space
    tree.meanwhile = lambda: None
    mirror.drain()
    assert_equal(mirror, 0)
