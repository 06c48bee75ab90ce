"""The memory store is what the property tests trust: it must do what a real directory does."""

from __future__ import annotations

import stat
from collections.abc import Callable
from contextlib import AbstractContextManager
from random import Random
from typing import TypeAlias

import pytest

from replicator.stores.base import Attributes, Directory, SiteStore, StoreError
from replicator.stores.memory import MemoryStore
from tests.support import sites
from tests.support.sites import Bench, attributes, mark, put_directory, put_file, put_symlink

pytestmark = pytest.mark.fuse  # root, for marks

NAMES = [b"a", b"b", b"c"]
KINDS = [*["make"] * 4, *["move"] * 3, *["link"] * 2, "exchange", "remove", "keep", "attributes"]
Path: TypeAlias = tuple[bytes, ...]
Action: TypeAlias = Callable[[SiteStore], object]
Shape: TypeAlias = dict[bytes, object]


def open_path(store: SiteStore, path: Path) -> Directory | None:
    directory: Directory | None = store.limbo() if path[:1] == (b"limbo",) else store.root()
    for name in path[1:]:
        if directory is None:
            return None
        above, directory = directory, store.open_directory(directory, name)
        store.close_directory(above)
    return directory


def random_path(random: Random) -> Path:
    top = b"limbo" if random.random() < 0.2 else b"root"
    return (top, *random.choices(NAMES, k=random.choice([0, 0, 1, 1, 2])))


def random_action(random: Random) -> Action:
    """One action on places chosen by name, so that both stores get the same."""
    here, there = random_path(random), random_path(random)
    name, other = random.choice(NAMES), random.choice(NAMES)
    kind = random.choice(KINDS)
    mode = random.choice([stat.S_IFREG, stat.S_IFREG, stat.S_IFDIR, stat.S_IFDIR, stat.S_IFLNK])
    wanted = attributes(mode | 0o777, target=b"t" if mode == stat.S_IFLNK else None)

    def act(store: SiteStore) -> object:
        source, target = open_path(store, here), open_path(store, there)
        try:
            if source is None or target is None:
                return "no such directory"
            if kind == "make":
                make(store, source, name, wanted)
            elif kind in ("move", "exchange", "link"):
                getattr(store, kind)(source, name, target, other)
            elif kind == "remove":
                store.remove(source, name)
            elif kind == "keep":
                store.keep(source, name, name)
            else:
                store.set_attributes(source, name, wanted, mark(b"changed", 2))
            return "done"
        except StoreError as error:
            return f"errno {error.errno}"
        finally:
            for directory in (source, target):
                if directory is not None:
                    store.close_directory(directory)

    return act


def make(store: SiteStore, directory: Directory, name: bytes, wanted: Attributes) -> None:
    staged = store.stage(wanted, None, mark(name))
    try:
        store.commit(staged, directory, name)
    except StoreError:
        store.discard(staged)
        raise


def shape(store: SiteStore, directory: Directory, identities: dict[object, int]) -> Shape:
    """All that stands below a directory; objects numbered in the order they are met."""
    found: Shape = {}
    for name in sorted(store.list(directory)):
        entry = store.lookup(directory, name)
        assert entry is not None
        number = identities.setdefault(entry.identity, len(identities))
        below: Shape | None = None
        links = entry.links
        if stat.S_ISDIR(entry.mode):
            opened = store.open_directory(directory, name)
            assert opened is not None
            below = shape(store, opened, identities)
            store.close_directory(opened)
            links = 1  # file systems count those of directories in their own ways
        found[name] = (number, entry.mode, links, entry.mark, below)
    return found


@pytest.mark.parametrize("kind", ["ext4", "xfs", "tmpfs", "bindfs"])
@pytest.mark.parametrize("seed", range(3))
def test_memory_does_what_a_directory_does(
    make_bench: Callable[[str], AbstractContextManager[Bench]], kind: str, seed: int
) -> None:
    random = Random(seed)
    steps = 150 if kind == "bindfs" else 400
    with sites.memory() as memory, make_bench(kind) as real:
        for step in range(steps):
            action = random_action(random)
            answers = action(memory.store), action(real.store)
            assert answers[0] == answers[1], f"step {step}"
            shapes = [
                (shape(store, store.root(), {}), shape(store, store.limbo(), {}))
                for store in (memory.store, real.store)
            ]
            assert shapes[0] == shapes[1], f"step {step}"
        assert memory.kept() == real.kept()
        assert real.staged() == 0


def test_a_snapshot_is_a_site_of_its_own() -> None:
    with sites.memory() as bench:
        store = bench.store
        directory = put_directory(store, store.root(), b"d")
        put_file(store, directory, b"f", b"data")
        store.link(directory, b"f", store.limbo(), b"x")
        put_symlink(store, store.root(), b"s", b"t")
        put_file(store, store.root(), b"k")
        store.keep(store.root(), b"k", b"k")
        store.write_file("state", b"1")
        assert isinstance(store, MemoryStore)
        copy = store.snapshot()
        before = [shape(copy, top, {}) for top in (copy.root(), copy.limbo())]
        assert before == [shape(store, top, {}) for top in (store.root(), store.limbo())]
        store.move(store.limbo(), b"x", store.root(), b"s")
        store.write_file("state", b"2")
        put_file(store, directory, b"g")
        assert before == [shape(copy, top, {}) for top in (copy.root(), copy.limbo())]
        assert copy.read_file("state") == b"1"
        assert copy.kept.keys() == {b"k"}
        linked = copy.lookup(copy.limbo(), b"x")
        assert linked is not None
        assert linked.links == 2
