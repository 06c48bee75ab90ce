"""When a job may be told that a site has what it waits for."""

from __future__ import annotations

import errno
import stat
from random import Random
from typing import cast

import pytest

from mirrorfs.journal.awaiting import Awaited
from mirrorfs.journal.record import Change
from replicator.patterns import Wanted
from replicator.window import Window
from tests.support.failing_store import FailingStore
from tests.support.mirror import Mirror, assert_equal
from tests.support.stand_ins import WatchedStore

DIRECTORY = stat.S_IFDIR | 0o755


def await_last(mirror: Mirror) -> None:
    """A job waits for what was done last."""
    record, tag = mirror.tree.records[-1]
    body = record.body
    assert isinstance(body, Change)
    places = tuple((bytes(place.directory), place.name) for place in body.places)
    made = Awaited(tag, record.sequence, (bytes(body.object),), places)
    mirror.awaited[record.sequence] = made
    mirror.tell_awaited()


@pytest.mark.parametrize("backlog", [False, True], ids=["", "backlog"])
def test_a_directory_that_comes_into_a_part_is_told_of_with_all_that_is_in_it(
    backlog: bool,
) -> None:
    mirror = Mirror(Random(1), wanted=Wanted((), ["/out/"]))
    mirror.names_max = 1
    mirror.start(mirror.engine.state)
    tree, root = mirror.tree, mirror.tree.root_thing
    out = tree.create(root, b"out", DIRECTORY)
    d = tree.create(out, b"d", DIRECTORY)
    sub = tree.create(d, b"sub", DIRECTORY)
    if not backlog:
        mirror.drain()
    for above in (d, sub):
        for name in (b"a", b"b", b"c"):
            tree.flush(tree.create(above, name))
    if not backlog:
        mirror.drain()
    tree.rename(out, b"d", root, b"d")
    await_last(mirror)
    mirror.feed(1 << 30)
    for _ in range(100):
        mirror.look_at_awaited()  # which looks at what is there if it is told of
        mirror.work(1)
    assert mirror.kept == 1
    tree.unlink(sub, b"a")
    await_last(mirror)
    tree.rename(root, b"d", out, b"d")  # not wanted any more
    await_last(mirror)
    mirror.drain()
    mirror.look_at_awaited()
    assert mirror.kept == 3
    assert_equal(mirror, 0)


def test_what_a_site_is_not_to_have_is_told_of_at_its_turn() -> None:
    mirror = Mirror(Random(1), wanted=Wanted((), ["*.tmp"]))
    tree, root = mirror.tree, mirror.tree.root_thing
    file = tree.create(root, b"a.tmp")
    tree.flush(file)
    await_last(mirror)
    mirror.feed(1 << 30)
    mirror.work(10)
    mirror.look_at_awaited()
    assert mirror.kept == 1
    tree.rename(root, b"a.tmp", root, b"a")
    await_last(mirror)
    mirror.look_at_awaited()
    assert mirror.kept == 1
    mirror.feed(1 << 30)
    mirror.look_at_awaited()
    assert mirror.kept == 1
    mirror.work(10)
    mirror.look_at_awaited()
    assert mirror.kept == 2
    assert file.content in [node.data for _, node in mirror.site()]


def test_a_record_beyond_what_is_read_is_told_of_when_its_turn_has_come() -> None:
    """A site that is far behind: meanwhile jobs do not wait (mirrorfs sees to that)."""
    mirror = Mirror(Random(1), window=Window(5, 10, 10))
    tree, root = mirror.tree, mirror.tree.root_thing
    for number in range(200):
        tree.flush(tree.create(root, b"%d" % number))
    await_last(mirror)
    mirror.feed(1 << 30)
    mirror.look_at_awaited()
    assert (mirror.kept, mirror.engine.plan.known < mirror.tree.head) == (0, True)
    while mirror.fed < tree.head:
        mirror.look_at_awaited()
        assert mirror.kept == 0
        mirror.read_on()
    mirror.work_off()
    mirror.look_at_awaited()
    assert mirror.kept == 1
    mirror.drain()
    assert_equal(mirror, 0)


def test_attributes_that_cannot_be_set_are_not_promised() -> None:
    """The content is there; that is not all the job was told it has."""
    mirror = Mirror(Random(1))
    tree, root = mirror.tree, mirror.tree.root_thing
    file = tree.create(root, b"a")
    tree.flush(file)
    mirror.drain()
    store = FailingStore(mirror.store)
    mirror.store = cast(WatchedStore, store)
    mirror.start(mirror.engine.state)
    store.fail_at, store.for_ever, store.errno = 1, True, errno.EPERM
    store.met = ("set_attributes", b"a")
    tree.attributes(file)
    await_last(mirror)
    mirror.feed(1 << 30)
    mirror.work(10)
    assert [step.name for step in mirror.engine.held] == [b"a"]
    kept = mirror.engine.promises.look()
    assert (kept.done, kept.undone) == ([], [(tree.head, "set_attributes at the site")])
    store.heal()
    mirror.drain()
    mirror.look_at_awaited()
    assert mirror.kept == 1


def test_what_jobs_wait_for_goes_before_a_backlog_with_what_it_needs() -> None:
    mirror = Mirror(Random(1))
    tree, root = mirror.tree, mirror.tree.root_thing
    there, here = (tree.create(root, name, DIRECTORY) for name in (b"there", b"here"))
    for number in range(200):
        tree.flush(tree.create(there, b"%d" % number))
    tree.flush(tree.create(here, b"f"))
    await_last(mirror)
    mirror.feed(1 << 30)
    mirror.look_at_awaited()
    mirror.work(3)
    mirror.look_at_awaited()
    assert mirror.kept == 1
    assert len(list(mirror.site())) == 3
    mirror.drain()
    assert_equal(mirror, 0)
