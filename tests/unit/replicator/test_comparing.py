"""Comparisons beside the records: they are never in their way, and are never begun again."""

from __future__ import annotations

import errno
from contextlib import AbstractContextManager, suppress
from random import Random
from typing import cast

import pytest

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
from tests.support.failing_store import FailingStore
from tests.support.mirror import Mirror, assert_equal
from tests.support.model_tree import ModelContent, ModelObject, Thing
from tests.support.stand_ins import StrangeError, WatchedStore

__all__ = ["mirror"]

# kills -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("initial", [True, False], ids=["initial", "recovery"])
@pytest.mark.parametrize("seed", range(8))
def test_after_a_kill_only_what_was_not_done_is_listed(seed: int, initial: bool) -> None:
    """The directories of the way are listed again, and what was done since the last save."""
    random = Random(seed)
    mirror = Mirror(random)
    tree = mirror.tree
    everything = {tree.root_thing.id} | {each.id for each in grow(tree, tree.root_thing, depth=2)}
    if initial:
        mirror.start_anew()
    else:
        settle(mirror)
        tree.reconcile(tree.root_thing, whole=True)
    listings = Listings(tree)
    saved: set[bytes] = set()
    done: set[bytes] = set()
    kills = 0
    mirror.feed(ALL)
    while mirror.engine.work(1):
        done |= set(listings.take())
        if random.random() < 0.3:
            mirror.engine.save()
            saved = set(done)
            state = mirror.engine.state.comparing
        if random.random() < 0.1 and saved and saved < everything and state:
            mirror.crash()
            mirror.feed(ALL)
            kills += 1
            way = {level.directory for each in state for level in each.way}
            while mirror.engine.work(1):
                pass
            again = listings.take()
            assert set(again) <= (everything - saved) | way
            assert max(again.values()) <= 2, "once for its names, once for its directories"
            assert sum(again.values()) <= len(everything - saved) + 2 * len(way)
            break
    mirror.engine.save()
    assert_equal(mirror, seed)
    assert not mirror.engine.state.comparing
    assert not mirror.engine.state.initial
    assert kills or seed, "the first seed shows a kill"


def test_a_large_directory_goes_on_in_its_midst(mirror: Mirror) -> None:
    tree, root = mirror.tree, mirror.tree.root_thing
    for index in range(20):
        save_file(tree, root, b"f%02d" % index)
    mirror.start_anew()
    for _ in range(5):
        mirror.engine.work(1)
    mirror.engine.save()
    copied = len(site_names(mirror, root))
    assert 0 < copied < 20
    mirror.crash()
    settle(mirror)
    assert mirror.engine.counters.files_copied == 20 - copied
    assert_equal(mirror, 0)


def test_doubts_settled_since_the_last_save_are_not_compared_again(mirror: Mirror) -> None:
    tree, root = mirror.tree, mirror.tree.root_thing
    grow(tree, root, depth=1, width=2)
    mirror.start_anew()
    mirror.engine.step.bench.doubt.add(root.names[b"d0"].id)
    while not any(each.doubt for each in mirror.engine.state.comparing):
        assert mirror.engine.work(1)
        mirror.engine.save()
    state = mirror.store.inner.read_file("state")
    mirror.engine.step.bench.doubt.settled(root.names[b"d0"].id)
    assert state is not None
    mirror.store.inner.write_file("state", state)
    mirror.crash()
    mirror.engine.save()
    assert not any(each.doubt for each in mirror.engine.state.comparing)
    settle(mirror)
    assert_equal(mirror, 0)


def test_what_the_site_lost_in_a_power_cut_is_copied_again_by_the_comparison(
    mirror: Mirror,
) -> None:
    tree, root = mirror.tree, mirror.tree.root_thing
    tree.is_quiet = lambda ctime_ns: True  # type: ignore[method-assign]
    for name in (b"a", b"b", b"c", b"d", b"e", b"f"):
        save_file(tree, root, name)
    mirror.start_anew()
    mirror.engine.work(1)
    mirror.engine.save()
    safe = set(site_names(mirror, root))
    mirror.engine.work(1)
    mirror.store.after = lambda: None
    for place, node in mirror.site():
        if place.name not in safe:
            node.data = b""  # its mark and size survived, its blocks did not
    mirror.engine.state.boot = "the boot before"
    mirror.start(mirror.engine.state)
    settle(mirror)
    assert_equal(mirror, 0)
    assert mirror.engine.counters.files_copied == 6 - len(safe)


# beside the records ------------------------------------------------------------------------------


