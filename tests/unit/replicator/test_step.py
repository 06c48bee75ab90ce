"""The rules of the step, one by one (docs/step.md)."""

from __future__ import annotations

import errno
import stat
from random import Random

import pytest

from mirrorfs.journal.record import Place
from replicator.stores.base import Attributes, Mark, StoreError, UnsyncedError
from replicator.stores.memory import MemoryStore, Node
from replicator.surroundings import TroubleError
from replicator.view import SourceError
from tests.support.mirror import Mirror, assert_equal
from tests.support.model_tree import ModelContent, ModelObject, ModelTree, Thing
from tests.support.stand_ins import CrashError

ALL = 1 << 30
DIRECTORY = stat.S_IFDIR | 0o755


@pytest.fixture
def mirror() -> Mirror:
    return Mirror(Random(1))


def save_file(tree: ModelTree, parent: Thing, name: bytes) -> Thing:
    """A new file, written and closed."""
    thing = tree.create(parent, name)
    tree.write(thing)
    tree.flush(thing)
    return thing


def follow(mirror: Mirror) -> None:
    """Apply everything there is."""
    mirror.feed(ALL)
    mirror.engine.work(ALL)
    mirror.engine.step.finish()


def names(mirror: Mirror) -> dict[bytes, bytes]:
    """Name -> content of what stands in the site's root."""
    return {
        place.name: node.data for place, node in mirror.site() if place.directory == mirror.root
    }


def test_a_flag_made_again_does_not_appear_before_its_data(mirror: Mirror) -> None:
    tree, root = mirror.tree, mirror.tree.root_thing
    data, _ = save_file(tree, root, b"data"), save_file(tree, root, b"flag")
    follow(mirror)
    old = data.content
    tree.unlink(root, b"flag")
    tree.write(data)
    tree.flush(data)
    save_file(tree, root, b"flag")
    shown: list[dict[bytes, bytes]] = []
    mirror.store.after = lambda: shown.append(names(mirror))
    follow(mirror)
    assert {b"data": old} in shown  # the flag goes first
    assert all(each[b"data"] == data.content for each in shown if b"flag" in each)


def test_a_renamed_directory_is_one_rename(mirror: Mirror) -> None:
    tree, root = mirror.tree, mirror.tree.root_thing
    directory = tree.create(root, b"d", DIRECTORY)
    for index in range(20):
        save_file(tree, directory, b"%d" % index)
    follow(mirror)
    copied, listed = mirror.engine.counters.files_copied, mirror.store.inner.directories_listed
    tree.rename(root, b"d", root, b"e")
    follow(mirror)
    assert mirror.engine.counters.moved == 1
    assert mirror.engine.counters.files_copied == copied
    assert mirror.store.inner.directories_listed == listed
    assert_equal(mirror, 0)


def test_a_directory_renamed_by_a_record_still_to_come_is_not_copied(mirror: Mirror) -> None:
    tree, root = mirror.tree, mirror.tree.root_thing
    directory, place = tree.create(root, b"d", DIRECTORY), save_file(tree, root, b"e")
    save_file(tree, directory, b"f")
    follow(mirror)
    copied = mirror.engine.counters.files_copied
    tree.attributes(place)
    tree.unlink(root, b"e")
    seen = len(tree.records)
    tree.rename(root, b"d", root, b"e")  # the source is ahead of what is fed
    mirror.feed(seen - mirror.fed)
    mirror.engine.work(ALL)
    assert mirror.engine.counters.files_copied == copied
    follow(mirror)
    assert mirror.engine.counters.moved == 1
    assert mirror.engine.counters.files_copied == copied
    mirror.drain()
    assert_equal(mirror, 0)


def test_a_file_replaced_again_and_again_costs_one_copy(mirror: Mirror) -> None:
    tree, root = mirror.tree, mirror.tree.root_thing
    for _ in range(100):
        save_file(tree, root, b"x.tmp")
        tree.rename(root, b"x.tmp", root, b"x")
    follow(mirror)
    assert mirror.engine.counters.files_copied == 1
    assert_equal(mirror, 0)


def test_a_new_file_appears_when_it_was_closed(mirror: Mirror) -> None:
    tree, root = mirror.tree, mirror.tree.root_thing
    thing = tree.create(root, b"f")
    tree.write(thing)
    follow(mirror)
    mirror.engine.save()
    assert names(mirror) == {}
    (waiting,) = mirror.engine.held
    assert waiting.waiting
    assert mirror.engine.state.working == 1
    assert mirror.engine.state.clean == 0
    tree.flush(thing)
    follow(mirror)
    mirror.engine.save()
    assert names(mirror) == {b"f": thing.content}
    assert mirror.engine.held == []
    assert mirror.engine.state.clean == 2


