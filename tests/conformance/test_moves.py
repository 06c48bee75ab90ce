"""What every site store must do when objects change their places, or lose them."""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable

import pytest

from replicator.stores.base import Directory, SiteStore
from tests.support.sites import (
    Bench,
    all_refused,
    attributes,
    listed,
    mark,
    put_directory,
    put_file,
    put_symlink,
    refused,
)

pytestmark = pytest.mark.fuse  # root, for marks


# Replacing

Fill = Callable[[SiteStore, Directory, bytes], object]

FILL: dict[str, Fill] = {
    "file": put_file,
    "directory": put_directory,
    "symlink": lambda store, directory, name: put_symlink(store, directory, name, b"elsewhere"),
}


@pytest.mark.parametrize("new", [stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO])
@pytest.mark.parametrize("old", FILL.values(), ids=FILL.keys())
def test_commit_replaces_all_but_directories_with_entries(
    bench: Bench, old: Fill, new: int
) -> None:
    store, root = bench.store, bench.store.root()
    old(store, root, b"x")
    wanted = attributes(new | 0o777, target=b"t" if new == stat.S_IFLNK else None)
    store.commit(store.stage(wanted, None, mark(b"new")), root, b"x")
    assert bench.attributes(root, b"x") == wanted
    assert listed(store, root) == [b"x"]
    assert bench.staged() == 0


@pytest.mark.parametrize("new", [stat.S_IFREG, stat.S_IFDIR])
def test_a_directory_with_entries_is_not_replaced(bench: Bench, new: int) -> None:
    store, root = bench.store, bench.store.root()
    directory = put_directory(store, root, b"d")
    put_file(store, directory, b"f", b"data")
    staged = store.stage(attributes(new | 0o700), None, mark(b"new"))
    with refused(errno.ENOTEMPTY):
        store.commit(staged, root, b"d")
    put_file(store, root, b"g")
    with refused(errno.ENOTEMPTY):
        store.move(root, b"g", root, b"d")
    assert bench.content(directory, b"f") == b"data"
    store.commit(staged, root, b"elsewhere")
    assert listed(store, root) == [b"d", b"elsewhere", b"g"]


@pytest.mark.parametrize("new", FILL.values(), ids=FILL.keys())
@pytest.mark.parametrize("old", FILL.values(), ids=FILL.keys())
def test_move_replaces_the_same(bench: Bench, old: Fill, new: Fill) -> None:
    store, root = bench.store, bench.store.root()
    directory = put_directory(store, root, b"d")
    old(store, root, b"x")
    new(store, directory, b"y")
    moved = store.lookup(directory, b"y")
    store.move(directory, b"y", root, b"x")
    assert store.lookup(root, b"x") == moved
    assert listed(store, root) == [b"d", b"x"]
    assert listed(store, directory) == []
    assert bench.staged() == 0


def test_a_replaced_file_keeps_its_other_names(bench: Bench) -> None:
    store, root = bench.store, bench.store.root()
    put_file(store, root, b"a", b"old")
    store.link(root, b"a", root, b"b")
    put_file(store, root, b"a", b"new")
    assert (bench.content(root, b"a"), bench.content(root, b"b")) == (b"new", b"old")
    entry = store.lookup(root, b"b")
    assert entry is not None
    assert entry.links == 1


# Moving, exchanging, linking


def test_a_directory_moves_with_all_below_and_stays_open(bench: Bench) -> None:
    store, root = bench.store, bench.store.root()
    one, other = put_directory(store, root, b"one"), put_directory(store, root, b"other")
    below = put_directory(store, one, b"below")
    store.move(root, b"one", other, b"moved")
    put_file(store, below, b"f", b"late")
    moved = store.open_directory(other, b"moved")
    assert moved is not None
    again = store.open_directory(moved, b"below")
    assert again is not None
    assert bench.content(again, b"f") == b"late"
    for directory in (one, other, below, moved, again):
        store.close_directory(directory)


