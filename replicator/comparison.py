"""Where a comparison is, and where it goes on: through its directories, depth first, by name.

Pure. All its roots are swept before anything is created in one of them. What must be remembered is
the way from the root to the directory it is at, with the last name done in each directory on it: a
comparison that was cut off goes on there. Directories are known by their ids, so it does not matter
where they are moved meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mirrorfs.journal.record import ObjectId, Place, SequenceNumber
from replicator.planner import PlaceItem, Position, ReconcileItem
from replicator.site_state import ComparisonState, Level, Root

_CHILDREN_MAX = 1024


@dataclass(slots=True)
class At:
    """A directory on the way.

    Attributes:
        below, after: see `Level`.
        names: its names still to be done, in order; None: it is to be listed.
        children: directories in it still to be gone into, by name; None: they are to be looked for.
        more: there are others, with later names.
        at_name: the first of its names is being worked on.
    """

    directory: ObjectId
    below: bool = False
    after: bytes | None = None
    names: deque[bytes] | None = None
    children: deque[tuple[bytes, ObjectId]] | None = None
    more: bool = False
    at_name: bool = False

    def still(self, names: Iterable[bytes]) -> list[bytes]:
        """Those names that are not done, in order."""
        return sorted(name for name in names if self.after is None or name > self.after)

    def list(self, names: Iterable[bytes]) -> None:
        """It has these names."""
        if self.after is None:
            self.children = deque()
        self.names = deque(self.still(names))

    def done(self, child: ObjectId | None) -> None:
        """The first of its names is done; `child`: the directory there, to be gone into."""
        assert self.names, "it was listed"
        name = self.after = self.names.popleft()
        if child is not None and self.children is not None and not self.more:
            if len(self.children) < _CHILDREN_MAX:
                self.children.append((name, child))
            else:
                self.more = True

    def go_below(self) -> None:
        """All its names are done."""
        self.below, self.after, self.names = True, None, None

    def found(self, children: Iterable[tuple[bytes, ObjectId]]) -> None:
        """The directories in it that are still to be gone into, by name; taken as far as there is
        room."""
        self.children, self.more = deque(), False
        for child in children:
            if len(self.children) >= _CHILDREN_MAX:
                self.more = True
                break
            self.children.append(child)

    def into(self) -> ObjectId | None:
        """The next directory to go into; None: there is no other, or others are to be looked for
        (`children` is None then)."""
        if self.children:
            self.after, child = self.children.popleft()
            return child
        if self.more:
            self.children = None
        return None


class Comparison:
    """One comparison under way.

    Attributes:
        items: its roots.  at: how many of them were begun in this pass.
        began: the moment it began.
        tries: how often its next part has failed.
        doubt, initial, adopt, keep, creating: see `ComparisonState`.
    """

    def __init__(
        self,
        items: Sequence[ReconcileItem],
        *,
        doubt: bool = False,
        initial: bool = False,
        adopt: bool = False,
        began: int = 0,
    ) -> None:
        self.items = list(items)
        self.doubt, self.initial, self.adopt = doubt, initial, adopt
        self.keep = any(item.keep for item in items)
        self.began = began
        self.creating = adopt  # what is to be adopted is not swept
        self.at = self.tries = 0
        self._way: list[At] = []

    @classmethod
    def restored(cls, state: ComparisonState, began: int) -> Comparison:
        """The one saved so, to go on."""
        items = [
            ReconcileItem(
                *(ObjectId(r.directory), r.whole, (SequenceNumber(r.sequence), 0), r.path),
                keep=state.keep,
            )
            for r in state.roots
        ]
        made = cls(
            items,
            doubt=state.doubt,
            initial=state.initial,
            adopt=state.adopt,
            began=began,
        )
        made.creating, made.at = state.creating, state.at
        made._way = [At(ObjectId(x.directory), x.below, x.after) for x in state.way]
        return made

    def state(self) -> ComparisonState:
        """What must be remembered of it."""
        return ComparisonState(
            roots=[
                Root(directory=x.directory, whole=x.whole, sequence=x.position[0], path=x.path)
                for x in self.items
            ],
            doubt=self.doubt,
            initial=self.initial,
            adopt=self.adopt,
            keep=self.keep,
            creating=self.creating,
            at=self.at,
            way=[Level(directory=x.directory, below=x.below, after=x.after) for x in self._way],
        )

    @property
    def item(self) -> ReconcileItem:
        """The root it is at."""
        return self.items[max(0, self.at - 1)]

    @property
    def position(self) -> Position:
        """Of the root it is at."""
        return self.item.position

    @property
    def roots(self) -> set[tuple[ObjectId, bool]]:
        """What it is about."""
        return {(item.directory, item.whole) for item in self.items}

    def here(self) -> At | None:
        """The directory it is at; None: the next root comes, or nothing."""
        return self._way[-1] if self._way else None

    def next_root(self) -> ReconcileItem | None:
        """The next root, to `enter` or to pass over; None: it has come to its end."""
        if self.at >= len(self.items):
            if self.creating:
                return None
            self.creating, self.at = True, 0
        self.at += 1
        return self.items[self.at - 1]

    def enter(self, directory: ObjectId) -> None:
        """Go into that directory."""
        self._way.append(At(directory))

    def leave(self) -> At:
        """The directory it is at is done, with all below it."""
        return self._way.pop()

    @property
    def at_root(self) -> bool:
        """Whether it is at a root itself, not below it."""
        return len(self._way) == 1

    def directory(self) -> ReconcileItem:
        """The directory that is being worked on."""
        here, item = self.here(), self.item
        if here is None or self.at_root:
            return item
        return ReconcileItem(here.directory, item.whole, item.position, keep=item.keep)

    def subject(self) -> ReconcileItem | PlaceItem:
        """What is being worked on: a place in a directory, or the directory."""
        here = self.here()
        if here is None or not here.names or not here.at_name:
            return self.directory()
        return PlaceItem(Place(here.directory, here.names[0]), self.position)

    def give_up(self) -> None:
        """Pass over what is being worked on: it is remembered elsewhere."""
        here = self.here()
        if here is None:
            return
        if here.names and here.at_name:
            here.done(None)
            here.children, here.at_name = None, False  # if it is a directory it will be found
        else:
            self.leave()
