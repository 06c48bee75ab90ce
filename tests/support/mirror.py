"""One site of a model tree, followed step by step: the engine with nothing real around it."""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from random import Random
from typing import Any, cast

from mirrorfs.journal.awaiting import Awaited
from mirrorfs.journal.record import Change, Kind, ObjectId, Place, Record, SequenceNumber
from replicator.commit_order import CommitOrder
from replicator.engine import Engine
from replicator.observer import Observer, Unobserved
from replicator.orders import Order
from replicator.patterns import Wanted
from replicator.site_state import SiteState, decode_state, encode_state
from replicator.stores.base import MarkFlag, SiteStore, StoreError
from replicator.stores.memory import MemoryStore, Node
from replicator.subset import part_of
from replicator.surroundings import Surroundings, TroubleError
from replicator.view import SourceTree
from replicator.window import Window
from tests.support.model_tree import ModelObject, ModelTree, Thing
from tests.support.stand_ins import CrashError, FakeWorkers, StrangeError, WatchedStore


class Mirror:
    """One site of a model tree, driven step by step.

    `inline_bytes`, `window`: see the engine; by default no workers are used. `grows`: writes may
    append, and copies go on where they, or the site's file, ended.
    """

    def __init__(
        self,
        random: Random,
        *,
        inline_bytes: int = 1 << 20,
        commit_order: CommitOrder = CommitOrder.DIRECTORY,
        observer: Observer | None = None,
        wanted: Wanted | None = None,
        grows: bool = False,
        window: Window | None = None,
        deletes_max: int = 0,
    ) -> None:
        self.window = window or Window()
        self.grows = grows
        self.random = random
        self.observer = observer or Unobserved()
        self.inline_bytes = inline_bytes
        self.commit_order = commit_order
        self.deletes_max = deletes_max
        self.tree = ModelTree()
        self.wanted = wanted or Wanted()
        self.store = WatchedStore(MemoryStore(), self.check)
        if grows:
            self.tree.appends = lambda: random.random() < 0.8
            self.tree.width = 9
            self.store.inner.extent_bytes = random.choice([1, 4])
            self.store.inner.between = self.store.upset
        self.shown: dict[Place, int] = {}
        self.present: set[ObjectId] = set()
        self.standing: dict[Place, ObjectId] = {}
        self.once: set[ObjectId] = set()
        self.begun = 0
        self.may_go_back = False
        self.lost: set[Node] = set()
        self.awaited: dict[int, Awaited] = {}
        self.kept = 0
        self.names_max = random.choice([1, 1, 2, 3, 64])
        self.fed = 0
        self.stuck = 0
        self.now = 0
        self.fresh = SiteState(volume="", site="s", journal="", tag=f"{1:016x}", working=0, clean=0)
        self.start(deepcopy(self.fresh))

    @property
    def root(self) -> ObjectId:
        """Id of the source's root."""
        return self.tree.root_thing.id

    def start(self, state: SiteState, *, unsynced: bool = False) -> None:
        self.workers = FakeWorkers(self.random)
        source, anew = part_of(cast(SourceTree, self.tree), self.wanted, state)
        world = Surroundings(
            clock_ns=lambda: self.now,
            head=lambda: self.tree.head,
            sleep=lambda _: None,
            tick=lambda: None,
            boot="boot",
            random=Random(1),
            unsynced=unsynced,
            names_max=self.names_max,
            workers=self.workers,
            copies_max=4,
            inline_bytes=self.inline_bytes,
            grown_bytes_min=1 if self.grows else 1 << 20,
            commit_order=self.commit_order,
            observer=self.observer,
            anew=anew,
            window=self.window,
            deletes_max=self.deletes_max,
        )
        self.engine = Engine(
            source,
            cast(SiteStore, self.store),
            state,
            self.tree.incarnations(),
            world,
        )
        self.fed = state.working
        self.tell_awaited()

    def start_anew(self) -> None:
        """Attach the site now: what the source has so far comes with the initial copy."""
        self.fresh.working = self.tree.head
        self.fresh.initial = True
        self.start(deepcopy(self.fresh))

    def feed(self, count: int) -> None:
        """Let it read so many records, as far as its window allows."""
        if self.engine.crowded:
            self.save()
        count = min(count, self.engine.room())
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

    def cut_power(self) -> None:
        """Of the site: content that was not synced is lost, or not."""
        data = self.store.inner.read_file("state")
        if data is None:
            return
        state = decode_state(data)
        for node in list(self.store.inner.nodes()):
            unsynced = node.mark is not None and node.mark.saved >= state.saves
            if unsynced and stat.S_ISREG(node.attributes.mode) and self.random.random() < 0.7:
                node.data = b""
                self.lost.add(node)
        state.boot = "the one before"
        self.store.inner.write_file("state", encode_state(state))
        self.crash()
        self.save()

    def lose_tail(self, keep: SequenceNumber) -> None:
        self.tree.lose_tail(keep)
        self.crash()

    def move_bytes(self) -> None:
        """Let the workers do something, or nothing."""
        if self.inline_bytes >= 0:
            return
        try:
            for _ in range(self.random.choice([0, 0, 1, 1, 2, 5])):
                if self.random.random() < 0.5:
                    self.workers.copy()
                else:
                    self.workers.tell()
        except CrashError:
            self.crash()

    def work(self, steps: int) -> None:
        self.begun = self.tree.clock
        try:
            self.engine.work(steps)
        except CrashError:
            self.crash()
        except TroubleError:
            if self.random.random() < 0.5:  # it may have been once only
                self.store.fail_in = -1
        self.check_held()

    def tell_awaited(self) -> None:
        """What jobs wait for; those before a lost tail have their answers."""
        tag = self.tree.tag
        self.awaited = {at: each for at, each in self.awaited.items() if each.incarnation == tag}
        self.engine.promises.replace(self.awaited.values())

    def await_record(self) -> None:
        """A job waits for one of the last records."""
        record, tag = self.random.choice(self.tree.records[-8:])
        body = record.body
        ends = record.settled or record.kind in (Kind.UNLINK, Kind.RMDIR)
        if tag == self.tree.tag and isinstance(body, Change) and ends:
            objects = (body.object,) if body.other is None else (body.object, body.other)
            places = tuple((bytes(place.directory), place.name) for place in body.places)
            made = Awaited(tag, record.sequence, tuple(map(bytes, objects)), places)
            self.awaited[record.sequence] = made
            self.tell_awaited()

    def look_at_awaited(self) -> None:
        """What the engine says of them is so."""
        if not self.awaited:
            return
        try:
            kept = self.engine.promises.look()
        except CrashError:
            self.crash()
            return
        shown: dict[Place, list[Node]] = {}
        for place, node in self.site():
            shown.setdefault(place, []).append(node)
        limbo = self.store.inner.limbo()
        assert isinstance(limbo, Node)
        hidden = list(limbo.below())
        for sequence in kept.done:
            record = next(each for each, _ in self.tree.records if each.sequence == sequence)
            assert isinstance(record.body, Change)
            for place in record.body.places:
                # a directory in limbo was moved by a later record
                if any(n.mark and n.mark.object == place.directory for n in hidden):
                    continue
                self.check_kept(record, place, shown.get(place, []))
        self.kept += len(kept.done)
        for sequence in kept.done:
            del self.awaited[sequence]

    def check_kept(self, record: Record, place: Place, there: list[Node]) -> None:
        """The place is as the source had it at that record, or later."""
        since, moments = record.time_ns, self.tree.history.get(place, [])
        above = self.tree.things[place.directory]
        if self.may_go_back or len(there) > 1 or not self.tree.living(above):
            return
        if self.wanted and not self.is_wanted(above, place.name):
            return
        if there and there[0].mark is not None:
            thing = self.tree.things[there[0].mark.object]
            content = there[0].data if stat.S_ISREG(thing.mode) else thing.content
            at = self.tree.had(place, thing.id, content, since)
            assert at is not None, f"{record.sequence}: {place} shows what is older"
            return
        ends = [*(at for at, _ in moments[1:]), self.tree.clock + 1]
        empty = any(x is None and end > since for (_, x), end in zip(moments, ends, strict=False))
        assert empty, f"{record.sequence}: {place} is missing"

    def is_wanted(self, above: Thing, name: bytes) -> bool:
        """Whether the site is to have that name in that directory, whatever stands there."""
        way = self.tree.ancestors(ModelObject(self.tree, above))
        if way is None:
            return False
        steps = [*(step for _, step, _ in way), name]
        paths = [b"/".join(steps[: count + 1]) for count in range(len(steps))]
        inside = all(self.wanted(path, directory=True) for path in paths)
        return inside and self.wanted(paths[-1], directory=False)

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
        self.tree.resume()
        self.tree.meanwhile = lambda: None
        self.store.crash_in = self.store.fail_in = -1
        for _ in range(4):
            self.feed(1 << 30)
            self.begun = self.tree.clock
            self.work_off()
            while self.fed < self.tree.head:  # as far as the window allows, each time
                self.read_on()
            self.check_held()
            self.engine.obey(Order(time_ns=0))
            self.work_off()
            self.now += 100_000_000_000
            self.engine.save()

    def read_on(self) -> None:
        """Read the next records, and work; what waits for others that are not read makes room."""
        before = self.fed, self.engine.plan.working(), len(self.engine.plan)
        self.feed(1 << 30)
        self.begun = self.tree.clock
        self.work_off()
        if before == (self.fed, self.engine.plan.working(), len(self.engine.plan)):
            self.now += 1_000_000_000
            self.stuck += 1
            assert self.stuck < 10, "it waits for what it does not read"
        else:
            self.stuck = 0

    def work_off(self) -> None:
        """Work until there is nothing to do, and nothing waits for a moment."""
        more = True
        while more:
            with suppress(TroubleError):  # a copy that failed before may be told of only now
                more = self.engine.work(1 << 30) > 0 or self.workers.busy
            if self.workers.busy:
                self.workers.wait()
            elif not more and self.engine.waiting:
                self.now += 1_000_000_000
                more = True

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
        """As `_check` says, at once."""
        try:
            self._check()
        except AssertionError as error:
            raise StrangeError(str(error)) from error

    def check_held(self) -> None:
        """No step is held because of a mistake of ours."""
        for step in self.engine.held:
            assert not step.error.startswith("internal error"), step

    def _check(self) -> None:
        """Every place shows something the source had there, not older than what it showed.

        While the site has two copies of a directory (one of them about to go), the places in it
        stand twice, and only the first half can be asked. So it is while it `may_go_back`.
        """
        shown = list(self.site())
        seen = Counter(place for place, _ in shown)
        for place, node in shown:
            if node.mark is None:
                continue  # it was there before us
            if node in self.lost:
                continue  # and is still to be copied again
            thing = self.tree.things[node.mark.object]
            content = node.data if stat.S_ISREG(thing.mode) else thing.content
            asked = seen[place] == 1 and not self.may_go_back
            since = self.shown.get(place, 0) if asked else 0
            at = self.tree.had(place, thing.id, content, since)
            if at is None and MarkFlag.CONTENT not in node.mark.flags:
                # it was being appended to
                at = self.tree.had(place, thing.id, content, since, begun=True)
            assert at is not None, (
                f"{place} shows {thing.id.hex()} {content!r}, which was never there since {since}"
            )
            if seen[place] == 1:
                self.shown[place] = at
        self.check_presence([(place, node.mark.object) for place, node in shown if node.mark])

    def check_presence(self, shown: list[tuple[Place, ObjectId]]) -> None:
        """What lives in the source, and was at the site, is there still; and nothing was taken from
        a place where the source has it, and had it since this work began. (Not asked in a directory
        that the site has twice.)"""
        standing = dict(shown)
        store, tree = self.store.inner, self.tree
        limbo = store.limbo()
        assert isinstance(limbo, Node)
        given_up = [node for path, node in store.kept.items() if path.startswith(b"limbo/")]
        hidden = [node for each in (limbo, *given_up) for node in each.below()]
        everything = [node.mark.object for node in hidden if node.mark]
        everything += [self.root, *(identity for _, identity in shown)]
        present = set(everything)
        for identity in set() if self.wanted else self.present - present:
            assert not tree.living(tree.things[identity]), f"{identity.hex()} is gone from the site"
        once = {identity for identity, count in Counter(everything).items() if count == 1}
        once &= {self.root, *standing.values()}
        for place, identity in self.standing.items():
            if place.directory in self.once & once and standing.get(place) != identity:
                at, now = tree.history[place][-1]
                kept = now != identity or at > self.begun or self.wanted
                assert kept, f"{place} was taken {identity.hex()}"
        self.present, self.standing, self.once = present, standing, once


def contents_of_source(tree: ModelTree, wanted: Wanted) -> dict[bytes, Any]:
    groups: dict[ObjectId, bytes] = {}

    def show(thing: Thing, path: bytes) -> Iterator[tuple[bytes, Any]]:
        what = thing.content if stat.S_ISREG(thing.mode) else thing.target
        group = groups.setdefault(thing.id, path)
        yield path, (thing.mode, thing.uid, thing.mtime, dict(thing.xattrs), what, group)
        for name, child in sorted(thing.names.items()):
            below = path + b"/" + name
            if wanted(below[1:], directory=stat.S_ISDIR(child.mode)):
                yield from show(child, below)

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
    want, have = (
        contents_of_source(mirror.tree, mirror.wanted),
        contents_of_site(mirror.store.inner),
    )
    assert have.keys() == want.keys(), f"seed {seed}"
    for path, what in want.items():
        if path == b"" and not mirror.tree.records:
            continue
        assert have[path] == what, f"seed {seed}: {path!r}"
