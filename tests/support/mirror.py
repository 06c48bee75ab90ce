"""One site of a model tree, followed step by step: the engine with nothing real around it."""

from __future__ import annotations

import errno
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from copy import deepcopy
from random import Random
from typing import Any, cast

from mirrorfs.journal.record import ObjectId, Place, SequenceNumber
from replicator.engine import Engine, Surroundings, TroubleError
from replicator.observer import Observer, Unobserved
from replicator.site_state import SiteState, decode_state
from replicator.stores.base import SiteStore, StoreError
from replicator.stores.memory import MemoryStore, Node
from replicator.view import SourceTree
from tests.support.model_tree import ModelTree, Thing

WRITES = ("stage", "set_attributes", "set_mark", "set_directory_times", "append_file", "write_file")
MUTATIONS = ("commit", "move", "exchange", "link", "remove", "keep")


class CrashError(Exception):
    """The replicator is killed here."""


class WatchedStore:
    """A memory store that tells of every change, and can crash or fail before one."""

    def __init__(self, inner: MemoryStore, after: Callable[[], None]) -> None:
        self.inner = inner
        self.after = after
        self.crash_in = -1
        self.fail_in = -1
        self.errno = errno.EIO

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.inner, name)
        if name not in MUTATIONS and name not in WRITES:
            return method

        def watched(*args: Any) -> Any:
            if self.crash_in == 0:
                raise CrashError
            if self.fail_in == 0:
                raise StoreError.of("the disk", self.errno)
            self.crash_in -= 1
            self.fail_in -= 1
            result = method(*args)
            if name in MUTATIONS:
                self.after()
            return result

        return watched


class Mirror:
    """One site of a model tree, driven step by step."""

    def __init__(self, random: Random, observer: Observer | None = None) -> None:
        self.random = random
        self.observer = observer or Unobserved()
        self.tree = ModelTree()
        self.store = WatchedStore(MemoryStore(), self.check)
        self.shown: dict[Place, int] = {}
        self.fed = 0
        self.now = 0
        self.fresh = SiteState(volume="", site="s", journal="", tag=f"{1:016x}", working=0, clean=0)
        self.start(deepcopy(self.fresh))

    @property
    def root(self) -> ObjectId:
        """Id of the source's root."""
        return self.tree.root_thing.id

    def start(self, state: SiteState) -> None:
        world = Surroundings(
            clock_ns=lambda: self.now,
            head=lambda: self.tree.head,
            sleep=lambda _: None,
            tick=lambda: None,
            boot="boot",
            random=Random(1),
            observer=self.observer,
        )
        self.engine = Engine(
            cast(SourceTree, self.tree),
            cast(SiteStore, self.store),
            state,
            self.tree.incarnations(),
            world,
        )
        self.fed = state.working

    def start_anew(self) -> None:
        """Attach the site now: what the source has so far comes with the initial copy."""
        self.fresh.working = self.tree.head
        self.fresh.initial = True
        self.start(deepcopy(self.fresh))

    def feed(self, count: int) -> None:
        new = [pair for pair in self.tree.records if pair[0].sequence > self.fed][:count]
        self.engine.feed(new)
        self.fed += len(new)

    def crash(self) -> None:
        """Start again from what lies at the site; the journal may have lost its tail."""
        data = self.store.inner.read_file("state")
        state = decode_state(data) if data else deepcopy(self.fresh)
        self.store.crash_in = -1
        for incarnation in self.tree.ended:
            if state.tag == f"{incarnation.tag:016x}":
                state.working = min(state.working, incarnation.last)
        self.start(state)

    def lose_tail(self, keep: SequenceNumber) -> None:
        self.tree.lose_tail(keep)
        self.crash()

    def work(self, steps: int) -> None:
        try:
            self.engine.work(steps)
        except CrashError:
            self.crash()
        except TroubleError:
            if self.random.random() < 0.5:  # it may have been once only
                self.store.fail_in = -1

    def save(self) -> None:
        try:
            self.engine.save()
        except CrashError:
            self.crash()
        except StoreError:
            self.store.fail_in = -1

    def drain(self) -> None:
        for thing in list(self.tree.things.values()):
            self.tree.flush(thing)
        self.tree.meanwhile = lambda: None
        self.store.crash_in = self.store.fail_in = -1
        for _ in range(4):
            self.feed(1 << 30)
            self.engine.work(1 << 30)
            self.now += 100_000_000_000
            self.engine.save()

    # checks

    def site(self) -> Iterator[tuple[Place, Node]]:
        waiting = [(self.tree.root_thing.id, self.store.inner.root())]
        while waiting:
            identity, node = waiting.pop()
            assert isinstance(node, Node)
            for name, child in (node.children or {}).items():
                yield Place(identity, name), child
                if child.children is not None and child.mark is not None:
                    waiting.append((child.mark.object, child))

    def check(self) -> None:
        """Every place shows something the source had there, not older than what it showed.

        While the site has two copies of a directory (one of them about to go), the places in it
        stand twice, and only the first half can be asked.
        """
        shown = list(self.site())
        seen = Counter(place for place, _ in shown)
        for place, node in shown:
            if node.mark is None:
                continue  # it was there before us
            thing = self.tree.things[node.mark.object]
            content = node.data if stat.S_ISREG(thing.mode) else thing.content
            since = self.shown.get(place, 0) if seen[place] == 1 else 0
            at = self.tree.had(place, thing.id, content, since)
            assert at is not None, (
                f"{place} shows {thing.id.hex()} {content!r}, which was never there since {since}"
            )
            if seen[place] == 1:
                self.shown[place] = at


def contents_of_source(tree: ModelTree) -> dict[bytes, Any]:
    groups: dict[ObjectId, bytes] = {}

    def show(thing: Thing, path: bytes) -> Iterator[tuple[bytes, Any]]:
        what = thing.content if stat.S_ISREG(thing.mode) else thing.target
        group = groups.setdefault(thing.id, path)
        yield path, (thing.mode, thing.uid, thing.mtime, dict(thing.xattrs), what, group)
        for name, child in sorted(thing.names.items()):
            yield from show(child, path + b"/" + name)

    return dict(show(tree.root_thing, b""))


def contents_of_site(store: MemoryStore) -> dict[bytes, Any]:
    groups: dict[int, bytes] = {}

    def show(node: Node, path: bytes) -> Iterator[tuple[bytes, Any]]:
        a = node.attributes
        what = node.data if stat.S_ISREG(a.mode) else a.target
        group = groups.setdefault(node.identity, path)
        yield path, (a.mode, a.uid, a.mtime_ns, dict(a.xattrs), what, group)
        for name, child in sorted((node.children or {}).items()):
            yield from show(child, path + b"/" + name)

    root = store.root()
    assert isinstance(root, Node)
    return dict(show(root, b""))


def assert_equal(mirror: Mirror, seed: int) -> None:
    want, have = contents_of_source(mirror.tree), contents_of_site(mirror.store.inner)
    assert have.keys() == want.keys(), f"seed {seed}"
    for path, what in want.items():
        if path == b"" and not mirror.tree.records:
            continue
        assert have[path] == what, f"seed {seed}: {path!r}"
