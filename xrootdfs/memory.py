"""What is known of the tree, for how long: attributes, absences, holders, listings.

Pure: the caller tells the time. One rule for all: what was learned at a moment counts for so many
seconds after it. Changes made through this mount are entered at once, and an answer that was asked
for before such a change is not learned. Bounded: what was learned longest ago is forgotten.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final, NewType

from xrootdfs.values import ROOT, Found, Listing, Server, Stat

NAMES_MAX: Final = 100_000

Moment = NewType("Moment", int)
"""A point in the sequence of changes made through this mount."""


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """Seconds for which each kind of knowledge counts."""

    attributes: float = 10.0
    absence: float = 5.0
    listing: float = 10.0
    location: float = 600.0


@dataclass(slots=True)
class _Knowledge:
    """Of one name.

    Attributes:
        found: None for an absence.
        at: when it was learned; None if the attributes have changed since.
        located_at: when the holders were learned.
        whole: from every server.
    """

    found: Found | None
    at: float | None
    located_at: float
    whole: bool


@dataclass(slots=True)
class _Content:
    """Of one directory; `at` is None if attributes in it have changed since."""

    listing: Listing
    at: float | None
    learned_at: float

    @property
    def whole(self) -> bool:
        """Every server was heard."""
        return self.listing.complete and not self.listing.passed_over


@dataclass(slots=True, eq=False)
class _Node:
    """One place of the tree.

    Attributes:
        changed: moment of the last change to it, or of a name in it.
        moved: moment at which all below it became something else.
    """

    parent: _Node | None
    key: bytes
    children: dict[bytes, _Node] = field(default_factory=dict)
    name: _Knowledge | None = None
    content: _Content | None = None
    changed: int = 0
    moved: int = 0


class Memory:
    """The knowledge of one mount."""

    def __init__(self, lifetimes: Lifetimes | None = None, *, names_max: int = NAMES_MAX) -> None:
        self._lifetimes = lifetimes or Lifetimes()
        self._names_max = names_max
        self._root = _Node(None, b"")
        self._order: OrderedDict[_Node, int] = OrderedDict()  # with what each weighs
        self._weight = 0
        self._now = 0  # of moments
        self._floor = 0  # changes up to here are no longer known one by one

    def __len__(self) -> int:
        """Names remembered, those in listings included."""
        return self._weight

    def moment(self) -> Moment:
        """Take it before asking, and learn the answer with it."""
        return Moment(self._now)

    # Asked

    def found(self, path: bytes, now: float) -> Found | None:
        """The name, if it is known to be there."""
        name = self._known(path)
        if name is None or not _fresh(name.at, self._lifetimes.attributes, now):
            return None
        return name.found

    def absent(self, path: bytes, now: float) -> bool:
        """Is the name known not to be there?"""
        name = self._known(path)
        if name is not None:
            return name.found is None and _fresh(name.at, self._lifetimes.absence, now)
        content = self._content_around(path)
        return (
            content is not None
            and content.listing.complete
            and _fresh(content.learned_at, self._lifetimes.absence, now)
        )

    def holders(self, path: bytes, now: float) -> tuple[Server, ...]:
        """Who has the name, as far as known; the one to ask first."""
        name = self._known(path)
        if name is None or name.found is None:
            return ()
        return name.found.holders if self._located(name, now) else ()

    def learned_at(self, path: bytes) -> float | None:
        """When the attributes were learned; None if they are not known."""
        name = self._known(path)
        return name.at if name is not None else None

    def whole(self, path: bytes, now: float) -> bool:
        """Are those all the holders?"""
        name = self._known(path)
        return name is not None and name.whole and self._located(name, now)

    def excludes(self, path: bytes, server: Server, lost_at: float) -> bool:
        """Is a server that fell silent at `lost_at` known not to hold the name?

        It is, if every server was heard not long before: about the name, its directory's content,
        or a directory above it.
        """
        name = self._known(path)
        if name is not None and name.whole and self._was_known(name, lost_at):
            return name.found is None or server not in name.found.holders + name.found.contrary
        content = self._content_around(path)
        listed_at = content.learned_at if content is not None and content.whole else None
        if name is None and listed_at is not None and not self._too_old(listed_at, lost_at):
            return True
        while path:
            path = path.rpartition(b"/")[0]
            above = self._known(path)
            if above is None or above.found is None or not above.whole:
                continue
            if server not in above.found.holders and self._was_known(above, lost_at):
                return True
        return False

    def listing(self, path: bytes, now: float) -> Listing | None:
        """The directory's content, if it is known; sorted."""
        node = self._node(path)
        if node is None or node.content is None:
            return None
        if not _fresh(node.content.at, self._lifetimes.listing, now):
            return None
        listing = node.content.listing
        return replace(listing, entries=dict(sorted(listing.entries.items())))

    # Learned from servers

    def learn(self, path: bytes, found: Found, now: float, asked: Moment, *, whole: bool) -> None:
        """What is there; `whole`: every server was heard."""
        if self._unchanged(path, asked):
            node = self._make(path)
            node.name = _Knowledge(found, now, now, whole)
            self._keep(node)
            self._held(path, node, found.holders)

    def learn_absent(self, path: bytes, now: float, asked: Moment, *, whole: bool) -> None:
        """Nothing is there."""
        if self._unchanged(path, asked):
            node = self._make(path)
            node.name = _Knowledge(None, now, now, whole)
            self._keep(node)

    def learn_listing(self, path: bytes, listing: Listing, now: float, asked: Moment) -> None:
        """A directory's content. What was known of single names in it is older."""
        if not self._unchanged(path, asked):
            return
        node = self._make(path)
        for child in node.children.values():
            child.name = None
        node.content = _Content(replace(listing, entries=dict(listing.entries)), now, now)
        self._keep(node)

    # Done through this mount

    def created(self, path: bytes, server: Server, stat: Stat, now: float) -> None:
        """A name that nobody had. A new directory is known to be empty."""
        found = Found(stat, (server,), (server,))
        node = self._replace(path)
        node.name = _Knowledge(found, now, now, whole=True)
        if found.is_directory:
            node.content = _Content(Listing({}, found.holders), now, now)
        self._keep(node)
        self._enter(node, found)
        self._held(path, node, found.holders)
        above = self._known(path.rpartition(b"/")[0])
        if node.parent is not None and above is not None and above.found is not None:
            mtime = max(above.found.stat.mtime, stat.mtime)
            newer = replace(above.found, stat=replace(above.found.stat, mtime=mtime))
            node.parent.name = replace(above, found=newer)
            self._keep(node.parent)

    def placed(self, path: bytes, server: Server) -> None:
        """One more server holds the name now."""
        name = self._known(path)
        if name is None or name.found is None or server in name.found.holders:
            return
        found = name.found
        current = (*found.current, server)
        added = replace(found, holders=(*found.holders, server), current=current)
        node = self._make(path)
        node.name = replace(name, found=added)
        self._keep(node)

    def changed(self, path: bytes) -> None:
        """Its attributes are not what they were; its holders are."""
        node = self._age(path)
        self._mark(node)

    def removed(self, path: bytes, now: float) -> None:
        """The name is gone, with all below it."""
        node = self._replace(path)
        node.name = _Knowledge(None, now, now, whole=True)
        self._keep(node)
        self._leave(node)
        self._age(path.rpartition(b"/")[0])

    def renamed(self, old: bytes, new: bytes, now: float) -> None:
        """A name, and all below it, is elsewhere; what was there is gone."""
        name = self._known(old)
        moving = self._make(old)
        children, content = moving.children, moving.content
        moving.children, moving.content = {}, None
        there = self._replace(new)
        there.children, there.content = children, content
        for child in children.values():
            child.parent = there
        if name is not None and name.found is not None:
            there.name = replace(name, at=None)
            self._keep(there)
            self._enter(there, name.found)
            self._held(new, there, name.found.holders)
        else:
            self._keep(there)
            self._held(new, there, None)
            self._doubt_beside(there)
        self._age(new.rpartition(b"/")[0])
        self.removed(old, now)

    def forget(self, path: bytes) -> None:
        """In doubt: know nothing of the path, what is below it, and the names beside it."""
        self._doubt_beside(self._replace(path))

    # Within

    def _node(self, path: bytes) -> _Node | None:
        node = self._root
        for key in path.split(b"/") if path != ROOT else ():
            below = node.children.get(key)
            if below is None:
                return None
            node = below
        return node

    def _make(self, path: bytes) -> _Node:
        node = self._root
        for key in path.split(b"/") if path != ROOT else ():
            below = node.children.get(key)
            if below is None:
                below = node.children[key] = _Node(node, key)
            node = below
        return node

    def _known(self, path: bytes) -> _Knowledge | None:
        """Of the name itself, or by the listing of its directory."""
        node = self._node(path)
        if node is not None and node.name is not None:
            return node.name
        if path == ROOT:
            return None
        parent, _, key = path.rpartition(b"/")
        above = self._node(parent)
        if above is None or above.content is None:
            return None
        content = above.content
        found = content.listing.entries.get(key)
        if found is None:
            return None
        return _Knowledge(found, content.learned_at, content.learned_at, content.whole)

    def _content_around(self, path: bytes) -> _Content | None:
        """What is known of the directory that a name is in."""
        above = self._node(path.rpartition(b"/")[0]) if path != ROOT else None
        return above.content if above is not None else None

    def _was_known(self, name: _Knowledge, lost_at: float) -> bool:
        span = self._lifetimes.absence if name.found is None else self._lifetimes.location
        return name.located_at >= lost_at - span

    def _too_old(self, listed_at: float, lost_at: float) -> bool:
        return listed_at < lost_at - self._lifetimes.listing

    def _located(self, name: _Knowledge, now: float) -> bool:
        return _fresh(name.located_at, self._lifetimes.location, now)

    def _age(self, path: bytes) -> _Node:
        """The attributes are to be asked for again; what else is known stays."""
        name = self._known(path)
        node = self._make(path)
        if name is not None:
            node.name = replace(name, at=None) if name.found is not None else None
        self._keep(node)
        return node

    def _doubt_beside(self, node: _Node) -> None:
        """Its directory is not known to be as listed."""
        if node.parent is not None:
            node.parent.content = None
            self._keep(node.parent)

    # Changes and answers that cross

    def _mark(self, node: _Node) -> None:
        """A change to the name: answers under way are about what was."""
        self._now += 1
        node.changed = self._now
        if node.parent is not None:
            node.parent.changed = self._now
            if node.parent.content is not None:
                node.parent.content.at = None

    def _replace(self, path: bytes) -> _Node:
        """The place, where something else is now."""
        node = self._make(path)
        for below in [node, *_below(node)]:
            self._drop(below)
        node.children = {}
        self._mark(node)
        node.moved = self._now
        return node

    def _unchanged(self, path: bytes, asked: Moment) -> bool:
        """Was nothing done since then to what was asked for?"""
        if asked < self._floor:
            return False
        node: _Node | None = self._root
        for key in path.split(b"/") if path != ROOT else ():
            if node is None or node.moved > asked:
                break
            node = node.children.get(key)
        return node is None or max(node.moved, node.changed) <= asked

    def _enter(self, node: _Node, found: Found) -> None:
        """Into the listing of its directory."""
        if node.parent is not None and node.parent.content is not None:
            node.parent.content.listing.entries[node.key] = found
            self._keep(node.parent)

    def _held(self, path: bytes, node: _Node, holders: tuple[Server, ...] | None) -> None:
        """Who holds a name holds the directories above it. None: it is not known who does."""
        above = node.parent
        while above is not None:
            path = path.rpartition(b"/")[0]
            name = self._known(path)
            found = name.found if name is not None else None
            if found is None or holders is None or not set(holders) <= set(found.holders):
                above.changed = self._now  # answers under way may not know of it
                if name is not None and found is not None:
                    self._hold(above, name, found, holders)
            above = above.parent

    def _hold(
        self, node: _Node, name: _Knowledge, found: Found, holders: tuple[Server, ...] | None
    ) -> None:
        new = tuple(s for s in holders or () if s not in found.holders)
        found = replace(found, holders=found.holders + new, current=found.current + new)
        node.name = replace(name, found=found, whole=name.whole and holders is not None)
        above = node.parent.content if node.parent is not None else None
        if above is not None and node.key in above.listing.entries:
            above.listing.entries[node.key] = found
        if node.content is not None:
            listing = node.content.listing
            node.content.listing = replace(listing, holders=found.holders)
        self._keep(node)

    def _leave(self, node: _Node) -> None:
        """Out of the listing of its directory."""
        if node.parent is not None and node.parent.content is not None:
            node.parent.content.listing.entries.pop(node.key, None)
            self._keep(node.parent)

    # Bounds

    def _keep(self, node: _Node) -> None:
        """Count what is known there, as learned last; make room."""
        self._weight -= self._order.pop(node, 0)
        entries = len(node.content.listing.entries) if node.content is not None else 0
        weight = (node.name is not None) + entries + 1
        self._order[node] = weight
        self._weight += weight
        while self._weight > self._names_max and len(self._order) > 1:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        node = next(iter(self._order))
        above = node.parent
        if node.name is not None and above is not None and above.content is not None:
            # Its listing tells of the name as it was before what is being forgotten.
            above.content = None
            weight = (above.name is not None) + 1
            self._weight += weight - self._order[above]
            self._order[above] = weight
        self._drop(node)
        self._prune(node)

    def _drop(self, node: _Node) -> None:
        self._weight -= self._order.pop(node, 0)
        node.name = node.content = None

    def _prune(self, node: _Node) -> None:
        """Take places out of the tree that nothing is known of."""
        while node.parent is not None and not node.children and node not in self._order:
            self._floor = max(self._floor, node.changed, node.moved)
            del node.parent.children[node.key]
            node = node.parent


def _below(node: _Node) -> Iterator[_Node]:
    for child in node.children.values():
        yield child
        yield from _below(child)


def _fresh(at: float | None, seconds: float, now: float) -> bool:
    """The one rule of expiry."""
    return at is not None and now - at < seconds
