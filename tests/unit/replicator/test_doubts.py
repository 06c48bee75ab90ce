"""Directories in doubt: on the site before the step, gone when they were reconciled."""

from __future__ import annotations

import errno

import pytest

from mirrorfs.journal.record import ObjectId
from replicator import doubts
from replicator.doubts import Doubts
from replicator.stores.base import StoreError
from replicator.stores.memory import MemoryStore

X, Y = ObjectId(b"x"), ObjectId(b"yy")


def drain(them: Doubts) -> set[ObjectId]:
    found = set(them)
    for object in found:
        them.settled(object)
        them.settled(object)
    return found


def test_they_survive_the_process_until_they_are_settled() -> None:
    store = MemoryStore()
    them = Doubts(store)
    assert not them
    for directory in (X, Y, X):
        them.add(directory)
    assert them
    assert drain(Doubts(store)) == {X, Y}
    assert not Doubts(store)


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_an_end_cut_short_is_dropped(cut: int) -> None:
    store = MemoryStore()
    for directory in (X, Y):
        Doubts(store).add(directory)
    store.files[doubts.FILE] = store.files[doubts.FILE][:-cut]
    assert set(Doubts(store)) == {X}
    Doubts(store).add(Y)
    assert drain(Doubts(store)) == {X, Y}


@pytest.mark.parametrize("fitted", [1, 2, 3])
def test_one_of_which_only_a_part_fitted_spoils_none_that_follows(
    fitted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore()
    them = Doubts(store)
    them.add(X)
    real = store.append_file

    def fail(name: str, data: bytes, *, durable: bool = False) -> None:
        real(name, data[:fitted], durable=durable)
        raise StoreError.of("append", errno.ENOSPC)

    with monkeypatch.context() as patch:
        patch.setattr(store, "append_file", fail)
        with pytest.raises(StoreError):
            them.add(Y)
    assert set(Doubts(store)) == set(them) == {X}
    them.add(Y)
    assert drain(Doubts(store)) == {X, Y}


def test_what_comes_into_doubt_again_stays() -> None:
    them = Doubts(MemoryStore())
    assert them.since(X) is None
    them.add(X)
    begun = them.since(X)
    assert begun is not None
    them.add(X)
    them.settled(X, begun)
    assert set(them) == {X}
    again = them.since(X)
    assert again is not None
    them.settled(X, again)
    assert not them
