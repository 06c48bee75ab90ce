"""What every site store does with a file that may only have grown, whatever way it takes."""

from __future__ import annotations

import stat

import pytest

from mirrorfs.journal.record import ObjectId, Tag
from replicator.stores.base import Attributes, Base, Directory, Mark, Version
from tests.support.sites import Bench, Bytes, attributes, mark, put_directory, put_file

pytestmark = pytest.mark.fuse  # root, for owners and marks

FILE = stat.S_IFREG | 0o640
OLD = b"0123456789" * 100
ENDS = {"longer": OLD + b"more", "other": b"x" + OLD, "changed": b"x" + OLD[1:] + b"more"}


def content(data: bytes) -> Bytes:
    return Bytes(data, Version(ObjectId(b"\1f"), Tag(7), len(data), 1, 2))


def bring(
    bench: Bench, directory: Directory, data: bytes, base: Base | None, wanted: Attributes
) -> bool:
    """As a step does it; whether the file is the one it was."""
    store, told = bench.store, mark(b"f", 6)
    before = store.lookup(directory, b"f")
    assert before is not None
    staged = store.stage(wanted, content(data), lambda: told, base)
    tail = store.is_tail(staged)
    if tail and not store.extend(staged, directory, b"f"):
        store.discard(staged)
        tail, staged = False, store.stage(wanted, content(data), told)
    if not tail:
        store.commit(staged, directory, b"f")
    entry = store.lookup(directory, b"f")
    assert entry is not None
    assert bench.content(directory, b"f") == data
    assert entry.mark == told
    assert bench.attributes(directory, b"f") == wanted
    assert bench.staged() == 0
    assert tail == (entry.identity == before.identity)
    return tail


@pytest.mark.parametrize("data", ENDS.values(), ids=ENDS.keys())
def test_it_has_the_new_content_and_all_attributes(bench: Bench, data: bytes) -> None:
    store, root = bench.store, bench.store.root()
    put_file(store, root, b"f", OLD)
    wanted = attributes(FILE, uid=12, gid=34, xattrs={b"trusted.one": b"1"})
    appended = bring(bench, root, data, store.base(root, b"f"), wanted)
    assert not (appended and data != ENDS["longer"])


def test_another_name_keeps_what_it_had(bench: Bench) -> None:
    store, root = bench.store, bench.store.root()
    put_file(store, root, b"f", OLD)
    base = store.base(root, b"f")
    store.link(root, b"f", root, b"g")
    assert not bring(bench, root, ENDS["longer"], base, attributes(FILE))
    assert bench.content(root, b"g") == OLD


def test_what_stands_there_now_may_be_another_file(bench: Bench) -> None:
    store, root = bench.store, bench.store.root()
    put_file(store, root, b"f", OLD)
    base = store.base(root, b"f")
    store.remove(root, b"f")
    put_file(store, root, b"f", b"another" * 200)
    assert not bring(bench, root, ENDS["longer"], base, attributes(FILE))


def test_a_directory_is_no_beginning(bench: Bench) -> None:
    put_directory(bench.store, bench.store.root(), b"d")
    assert not bench.store.is_tail(bench.store.base(bench.store.root(), b"d"))


def test_what_is_staged_whole_is_no_tail(bench: Bench) -> None:
    store, told = bench.store, Mark(ObjectId(b"\1f"), Tag(7), mark().sequence, 0)
    staged = store.stage(attributes(FILE), content(OLD), told)
    assert not store.is_tail(staged)
    store.discard(staged)
    store.forget_unfinished()
    assert bench.staged() == 0
