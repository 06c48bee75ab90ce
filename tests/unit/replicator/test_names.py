"""The table of names: kept on the site, whatever happens to its last bytes."""

from __future__ import annotations

import errno

import pytest

from mirrorfs.journal.record import ObjectId, Place
from replicator import names
from replicator.names import NameTable
from replicator.stores.base import StoreError
from replicator.stores.memory import MemoryStore

X, Y = ObjectId(b"x"), ObjectId(b"y")
A, B = Place(Y, b"a"), Place(Y, b"b")


def test_names_survive_the_process() -> None:
    store = MemoryStore()
    table = NameTable(store)
    table.add(X, A)
    table.add(X, A)
    table.add(X, B)
    table.add(Y, A)
    table.discard(X, A)
    table.discard(X, A)
    table.forget(Y)
    table.forget(Y)
    for each in (table, NameTable(store)):
        assert set(each.places(X)) == {B}
        assert not each.places(Y)


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_torn_end_is_dropped_and_written_over(cut: int) -> None:
    store = MemoryStore()
    table = NameTable(store)
    table.add(X, A)
    table.add(X, B)
    store.files[names.FILE] = store.files[names.FILE][:-cut]
    assert set(NameTable(store).places(X)) == {A}
    NameTable(store).add(X, B)
    assert set(NameTable(store).places(X)) == {A, B}


def test_garbage_ends_the_log() -> None:
    store = MemoryStore()
    NameTable(store).add(X, A)
    store.append_file(names.FILE, b"\x01\x00\x00\x00\xff")
    assert set(NameTable(store).places(X)) == {A}


def test_a_long_log_is_written_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "_COMPACT_BYTES", 100)
    store = MemoryStore()
    table = NameTable(store)
    for _ in range(10):
        table.add(X, A)
        table.add(X, B)
        table.discard(X, A)
    before = len(store.files[names.FILE])
    assert set(NameTable(store).places(X)) == {B}
    assert len(store.files[names.FILE]) < before / 10


@pytest.mark.parametrize("fitted", [1, 6])
def test_an_entry_of_which_only_a_part_fitted_spoils_none_that_follows(
    fitted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore()
    table = NameTable(store)
    table.add(X, A)
    real = store.append_file

    def fail(name: str, data: bytes, *, durable: bool = False) -> None:
        real(name, data[:fitted], durable=durable)
        raise StoreError.of("append", errno.ENOSPC)

    with monkeypatch.context() as patch:
        patch.setattr(store, "append_file", fail)
        for _ in range(2):
            with pytest.raises(StoreError):
                table.add(X, B)
    table.add(X, B)
    table.add(Y, A)
    for each in (table, NameTable(store)):
        assert set(each.places(X)) == {A, B}
        assert set(each.places(Y)) == {A}