def test_move_to_where_it_is_does_nothing(bench: Bench) -> None:
    store, root = bench.store, bench.store.root()
    directory = put_directory(store, root, b"d")
    again = store.open_directory(root, b"d")
    assert again is not None
    put_file(store, directory, b"a", b"data")
    store.link(directory, b"a", root, b"other")
    store.move(directory, b"a", directory, b"a")
    store.move(directory, b"a", again, b"a")
    assert listed(store, directory) == [b"a"]
    with refused(errno.ENOENT):
        store.move(directory, b"none", again, b"none")


def test_move_between_two_names_of_one_object_takes_the_old_one(bench: Bench) -> None:
    store, root = bench.store, bench.store.root()
    directory = put_directory(store, root, b"d")
    put_file(store, root, b"a", b"data")
    store.link(root, b"a", directory, b"a")
    store.move(root, b"a", directory, b"a")
    assert listed(store, root) == [b"d"]
    entry = store.lookup(directory, b"a")
    assert entry is not None
    assert entry.links == 1
    assert bench.content(directory, b"a") == b"data"


def test_exchange(bench: Bench) -> None:
    store, root = bench.store, bench.store.root()
    directory = put_directory(store, root, b"d")
    inner = put_directory(store, directory, b"inner")
    put_file(store, inner, b"deep")
    put_file(store, root, b"f", b"data")
    before = store.lookup(root, b"f"), store.lookup(directory, b"inner")
    store.exchange(root, b"f", directory, b"inner")
    assert (store.lookup(directory, b"inner"), store.lookup(root, b"f")) == before
    assert listed(store, inner) == [b"deep"]
    assert bench.staged() == 0


def test_exchange_of_two_names_of_one_object_changes_nothing(bench: Bench) -> None:
    store, root = bench.store, bench.store.root()
    put_file(store, root, b"a", b"data")
    store.link(root, b"a", root, b"b")
    store.exchange(root, b"a", root, b"b")
    store.exchange(root, b"a", root, b"a")
    entry = store.lookup(root, b"a")
    assert entry == store.lookup(root, b"b")
    assert entry is not None
    assert entry.links == 2


@pytest.mark.parametrize("present", [b"a", b"b"])
def test_exchange_needs_both(bench: Bench, present: bytes) -> None:
    store, root = bench.store, bench.store.root()
    put_file(store, root, present)
    with refused(errno.ENOENT):
        store.exchange(root, b"a", root, b"b")
    assert listed(store, root) == [present]
    assert bench.staged() == 0


def test_nothing_moves_below_itself(bench: Bench) -> None:
    store, root = bench.store, bench.store.root()
    one = put_directory(store, root, b"one")
    two = put_directory(store, one, b"two")
    put_file(store, two, b"f")
    with refused(errno.EINVAL):
        store.move(root, b"one", two, b"x")
    with refused(errno.EINVAL):
        store.move(root, b"one", one, b"x")
    with refused(errno.EINVAL):
        store.exchange(root, b"one", two, b"f")
    with refused(errno.EINVAL):
        store.exchange(two, b"f", root, b"one")
    assert (listed(store, root), listed(store, two)) == ([b"one"], [b"f"])
    assert bench.staged() == 0


def test_link_makes_another_name(bench: Bench) -> None:
    store, root = bench.store, bench.store.root()
    directory = put_directory(store, root, b"d")
    put_file(store, root, b"a", b"data")
    put_file(store, directory, b"c", b"other")
    put_symlink(store, directory, b"s", b"/etc/passwd")
    for name in (b"b", b"c", b"s", b"b"):
        store.link(root, b"a", directory, name)
    entries = [store.lookup(directory, name) for name in (b"b", b"c", b"s")]
    assert entries == [store.lookup(root, b"a")] * 3
    assert entries[0] is not None
    assert entries[0].links == 4
    assert entries[0].mark == mark(b"a")
    assert bench.staged() == 0


