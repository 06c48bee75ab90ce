"""Which directories are being changed: what a recovery must look at, and nothing else.

Pure: entries, when each may be relied on, and when it may go; the file they are kept in is
`activity_log`'s. An entry is made before the first change in a directory and leaves when all its
changes are durable, records included. So after a crash every directory that may differ from what
the journal says is among the entries, or is reached from one: recovery also descends from an entry
into each directory made or changed since (FORMAT.md, section 11).
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterable
from typing import Final, NamedTuple

import xxhash

from mirrorfs.inodes import Node
from mirrorfs.journal.record import ObjectId

SLOT_BYTES: Final = 256
SLOTS: Final = 16_384
"""Of the file, the first one being its header."""
KEPT_FOR_WHOLE: Final = 64
"""Slots that only entries with everything below them may take: there is room to collapse into."""

_WHOLE, _OBJECT = 1, 2
_SLOT = struct.Struct("<QqBB")
_CHECKED_FROM: Final = 8
_ID_BYTES_MAX: Final = SLOT_BYTES - _SLOT.size
_xxh3 = xxhash.xxh3_64_intdigest


class Slot(NamedTuple):
    """An entry as the file has it.

    Attributes:
        object: id of the directory; of a file, if `is_object`.
        since_ns: what was changed before this time of the source's file system was durable then.
        whole: everything below it may have been changed; `since_ns` means nothing then.
        is_object: a file of which no name was known.
    """

    object: ObjectId
    since_ns: int
    whole: bool
    is_object: bool


def encode_slot(slot: Slot) -> bytes:
    """SLOT_BYTES of the file."""
    flags = _WHOLE * slot.whole | _OBJECT * slot.is_object
    checked = _SLOT.pack(0, slot.since_ns, flags, len(slot.object))[_CHECKED_FROM:] + slot.object
    checked = checked.ljust(SLOT_BYTES - _CHECKED_FROM, b"\0")
    return _xxh3(checked).to_bytes(_CHECKED_FROM, "little") + checked


def decode_slot(data: bytes) -> Slot | None:
    """What `encode_slot` made; None for a free slot, or one that a crash has torn."""
    checksum, since_ns, flags, length = _SLOT.unpack_from(data)
    if not length or length > _ID_BYTES_MAX or checksum != _xxh3(data[_CHECKED_FROM:SLOT_BYTES]):
        return None
    object_id = ObjectId(data[_SLOT.size : _SLOT.size + length])
    return Slot(object_id, since_ns, bool(flags & _WHOLE), bool(flags & _OBJECT))


class FullError(Exception):
    """There is no slot for one more directory: `collapse`."""


class Entry:
    """One directory that is being changed, or one file without a known name.

    Attributes:
        slot: where it stands in the file.
        says: what stands there.
        node: the directory, to find what is above it; another node may stand for it by now.
        durable: the file has it on disk.
        cover: the entry from which recovery reaches this one while it is not durable.
        touched: the turn of the last change.
        replaces: a slot that says less of the same directory, kept until this is durable.
        live: False once it has left: whoever remembered it must ask again.
    """

    __slots__ = ("cover", "durable", "live", "node", "replaces", "says", "slot", "touched")

    def __init__(self, slot: int, says: Slot, node: Node | None, turn: int) -> None:
        self.slot = slot
        self.says = says
        self.node = node
        self.durable = False
        self.cover: Entry | None = None
        self.touched = turn
        self.replaces: int | None = None
        self.live = True

    @property
    def reliable(self) -> bool:
        """A recovery would find it."""
        entry: Entry | None = self
        while entry is not None and entry.live:
            if entry.durable:
                return True
            entry = entry.cover
        return False


class Activity:
    """All entries of one mount.

    Attributes:
        turn: goes up when a sweep begins: what is touched from then on stays.
    """

    def __init__(self, root: Node, slots: int = SLOTS) -> None:
        self.turn = 0
        self._root = root
        self._slots = slots
        self._free = deque(range(1, slots))
        self._entries: dict[ObjectId, Entry] = {}
        self._whole: dict[ObjectId, Entry] = {}
        self._undurable: dict[ObjectId, Entry] = {}
        self._unwritten: dict[int, Entry | None] = {}  # None: the slot became free

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def crowded(self) -> bool:
        """More than half of the slots are taken: entries should leave."""
        return len(self._entries) > self._slots // 2

    # -- touching --------------------------------------------------------------------------------

    def touch(self, node: Node, object_id: ObjectId, now_ns: int) -> Entry:
        """The entry on which a change in that directory relies: `reliable` before it is made.

        `now_ns`: a time of the source's file system that is surely past. FullError.
        """
        entry = node.activity
        if entry is None or not entry.live:
            entry = self._entries.get(object_id) or self._whole_above(node)
            if entry is None:
                self._check_room()
                entry = self._add(Slot(object_id, now_ns, whole=False, is_object=False), node)
            elif entry.says.object == object_id:
                entry.node = node
            node.activity = entry
        entry.touched = self.turn
        return entry

    def born(self, node: Node, object_id: ObjectId, now_ns: int) -> None:
        """A directory was made, in one with a reliable entry. What is changed in it need not wait:
        recovery reaches it from there until its own entry is durable. FullError."""
        above = None if node.parent is None else node.parent.activity
        entry = self.touch(node, object_id, now_ns)
        if not entry.durable and entry.says.object == object_id:
            entry.cover = above

    def touch_object(self, node: Node, object_id: ObjectId, now_ns: int) -> Entry:
        """The same for a file of which no name is known. FullError."""
        entry = self._entries.get(object_id)
        if entry is None:
            self._check_room()
            entry = self._add(Slot(object_id, now_ns, whole=False, is_object=True), node)
        entry.touched = self.turn
        node.activity = entry
        return entry

    def adopt(self, slot: Slot) -> None:
        """Take over an entry of the mount before this one: its changes may not be durable yet."""
        if slot.object not in self._entries and self._free:
            self._add(slot, None)

    def _check_room(self) -> None:
        if len(self._free) <= KEPT_FOR_WHOLE:
            raise FullError

    def _add(self, says: Slot, node: Node | None) -> Entry:
        entry = Entry(self._free.popleft(), says, node, self.turn)
        self._entries[says.object] = self._undurable[says.object] = entry
        self._unwritten[entry.slot] = entry
        if says.whole:
            self._whole[says.object] = entry
        return entry

    def _whole_above(self, node: Node | None) -> Entry | None:
        while node is not None and self._whole:
            if node.identity is not None and node.identity in self._whole:
                return self._whole[node.identity]
            node = node.parent
        return None

    # -- renaming directories --------------------------------------------------------------------

    @property
    def settled(self) -> bool:
        """All entries are on disk. A directory is renamed only then: what is not would be looked
        for where it was."""
        return not self._undurable

    def leaving(self, node: Node, object_id: ObjectId) -> Entry | None:
        """A directory is about to be renamed. What is below it may rely on an entry above it, and
        cannot from then on: the entry that must be reliable before; None if there is no such."""
        above = self._whole_above(node.parent)
        if above is None:
            return None
        entry = self._make_whole(object_id, node)
        entry.touched = self.turn
        self._ask_again(above)
        return entry

    def _ask_again(self, entry: Entry) -> None:
        """Directories that go by this entry may not be below it any more."""
        again = Entry(entry.slot, entry.says, entry.node, entry.touched)
        again.durable, again.cover, again.replaces = entry.durable, entry.cover, entry.replaces
        entry.live = False
        self._entries[entry.says.object] = self._whole[entry.says.object] = again
        if not again.durable:
            self._undurable[entry.says.object] = again
        if self._unwritten.get(entry.slot) is entry:
            self._unwritten[entry.slot] = again

    # -- collapsing ------------------------------------------------------------------------------

    def collapse(self) -> Entry:
        """When there is no room: one entry for the lowest directory that half of them are below.

        They leave when that one is durable (`absorb`).
        """
        counts: dict[Node, int] = {}
        for entry in self._entries.values():
            above = None if entry.says.is_object else entry.node
            while above is not None:
                counts[above] = counts.get(above, 0) + 1
                above = above.parent
        half = counts.get(self._root, 0) / 2
        lowest = self._root
        while True:
            below = [node for node in lowest.children.values() if counts.get(node, 0) > half]
            if not below or below[0].identity is None or below[0].identity in self._whole:
                break
            lowest = below[0]
        assert lowest.identity is not None  # the root has one
        return self._make_whole(lowest.identity, lowest)

    def absorb(self, whole: Entry) -> None:
        """A durable entry stands for all those below it from now on."""
        for entry in list(self._entries.values()):
            if entry is whole or entry.says.is_object:
                continue
            if whole.says.object == self._root.identity or self._is_below(entry, whole):
                whole.touched = max(whole.touched, entry.touched)
                self._leave(entry)

    def _make_whole(self, object_id: ObjectId, node: Node) -> Entry:
        before = self._entries.get(object_id)
        if before is not None and before.says.whole:
            return before
        entry = self._add(Slot(object_id, 0, whole=True, is_object=False), node)
        if before is not None:
            entry.touched = before.touched
            entry.cover = before.cover
            entry.replaces = before.slot
            before.live = False
        node.activity = entry
        return entry

    def _is_below(self, entry: Entry, whole: Entry) -> bool:
        node = entry.node
        while node is not None:
            if node.identity == whole.says.object:
                return True
            node = node.parent
        return False

    # -- to disk and away ------------------------------------------------------------------------

    def to_write(self) -> list[tuple[int, Entry | None]]:
        """Slots that the file does not have yet, sorted; None: the slot is free."""
        unwritten, self._unwritten = self._unwritten, {}
        return sorted(unwritten.items(), key=lambda item: item[0])

    def written(self, batch: Iterable[tuple[int, Entry | None]]) -> None:
        """They are on disk now."""
        for slot, entry in batch:
            if entry is None:
                continue
            current = self._entries.get(entry.says.object)
            if current is not None and current.slot == slot:
                current.durable = True
                current.cover = None
                del self._undurable[entry.says.object]
                self._release_replaced(current)

    def not_written(self, batch: Iterable[tuple[int, Entry | None]]) -> None:
        """The disk refused them: they are to be written still."""
        for slot, entry in batch:
            self._unwritten.setdefault(slot, entry)

    def sweep(self, before: int) -> int:
        """Everything touched before that turn is durable now: those entries leave. Their number."""
        covering = {entry.cover.says.object for entry in self._undurable.values() if entry.cover}
        leaving = [
            entry
            for entry in self._entries.values()
            if entry.touched < before and entry.durable and entry.says.object not in covering
        ]
        for entry in leaving:
            self._leave(entry)
        return len(leaving)

    def _leave(self, entry: Entry) -> None:
        entry.live = False
        del self._entries[entry.says.object]
        self._whole.pop(entry.says.object, None)
        self._undurable.pop(entry.says.object, None)
        self._release(entry.slot)
        self._release_replaced(entry)

    def _release_replaced(self, entry: Entry) -> None:
        if entry.replaces is not None:
            self._release(entry.replaces)
            entry.replaces = None

    def _release(self, slot: int) -> None:
        self._unwritten[slot] = None
        self._free.append(slot)