@pytest.mark.parametrize("initial", [True, False], ids=["initial", "recovery"])
def test_records_do_not_wait_for_the_end_of_a_comparison(mirror: Mirror, initial: bool) -> None:
    """At most one directory's work comes before them."""
    tree, root = mirror.tree, mirror.tree.root_thing
    grow(tree, root, depth=3)
    if initial:
        mirror.start_anew()
    else:
        settle(mirror)
        tree.reconcile(root, whole=True)
        mirror.feed(ALL)
    for _ in range(10):
        mirror.engine.work(1)
    assert mirror.engine.comparing == "comparing /"
    last = root.names[b"d2"].names[b"d2"]
    listings = Listings(tree)
    made = save_file(tree, last, b"live")
    mirror.feed(ALL)
    while mirror.engine.plan.next() is not None:
        mirror.engine.work(1)
    assert site_names(mirror, last)[b"live"] == made.content
    counted = listings.take()
    assert set(counted) == {last.id}, "it was compared before, and no other"
    assert mirror.engine.comparing
    settle(mirror)
    assert_equal(mirror, 0)
    assert mirror.engine.comparing == ""


def test_a_comparison_gets_its_turn_however_many_records_come(mirror: Mirror) -> None:
    tree, root = mirror.tree, mirror.tree.root_thing
    grow(tree, root, depth=1)
    mirror.start_anew()
    while mirror.engine.state.initial:
        for index in range(20):
            save_file(tree, root, b"live%d" % index)
            tree.unlink(root, b"live%d" % index)
        mirror.feed(ALL)
        mirror.engine.work(16)
        assert len(tree.records) < 40_000
    settle(mirror)
    assert_equal(mirror, 0)


@pytest.mark.parametrize("initial", [True, False], ids=["initial", "recovery"])
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "alone"])
def test_a_flag_does_not_appear_before_data_that_have_no_record(
    mirror: Mirror, initial: bool, whole: bool
) -> None:
    tree, root = mirror.tree, mirror.tree.root_thing
    late = grow(tree, root, depth=1)[-1]
    if not initial:
        settle(mirror)
    unrecorded(tree)
    data = save_file(tree, late, b"data")
    tree.write(late.names[b"z"])
    tree.flush(late.names[b"z"])
    recorded(tree)
    if initial:
        mirror.start_anew()
    else:
        tree.reconcile(root if whole else late, whole=whole)
    save_file(tree, late, b"above")  # by name it comes first
    mirror.feed(ALL)
    wanted = {b"data": data.content, b"z": late.names[b"z"].content}
    shown = []

    def look() -> None:
        there = site_names(mirror, late)
        if b"above" in there:
            shown.append({name: there.get(name) for name in wanted})

    mirror.store.after = look
    settle(mirror)
    assert shown
    assert all(each == wanted for each in shown)
    assert_equal(mirror, 0)


def test_what_a_record_removes_is_not_kept_what_the_comparison_removes_is(mirror: Mirror) -> None:
    tree, root = mirror.tree, mirror.tree.root_thing
    grow(tree, root, depth=1)
    for name in (b"told", b"untold", b"replaced"):
        save_file(tree, root, name)
    directory = tree.create(root, b"gone", DIRECTORY)
    save_file(tree, directory, b"inside")
    settle(mirror)
    unrecorded(tree)
    tree.unlink(root, b"untold")
    tree.unlink(directory, b"inside")
    recorded(tree)
    tree.reconcile(root, whole=True)
    tree.unlink(root, b"told")
    tree.unlink(root, b"gone")
    tree.rename(root.names[b"d0"], b"a", root, b"replaced")
    settle(mirror)
    assert_equal(mirror, 0)
    assert set(mirror.store.inner.kept) == {b"untold", b"inside"}


def test_an_object_stays_visible_while_the_whole_tree_is_compared(mirror: Mirror) -> None:
    """Mirror.check asks this of every object, at every change; here: that it is asked."""
    tree, root = mirror.tree, mirror.tree.root_thing
    grow(tree, root, depth=1)
    settle(mirror)
    tree.reconcile(root, whole=True)
    mirror.feed(ALL)
    mirror.engine.work(1)
    store = mirror.store
    with pytest.raises(StrangeError, match="is gone from the site"):
        store.remove(store.open_directory(store.root(), b"d1"), b"a")


def test_a_file_that_is_written_is_left_to_its_record(mirror: Mirror) -> None:
    """The record that told of the writer is behind the saved cursor when it is compared."""
    tree, root = mirror.tree, mirror.tree.root_thing
    grow(tree, root, depth=1)
    mirror.start_anew()
    busy = tree.create(root.names[b"d2"], b"busy")
    tree.write(busy)
    mirror.feed(ALL)
    while mirror.engine.work(1):
        mirror.engine.save()
    assert b"busy" not in site_names(mirror, root.names[b"d2"])
    assert [step.waiting for step in mirror.engine.held] == [True]
    tree.flush(busy)
    settle(mirror)
    assert_equal(mirror, 0)


