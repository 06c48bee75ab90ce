"""The order in which changes become visible: a flag file never appears before what it announces."""

from __future__ import annotations

import stat
from random import Random

import pytest

from mirrorfs.journal.record import Place
from replicator.commit_order import CommitOrder
from tests.support import campaign
from tests.support.mirror import Mirror, assert_equal
from tests.support.model_tree import ModelTree, Thing

DATA = (b"a", b"b", b"c")


def write_data(mirror: Mirror, random: Random, parent: Thing) -> None:
    """One of the data files anew: in place, or beside and renamed over it."""
    tree, name = mirror.tree, random.choice(DATA)
    beside = random.random() < 0.5 or name not in parent.names
    at = name + b".tmp" if beside else name
    if at not in parent.names:
        tree.create(parent, at)
    tree.write(parent.names[at])
    tree.flush(parent.names[at])
    if beside:
        tree.rename(parent, at, parent, name)


class Flags:
    """What flags announce, checked whenever the site changes."""

    def __init__(self, mirror: Mirror, everywhere: bool) -> None:
        self.mirror = mirror
        self.everywhere = everywhere
        self.announced: dict[Place, dict[Place, int]] = {}
        mirror.store.after = self.check

    def announce(self, parent: Thing, directories: list[Thing], number: int) -> None:
        """A flag: every data file is now what it is, or has been something newer."""
        tree = self.mirror.tree
        made = {
            Place(each.id, name): tree.clock
            for each in (directories if self.everywhere else [parent])
            for name in DATA
            if name in each.names
        }
        flag = b"flag%d" % number
        self.announced[Place(parent.id, flag)] = made
        tree.flush(tree.create(parent, flag))

    def check(self) -> None:
        """Of every flag that is shown. What is held, since it changes all the time, is passed."""
        shown = dict(self.mirror.site())
        held = {
            (step.directory, step.name)
            for step in self.mirror.engine.held
            if step.error.startswith(("hot", "open for writing"))
        }
        for flag in self.announced.keys() & shown.keys():
            for place, since in self.announced[flag].items():
                if (place.directory, place.name) in held:
                    continue
                node = shown.get(place)
                assert node is not None, f"{flag} is there, {place} is not"
                assert node.mark is not None
                now = self.mirror.tree.had(place, node.mark.object, node.data, since)
                assert now is not None, f"{flag} is there, {place} is older"


def follow(seed: int, order: CommitOrder) -> None:
    random = Random(seed)
    mirror = Mirror(random, inline_bytes=-1, commit_order=order)
    root = mirror.tree.root_thing
    directories = [mirror.tree.create(root, name, stat.S_IFDIR | 0o755) for name in (b"D", b"E")]
    flags = Flags(mirror, order is CommitOrder.JOURNAL)
    for number in range(random.randint(2, 12)):
        for _ in range(random.randint(0, 4)):
            write_data(mirror, random, random.choice(directories))
            if random.random() < 0.3:
                mirror.feed(random.randint(1, 6))
                mirror.engine.work(random.randint(0, 6))
                mirror.move_bytes()
        flags.announce(random.choice(directories), directories, number)
        mirror.feed(random.randint(1, 20))
        mirror.engine.work(random.randint(0, 20))
        mirror.move_bytes()
    mirror.drain()
    assert_equal(mirror, seed)


@pytest.mark.parametrize("order", [CommitOrder.DIRECTORY, CommitOrder.JOURNAL])
def test_a_flag_never_appears_before_what_it_announces(order: CommitOrder) -> None:
    for seed in campaign.seeds(80, 30_000):
        follow(seed, order)


def test_any_order_shows_what_has_arrived() -> None:
    """Without an order a small file does not wait for a large one."""
    mirror = Mirror(Random(1), inline_bytes=0, commit_order=CommitOrder.ANY)
    tree, root = mirror.tree, mirror.tree.root_thing
    large = tree.create(root, b"large")
    tree.write(large)
    tree.flush(large)
    tree.flush(tree.create(root, b"small"))
    mirror.feed(1 << 30)
    mirror.engine.work(1 << 30)
    assert [place.name for place, _ in mirror.site()] == [b"small"]
    mirror.drain()
    assert_equal(mirror, 0)


