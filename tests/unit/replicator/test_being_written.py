"""A new file appears whole or not at all, whatever became of the one that stood there before."""

from __future__ import annotations

import errno
from functools import partial
from random import Random

import pytest

from mirrorfs.journal.record import ObjectId
from replicator.commit_order import CommitOrder
from replicator.surroundings import TroubleError
from tests.support import campaign
from tests.support.mirror import Mirror, assert_equal
from tests.support.model_changes import change_at_random
from tests.support.model_tree import ModelTree, Thing
from tests.support.stand_ins import StrangeError

ALL = 1 << 30
ORDERS = list(CommitOrder)
SEEDS = campaign.pick(60, 3000)
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


def test_who_has_closed_is_not_waited_for_though_the_copy_failed() -> None:
    mirror = Mirror(Random(1))
    tree, root = mirror.tree, mirror.tree.root_thing
    new = tree.create(root, b"f")
    tree.write(new)
    follow(mirror)
    tree.flush(new)
    mirror.feed(ALL)
    mirror.store.fail_in, mirror.store.errno = 0, errno.EPERM
    mirror.work_off()
    mirror.store.fail_in = -1
    mirror.engine.save()
    mirror.now += 5 * SECOND
    follow(mirror)
    assert names(mirror) == {b"f": new.content}


def test_a_copy_that_fails_is_not_begun_again_for_ever() -> None:
    """Two steps need it, the one that waited for its writer and the next: each is told of it."""
    mirror = Mirror(Random(1), inline_bytes=-1)
    tree, root = mirror.tree, mirror.tree.root_thing
    new = tree.create(root, b"f")
    tree.write(new)
    follow(mirror)
    tree.flush(new)
    mirror.feed(ALL)
    mirror.store.fail_in, mirror.store.errno = 0, errno.EPERM
    for _ in range(20):
        mirror.engine.work(ALL)
        if mirror.workers.busy:
            mirror.workers.wait()
    assert mirror.workers.copied < 5
    assert [held.waiting for held in mirror.engine.held] == [False, False]
    mirror.store.fail_in = -1
    mirror.drain()
    assert_equal(mirror, 0)


def test_a_file_opened_again_before_it_was_copied_is_waited_for() -> None:
    """Its `write` record is there; but what it has now is half of the next version."""
    mirror = Mirror(Random(1))
    tree, root = mirror.tree, mirror.tree.root_thing
    old = save_file(tree, root, b"f").content
    follow(mirror)
    thing = root.names[b"f"]
    tree.write(thing)
    tree.flush(thing)
    tree.write(thing)
    tree.attributes(thing)  # a record that says: not settled
    follow(mirror)
    assert names(mirror) == {b"f": old}
    tree.flush(thing)
    follow(mirror)
    assert names(mirror) == {b"f": thing.content}
    assert mirror.engine.held == []


def test_what_is_exchanged_while_it_is_written_waits_on() -> None:
    """The record of the exchange says of the other one that it is not settled."""
    mirror = Mirror(Random(1))
    tree, root = mirror.tree, mirror.tree.root_thing
    save_file(tree, root, b"f")
    new = tree.create(root, b"g")
    tree.write(new)
    follow(mirror)
    mirror.engine.save()
    tree.exchange(root, b"f", root, b"g")
    follow(mirror)
    assert new.content not in names(mirror).values()
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


class Whole:
    """Files that were complete once; no other is shown."""

    def __init__(self, mirror: Mirror) -> None:
        self.mirror = mirror
        self.closed: set[ObjectId] = set()
        flush = mirror.tree.flush

        def close(thing: Thing) -> None:
            flush(thing)
            self.closed.add(thing.id)

        mirror.tree.flush = close  # type: ignore[method-assign]
        mirror.store.after = self.look

    def look(self) -> None:
        for place, node in self.mirror.site():
            if node.data and node.mark is not None and node.mark.object not in self.closed:
                raise StrangeError(f"{place} shows what was never closed")


@pytest.mark.parametrize("upset", ["", "crashes", "faults"])
@pytest.mark.parametrize("block", range(2))
def test_new_files_appear_whole_or_not_at_all(block: int, upset: str) -> None:
    """Nothing here takes a minute."""
    for seed in range(block * SEEDS, block * SEEDS + SEEDS):
        random = Random(seed)
        inline_bytes = random.choice([-1, 1 << 20])
        mirror = Mirror(random, inline_bytes=inline_bytes, commit_order=random.choice(ORDERS))
        Whole(mirror)
        names = [b"a", b"b", b"c"][: random.randint(1, 3)]
        often = random.choice([0.0, 0.02, 0.1])
        mirror.tree.meanwhile = partial(sometimes, mirror, random, names, often)
        for _ in range(random.randint(5, 30)):
            for _ in range(random.randint(1, 6)):
                change_at_random(mirror.tree, random, names)
            if random.random() < 0.7:
                mirror.feed(random.randint(1, 8))
            if upset == "faults" and random.random() < 0.2:
                mirror.store.fail_in = random.randint(0, 6)
                mirror.store.errno = random.choice([errno.EIO, errno.ENOSPC, errno.EPERM])
            mirror.move_bytes()
            mirror.work(random.randint(0, 10))
            mirror.now += random.choice([0, SECOND // 10, 2 * SECOND])
            if random.random() < 0.3:
                mirror.save()
            if upset and random.random() < 0.1:
                mirror.crash()
        mirror.drain()
        assert_equal(mirror, seed)


def sometimes(mirror: Mirror, random: Random, names: list[bytes], often: float) -> None:
    """A change in the middle of something."""
    if random.random() < often:
        change_at_random(mirror.tree, random, names)
