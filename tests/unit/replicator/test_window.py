"""A bounded window: memory does not grow with the backlog, and what is beyond it does no harm."""

from __future__ import annotations

import stat
from random import Random

import pytest

from replicator.window import Window
from tests.support.mirror import Mirror, assert_equal
from tests.support.model_tree import ModelTree, Thing

_DIRECTORY = stat.S_IFDIR | 0o755


def file(tree: ModelTree, parent: Thing, name: bytes) -> Thing:
    made = tree.create(parent, name)
    tree.write(made)
    tree.flush(made)
    return made


def mirror_with(window: Window, *, workers: bool = False) -> Mirror:
    return Mirror(Random(1), inline_bytes=-1 if workers else 1 << 20, window=window)


@pytest.mark.parametrize(
    ("items", "hints", "records", "room"),
    [(0, 0, 0, 10), (4, 0, 0, 6), (0, 15, 0, 5), (0, 0, 28, 2), (11, 0, 0, 0), (10, 20, 30, 0)],
)
def test_there_is_room_up_to_the_first_bound(
    items: int, hints: int, records: int, room: int
) -> None:
    assert Window(10, 20, 30).room(items=items, hints=hints, records=records) == room


def test_memory_is_bounded_whatever_the_backlog() -> None:
    """Every file at a place of its own: nothing can be taken together."""
    window = Window(items=20, hints=60, records=80)
    mirror = mirror_with(window)
    root = mirror.tree.root_thing
    for number in range(300):
        file(mirror.tree, root, b"%d" % number)
    most = hints = 0
    while mirror.fed < mirror.tree.head:
        mirror.feed(1 << 30)
        most = max(most, len(mirror.engine.plan))
        hints = max(hints, mirror.engine.plan.remembered)
        mirror.engine.work(10)
    assert most <= window.items + 2, "a record may have two places"
    assert hints <= window.hints + window.items
    mirror.drain()
    assert_equal(mirror, 0)
    assert mirror.engine.counters.files_copied == 300
    assert mirror.engine.held == []


def test_a_directory_that_moves_beyond_the_window_is_followed_there() -> None:
    """What changes in it before is applied where the site still has it, and nothing is held."""
    mirror = mirror_with(Window(items=5, hints=1000, records=5))
    tree, root = mirror.tree, mirror.tree.root_thing
    above = tree.create(root, b"above", _DIRECTORY)
    moves = tree.create(above, b"old", _DIRECTORY)
    files = [file(tree, moves, b"%d" % number) for number in range(40)]
    mirror.drain()
    mirror.crash()  # it does not remember where it saw the directory
    before = mirror.engine.counters.files_copied
    for each in files:
        tree.write(each)
        tree.flush(each)
    tree.rename(above, b"old", root, b"new")
    most = 0
    while mirror.fed < tree.head:
        mirror.read_on()
        most = max(most, len(mirror.engine.held))
    mirror.drain()
    assert_equal(mirror, 0)
    assert most == 0
    counters = mirror.engine.counters
    assert (counters.files_copied - before, counters.made, counters.moved) == (40, 0, 1)


def test_a_directory_that_moves_beyond_the_window_is_not_copied_anew() -> None:
    """Even if it cannot be found meanwhile, because what is above it has moved, too."""
    mirror = mirror_with(Window(items=4, hints=1000, records=4, held=3))
    tree, root = mirror.tree, mirror.tree.root_thing
    above = tree.create(root, b"above", _DIRECTORY)
    moves = tree.create(above, b"old", _DIRECTORY)
    for number in range(40):
        file(tree, moves, b"%d" % number)
    mirror.drain()
    mirror.crash()
    made = [file(tree, root, b"other%d" % number) for number in range(20)]
    tree.rename(root, b"above", root, b"below")
    tree.rename(above, b"old", root, b"new")
    mirror.drain()
    assert_equal(mirror, 0)
    counters = mirror.engine.counters
    assert (counters.files_copied, counters.made, counters.moved) == (len(made), 0, 2)


def test_very_many_steps_that_wait_for_records_are_one_comparison() -> None:
    """Each name gets another file by a record beyond the window: until it is read, all wait."""
    window = Window(items=4, hints=1000, records=4, held=5)
    mirror = mirror_with(window)
    tree, root = mirror.tree, mirror.tree.root_thing
    directory = tree.create(root, b"d", _DIRECTORY)
    for generation in range(2):
        for number in range(50):
            file(tree, root, b"new")
            tree.rename(root, b"new", directory, b"%d" % number)
        del generation
    most = 0
    while mirror.fed < tree.head:
        mirror.read_on()
        most = max(most, len(mirror.engine.held))
    assert 0 < most <= window.held + 2, "its directory, or that above, is held for all others"
    mirror.drain()
    assert_equal(mirror, 0)
    assert mirror.engine.counters.files_copied == 50
    assert mirror.engine.counters.kept == 0
    assert mirror.engine.held == []


@pytest.mark.parametrize("window", [Window(), Window(items=30, hints=300, records=60)])
@pytest.mark.parametrize("seed", range(3))
def test_a_hot_name_is_copied_once_at_a_time_and_what_is_gone_never(
    seed: int, window: Window
) -> None:
    """`cp x.tmp; mv x.tmp x` on many names, faster than they are copied."""
    mirror = Mirror(Random(seed), inline_bytes=-1, window=window)
    tree, root = mirror.tree, mirror.tree.root_thing
    names = [b"x%d" % number for number in range(20)]
    rounds = 30
    for _ in range(rounds):
        for name in names:
            file(tree, root, name + b".tmp")
            tree.rename(root, name + b".tmp", root, name)
        mirror.feed(1 << 30)
        mirror.work(1 << 30)
        begun = [copying for copying, _ in mirror.workers.waiting]
        living = [each for each in begun if not each.cancelled]
        assert len(living) <= len(names)
        standing = {thing.id for thing in root.names.values()}
        mirror.workers.copy()
        mirror.workers.tell()
        assert len({each.object for each in living}) == len(living)
        if not mirror.fed < tree.head:
            assert {each.object for each in living} <= standing, "of the newest"
    mirror.drain()
    assert_equal(mirror, seed)
    assert mirror.engine.counters.files_copied <= len(names) + rounds
    assert len(mirror.engine.plan) == 0
