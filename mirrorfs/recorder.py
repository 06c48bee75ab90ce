"""Turns what was done to a node into records, and remembers what still needs one.

Looks at the object after its change, asks `capture` for the record and appends it. Where that fails
the journal is told that something is missing in it. Changes nothing in the source and answers no
requests. Used between two awaits of the thread that serves requests.
"""

from __future__ import annotations

import os
from types import TracebackType
from typing import Protocol

from mirrorfs import capture
from mirrorfs.backing_tree import BackingTree
from mirrorfs.capture import Captured, Subject
from mirrorfs.errors import in_doubt
from mirrorfs.inodes import Node
from mirrorfs.journal.record import Change, Kind, ObjectId, Place, Who
from mirrorfs.objects import Objects

_RECENT_MAX = 100_000


class Journal(Protocol):
    """Where records go. Never raises: what cannot be appended is its own business."""

    def append(self, kind: Kind, body: Change, flags: int = 0) -> object:
        """Append one record before the job has its answer."""

    def uncertain(self, reason: str) -> None:
        """A change has no record: from here on nobody knows what the tree looks like."""


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


class Recorder:
    """The records of one tree.

    Attributes:
        dirty: nodes with a content change that no record tells of yet.
        owed: a change was made, or begun, whose record must come next.
        recent: the last record of objects, for those whose record is not long ago.
        forgotten: objects that are not in `recent` have no record after this one.
        change: `with recorder.change:` around the system call that makes the change.
    """

    def __init__(self, tree: BackingTree, objects: Objects, journal: Journal) -> None:
        self.dirty: set[Node] = set()
        self.owed = False
        self.recent: dict[ObjectId, int] = {}
        self.forgotten = 0
        self.change = _Change(self)
        self._tree = tree
        self._objects = objects
        self._journal = journal

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
            self.missing("write", error)
            raise
        self._append(captured)
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

    def failed(self, request: str, error: Exception) -> None:
        """A request that changes the source ended so: did it change something without a record?"""
        if self.owed:
            self.missing(request, error)

    def missing(self, request: str, error: Exception) -> None:
        """A record that there should be cannot be made."""
        self.owed = False
        self._journal.uncertain(f"{request}: what it changed is not known: {error}")

    def _append(self, captured: Captured | None) -> None:
        if captured is not None:
            sequence = self._journal.append(*captured)
            if isinstance(sequence, int):
                self._remember(captured[1], sequence)
        self.owed = False

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
