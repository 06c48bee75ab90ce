"""What is in doubt after an unclean stop: what the entries lead to, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirrorfs import aftermath
from mirrorfs.activity import Slot
from mirrorfs.aftermath import Doubt, doubts
from mirrorfs.backing_tree import BackingTree
from mirrorfs.journal.record import ObjectId


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[BackingTree]:
    for path in ("a/b/c/d", "a/e/f", "g/h"):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "a/file").touch()
    tree = BackingTree.open(os.fsencode(tmp_path), 1)
    yield tree
    tree.close()


def identity(tree: BackingTree, path: str) -> ObjectId:
    descriptor = os.open(path, os.O_PATH, dir_fd=tree.root)
    try:
        return tree.object_id(descriptor)
    finally:
        os.close(descriptor)


def changed_at(tree: BackingTree, path: str) -> int:
    return os.stat(path, dir_fd=tree.root).st_ctime_ns


def slot(tree: BackingTree, path: str, since_ns: int = 1 << 62) -> Slot:
    return Slot(identity(tree, path), since_ns, whole=False, is_object=False)


def paths(found: list[Doubt]) -> list[bytes | None]:
    return [doubt.path for doubt in found]


def test_an_entry_alone(tree: BackingTree) -> None:
    assert doubts(tree, [slot(tree, "a/b")]) == [Doubt(identity(tree, "a/b"), b"a/b")]
    assert paths(doubts(tree, [slot(tree, "."), slot(tree, "g")])) == [b"", b"g"]


def change_after(tree: BackingTree, path: str, moment_ns: int) -> None:
    """Times of file systems go in steps."""
    while changed_at(tree, path) <= moment_ns:
        os.chmod(path, 0o755, dir_fd=tree.root)


def test_what_was_changed_since_is_followed_down(tree: BackingTree) -> None:
    before_ns = max(changed_at(tree, path) for path in ("a/e/f", "g/h", "a/b/c/d"))
    for path in ("a/b", "a/b/c", "a/b/c/d", "a/e", "g/h"):
        change_after(tree, path, before_ns)
    assert paths(doubts(tree, [slot(tree, "a", before_ns + 1)])) == [
        *(b"a", b"a/b", b"a/b/c", b"a/b/c/d", b"a/e")
    ]


def test_where_it_is_now(tree: BackingTree, tmp_path: Path) -> None:
    entries = [slot(tree, "a/b/c"), slot(tree, "g")]
    (tmp_path / "a/b").rename(tmp_path / "g/h/b")
    assert paths(doubts(tree, entries)) == [b"g", b"g/h/b/c"]


def test_what_is_gone_is_nothing(tree: BackingTree, tmp_path: Path) -> None:
    entries = [slot(tree, "g/h")]
    (tmp_path / "g/h").rmdir()
    assert doubts(tree, entries) == []


def test_whole_and_files(tree: BackingTree) -> None:
    file = identity(tree, "a/file")
    entries = [
        slot(tree, "g"),
        Slot(identity(tree, "g"), 0, whole=True, is_object=False),
        slot(tree, "g"),
        Slot(file, 0, whole=False, is_object=True),
    ]
    assert doubts(tree, entries) == [
        Doubt(file, b"a/file", is_object=True),
        Doubt(identity(tree, "g"), b"g", whole=True),
    ]


def test_too_many_are_one(tree: BackingTree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aftermath, "DIRECTORIES_MAX", 5)
    assert paths(doubts(tree, [slot(tree, "g", 0)])) == [b"g", b"g/h"]
    assert doubts(tree, [slot(tree, ".", 0)]) == [Doubt(tree.root_id, b"", whole=True)]


def test_a_source_that_cannot_be_read_is_an_error(
    tree: BackingTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: BackingTree, identity: ObjectId) -> int:
        raise OSError(5, "refused")

    entries = [slot(tree, "g")]
    monkeypatch.setattr(BackingTree, "reopen", refuse)
    with pytest.raises(OSError, match="refused"):
        doubts(tree, entries)