@pytest.mark.parametrize("killed", [False, True], ids=["", "killed"])
def test_what_is_removed_while_a_doubt_is_settled_is_not_kept(mirror: Mirror, killed: bool) -> None:
    """A doubt is about where directories stand at the site: records tell what goes."""
    tree, root = mirror.tree, mirror.tree.root_thing
    grow(tree, root, depth=1)
    settle(mirror)
    mirror.now += 100_000_000_000
    settle(mirror)
    here = root.names[b"d0"]
    tree.unlink(here, b"a")
    mirror.feed(1)
    tree.create(here, b"ahead", DIRECTORY)
    mirror.engine.step.bench.doubt.add(here.id)
    held: list[str] = []
    while mirror.engine.work(1):
        held += (step.kind for step in mirror.engine.held)
    if killed:
        mirror.engine.save()
        mirror.crash()
    for number in range(40):  # comparisons get their turn meanwhile
        save_file(tree, root.names[b"d2"], b"%d" % number)
    tree.unlink(here, b"z")
    mirror.feed(ALL)
    tree.create(here, b"more", DIRECTORY)
    mirror.engine.step.bench.doubt.add(root.names[b"d1"].id)
    while mirror.engine.work(1):
        pass
    assert "reconcile" in held
    settle(mirror)
    assert_equal(mirror, 0)
    assert mirror.engine.counters.kept == 0


@pytest.mark.parametrize("compared", [True, False])
def test_what_was_open_when_the_writer_died_is_not_waited_for(
    mirror: Mirror, compared: bool
) -> None:
    """Its job has lost it with the mount: no record will tell."""
    tree, root = mirror.tree, mirror.tree.root_thing
    mirror.lose_tail(tree.head)
    busy = tree.create(root, b"busy")
    tree.write(busy)
    mirror.feed(ALL)
    assert mirror.engine.work(ALL)
    assert [step.waiting for step in mirror.engine.held] == [True]
    mirror.engine.save()
    tree.restart()
    if compared:
        tree.reconcile(root, whole=False)
    settle(mirror)
    assert mirror.engine.held == []
    assert_equal(mirror, 0)


@pytest.mark.parametrize("killed", [False, True], ids=["", "killed"])
def test_what_moves_from_where_it_has_not_looked_to_where_it_has_is_compared(
    mirror: Mirror, killed: bool
) -> None:
    tree, root = mirror.tree, mirror.tree.root_thing
    grow(tree, root, depth=1)
    settle(mirror)
    late, early = root.names[b"d2"], root.names[b"d0"]
    unrecorded(tree)
    tree.write(late.names[b"d1"].names[b"z"])
    tree.flush(late.names[b"d1"].names[b"z"])
    recorded(tree)
    tree.reconcile(root, whole=True)
    mirror.feed(ALL)
    mirror.engine.work(1)
    seen = mirror.engine.step.bench.escape.seen
    while not seen.since(early.id, 0):
        assert mirror.engine.work(1)
    tree.rename(late, b"d1", early, b"moved")
    if killed:
        mirror.engine.save()
        mirror.crash()
    settle(mirror)
    assert_equal(mirror, 0)


@pytest.mark.parametrize("inline_bytes", [-1, 1 << 20], ids=["by workers", "on the spot"])
def test_what_came_of_one_name_is_not_forgotten_when_the_next_fails(
    inline_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a moment, at whatever call: bytes that were on their way, what failed for good."""
    readable, bad = ModelObject.content, set[Thing]()

    def content(found: ModelObject) -> AbstractContextManager[ModelContent]:
        if found.thing in bad:
            raise SourceError("it cannot be read", errno.EACCES, transient=False)
        return readable(found)

    monkeypatch.setattr(ModelObject, "content", content)
    call = calls = 1
    while call <= calls:
        mirror = Mirror(Random(1), inline_bytes=inline_bytes)
        mirror.names_max = 4
        grow(mirror.tree, mirror.tree.root_thing, depth=0)
        store = FailingStore(mirror.store)
        mirror.store = cast(WatchedStore, store)
        mirror.start_anew()
        store.fail_at, store.errno = call, errno.ENOMEM
        bad.add(mirror.tree.root_thing.names[b"d1"].names[b"a"])
        for _ in range(20):
            mirror.feed(ALL)
            with suppress(TroubleError, StoreError):
                mirror.engine.work(ALL)
                mirror.engine.save()
            if mirror.workers.busy:
                mirror.workers.wait()
        assert not mirror.engine.state.comparing, f"call {call}"
        assert [step.name for step in mirror.engine.held] == [b"a"], f"call {call}"
        bad.clear()
        store.heal()
        mirror.drain()
        assert_equal(mirror, call)
        call, calls = call + 1, store.count
    assert calls > 50