def test_a_symlink_is_linked_itself(bench: Bench) -> None:
    store, root = bench.store, bench.store.root()
    put_symlink(store, root, b"s", b"/etc/passwd")
    store.link(root, b"s", root, b"t")
    assert store.lookup(root, b"s") == store.lookup(root, b"t")


def test_link_refuses_directories(bench: Bench) -> None:
    store, root = bench.store, bench.store.root()
    put_directory(store, root, b"d")
    put_file(store, root, b"f")
    with refused(errno.EPERM):
        store.link(root, b"d", root, b"e")
    with refused(errno.EISDIR):
        store.link(root, b"f", root, b"d")
    assert listed(store, root) == [b"d", b"f"]
    assert bench.staged() == 0


def test_what_is_not_there(bench: Bench) -> None:
    store, root = bench.store, bench.store.root()
    wanted = attributes(stat.S_IFREG | 0o644)
    assert store.lookup(root, b"none") is None
    assert store.open_directory(root, b"none") is None
    store.remove(root, b"none")
    store.keep(root, b"none", b"none")
    all_refused(
        errno.ENOENT,
        lambda: store.move(root, b"none", root, b"x"),
        lambda: store.link(root, b"none", root, b"x"),
        lambda: store.xattrs(root, b"none"),
        lambda: store.set_attributes(root, b"none", wanted, mark()),
        lambda: store.set_mark(root, b"none", mark()),
    )
    assert listed(store, root) == []
    assert bench.kept() == {}


def test_only_directories_are_opened(store: SiteStore) -> None:
    root = store.root()
    put_file(store, root, b"f")
    put_directory(store, root, b"d")
    put_symlink(store, root, b"s", b"d")
    assert store.open_directory(root, b"f") is None
    assert store.open_directory(root, b"s") is None


# Removing and keeping


def test_remove(bench: Bench) -> None:
    store, root = bench.store, bench.store.root()
    directory = put_directory(store, root, b"d")
    put_file(store, directory, b"f")
    put_symlink(store, root, b"s", b"d/f")
    with refused(errno.ENOTEMPTY):
        store.remove(root, b"d")
    store.remove(root, b"s")
    store.remove(directory, b"f")
    store.remove(root, b"d")
    assert listed(store, root) == []


def test_a_removed_directory_takes_nothing_any_more(bench: Bench) -> None:
    store, root = bench.store, bench.store.root()
    directory = put_directory(store, root, b"d")
    put_file(store, root, b"f")
    store.remove(root, b"d")
    staged = store.stage(attributes(stat.S_IFREG | 0o644), None, mark())
    with refused(errno.ENOENT):
        store.commit(staged, directory, b"x")
    store.discard(staged)
    with refused(errno.ENOENT):
        store.move(root, b"f", directory, b"x")
    with refused(errno.ENOENT):
        store.link(root, b"f", directory, b"x")
    assert store.list(directory) == []
    assert store.lookup(directory, b"x") is None
    assert listed(store, root) == [b"f"]
    assert bench.staged() == 0


def test_keep_moves_it_out_of_the_tree(bench: Bench) -> None:
    store, root = bench.store, bench.store.root()
    directory = put_directory(store, root, b"d")
    put_file(store, directory, b"f", b"1")
    store.keep(directory, b"f", b"d/f")
    put_file(store, directory, b"f", b"2")
    store.keep(directory, b"f", b"d/f")
    inner = put_directory(store, directory, b"inner")
    put_file(store, inner, b"deep")
    store.keep(directory, b"inner", b"gone/inner")
    long = b"n" * 255
    for _ in range(2):
        put_symlink(store, root, long, b"t")
        store.keep(root, long, long)
    assert listed(store, directory) == []
    assert listed(store, root) == [b"d"]
    kept = bench.kept()
    assert kept.pop(b"d/f") == kept.pop(b"d/f.1") == stat.S_IFREG
    assert kept.pop(long) == stat.S_IFLNK
    assert len(kept) == 2