def settled(tree: ModelTree, parent: Thing, name: bytes) -> Thing:
    """A new file, written and closed."""
    made = tree.create(parent, name)
    tree.write(made)
    tree.flush(made)
    return made


def test_a_flag_waits_for_data_that_is_being_written_again() -> None:
    """But not for long."""
    mirror = Mirror(Random(1))
    tree, root = mirror.tree, mirror.tree.root_thing
    data = settled(tree, root, b"data")
    mirror.feed(1 << 30)
    mirror.engine.work(1 << 30)
    tree.unlink(root, b"data")
    data = tree.create(root, b"data")
    tree.begin_write(data)
    settled(tree, root, b"flag")
    mirror.feed(1 << 30)
    mirror.engine.work(1 << 30)
    assert b"flag" not in {place.name for place, _ in mirror.site()}
    mirror.now += 4_000_000_000
    mirror.engine.work(1 << 30)
    assert b"flag" not in {place.name for place, _ in mirror.site()}
    mirror.now += 1_000_000_000
    mirror.engine.work(1 << 30)
    assert b"flag" in {place.name for place, _ in mirror.site()}


def test_a_flag_appears_with_the_data_it_waited_for() -> None:
    mirror = Mirror(Random(1))
    tree, root = mirror.tree, mirror.tree.root_thing
    data = tree.create(root, b"data")
    tree.begin_write(data)
    settled(tree, root, b"flag")
    mirror.feed(1 << 30)
    mirror.engine.work(1 << 30)
    assert list(mirror.site()) == []
    tree.flush(data)
    mirror.feed(1 << 30)
    mirror.engine.work(1 << 30)
    assert {place.name for place, _ in mirror.site()} == {b"data", b"flag"}


def test_a_flag_that_went_is_away_though_another_is_there_already() -> None:
    mirror = Mirror(Random(1))
    tree, root = mirror.tree, mirror.tree.root_thing
    settled(tree, root, b"flag")
    mirror.feed(1 << 30)
    mirror.engine.work(1 << 30)
    tree.unlink(root, b"flag")
    known = tree.head
    settled(tree, root, b"data")
    settled(tree, root, b"flag")
    mirror.feed(1)
    assert mirror.fed == known
    mirror.engine.work(1 << 30)
    assert list(mirror.site()) == []
    mirror.drain()
    assert_equal(mirror, 0)


def test_what_is_held_comes_at_its_next_record_not_before() -> None:
    mirror = Mirror(Random(1), inline_bytes=-1)
    tree, root = mirror.tree, mirror.tree.root_thing
    settled(tree, root, b"flag")
    mirror.drain()
    first = tree.head
    tree.unlink(root, b"flag")
    settled(tree, root, b"data")
    settled(tree, root, b"flag")
    mirror.feed(1)
    assert mirror.fed == first + 1
    mirror.engine.work(1 << 30)
    mirror.now += 1_000_000_000
    mirror.engine.work(1 << 30)
    assert [step.name for step in mirror.engine.held] == [b"flag"]
    mirror.feed(1 << 30)
    for _ in range(4):  # the bytes of one file after the other
        mirror.engine.work(1 << 30)
        shown = [place.name for place, _ in mirror.site()]
        assert b"flag" not in shown or b"data" in shown
        if mirror.workers.busy:
            mirror.workers.wait()
    mirror.drain()
    assert_equal(mirror, 0)


def test_a_record_that_was_lost_is_not_waited_for() -> None:
    mirror = Mirror(Random(1))
    tree, root = mirror.tree, mirror.tree.root_thing
    settled(tree, root, b"data")
    mirror.drain()
    began = mirror.now
    settled(tree, root, b"data.tmp")
    tree.rename(root, b"data.tmp", root, b"data")
    settled(tree, root, b"flag")
    keep = tree.head
    settled(tree, root, b"data.tmp")
    tree.rename(root, b"data.tmp", root, b"data")
    mirror.lose_tail(keep)
    mirror.feed(1 << 30)
    mirror.engine.work(1 << 30)
    mirror.engine.save()
    assert mirror.now == began
    assert_equal(mirror, 0)
