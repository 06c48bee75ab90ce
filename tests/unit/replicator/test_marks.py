"""What was changed without records, and marked, is found by comparing what was marked."""

from __future__ import annotations

import stat
from random import Random

import pytest

from mirrorfs.journal.record import Kind
from tests.support.mirror import Mirror, assert_equal
from tests.support.model_tree import Thing

DIRECTORY = stat.S_IFDIR | 0o755


class Bench:
    """A site that has everything: directories d and e of the root, a file d/f with a name e/g."""

    def __init__(self) -> None:
        self.mirror = Mirror(Random(1))
        self.tree = self.mirror.tree
        self.root = self.tree.root_thing
        self.d, self.e = (self.tree.create(self.root, name, DIRECTORY) for name in (b"d", b"e"))
        self.f = self.file(self.d, b"f")
        self.tree.link(self.f, self.e, b"g")
        self.settle()

    def file(self, parent: Thing, name: bytes) -> Thing:
        made = self.tree.create(parent, name)
        self.tree.write(made)
        self.tree.flush(made)
        return made

    def settle(self) -> None:
        self.mirror.feed(1 << 30)
        self.mirror.engine.work(1 << 30)
        self.mirror.now += 100_000_000_000
        self.mirror.engine.work(1 << 30)
        self.mirror.engine.save()

    def degrade(self) -> None:
        self.tree.degrade(8192)
        self.before = self.mirror.engine.counters.files_copied
        self.listed = self.mirror.engine.counters.directories_reconciled

    def finish(self) -> tuple[int, int]:
        """Records again, all applied, the site equal; files copied, and directories compared."""
        self.tree.resume()
        self.settle()
        assert_equal(self.mirror, 0)
        assert not self.mirror.engine.held
        counters = self.mirror.engine.counters
        return counters.files_copied - self.before, counters.directories_reconciled - self.listed


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_only_what_was_marked_is_listed(bench: Bench) -> None:
    for number in range(20):
        bench.tree.create(bench.e, b"%d" % number, DIRECTORY)
    bench.settle()
    bench.degrade()
    bench.file(bench.d, b"new")
    assert bench.finish() == (1, 1)


def test_a_change_by_a_name_that_is_gone(bench: Bench) -> None:
    bench.degrade()
    bench.tree._leave(bench.d, b"f")
    bench.tree._enter(bench.f, bench.d, b"f")  # nothing but its order of names
    bench.f.places.reverse()
    bench.tree.attributes(bench.f)
    bench.tree.write(bench.f)
    bench.tree.flush(bench.f)
    assert [mark.directory for mark in bench.tree.marks or ()] == [bench.d.id]
    bench.tree.unlink(bench.d, b"f")
    assert bench.finish() == (1, 1)


def test_a_name_was_added(bench: Bench) -> None:
    other = bench.file(bench.d, b"h")
    bench.settle()
    bench.degrade()
    bench.tree.link(other, bench.e, b"h")
    assert bench.finish()[1] == 2


@pytest.mark.parametrize("back", [False, True])
def test_what_moved_moves(bench: Bench, back: bool) -> None:
    """Whichever of the two directories comes first."""
    moved = bench.tree.create(bench.d, b"m", DIRECTORY)
    for number in range(5):
        bench.file(moved, b"%d" % number)
    bench.settle()
    bench.degrade()
    if back:
        bench.tree.attributes(bench.e)
    bench.tree.rename(bench.d, b"m", bench.e, b"m")
    assert bench.finish() == (0, 3)


def test_what_was_made_is_reached(bench: Bench) -> None:
    """However deep; and once."""
    bench.degrade()
    at = bench.d
    for _ in range(4):
        at = bench.tree.create(at, b"n", DIRECTORY)
        bench.file(at, b"file")
    assert len(bench.tree.marks or ()) == 2
    assert bench.finish() == (4, 5)


def test_reconciles_in_a_row_are_one(bench: Bench) -> None:
    bench.degrade()
    bench.file(bench.d, b"1")
    bench.file(bench.e, b"2")
    bench.tree.resume()
    bench.tree.create(bench.root, b"between", DIRECTORY)
    bench.tree.degrade(8192)
    bench.file(bench.d, b"3")
    bench.tree.resume()
    kinds = [record.kind for record, _ in bench.tree.records[-4:]]
    assert kinds == [Kind.RECONCILE, Kind.RECONCILE, Kind.MKDIR, Kind.RECONCILE]
    bench.mirror.feed(1 << 30)
    first = bench.mirror.engine.plan.next()
    assert first is not None
    together = bench.mirror.engine.plan.adjoining(first)  # type: ignore[arg-type]
    assert [item.directory for item in together] == [bench.d.id, bench.e.id]
    assert bench.finish()[1] == 3
    assert bench.mirror.engine.plan.adjoining(first) == [first], "it waits no more"  # type: ignore[arg-type]
