"""What every site store must do. A new store needs a bench in tests/support/sites.py, no more."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import stat
from collections.abc import Callable, Iterator

import pytest

from replicator.stores.base import Attributes, Directory, SiteStore, StoreError
from replicator.view import SourceChangedError
from tests.support import sites
from tests.support.sites import Bench, Bytes, attributes, mark, put_directory, put_file, put_symlink

pytestmark = pytest.mark.fuse  # root, for owners, devices and marks


@pytest.fixture(params=sites.KINDS)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    with sites.KINDS[request.param].make() as made:
        yield made


@pytest.fixture
def store(bench: Bench) -> SiteStore:
    return bench.store


@contextlib.contextmanager
def refused(*codes: int) -> Iterator[None]:
    with pytest.raises(StoreError) as raised:
        yield
    assert raised.value.errno in codes, raised.value


def all_refused(code: int, *actions: Callable[[], object]) -> None:
    for action in actions:
        with refused(code):
            action()


def names(store: SiteStore, directory: Directory) -> list[bytes]:
    return sorted(store.list(directory))


ACL = bytes.fromhex(  # user::rw-, user:1234:rwx, group::r--, mask::rw-, other::r--
    "02000000 01000600ffffffff 02000700d2040000 04000400ffffffff 10000600ffffffff 20000400ffffffff"
)

OBJECTS = {
    "file": attributes(stat.S_IFREG | 0o640, uid=12, gid=34),
    "suid file": attributes(stat.S_IFREG | 0o6755, uid=12, gid=34),
    "unreadable file": attributes(stat.S_IFREG, uid=12, gid=34),
    "file with attributes": attributes(
        stat.S_IFREG | 0o664,
        xattrs={b"trusted.one": b"1\0\xff", b"trusted.empty": b"", b"system.posix_acl_access": ACL},
    ),
    "directory": attributes(stat.S_IFDIR | 0o3775, uid=12, gid=34),
    "directory with a default ACL": attributes(
        stat.S_IFDIR | 0o755, xattrs={b"system.posix_acl_default": ACL}
    ),
    "symlink": attributes(stat.S_IFLNK | 0o777, uid=12, gid=34, target=b"/no \xff\n where"),
    "symlink with attributes": attributes(
        stat.S_IFLNK | 0o777, target=b"a", xattrs={b"trusted.one": b"1"}
    ),
    "fifo": attributes(stat.S_IFIFO | 0o604, uid=12),
    "socket": attributes(stat.S_IFSOCK | 0o604, gid=34),
    "character device": attributes(stat.S_IFCHR | 0o604, rdev=os.makedev(1, 3)),
    "block device": attributes(stat.S_IFBLK | 0o604, rdev=os.makedev(7, 300)),
    "times before 1970 and after 2038": attributes(
        stat.S_IFREG | 0o644, mtime_ns=-1_000_000_001, atime_ns=5_000_000_000_123_456_789
    ),
}


@pytest.mark.parametrize("wanted", OBJECTS.values(), ids=OBJECTS.keys())
def test_an_object_gets_everything_that_was_asked_for(bench: Bench, wanted: Attributes) -> None:
    store, root = bench.store, bench.store.root()
    name = b"odd \xff\nname"
    staged = store.stage(wanted, None, mark(b"x", 5))
    assert store.lookup(root, name) is None
    store.commit(staged, root, name)
    assert bench.attributes(root, name) == wanted
    assert store.xattrs(root, name) == wanted.xattrs
    entry = store.lookup(root, name)
    assert entry is not None
    assert (entry.mode, entry.uid, entry.gid) == (wanted.mode, wanted.uid, wanted.gid)
    assert (entry.mtime_ns, entry.mark) == (wanted.mtime_ns, mark(b"x", 5))
    if wanted.rdev:
        assert entry.rdev == wanted.rdev
    assert names(store, root) == [name]
    assert bench.staged() == 0
    assert store.fidelity_debt == 0


def test_content_is_whole(bench: Bench) -> None:
    store, root = bench.store, bench.store.root()
    data = bytes(range(256)) * 5000
    put_file(store, root, b"f", data)
    assert bench.content(root, b"f") == data
    entry = store.lookup(root, b"f")
    assert entry is not None
    assert (entry.size, entry.links) == (len(data), 1)
    assert store.bytes_written == len(data)


def test_what_the_source_raises_passes_through_and_leaves_nothing(bench: Bench) -> None:
    class Changing(Bytes):
        def fileno(self) -> int:
            raise SourceChangedError

        def read(self) -> bytes:
            raise SourceChangedError

    with pytest.raises(SourceChangedError):
        bench.store.stage(attributes(stat.S_IFREG | 0o644), Changing(b"x"), mark())
    assert bench.staged() == 0


def test_discarded_is_gone(bench: Bench) -> None:
    for mode in (stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755):
        bench.store.discard(bench.store.stage(attributes(mode), None, mark()))
    assert bench.staged() == 0
    assert names(bench.store, bench.store.root()) == []


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
    assert names(store, root) == [b"x"]
    assert bench.staged() == 0


@pytest.mark.parametrize("new", [stat.S_IFREG, stat.S_IFDIR])
def test_a_directory_with_entries_is_not_replaced(bench: Bench, new: int) -> None:
    store, root = bench.store, bench.store.root()
    directory = put_directory(store, root, b"d")
    put_file(store, directory, b"f", b"data")
    staged = store.stage(attributes(new | 0o700), None, mark(b"new"))
    with refused(errno.ENOTEMPTY, errno.EEXIST):
        store.commit(staged, root, b"d")
    put_file(store, root, b"g")
    with refused(errno.ENOTEMPTY, errno.EEXIST, errno.EISDIR):
        store.move(root, b"g", root, b"d")
    assert bench.content(directory, b"f") == b"data"
    store.commit(staged, root, b"elsewhere")
    assert names(store, root) == [b"d", b"elsewhere", b"g"]


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
    assert names(store, root) == [b"d", b"x"]
    assert names(store, directory) == []
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
    assert names(store, directory) == [b"a"]
    with refused(errno.ENOENT):
        store.move(directory, b"none", again, b"none")


def test_move_between_two_names_of_one_object_takes_the_old_one(bench: Bench) -> None:
    store, root = bench.store, bench.store.root()
    directory = put_directory(store, root, b"d")
    put_file(store, root, b"a", b"data")
    store.link(root, b"a", directory, b"a")
    store.move(root, b"a", directory, b"a")
    assert names(store, root) == [b"d"]
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
    assert names(store, inner) == [b"deep"]
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
    assert names(store, root) == [present]
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
    assert (names(store, root), names(store, two)) == ([b"one"], [b"f"])
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
    assert names(store, root) == [b"d", b"f"]
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
    assert names(store, root) == []
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
    with refused(errno.ENOTEMPTY, errno.EEXIST):
        store.remove(root, b"d")
    store.remove(root, b"s")
    store.remove(directory, b"f")
    store.remove(root, b"d")
    assert names(store, root) == []


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
    assert names(store, root) == [b"f"]
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
    assert names(store, directory) == []
    assert names(store, root) == [b"d"]
    kept = bench.kept()
    assert kept.pop(b"d/f") == kept.pop(b"d/f.1") == stat.S_IFREG
    assert kept.pop(long) == stat.S_IFLNK
    assert len(kept) == 2


# Attributes


def test_set_attributes_makes_exactly_those(bench: Bench) -> None:
    store, root = bench.store, bench.store.root()
    for name, old in OBJECTS.items():
        place = name.encode()
        store.commit(store.stage(old, None, mark(b"old")), root, place)
        new = dataclasses.replace(
            old,
            mode=stat.S_IFMT(old.mode) | (0o777 if old.target else 0o1711),
            uid=77,
            gid=old.gid,
            mtime_ns=old.mtime_ns - 5,
            xattrs={b"trusted.two": b"2", b"trusted.one": b"one"},
        )
        store.set_attributes(root, place, new, mark(b"new", 9))
        assert bench.attributes(root, place) == new
        entry = store.lookup(root, place)
        assert entry is not None
        assert entry.mark == mark(b"new", 9)
    assert store.fidelity_debt == 0


def test_a_change_of_owner_does_not_cost_the_suid_bit(bench: Bench) -> None:
    store, root = bench.store, bench.store.root()
    put_file(store, root, b"f", b"data")
    new = attributes(stat.S_IFREG | 0o6755, uid=5, gid=6)
    store.set_attributes(root, b"f", new, mark())
    assert bench.attributes(root, b"f") == new
    assert bench.content(root, b"f") == b"data"


def test_the_root_has_attributes_and_a_mark(store: SiteStore) -> None:
    assert store.root_entry().mark is None
    new = attributes(stat.S_IFDIR | 0o2751, uid=5, gid=6, xattrs={b"trusted.one": b"1"})
    store.set_root_attributes(new, mark(b"root", 3))
    entry = store.root_entry()
    assert (entry.mode, entry.uid, entry.gid, entry.mtime_ns) == (new.mode, 5, 6, new.mtime_ns)
    assert entry.mark == mark(b"root", 3)


def test_set_mark_changes_nothing_else(bench: Bench) -> None:
    store, root = bench.store, bench.store.root()
    put_file(store, root, b"f", b"data", xattrs={b"trusted.one": b"1"})
    put_symlink(store, root, b"s", b"nowhere")
    for name in (b"f", b"s"):
        before, xattrs = store.lookup(root, name), store.xattrs(root, name)
        store.set_mark(root, name, mark(b"other", 4))
        assert before is not None
        assert store.lookup(root, name) == dataclasses.replace(before, mark=mark(b"other", 4))
        assert store.xattrs(root, name) == xattrs


def test_changed_entries_disturb_the_times_of_a_directory(bench: Bench) -> None:
    store, root = bench.store, bench.store.root()
    directory = put_directory(store, root, b"d")
    before = bench.attributes(root, b"d")
    put_file(store, directory, b"f")
    assert bench.attributes(root, b"d").mtime_ns != before.mtime_ns
    store.set_directory_times(directory, before.atime_ns, before.mtime_ns)
    assert bench.attributes(root, b"d") == before


# Reserved places, limbo, our own files


def test_limbo_is_a_directory_outside_the_tree(bench: Bench) -> None:
    store, root = bench.store, bench.store.root()
    directory = put_directory(store, root, b"d")
    put_file(store, directory, b"f", b"data")
    store.move(root, b"d", store.limbo(), b"0123")
    assert names(store, root) == []
    assert names(store, store.limbo()) == [b"0123"]
    store.move(store.limbo(), b"0123", root, b"back")
    assert bench.content(directory, b"f") == b"data"
    store.close_directory(store.limbo())
    store.close_directory(root)
    assert names(store, root) == [b"back"]
    assert names(store, store.limbo()) == []


def test_the_reserved_name_is_never_there(store: SiteStore) -> None:
    root, reserved = store.root(), b".mirrorfs"
    assert reserved not in store.list(root)
    assert store.lookup(root, reserved) is None
    assert store.open_directory(root, reserved) is None
    put_file(store, root, b"f")
    wanted = attributes(stat.S_IFREG | 0o644)
    staged = store.stage(wanted, None, mark())
    all_refused(
        errno.EPERM,
        lambda: store.commit(staged, root, reserved),
        lambda: store.move(root, b"f", root, reserved),
        lambda: store.move(root, reserved, root, b"g"),
        lambda: store.exchange(root, b"f", root, reserved),
        lambda: store.link(root, b"f", root, reserved),
        lambda: store.remove(root, reserved),
        lambda: store.keep(root, reserved, b"x"),
        lambda: store.xattrs(root, reserved),
        lambda: store.set_attributes(root, reserved, wanted, mark()),
        lambda: store.set_mark(root, reserved, mark()),
    )
    store.discard(staged)
    directory = put_directory(store, root, b"d")
    put_file(store, directory, reserved)
    assert names(store, directory) == [reserved]


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"/etc/passwd", b"../x"])
def test_only_names_are_names(store: SiteStore, name: bytes) -> None:
    root = store.root()
    put_file(store, root, b"f")
    staged = store.stage(attributes(stat.S_IFREG | 0o644), None, mark())
    all_refused(
        errno.EINVAL,
        lambda: store.lookup(root, name),
        lambda: store.open_directory(root, name),
        lambda: store.commit(staged, root, name),
        lambda: store.move(root, b"f", root, name),
        lambda: store.exchange(root, name, root, b"f"),
        lambda: store.link(root, b"f", root, name),
        lambda: store.remove(root, name),
        lambda: store.keep(root, name, b"x"),
        lambda: store.set_mark(root, name, mark()),
    )
    store.discard(staged)


def test_files_of_ours(store: SiteStore) -> None:
    assert store.read_file("state") is None
    store.write_file("state", b"one")
    store.write_file("state", b"2")
    store.append_file("log", b"a")
    store.append_file("log", b"bc")
    store.sync()
    assert (store.read_file("state"), store.read_file("log")) == (b"2", b"abc")
    assert store.list(store.root()) == []
    assert names(store, store.limbo()) == []


def test_listings_are_counted(store: SiteStore) -> None:
    directory = put_directory(store, store.root(), b"d")
    assert store.directories_listed == 0
    store.list(directory)
    store.list(store.root())
    assert store.directories_listed == 2
