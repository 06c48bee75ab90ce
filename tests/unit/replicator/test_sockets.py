"""Sockets are not copied: nothing stands where the source has one, and they are counted."""

from __future__ import annotations

import stat
from random import Random

import pytest

from replicator.stores.memory import Node
from tests.support.mirror import Mirror, contents_of_site, contents_of_source
from tests.support.model_tree import Thing
from tests.support.sites import attributes, mark

SOCKET = stat.S_IFSOCK | 0o755


def is_socket(what: object) -> bool:
    return isinstance(what, tuple) and stat.S_ISSOCK(what[0])


def assert_equal_but_for_sockets(mirror: Mirror) -> None:
    want = contents_of_source(mirror.tree, mirror.wanted)
    have = contents_of_site(mirror.store.inner)
    assert {path for path, what in want.items() if not is_socket(what)} == have.keys()
    assert not any(is_socket(what) for what in have.values())


@pytest.fixture
def mirror() -> Mirror:
    return Mirror(Random(1))


def socket(mirror: Mirror, name: bytes = b"s") -> Thing:
    return mirror.tree.create(mirror.tree.root_thing, name, SOCKET)


def settle(mirror: Mirror) -> None:
    mirror.drain()
    assert_equal_but_for_sockets(mirror)
    assert mirror.engine.held == []
    assert mirror.engine.state.clean == mirror.tree.head


def test_a_socket_is_skipped_and_counted(mirror: Mirror) -> None:
    socket(mirror)
    mirror.feed(100)
    mirror.work_off()
    assert mirror.engine.counters.sockets_skipped == 1
    settle(mirror)


def test_what_happens_to_it_holds_nothing_up(mirror: Mirror) -> None:
    root = mirror.tree.root_thing
    one = socket(mirror)
    settle(mirror)
    mirror.tree.attributes(one)
    mirror.tree.rename(root, b"s", root, b"t")
    mirror.tree.attributes(one)
    mirror.tree.link(one, root, b"u")
    settle(mirror)
    mirror.tree.unlink(root, b"t")
    settle(mirror)


def test_in_the_place_of_a_file_and_the_reverse(mirror: Mirror) -> None:
    root = mirror.tree.root_thing
    file = mirror.tree.create(root, b"f")
    mirror.tree.flush(file)
    settle(mirror)
    socket(mirror)
    mirror.tree.exchange(root, b"s", root, b"f")
    settle(mirror)
    mirror.tree.rename(root, b"s", root, b"f")
    settle(mirror)


def test_one_that_an_earlier_version_made_goes(mirror: Mirror) -> None:
    one = socket(mirror)
    store = mirror.store.inner
    bare = mark(sequence=0)
    made = store.stage(attributes(SOCKET), None, type(bare)(one.id, bare.tag, bare.sequence, 0))
    store.commit(made, store.root(), b"s")
    mirror.tree.reconcile(mirror.tree.root_thing, whole=True)
    settle(mirror)
    limbo = store.limbo()
    assert isinstance(limbo, Node)
    assert not limbo.children


def test_a_comparison_skips_them_too(mirror: Mirror) -> None:
    socket(mirror)
    mirror.start_anew()
    settle(mirror)
    assert mirror.engine.counters.sockets_skipped == 1
