"""Too many deletions in an hour, or all at once, wait for an operator."""

from __future__ import annotations

from random import Random

import pytest

from replicator import deletions
from replicator.orders import Order
from replicator.site_state import NEVER_NS
from replicator.surroundings import TroubleError
from tests.support.mirror import Mirror, assert_equal, contents_of_site
from tests.support.model_tree import Thing

ALL = 1 << 30
HOUR_NS = 3_600_000_000_000


def mirror_of(deletes_max: int, files: int = 8) -> tuple[Mirror, Thing]:
    """A site that is equal; its source has a directory of files."""
    mirror = Mirror(Random(1), deletes_max=deletes_max)
    tree = mirror.tree
    directory = tree.create(tree.root_thing, b"d", 0o040755)
    for number in range(files):
        make(mirror, directory, b"%d" % number)
    settle(mirror)
    assert_equal(mirror, 0)
    return mirror, directory


def make(mirror: Mirror, directory: Thing, name: bytes) -> None:
    thing = mirror.tree.create(directory, name)
    mirror.tree.write(thing)
    mirror.tree.flush(thing)


def settle(mirror: Mirror) -> None:
    mirror.feed(ALL)
    mirror.begun = mirror.tree.clock
    mirror.work_off()
    mirror.engine.save()


def remove(mirror: Mirror, directory: Thing, count: int) -> None:
    for name in sorted(directory.names)[:count]:
        mirror.tree.unlink(directory, name)


def at_site(mirror: Mirror) -> int:
    return sum(path.startswith(b"/d/") for path in contents_of_site(mirror.store.inner))


def test_beyond_the_limit_deletions_are_held_until_an_operator_lets_them_go() -> None:
    mirror, directory = mirror_of(3)
    remove(mirror, directory, 5)
    settle(mirror)
    steps = mirror.engine.held
    assert len(steps) == 2
    assert {step.due_ns for step in steps} == {NEVER_NS}
    assert all(step.error.startswith("held: more than 3 deletions in an hour") for step in steps)
    assert at_site(mirror) == 3 + 2
    assert mirror.engine.state.clean < steps[0].sequence
    mirror.now += 10 * HOUR_NS
    remove(mirror, directory, 1)  # while some are held, all are
    settle(mirror)
    assert (len(mirror.engine.held), at_site(mirror)) == (3, 5)
    mirror.crash()
    mirror.engine.obey(Order(time_ns=0))
    settle(mirror)
    assert mirror.engine.held == []
    assert_equal(mirror, 0)


def test_an_hour_later_as_many_are_allowed_again() -> None:
    mirror, directory = mirror_of(3)
    for count in (3, 0, 3):
        remove(mirror, directory, count)
        settle(mirror)
        mirror.crash()
        mirror.now += HOUR_NS // 2 + 60_000_000_000
    settle(mirror)
    assert mirror.engine.held == []
    assert_equal(mirror, 0)


def test_what_is_replaced_or_moves_is_not_counted() -> None:
    mirror, directory = mirror_of(1)
    for old, new in ((b"0", b"1"), (b"2", b"3"), (b"4", b"moved")):
        mirror.tree.rename(directory, old, directory, new)
    settle(mirror)
    assert mirror.engine.held == []
    assert_equal(mirror, 0)


def test_a_directory_weighs_what_is_in_it() -> None:
    mirror, directory = mirror_of(5)
    mirror.tree.degrade(8192)
    remove(mirror, directory, 8)
    mirror.tree.unlink(mirror.tree.root_thing, b"d")
    make(mirror, mirror.tree.root_thing, b"other")
    mirror.tree.resume()
    settle(mirror)
    assert at_site(mirror) == 8
    assert any("more than 5 deletions" in step.error for step in mirror.engine.held)
    mirror.engine.obey(Order(time_ns=0))
    settle(mirror)
    mirror.drain()
    assert_equal(mirror, 0)


def test_more_than_can_be_held_stop_the_site(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deletions, "HELD_MAX", 2)
    mirror, directory = mirror_of(1)
    remove(mirror, directory, 6)
    mirror.feed(ALL)
    mirror.begun = mirror.tree.clock
    with pytest.raises(TroubleError, match="more than 1 deletions in an hour"):
        mirror.engine.work(ALL)
    assert (len(mirror.engine.held), at_site(mirror)) == (2, 7)
    mirror.engine.obey(Order(time_ns=0))
    settle(mirror)
    mirror.drain()
    assert_equal(mirror, 0)


def empty_without_records(mirror: Mirror) -> None:
    tree = mirror.tree
    tree.degrade(8192)
    for thing in list(tree.root_thing.names.values()):
        remove(mirror, thing, 100)
    remove(mirror, tree.root_thing, 100)
    tree.resume()


def test_an_emptied_source_is_not_followed_before_an_operator_says_so() -> None:
    mirror, _ = mirror_of(0)
    before = contents_of_site(mirror.store.inner)
    empty_without_records(mirror)
    for _ in range(3):
        settle(mirror)
        mirror.now += HOUR_NS
        assert contents_of_site(mirror.store.inner).keys() == before.keys()
        (step,) = mirror.engine.held
        assert step.error.startswith("held: the source is empty, the site is not")
    mirror.engine.obey(Order(time_ns=0))
    settle(mirror)
    mirror.drain()
    assert_equal(mirror, 0)


def test_an_emptied_source_that_is_there_again_is_followed() -> None:
    mirror, _ = mirror_of(0)
    empty_without_records(mirror)
    settle(mirror)
    make(mirror, mirror.tree.root_thing, b"back")
    mirror.now += HOUR_NS
    settle(mirror)
    settle(mirror)
    assert mirror.engine.held == []
    assert_equal(mirror, 0)