def test_records_are_trusted_again_soon_after_a_reconcile(mirror: Mirror) -> None:
    tree, root = mirror.tree, mirror.tree.root_thing
    thing = save_file(tree, root, b"f")
    mirror.lose_tail(tree.head)
    follow(mirror)
    mirror.now += 2_000_000_000
    follow(mirror)
    copied = mirror.engine.counters.files_copied
    tree.attributes(thing)
    tree.rename(root, b"f", root, b"g")
    follow(mirror)
    assert mirror.engine.counters.files_copied == copied
    mirror.engine.save()
    assert not mirror.engine.state.escaping


def test_a_new_file_is_waited_for_while_records_are_not_trusted(mirror: Mirror) -> None:
    tree, root = mirror.tree, mirror.tree.root_thing
    mirror.lose_tail(tree.head)
    thing = tree.create(root, b"f")
    tree.write(thing)
    follow(mirror)
    assert names(mirror) == {}
    tree.flush(thing)
    follow(mirror)
    assert names(mirror) == {b"f": thing.content}
    assert mirror.engine.held == []


def test_a_file_that_stays_open_is_shown_after_a_while(mirror: Mirror) -> None:
    tree, root = mirror.tree, mirror.tree.root_thing
    thing = tree.create(root, b"f")
    tree.write(thing)
    follow(mirror)
    mirror.now += 61_000_000_000
    follow(mirror)
    assert names(mirror) == {b"f": thing.content}
    assert mirror.engine.held == []


def test_a_hot_file_keeps_its_last_good_copy_and_is_tried_again(mirror: Mirror) -> None:
    tree, root = mirror.tree, mirror.tree.root_thing
    thing = save_file(tree, root, b"f")
    follow(mirror)
    good = thing.content
    tree.write(thing)
    tree.flush(thing)

    def busy() -> None:
        tree.write(thing)

    tree.meanwhile = busy
    follow(mirror)
    tree.meanwhile = lambda: None
    assert names(mirror) == {b"f": good}
    (held,) = mirror.engine.held
    assert not held.waiting
    assert "hot" in held.error
    mirror.engine.save()
    assert mirror.engine.state.clean < mirror.engine.state.working
    mirror.drain()
    assert_equal(mirror, 0)
    assert mirror.engine.held == []


def test_what_a_forgotten_record_said_is_not_forgotten(mirror: Mirror) -> None:
    """While the step of an object is held, its copies have no claim to be current."""
    tree, root = mirror.tree, mirror.tree.root_thing
    thing = save_file(tree, root, b"f")
    follow(mirror)
    tree.write(thing)
    tree.flush(thing)
    mirror.feed(ALL)

    def refuse(*_: object) -> Node:
        raise StoreError.of("stage", errno.EPERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mirror.store.inner, "stage", refuse)
        mirror.engine.work(ALL)
    mirror.engine.save()
    mirror.crash()
    tree.rename(root, b"f", root, b"g")
    follow(mirror)
    assert names(mirror) == {b"g": thing.content}


def test_a_full_site_is_waited_for(mirror: Mirror) -> None:
    tree, root = mirror.tree, mirror.tree.root_thing
    save_file(tree, root, b"f")
    mirror.feed(ALL)
    mirror.store.fail_in, mirror.store.errno = 0, errno.ENOSPC
    for _ in range(10):
        with pytest.raises(TroubleError) as caught:
            mirror.engine.work(ALL)
        assert caught.value.no_space
    assert mirror.engine.held == []
    assert mirror.engine.plan.working() == 0
    mirror.store.fail_in = -1
    follow(mirror)
    assert_equal(mirror, 0)


def test_a_transient_error_is_tried_again_and_then_held(mirror: Mirror) -> None:
    tree, root = mirror.tree, mirror.tree.root_thing
    save_file(tree, root, b"f")
    mirror.feed(ALL)
    mirror.store.fail_in, mirror.store.errno = 0, errno.EIO
    for _ in range(4):
        with pytest.raises(TroubleError):
            mirror.engine.work(ALL)
    mirror.engine.work(1)
    (held,) = mirror.engine.held
    assert (held.path, held.errno, held.tries) == (b"f", errno.EIO, 1)
    mirror.store.fail_in = -1
    mirror.drain()
    assert_equal(mirror, 0)
    assert mirror.engine.held == []


