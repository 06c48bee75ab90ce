"""What a site has still to do, and whether that concerns a place.

Pure. A place is given by its names from the root, with the ids of the source's objects on the way:
the root's first, that of the object at the place last, as far as they exist.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from mirrorfs.journal.record import Change, Reconcile, Record
from replicator.site_state import HeldStep


@dataclass(slots=True)
class Pending:
    """Records that are not applied yet, and held steps.

    Attributes:
        anything: every place may be concerned.
        objects: what the records are about, and the directories of their places.
        places: directory and name.
    """

    held: Sequence[HeldStep]
    anything: bool = False
    objects: set[bytes] = field(default_factory=set)
    places: set[tuple[bytes, bytes]] = field(default_factory=set)

    def add(self, records: Iterable[Record]) -> None:
        """Records that are not applied yet."""
        for record in records:
            if isinstance(record.body, Reconcile):
                self.anything = True
            elif isinstance(record.body, Change):
                self._add(record.body)

    def _add(self, change: Change) -> None:
        self.objects.add(change.object)
        if change.other is not None:
            self.objects.add(change.other)
        for place in change.places:
            self.objects.add(place.directory)
            self.places.add((place.directory, place.name))

    def touches(self, path: Sequence[bytes], ids: Sequence[bytes]) -> bool:
        """Whether records may still change that place."""
        if self.anything:
            return True
        if len(path) < len(ids) and ids[len(path)] in self.objects:
            return True
        if len(ids) < len(path):  # not even its directory exists any more
            return bool(self.objects)
        return bool(path) and (ids[len(path) - 1], path[-1]) in self.places

    def holder(self, path: Sequence[bytes], ids: Sequence[bytes]) -> HeldStep | None:
        """The held step that keeps the place from being true, if there is one."""
        parent = ids[len(path) - 1] if 0 < len(path) <= len(ids) else None
        object = ids[len(path)] if len(path) < len(ids) else None
        name = path[-1] if path else None
        for step in self.held:
            if _keeps(step, parent, name, object, ids):
                return step
        return None


def _keeps(
    step: HeldStep,
    parent: bytes | None,
    name: bytes | None,
    object: bytes | None,
    ids: Sequence[bytes],
) -> bool:
    if step.kind == "place" and (step.directory, step.name) == (parent, name):
        return True
    if step.kind in ("place", "reconcile") and step.directory == object:
        return True  # what is in a directory moves its times
    if step.kind == "reconcile" and (
        step.directory == parent or (step.whole and step.directory in ids)
    ):
        return True
    return bool(step.object) and step.object == object
