"""What is recorded of a mounted tree while a test changes it."""

from __future__ import annotations

import os
from pathlib import Path

from mirrorfs.backing_tree import BackingTree
from mirrorfs.journal.control_client import ControlClient
from mirrorfs.journal.record import Change, Kind, ObjectId, Place, Record
from tests.support.mounts import Mounted
from tests.support.overlay import changes, head


class Watch:
    """What was recorded since it was made, and the ids of objects."""

    def __init__(self, overlay: Mounted, work: Path) -> None:
        self.work = work
        self.prefix = os.fsencode(work.relative_to(overlay.mountpoint))
        self._overlay = overlay
        self._tree = BackingTree.open(bytes(overlay.source), 1)
        self._head = head(overlay)

    def close(self) -> None:
        self._tree.close()

    def id(self, path: Path) -> ObjectId:
        """Id of the object there now."""
        below = self._overlay.source / path.relative_to(self._overlay.mountpoint)
        descriptor = os.open(below, os.O_PATH | os.O_NOFOLLOW)
        try:
            return self._tree.object_id(descriptor)
        finally:
            os.close(descriptor)

    def place(self, name: str, directory: Path | None = None) -> Place:
        """A name in a directory, by default the test's."""
        return Place(self.id(directory or self.work), os.fsencode(name))

    def path(self, name: str) -> bytes:
        return self.prefix + b"/" + os.fsencode(name)

    def records(self) -> list[tuple[Record, Change]]:
        """All since the last call."""
        found = changes(self._overlay, self._head)
        self._head = head(self._overlay)
        return found

    def open_files(self) -> int:
        """How many files jobs have open."""
        with ControlClient(str(self._overlay.journal)) as client:
            return client.status().open_files

    def kinds(self) -> list[Kind]:
        return [record.kind for record, _ in self.records()]

    def told(self) -> list[str]:
        """The records since the last call, as `kind path`; `kind* path` if it is not settled."""
        cut = len(self.prefix) + 1
        return [
            f"{record.kind.label}{'' if record.settled else '*'}"
            f" {'-' if change.path is None else os.fsdecode(change.path[cut:]) or '.'}"
            for record, change in self.records()
        ]

    def one(self, kind: Kind) -> Change:
        """The only record since the last call, of that kind."""
        found = self.records()
        assert [record.kind for record, _ in found] == [kind]
        return found[0][1]