def test_names_of_one_file_get_new_content_by_one_copy(mirror: Mirror) -> None:
    tree, root = mirror.tree, mirror.tree.root_thing
    thing = save_file(tree, root, b"a")
    tree.link(thing, root, b"b")
    follow(mirror)
    mirror.engine.save()
    tree.write(thing)
    tree.flush(thing)
    before = mirror.engine.counters.files_copied
    follow(mirror)
    assert mirror.engine.counters.files_copied == before + 1
    assert_equal(mirror, 0)


def test_removals_are_not_kept_but_those_of_a_reconcile_are(mirror: Mirror) -> None:
    tree, root = mirror.tree, mirror.tree.root_thing
    for name in (b"a", b"b"):
        save_file(tree, root, name)
    follow(mirror)
    tree.unlink(root, b"a")
    follow(mirror)
    assert mirror.store.inner.kept == {}
    before = tree.head
    tree.unlink(root, b"b")
    mirror.lose_tail(before)
    mirror.drain()
    assert set(mirror.store.inner.kept) == {b"b"}
    assert_equal(mirror, 0)


def test_what_was_there_is_adopted_if_it_looks_the_same(mirror: Mirror) -> None:
    tree, root = mirror.tree, mirror.tree.root_thing
    same, other = save_file(tree, root, b"same"), save_file(tree, root, b"other")
    store = MemoryStore()
    for name, size, mtime in (
        (b"same", len(same.content), same.mtime),
        (b"other", 99, other.mtime),
        (b"surplus", 1, 1),
    ):
        attributes = Attributes(stat.S_IFREG | 0o600, 5, 0, 0, mtime, 0, {})
        mark = Mark(mirror.root, tree.tag, tree.head, 0)
        staged = store.stage(attributes, ModelContent(b"-" * size), mark)
        store.commit(staged, store.root(), name)
        assert isinstance(staged, Node)
        staged.mark = None
    mirror.store.inner, mirror.store.after = store, lambda: None
    state = mirror.engine.state
    state.initial = state.adopt = True
    state.working = tree.head
    mirror.start(state)
    follow(mirror)
    assert mirror.engine.counters.adopted == 1
    assert mirror.engine.counters.files_copied == 1
    assert set(store.kept) == {b"other", b"surplus"}
    assert names(mirror) == {b"same": b"-" * len(same.content), b"other": other.content}
    assert not mirror.engine.state.initial


def test_after_a_power_cut_of_the_site_what_was_not_synced_is_copied_again(mirror: Mirror) -> None:
    tree, root = mirror.tree, mirror.tree.root_thing
    safe = save_file(tree, root, b"safe")
    follow(mirror)
    mirror.engine.save()
    lost = save_file(tree, root, b"lost")
    follow(mirror)
    for place, node in mirror.site():
        if place.name == b"lost":
            node.data = b""  # its mark and size survived, its blocks did not
    mirror.engine.state.boot = "the boot before"
    mirror.start(mirror.engine.state)
    follow(mirror)
    assert names(mirror) == {b"safe": safe.content, b"lost": lost.content}
    assert mirror.engine.counters.files_copied == 1


def test_the_clean_cursor_passes_a_doubt_that_a_save_has_left(mirror: Mirror) -> None:
    """As limbo does, when what is in it expires: it is looked through with the cursor."""
    mirror.tree.create(mirror.tree.root_thing, b"d", DIRECTORY)
    mirror.feed(10)
    mirror.work(100)
    mirror.engine.step.bench.doubt.add(mirror.root)
    mirror.engine.save()
    state = mirror.engine.state
    assert state.clean < state.working
    mirror.work(100)
    assert mirror.engine.unsaved
    mirror.engine.save()
    assert state.clean == state.working
    assert not mirror.engine.unsaved


def test_a_failed_sync_is_not_tried_again(mirror: Mirror) -> None:
    """The second one would be answered with success, and what was lost would be believed."""
    error = UnsyncedError.of("the disk", errno.EIO)

    def sync_fails(name: str, data: bytes) -> None:
        raise error

    save_file(mirror.tree, mirror.tree.root_thing, b"lost")
    follow(mirror)
    mirror.store.inner.write_file = sync_fails  # type: ignore[method-assign]
    with pytest.raises(UnsyncedError):
        mirror.engine.save()
    directory = mirror.tree.create(mirror.tree.root_thing, b"d", DIRECTORY)
    mirror.engine.step.bench.doubt.add(directory.id)
    with pytest.raises(TroubleError) as raised:  # settling a doubt saves, too
        mirror.engine.work(ALL)
    assert raised.value.__cause__ is error


