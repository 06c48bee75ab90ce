"""Turns what was done to a node into records, and remembers what still needs one.

Looks at the object after its change, asks `capture` for the record and appends it. Where that fails
the journal is told that something is missing in it. Changes nothing in the source and answers no
requests. Used between two awaits of the thread that serves requests.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import NamedTuple, Protocol, TypeAlias

from mirrorfs import capture
from mirrorfs.backing_tree import BackingTree
from mirrorfs.callers import is_killed
from mirrorfs.capture import Captured, Subject
from mirrorfs.errors import in_doubt
from mirrorfs.inodes import Node
from mirrorfs.journal.record import (
    Change,
    Kind,
    ObjectId,
    Place,
    SequenceNumber,
    Tag,
    Who,
)
from mirrorfs.objects import Objects

Directories: TypeAlias = Iterable[tuple[ObjectId, bytes | None]]
"""Directories by id, with their paths where these are known."""

_RECENT_MAX = 100_000
_TOLD_MAX = 8
"""More records than one request makes."""


class Journal(Protocol):
    """Where records go. Nothing but `admitted` and `refuse_writing` raises: what cannot be
    appended is its own business.

    Attributes:
        degraded: why records cannot be made; None while they can.
        unrecorded: it asks here for the directories of what has changed and has no record yet.
    """

    degraded: str | None
    unrecorded: Callable[[], Directories | None]

    def append(self, kind: Kind, body: Change, flags: int = 0) -> object:
        """Append one record before the job has its answer."""

    def newest(self) -> tuple[Tag, SequenceNumber]:
        """The incarnation, and the last record."""

    def uncertain(self, reason: str, directories: Directories | None) -> None:
        """There, something may have changed that no record tells of. None: nobody knows where."""

    def touching(self, directories: Directories | None) -> None:
        """While degraded: these are about to be changed. None: nobody knows which."""

    async def admitted(self, killed: Callable[[], bool]) -> None:
        """While degraded: may something be changed now? OSError if not."""

    def refuse_writing(self) -> None:
        """While degraded: may something be opened for writing? OSError if not."""

    def distrust(self) -> None:
        """Which directories are being changed cannot be kept: all are, after an unclean end."""


class Activity(Protocol):
    """Which directories are being changed: what a recovery looks at (activity_log)."""

    def touch(self, node: Node, object_id: ObjectId, *, is_object: bool = False) -> bool:
        """May something be changed in that directory, or in that file?"""

    def born(self, node: Node, object_id: ObjectId) -> None:
        """A directory was made."""

    def may_move(self, node: Node, object_id: ObjectId) -> bool:
        """May that directory be renamed?"""

    async def durable(self) -> bool:
        """Wait until the disk has what was asked for; False if it refuses."""


class UnreliableError(Exception):
    """A change must wait for `become_reliable`, and is to be tried again then."""


class _Change:
    """From its begin a record is owed; not if the file system plainly refuses the change."""

    __slots__ = ("_recorder",)

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def __enter__(self) -> None:
        self._recorder.owed = True

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exception is not None and not in_doubt(exception):
            self._recorder.owed = False


class Told(NamedTuple):
    """A record that was made."""

    sequence: int
    kind: Kind
    change: Change
    flags: int


class Recorder:
    """The records of one tree.

    Attributes:
        dirty: nodes with a content change that no record tells of yet.
        owed: a change was made, or begun, whose record must come next.
        recent: the last record of objects, for those whose record is not long ago.
        forgotten: objects that are not in `recent` have no record after this one.
        activity: which directories are being changed; None: that is not kept.
        told: the last records made since somebody emptied this.
        change: `with recorder.change:` around the system call that makes the change.
    """

    def __init__(self, tree: BackingTree, objects: Objects, journal: Journal) -> None:
        self.dirty: set[Node] = set()
        self.activity: Activity | None = None
        self.owed = False
        self.recent: dict[ObjectId, int] = {}
        self.forgotten = 0
        self.told: deque[Told] = deque(maxlen=_TOLD_MAX)
        self.change = _Change(self)
        self._tree = tree
        self._objects = objects
        self._journal = journal
        journal.unrecorded = lambda: self._directories(self.dirty)

    @property
    def degraded(self) -> bool:
        """Records cannot be made: ask whether a change is `admitted`."""
        return self._journal.degraded is not None

    async def admitted(self, nodes: Iterable[Node], pid: int) -> None:
        """These are to be changed, for that process, while records cannot be made.

        Raises OSError if the operator chose that nothing is changed then.
        """
        await self._journal.admitted(lambda: is_killed(pid))
        if self._journal.degraded is not None:
            self._journal.touching(self._directories(nodes))

    def relies(self, nodes: Iterable[Node]) -> bool:
        """May these be changed: would a recovery look at them? If not, `become_reliable` first."""
        activity = self.activity
        if activity is None:
            return True
        for node in nodes:
            directory = node if node.directory else node.parent
            if directory is not None:
                if not activity.touch(directory, self._objects.identity(directory)):
                    return False
            elif not node.removed and not self._relies_on_itself(node):
                return False
        return True

    def relies_without_name(self, node: Node, links: int) -> bool:
        """The same for a file that has changed without a record, and loses one of its names."""
        if self.activity is None or links < 2:
            return True
        return self._relies_on_itself(node)

    def relies_moving(self, node: Node) -> bool:
        """The same for a directory that is to be renamed."""
        if self.activity is None or not node.directory:
            return True
        return self.activity.may_move(node, self._objects.identity(node))

    async def become_reliable(self) -> None:
        """Wait for the disk. Where it refuses, nothing can be relied on until the next mount."""
        if self.activity is not None and not await self.activity.durable():
            self.activity = None
            self._journal.distrust()

    def touch_dirty(self) -> None:
        """What has changed without a record yet is still being changed."""
        self.relies(self.dirty)

    def born(self, node: Node) -> None:
        """A directory was made."""
        if self.activity is not None:
            self.activity.born(node, self._objects.identity(node))

    def _relies_on_itself(self, node: Node) -> bool:
        assert self.activity is not None
        return self.activity.touch(node, self._objects.identity(node), is_object=True)

    def admit_writer(self) -> None:
        """Something is to be opened for writing. OSError if the operator chose that it is not."""
        self._journal.refuse_writing()

    def mark_dirty(self, node: Node) -> None:
        """Its content changes: a record must follow."""
        if not node.dirty:
            node.dirty = True
            self.dirty.add(node)

    def made(
        self,
        directory: Node,
        name: bytes,
        identity: ObjectId,
        attributes: os.stat_result,
        *,
        dirty: bool = False,
    ) -> None:
        """A new object stands there. Works on facts: the node comes after the record."""
        subject = Subject(
            identity, attributes.st_mode, attributes.st_nlink, attributes.st_ctime_ns, dirty
        )
        place, path = self._place(directory, name)
        self._append(capture.made(subject, place, path))

    def linked(self, node: Node, directory: Node, name: bytes) -> os.stat_result:
        """An object got another name."""
        subject, attributes = self._look(node)
        place, path = self._place(directory, name)
        other = node.other_name(directory, name)
        known = None if other is None else self._objects.place(*other)
        self._append(capture.linked(subject, place, path, known))
        return attributes

    def removed(self, node: Node, directory: Node, name: bytes) -> os.stat_result:
        """A name was removed."""
        subject, attributes = self._look(node)
        self._append(capture.removed(subject, *self._place(directory, name)))
        return attributes

    def renamed(
        self,
        node: Node,
        displaced: Node | None,
        old: tuple[Node, bytes],
        new: tuple[Node, bytes],
        flags: int,
    ) -> os.stat_result | None:
        """A name became another one. Returns the attributes of what was displaced."""
        subject, _ = self._look(node)
        other, attributes = (None, None) if displaced is None else self._look(displaced)
        old_place = self._objects.place(*old)
        new_place, path = self._place(*new)
        self._append(capture.renamed(subject, (old_place, new_place), path, flags, other))
        return attributes

    def content(self, node: Node, who: Who | None = None) -> os.stat_result:
        """Its content changed: the record covers everything up to now.

        Not what a write in another thread is still doing: the object stays dirty then.
        """
        if not node.writes:
            node.dirty = False
            self.dirty.discard(node)
        try:
            subject, attributes = self._look(node)
            captured = capture.written(
                subject,
                self._objects.known_place(node),
                self._objects.table.path(node),
                attributes.st_size,
                attributes.st_mtime_ns,
                who or node.who,
            )
        except Exception as error:
            self.missing("write", error, (node,))
            raise
        sequence = self._append(captured)
        node.due = (sequence, captured[1]) if captured and sequence else None
        return attributes

    def attributes(self, node: Node) -> os.stat_result:
        """Mode, owner or times were set."""
        subject, attributes = self._look(node)
        place, path = self._objects.known_place(node), self._objects.table.path(node)
        self._append(capture.attributes(subject, place, path))
        return attributes

    def xattr(self, node: Node, name: bytes) -> None:
        """An extended attribute was set or removed."""
        subject, _ = self._look(node)
        place, path = self._objects.known_place(node), self._objects.table.path(node)
        self._append(capture.xattr(subject, place, path, name))

    def failed(self, request: str, error: Exception, nodes: Iterable[Node]) -> None:
        """A request that changes these ended so: did it change something without a record?"""
        if self.owed:
            self.missing(request, error, nodes)

    def missing(self, request: str, error: Exception, nodes: Iterable[Node]) -> None:
        """A record that there should be of a change of these cannot be made."""
        self.owed = False
        directories = self._directories(nodes)
        if request == "rename" and self.degraded:
            directories = None  # a directory may have left one that is marked with all below it
        reason = f"{request}: what it changed is not known: {error}"
        self._journal.uncertain(reason, directories)

    def _directories(self, nodes: Iterable[Node]) -> list[tuple[ObjectId, bytes | None]] | None:
        """Where a change of these is found: in themselves, if they are directories, or in one that
        has them. None: nobody knows."""
        found: list[tuple[ObjectId, bytes | None]] = []
        try:
            for node in nodes:
                directory = node if node.directory else node.parent
                if directory is not None:
                    path = self._objects.table.path(directory)
                    found.append((self._objects.identity(directory), path))
                elif not node.removed:
                    return None
        except Exception:  # noqa: BLE001 - the source does not answer: that is why we are asked
            return None
        return found

    def _append(self, captured: Captured | None) -> int:
        """The record's sequence; 0 if there is none."""
        sequence: object = None
        if captured is not None:
            sequence = self._journal.append(*captured)
            if isinstance(sequence, int):
                self._remember(captured[1], sequence)
                self.told.append(Told(sequence, *captured))
        self.owed = False
        return sequence if isinstance(sequence, int) else 0

    def _remember(self, change: Change, sequence: int) -> None:
        recent = self.recent
        recent.pop(change.object, None)  # so that the oldest are first
        recent[change.object] = sequence
        if change.other is not None:
            recent.pop(change.other, None)
            recent[change.other] = sequence
        while len(recent) > _RECENT_MAX:
            self.forgotten = recent.pop(next(iter(recent)))

    def _place(self, directory: Node, name: bytes) -> tuple[Place, bytes | None]:
        return self._objects.place(directory, name), self._objects.table.path_in(directory, name)

    def _look(self, node: Node) -> tuple[Subject, os.stat_result]:
        attributes = self._tree.attributes(self._objects.descriptor(node))
        subject = Subject(
            self._objects.identity(node),
            attributes.st_mode,
            attributes.st_nlink,
            attributes.st_ctime_ns,
            node.dirty,
        )
        return subject, attributes
