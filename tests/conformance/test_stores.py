"""What every site store must do. A new store needs a bench in tests/support/sites.py, no more."""

from __future__ import annotations

import dataclasses
import errno
import os
import stat

import pytest

from replicator.stores.base import Attributes, SiteStore
from replicator.view import SourceChangedError
from tests.support.sites import (
    Bench,
    Bytes,
    all_refused,
    attributes,
    listed,
    mark,
    put_directory,
    put_file,
    put_symlink,
)

pytestmark = pytest.mark.fuse  # root, for owners, devices and marks


ACL = bytes.fromhex(  # user::rw-, user:1234:rwx, group::r--, mask::rw-, other::r--
    "02000000 01000600ffffffff 02000700d2040000 04000400ffffffff 10000600ffffffff 20000400ffffffff"
)

CAPABILITIES = bytes.fromhex("01000002 00040000 00000000 00000000 00000000")  # net_bind_service

OBJECTS = {
    "file": attributes(stat.S_IFREG | 0o640, uid=12, gid=34),
    "suid file": attributes(stat.S_IFREG | 0o6755, uid=12, gid=34),
    "unreadable file": attributes(stat.S_IFREG, uid=12, gid=34),
    "file with attributes": attributes(
        stat.S_IFREG | 0o664,
        xattrs={b"trusted.one": b"1\0\xff", b"trusted.empty": b"", b"system.posix_acl_access": ACL},
    ),
    "file with capabilities": attributes(
        stat.S_IFREG | 0o755, uid=12, xattrs={b"security.capability": CAPABILITIES}
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
    assert listed(store, root) == [name]
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
    assert listed(bench.store, bench.store.root()) == []


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
    assert listed(store, root) == []
    assert listed(store, store.limbo()) == [b"0123"]
    store.move(store.limbo(), b"0123", root, b"back")
    assert bench.content(directory, b"f") == b"data"
    store.close_directory(store.limbo())
    store.close_directory(root)
    assert listed(store, root) == [b"back"]
    assert listed(store, store.limbo()) == []


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
    assert listed(store, directory) == [reserved]


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
    store.append_file("log", b"bc", durable=True)
    store.sync()
    assert (store.read_file("state"), store.read_file("log")) == (b"2", b"abc")
    assert store.list(store.root()) == []
    assert listed(store, store.limbo()) == []


@pytest.mark.parametrize(
    ("data", "alike"), [(b"abc" * 900_000, True), (b"abc" * 899_999 + b"abd", False), (b"", False)]
)
def test_content_is_compared_before_it_is_replaced(bench: Bench, data: bytes, alike: bool) -> None:
    store, root = bench.store, bench.store.root()
    put_file(store, root, b"a", b"abc" * 900_000)
    staged = store.stage(attributes(stat.S_IFREG | 0o600), Bytes(data), mark(b"b"))
    assert store.is_alike(staged, root, b"a") is alike
    store.discard(staged)


def test_listings_are_counted(store: SiteStore) -> None:
    directory = put_directory(store, store.root(), b"d")
    assert store.directories_listed == 0
    store.list(directory)
    store.list(store.root())
    assert store.directories_listed == 2


def test_what_is_to_be_durable_is_opened_at_once_and_synced_later(bench: Bench) -> None:
    store, root = bench.store, bench.store.root()
    below = put_directory(store, root, b"d")
    put_file(store, below, b"f", b"content")
    put_symlink(store, below, b"s", b"target")
    wanted = [(below, b"f"), (below, b"gone"), (root, b"d"), (below, None), (root, None)]
    files, others = store.syncing(wanted), store.syncing([(below, b"s")])
    store.remove(below, b"f")
    store.close_directory(below)
    seen: set[object] = set()
    for each in (files, others):
        each.begin()
    for each in (files, others):
        each.finish(seen)
        each.close()
    assert bench.staged() == 0


def test_where_jobs_were_promised_something_files_are_replaced_as_ever(store: SiteStore) -> None:
    store.keep_order()
    root = store.root()
    for name in (b"a", b"b", b"c"):
        put_file(store, root, name, b"old " + name)
    put_symlink(store, root, b"s", b"target")
    put_file(store, root, b"a", b"new")
    store.exchange(root, b"a", root, b"b")
    store.move(root, b"b", root, b"c")
    store.move(root, b"s", root, b"c")
    assert sorted(store.list(root)) == [b"a", b"c"]
    assert [stat.S_IFMT(store.lookup(root, name).mode) for name in (b"a", b"c")] == [  # type: ignore[union-attr]
        stat.S_IFREG,
        stat.S_IFLNK,
    ]
