"""Copies that go on where they, or the site's file, ended: killed or failed at every moment."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
from msgspec import structs

from replicator.stores.base import MarkFlag
from replicator.stores.memory import Node
from tests.support.mirror import Mirror, assert_equal
from tests.support.model_tree import Thing
from tests.support.stand_ins import CrashError

MOMENTS = 40
"""More than a copy of these files has."""

Change = Callable[[Mirror, Thing], None]


def append(mirror: Mirror, thing: Thing, *, closes: bool = True) -> None:
    mirror.tree.appends = lambda: True
    mirror.tree.write(thing)
    if closes:
        mirror.tree.flush(thing)


def replace(mirror: Mirror, thing: Thing) -> None:
    mirror.tree.appends = lambda: False
    mirror.tree.write(thing)
    mirror.tree.flush(thing)


def write_and_close_not(mirror: Mirror, thing: Thing) -> None:
    mirror.tree.appends = lambda: False
    mirror.tree.begin_write(thing)


def nothing(mirror: Mirror, thing: Thing) -> None: ...


def link_at_the_site(mirror: Mirror, thing: Thing) -> None:
    """Kept, say: what bears that name must stay as it is."""
    store = mirror.store.inner
    store.link(store.root(), b"f", store.limbo(), b"other")


CHANGES: dict[str, Change] = {
    "nothing": nothing,
    "append": append,
    "replace": replace,
    "an open writer": write_and_close_not,
    "another name at the site": link_at_the_site,
}


def begun(*, workers: bool) -> tuple[Mirror, Thing]:
    """A site that has the file `f`, saved."""
    mirror = Mirror(Random(1), inline_bytes=-1 if workers else 1 << 20, grows=True)
    mirror.store.inner.extent_bytes = 1
    thing = mirror.tree.create(mirror.tree.root_thing, b"f")
    replace(mirror, thing)
    mirror.feed(100)
    mirror.work_off()
    mirror.save()
    return mirror, thing


def file(mirror: Mirror) -> Node:
    root = mirror.store.inner.root()
    assert isinstance(root, Node)
    assert root.children is not None
    return root.children[b"f"]


def work_until_upset(mirror: Mirror) -> bool:
    """Whether it came to that."""
    try:
        mirror.work_off()
    except CrashError:
        mirror.crash()
        return True
    return False


@pytest.mark.parametrize("workers", [False, True], ids=["", "workers"])
@pytest.mark.parametrize("meanwhile", CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize("change", [append, replace])
def test_killed_at_every_moment(change: Change, meanwhile: Change, workers: bool) -> None:
    upset = 0
    for moment in range(MOMENTS):
        mirror, thing = begun(workers=workers)
        change(mirror, thing)
        mirror.feed(100)
        mirror.store.crash_in = moment
        upset += work_until_upset(mirror)
        mirror.store.crash_in = -1
        meanwhile(mirror, thing)
        mirror.feed(100)
        mirror.work_off()
        if moment % 2:
            mirror.cut_power()
        mirror.drain()
        assert_equal(mirror, moment)
    assert 3 < upset < MOMENTS


@pytest.mark.parametrize("change", [append, replace])
def test_failing_at_every_moment(change: Change) -> None:
    for moment in range(MOMENTS):
        mirror, thing = begun(workers=True)
        change(mirror, thing)
        mirror.feed(100)
        mirror.store.fail_in = moment
        mirror.work(100)
        mirror.workers.copy()
        mirror.workers.tell()
        mirror.work(100)
        mirror.store.fail_in = -1
        mirror.drain()
        assert_equal(mirror, moment)


def test_only_the_rest_is_copied() -> None:
    mirror, thing = begun(workers=False)
    node, before = file(mirror), mirror.store.inner.bytes_written
    old = node.data
    append(mirror, thing)
    mirror.feed(100)
    mirror.work_off()
    assert file(mirror) is node
    assert node.data == thing.content
    assert mirror.store.inner.bytes_written - before == len(thing.content) - len(old)
    assert mirror.engine.counters.extended == 1


def test_what_is_killed_while_it_is_appended_to_is_not_current() -> None:
    mirror, thing = begun(workers=False)
    old = file(mirror).data
    append(mirror, thing)
    mirror.feed(100)
    seen = []

    def look() -> None:
        node = file(mirror)
        if node.data != old:
            assert node.mark is not None
            assert MarkFlag.CONTENT not in node.mark.flags
            assert thing.content.startswith(node.data)
            seen.append(node.data)

    mirror.store.inner.between = look
    mirror.work_off()
    assert len(seen) == 2
    mark = file(mirror).mark
    assert mark is not None
    assert MarkFlag.CONTENT in mark.flags


def test_a_file_of_two_names_at_the_site_is_not_appended_to() -> None:
    mirror, thing = begun(workers=False)
    link_at_the_site(mirror, thing)
    node, old = file(mirror), file(mirror).data
    append(mirror, thing)
    mirror.feed(100)
    mirror.work_off()
    assert node.data == old
    assert file(mirror).data == thing.content


def test_a_copy_goes_on_where_it_ended() -> None:
    mirror, thing = begun(workers=False)
    replace(mirror, thing)
    mirror.feed(100)
    mirror.store.crash_in = 5
    assert work_until_upset(mirror)
    ((_, done),) = mirror.store.inner.unfinished.values()
    assert 0 < len(done) < len(thing.content)
    before = mirror.store.inner.bytes_written
    mirror.feed(100)
    mirror.work_off()
    assert mirror.store.inner.bytes_written - before == len(thing.content) - len(done)
    mirror.drain()
    assert_equal(mirror, 0)
    assert mirror.store.inner.unfinished == {}


def test_what_failed_is_forgotten_when_nobody_needs_it() -> None:
    mirror, thing = begun(workers=False)
    replace(mirror, thing)
    mirror.feed(100)
    mirror.store.crash_in = 5
    assert work_until_upset(mirror)
    assert mirror.store.inner.unfinished
    mirror.tree.unlink(mirror.tree.root_thing, b"f")
    mirror.feed(100)
    mirror.work_off()
    mirror.save()
    assert mirror.store.inner.unfinished == {}


def test_a_read_beside_a_write_is_not_gone_on_with() -> None:
    """Its change time moved before its content does."""
    mirror, thing = begun(workers=False)
    mirror.tree.appends = lambda: False
    mirror.tree.attributes(thing)  # so that there is a step
    mirror.tree.begin_write(thing)
    mirror.tree.reconcile(mirror.tree.root_thing, whole=True)
    mirror.feed(100)
    mirror.now += 100_000_000_000
    mirror.store.crash_in = 6
    work_until_upset(mirror)
    assert mirror.store.inner.unfinished == {}
    mirror.drain()
    assert_equal(mirror, 0)


def test_a_file_is_late_by_the_deadline_of_its_path() -> None:
    mirror = Mirror(Random(1), inline_bytes=-1)
    asked = []

    def deadline(path: bytes) -> int:
        asked.append(path)
        return 5

    mirror.engine.step.staging._deadline_ns = deadline
    mirror.tree.flush(mirror.tree.create(mirror.tree.root_thing, b"f"))
    records = mirror.tree.records
    for number, (record, tag) in enumerate(records):
        told = structs.replace(record.body, path=b"products/f")
        records[number] = structs.replace(record, body=told), tag
    mirror.feed(100)
    mirror.work(10)
    ((copying, _),) = mirror.workers.waiting
    assert copying.deadline_ns == 5
    assert asked == [b"products/f"]
