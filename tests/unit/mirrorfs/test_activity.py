"""Which directories are being changed: whenever the machine dies, a recovery finds all of them."""

from __future__ import annotations

import contextlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorfs.activity import (
    KEPT_FOR_WHOLE,
    SLOT_BYTES,
    Activity,
    Entry,
    FullError,
    Slot,
    decode_slot,
    encode_slot,
)
from mirrorfs.inodes import Node
from mirrorfs.journal.record import ObjectId


def object_id(number: int) -> ObjectId:
    return ObjectId(b"\1%04d" % number)


class World:
    """A source and its activity log: what is where, what is durable, what the disk of the log has.

    Attributes:
        unsynced: changes that a crash may take back, or leave without a record: directory, number.
        disk: slots of the file.
    """

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.clock = 0
        self.root = self._node(None, 0)
        self.directories = [self.root]
        self.ctimes = {self.root: 0}
        self.activity = Activity(self.root, KEPT_FOR_WHOLE + rng.choice((9, 12, 20)))
        self.unsynced: dict[int, Node] = {}
        self.disk: dict[int, Slot] = {}
        self.batch: list[tuple[int, Entry | None]] = []
        self.sweeping: tuple[int, set[int]] | None = None

    def _node(self, parent: Node | None, number: int) -> Node:
        node = Node(number + 1, directory=True)
        node.identity = object_id(number)
        if parent is not None:
            node.parent, node.name = parent, b"%d" % number
            parent.children[node.name] = node
        return node

    # What jobs do

    def relied(self, node: Node) -> bool:
        """Touch, and wait if that does not suffice: whether nothing had to be waited for."""
        assert node.identity is not None
        try:
            if self.activity.touch(node, node.identity, self.clock).reliable:
                return True
        except FullError:
            whole = self.activity.collapse()
            self.flush_all()
            self.activity.absorb(whole)
            self.crash()
            return False
        self.flush_all()
        return False

    def rely(self, *nodes: Node) -> None:
        """Before a change: until all is as it must be at once."""
        while not all(self.relied(node) for node in nodes):
            pass

    def ready_to_move(self, node: Node, to: Node) -> bool:
        assert node.parent is not None
        assert node.identity is not None
        if not self.activity.settled:
            self.flush_all()
            return False
        if not (self.relied(node.parent) and self.relied(to)):
            return False
        own = self.activity.leaving(node, node.identity)
        if own is not None and not own.reliable:
            self.flush_all()
            return False
        return True

    def changed(self, node: Node) -> None:
        self.clock += 1
        self.unsynced[self.clock] = node

    def some(self) -> Node:
        """A directory; often a new one."""
        return self.rng.choice(self.directories[self.rng.choice((0, -2, -4)) :])

    def change_names(self) -> None:
        node = self.some()
        self.rely(node)
        self.changed(node)
        self.ctimes[node] = self.clock

    def change_content(self) -> None:
        """Of a file in it: no time of the directory tells."""
        node = self.some()
        self.rely(node)
        self.changed(node)

    def make(self) -> None:
        above = self.some()
        self.rely(above)
        self.changed(above)
        node = self._node(above, len(self.directories))
        self.directories.append(node)
        self.ctimes[node] = self.ctimes[above] = self.clock
        assert node.identity is not None
        with contextlib.suppress(FullError):
            self.activity.born(node, node.identity, self.clock - 1)

    def move(self) -> None:
        node, above = self.some(), self.some()
        where: Node | None = above
        while where is not None:
            if where is node:
                return
            where = where.parent
        assert node.parent is not None
        while not self.ready_to_move(node, above):
            pass
        for each in (node.parent, above):
            self.changed(each)
            self.ctimes[each] = self.clock
        del node.parent.children[node.name]
        node.parent = above
        above.children[node.name] = node
        self.ctimes[node] = self.clock

    def forget(self) -> None:
        """The kernel forgets a directory, and meets it again: another node stands for it."""
        node = self.rng.choice(self.directories)
        if node.parent is None or node.children:
            return
        assert node.identity is not None
        again = self._node(node.parent, int(node.name))
        node.parent, node.name = None, b""
        self.directories[self.directories.index(node)] = again
        self.ctimes[again] = self.ctimes.pop(node)
        for number, changed in self.unsynced.items():
            if changed is node:
                self.unsynced[number] = again

    # What goes on beside them

    def flush_begin(self) -> None:
        if not self.batch:
            self.batch = self.activity.to_write()

    def flush_end(self) -> None:
        self._write(self.batch)
        self.activity.written(self.batch)
        self.batch = []

    def flush_refused(self) -> None:
        self._write(self.rng.sample(self.batch, len(self.batch) // 2))
        self.activity.not_written(self.batch)
        self.batch = []

    def flush_all(self) -> None:
        self.crash()
        self.flush_end()
        self.crash()
        self.flush_begin()
        self.crash()
        self.flush_end()

    def _write(self, batch: list[tuple[int, Entry | None]]) -> None:
        for slot, entry in batch:
            if entry is None:
                self.disk.pop(slot, None)
            else:
                self.disk[slot] = entry.says

    def sweep_begin(self) -> None:
        if self.sweeping is None:
            self.activity.turn += 1
            self.sweeping = self.activity.turn, set(self.unsynced)

    def sweep_end(self) -> None:
        if self.sweeping is not None:
            turn, durable = self.sweeping
            self.sweeping = None
            for number in durable:
                del self.unsynced[number]
            self.activity.sweep(turn)

    # What a recovery finds

    def crash(self) -> None:
        """Whatever of the writes under way has reached the disk."""
        kept = dict(self.disk)
        underway = [*self.batch, *self.activity._unwritten.items()]
        for part in ([], underway, [each for each in underway if self.rng.random() < 0.5]):
            self.disk = dict(kept)
            self._write(part)
            found = self._found()
            lost = {node for node in self.unsynced.values() if node.identity not in found}
            assert not lost
        self.disk = kept

    def _found(self) -> set[ObjectId | None]:
        by_id = {node.identity: node for node in self.directories}
        found: set[ObjectId | None] = set()
        for slot in self.disk.values():
            todo = [] if slot.is_object else [by_id[slot.object]]
            while todo:
                node = todo.pop()
                found.add(node.identity)
                todo += [
                    below
                    for below in node.children.values()
                    if slot.whole or self.ctimes[below] >= slot.since_ns
                ]
        return found


STEPS = (
    *(World.change_names, World.change_content, World.change_content, World.change_content),
    *(World.make, World.make, World.make, World.move, World.move, World.forget),
    *(World.flush_begin, World.flush_end, World.flush_refused, World.sweep_begin, World.sweep_end),
)


@given(st.integers(0, 1 << 32))
def test_a_recovery_finds_everything_that_may_be_lost(seed: int) -> None:
    rng = random.Random(seed)
    world = World(rng)
    for _ in range(rng.randint(1, 120)):
        rng.choice(STEPS)(world)
        world.crash()
    world.sweep_end()
    world.flush_all()
    world.sweep_begin()
    world.sweep_end()
    assert len(world.activity) == 0
    world.flush_all()
    assert world.disk == {}


def test_slots_are_read_as_they_were_written() -> None:
    for slot in (
        Slot(object_id(1), 0, whole=False, is_object=False),
        Slot(ObjectId(bytes(range(1, 138))), -1, whole=True, is_object=False),
        Slot(object_id(2), (1 << 63) - 1, whole=False, is_object=True),
    ):
        data = encode_slot(slot)
        assert len(data) == SLOT_BYTES
        assert decode_slot(data) == slot
        for at in range(len(data)):
            assert decode_slot(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]) is None
    assert decode_slot(bytes(SLOT_BYTES)) is None


def test_a_directory_that_is_being_changed_costs_no_slot_more() -> None:
    world = World(random.Random(0))
    world.rely(world.root)
    for _ in range(100):
        entry = world.activity.touch(world.root, object_id(0), 5)
        assert entry.reliable
    assert len(world.activity) == 1
    assert world.activity.to_write() == []


def test_a_file_without_a_name_stands_for_itself() -> None:
    world = World(random.Random(0))
    file = Node(9, directory=False)
    entry = world.activity.touch_object(file, object_id(8), 0)
    assert entry is world.activity.touch_object(file, object_id(8), 0)
    assert not entry.reliable
    world.flush_all()
    assert entry.reliable
    assert [slot.is_object for slot in world.disk.values()] == [True]


def test_entries_of_the_mount_before_leave_like_others() -> None:
    world = World(random.Random(0))
    for _ in range(2):
        world.activity.adopt(Slot(object_id(0), 0, whole=True, is_object=False))
    world.flush_all()
    assert len(world.activity) == 1
    world.sweep_begin()
    world.sweep_end()
    assert len(world.activity) == 0


def test_crowded_before_it_is_full() -> None:
    activity = Activity(Node(1, directory=True), KEPT_FOR_WHOLE + 100)
    told = []
    for number in range(99):
        activity.touch(Node(number + 2, directory=True), object_id(number), 0)
        told.append(activity.crowded)
    assert told == [False] * 82 + [True] * 17
    with pytest.raises(FullError):
        activity.touch(Node(1000, directory=True), object_id(1000), 0)
    with pytest.raises(AssertionError):
        activity.collapse()  # the root has no id here


def test_what_leaves_an_entry_that_is_not_on_disk_yet() -> None:
    world = World(random.Random(0))
    world.rely(world.root)
    child = world._node(world.root, 1)
    world.directories.append(child)
    world.ctimes[child] = 0
    whole = world.activity.collapse()
    assert whole.says == Slot(object_id(0), 0, whole=True, is_object=False)
    own = world.activity.leaving(child, object_id(1))
    assert own is not None
    assert not own.reliable
    assert not whole.live
    world.flush_all()
    assert own.reliable
    assert world.activity.touch(world.root, object_id(0), 0).reliable
    assert {slot.object for slot in world.disk.values() if slot.whole} == {
        *(object_id(0), object_id(1))
    }