def test_a_directory_in_doubt_stays_so_when_we_are_killed(mirror: Mirror) -> None:
    """It was made without records of what it holds, and not yet looked into."""
    tree, root = mirror.tree, mirror.tree.root_thing
    directory = tree.create(root, b"d", DIRECTORY)
    for name in (b"a", b"b"):
        save_file(tree, directory, name)
    seen = tree.head
    tree.rename(root, b"d", root, b"e")
    mirror.engine.state.working = seen  # the site was emptied behind our back
    mirror.start(mirror.engine.state)
    mirror.feed(ALL)
    mirror.store.crash_in = 3  # the note, the stage, the commit
    with pytest.raises(CrashError):
        mirror.engine.work(ALL)
    assert set(names(mirror)) == {b"e"}
    mirror.store.crash_in = -1
    mirror.start(mirror.engine.state)
    follow(mirror)
    assert_equal(mirror, 0)


def test_the_reserved_name_is_never_touched(mirror: Mirror) -> None:
    mirror.engine.step.place(Place(mirror.root, b".mirrorfs"))
    assert names(mirror) == {}


def first_copy(mirror: Mirror) -> None:
    """Make the initial copy of what is there."""
    mirror.start_anew()
    mirror.engine.work(ALL)


def test_the_initial_copy_looks_into_each_directory_once(mirror: Mirror) -> None:
    tree, root = mirror.tree, mirror.tree.root_thing
    for number in range(10):
        directory = tree.create(root, b"d%d" % number, DIRECTORY)
        save_file(tree, tree.create(directory, b"below", DIRECTORY), b"f")
    first_copy(mirror)
    assert mirror.engine.counters.directories_reconciled == 21
    mirror.drain()
    assert_equal(mirror, 0)


def test_what_changes_right_after_the_initial_copy_is_cheap(mirror: Mirror) -> None:
    tree, root = mirror.tree, mirror.tree.root_thing
    for number in range(10):
        save_file(tree, tree.create(root, b"d%d" % number, DIRECTORY), b"f")
    first_copy(mirror)
    copied = mirror.engine.counters.files_copied
    for number in range(10):
        above = tree.create(root, b"new%d" % number, DIRECTORY)
        tree.rename(root, b"d%d" % number, above, b"moved")
        tree.rename(above, b"moved", root, b"again%d" % number)
        tree.rename(root.names[b"again%d" % number], b"f", root, b"f%d" % number)
        tree.rename(root, b"new%d" % number, root, b"newer%d" % number)
        tree.unlink(root, b"f%d" % number)
        follow(mirror)
    counters = mirror.engine.counters
    assert (counters.directories_reconciled, counters.kept) == (11, 0)
    assert counters.files_copied == copied
    mirror.drain()
    assert_equal(mirror, 0)


@pytest.mark.parametrize("name", [b"bad", None])
def test_one_bad_directory_does_not_stop_the_initial_copy(
    mirror: Mirror, name: bytes | None
) -> None:
    tree, root = mirror.tree, mirror.tree.root_thing
    for each in (b"a", b"bad", b"c"):
        save_file(tree, tree.create(root, each, DIRECTORY), b"f")
    bad = (root if name is None else root.names[name]).id
    list_source = tree.list

    def failing(directory: ModelObject) -> list[bytes]:
        if directory.id == bad:
            raise SourceError("cannot list", errno.EUCLEAN, transient=False)
        return list_source(directory)

    tree.list = failing  # type: ignore[method-assign]
    first_copy(mirror)
    there = {place.name for place, _ in mirror.site()}
    assert there == (set() if name is None else {b"a", b"bad", b"c", b"f"})
    (held,) = mirror.engine.held
    assert (held.kind, held.directory, held.whole) == ("reconcile", bad, True)
    assert held.path == (name or b"")
    assert mirror.engine.state.initial is False
    mirror.engine.save()
    assert mirror.engine.state.clean < mirror.engine.state.working
    tree.list = list_source  # type: ignore[method-assign]
    mirror.drain()
    assert mirror.engine.held == []
    assert_equal(mirror, 0)


def forget_records(mirror: Mirror) -> None:
    """The saved cursor passes all records, and the replicator starts again."""
    follow(mirror)
    mirror.engine.save()
    mirror.crash()


def test_a_name_below_a_directory_that_moves_later_is_joined(mirror: Mirror) -> None:
    tree, root = mirror.tree, mirror.tree.root_thing
    directory = tree.create(root, b"d", DIRECTORY)
    thing = save_file(tree, directory, b"f")
    forget_records(mirror)
    tree.link(thing, root, b"g")
    tree.rename(root, b"d", root, b"e")
    mirror.feed(1)
    mirror.engine.work(ALL)
    mirror.drain()
    assert_equal(mirror, 0)
