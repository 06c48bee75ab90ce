"""Which directories were changed without a record: the set of them, and its form on the disk.

Pure. A mark names a directory by its id, so it holds wherever the directory is moved to; `whole`
means all below it, too. The set covers every change it was told of: a `reconcile` of each of its
marks finds them all. It is bounded: too many marks become fewer, wider ones.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

import xxhash

from mirrorfs.journal.record import Change, Kind, ObjectId, RecordError, split_handle_id

MARKS_MAX: Final = 8192
_INSIDE_MAX: Final = 100_000
_EXCHANGE: Final = 2  # RENAME_EXCHANGE of renameat2(2)
_ABOUT_OBJECT: Final = frozenset({Kind.WRITE, Kind.ATTRIBUTES, Kind.XATTR})
_HEAD: Final = b"mirrorfs-marks 1"
_UNKNOWN: Final = b"?"
_WORDS: Final = {False: b"in", True: b"below"}
_WHOLE: Final = {word: whole for whole, word in _WORDS.items()}


class Mark(NamedTuple):
    """A directory to compare. `path` is for people; None: not known."""

    directory: ObjectId
    whole: bool
    path: bytes | None


Way: TypeAlias = list[tuple[ObjectId, bytes | None]]
"""Ids and paths of the directories from the root down to one, both included."""

Ways: TypeAlias = Callable[[ObjectId], Way | None]
"""The way to a directory as it is now; None: no directory of that id is in the tree."""


class Marks:
    """The marks of one time without records.

    Attributes:
        everything: the whole tree is marked; what is marked besides does not matter.
    """

    def __init__(self, root: ObjectId, ways: Ways | None = None, most: int = MARKS_MAX) -> None:
        """Nothing is marked. Without `ways` too many marks become the whole tree."""
        self.everything = False
        self._root = root
        self._ways = ways
        self._most = most
        self._marks: dict[ObjectId, Mark] = {}
        self._any_whole = False
        self._inside: set[ObjectId] = set()  # made below a mark that is whole

    def __len__(self) -> int:
        return 1 if self.everything else len(self._marks)

    def __iter__(self) -> Iterator[Mark]:
        """What is to be compared, the first touched first."""
        if self.everything:
            return iter((Mark(self._root, True, b""),))
        return iter(list(self._marks.values()))

    @property
    def too_many(self) -> bool:
        """Time to `collapse`."""
        return len(self._marks) > self._most

    def add(self, directory: ObjectId, path: bytes | None, *, whole: bool = False) -> list[Mark]:
        """Mark a directory. Returns the marks that are new: they must be written down."""
        if self.everything or (directory in self._inside and not whole):
            return []
        known = self._marks.get(directory)
        if known is not None and (known.whole or not whole):
            return []
        mark = self._marks[directory] = Mark(directory, whole, path)
        self._any_whole = self._any_whole or whole
        return [mark]

    def add_everything(self) -> list[Mark]:
        """Nobody knows where it was. Returns what is new."""
        if self.everything:
            return []
        self.everything = True
        self._marks.clear()
        self._inside.clear()
        return list(self)

    def change(self, kind: Kind, change: Change) -> list[Mark]:
        """Mark what a change touched, of which this would have been the record.

        Returns what is new.
        """
        if kind in _ABOUT_OBJECT:
            return self._object_changed(change)
        named = change.places[-1] if kind is Kind.RENAME else change.places[0]
        above = None if change.path is None else change.path.rpartition(b"/")[0]
        new: list[Mark] = []
        for place in change.places:
            new += self.add(place.directory, above if place is named else None)
        if kind is Kind.MKDIR:
            new += self._made(change.object, named.directory, change.path)
        elif kind is Kind.RENAME and change.places[0].directory != named.directory:
            new += self._moved(change)
        return new

    def _object_changed(self, change: Change) -> list[Mark]:
        if stat.S_ISDIR(change.mode):
            return self.add(change.object, change.path)
        if not change.places:
            return self.add_everything()
        above = None if change.path is None else change.path.rpartition(b"/")[0]
        return self.add(change.places[0].directory, above)

    def _made(self, directory: ObjectId, above: ObjectId, path: bytes | None) -> list[Mark]:
        """Nothing in a new directory has a record: it is to be compared with all below it."""
        marked = self._marks.get(above)
        covered = above in self._inside or (marked is not None and marked.whole)
        if covered and len(self._inside) < _INSIDE_MAX:
            self._inside.add(directory)
            return []
        return self.add(directory, path, whole=True)

    def _moved(self, change: Change) -> list[Mark]:
        """A directory may have left one that is marked with all below it: it is marked so, too."""
        if not self._any_whole or self.everything:
            return []
        moved = [change.object] if stat.S_ISDIR(change.mode) else []
        new: list[Mark] = []
        if change.other is not None and change.rename_flags & _EXCHANGE:
            if self._ways is None:
                return self.add_everything()
            if self._ways(change.other) is not None:
                moved.append(change.other)
        for directory in moved:
            path = change.path if directory == change.object else None
            new += self.add(directory, path, whole=True)
        return new

    def collapse(self) -> None:
        """Fewer marks that cover the same, or more: the deepest that lie beside each other first.

        The directories are looked for where they are now. One that is gone needs no mark: what
        was in it was removed, or moved to a directory that is marked.
        """
        if self._ways is None:
            self.add_everything()
            return
        found = {each.directory: self._ways(each.directory) for each in self}
        ways = {identity: way for identity, way in found.items() if way}
        marks = {
            identity: self._marks[identity]
            for identity, way in ways.items()
            if not any(above in ways and self._marks[above].whole for above, _ in way[:-1])
        }
        self._marks = _collapsed(marks, ways, self._most // 2)
        self._any_whole = any(each.whole for each in self._marks.values())
        if self._root in self._marks and self._marks[self._root].whole:
            self.add_everything()


def _collapsed(
    marks: dict[ObjectId, Mark], ways: dict[ObjectId, Way], most: int
) -> dict[ObjectId, Mark]:
    """At most so many marks: those that lie closest together become one of what is above them."""
    live = dict(marks)
    below: dict[ObjectId, dict[ObjectId, None]] = {}
    levels: dict[int, dict[ObjectId, Way]] = {}
    for identity in live:
        way = ways[identity]
        for depth, (above, _) in enumerate(way):
            below.setdefault(above, {})[identity] = None
            levels.setdefault(depth, {})[above] = way[: depth + 1]
    for depth in sorted(levels, reverse=True):
        for identity, way in levels[depth].items():
            if len(live) <= most:
                return live
            members = [each for each in below[identity] if each in live]
            if len(members) < 2:
                continue
            for each in members:
                del live[each]
            live[identity] = Mark(identity, True, way[-1][1])
            for above, _ in way[:-1]:
                below[above][identity] = None
    return live


# The form on the disk: a line of text each, so that people can read it


@dataclass(frozen=True, slots=True)
class Noted:
    """What a file of marks says.

    Attributes:
        since_ns: when the first of them was made, nanoseconds since 1970.
        reason: why there were no records.
    """

    since_ns: int
    reason: str
    marks: tuple[Mark, ...]


def encode_head(since_ns: int, reason: str) -> bytes:
    """The first line."""
    words = " ".join(reason.split()).encode("ascii", errors="backslashreplace")
    return _line(b"%s %d %s" % (_HEAD, since_ns, words))


def encode_mark(mark: Mark) -> bytes:
    """A line."""
    path = _UNKNOWN if mark.path is None else b"/" + _escaped(mark.path)
    return _line(b"%s %s %s" % (_WORDS[mark.whole], mark.directory.hex().encode(), path))


def decode(data: bytes) -> Noted | None:
    """What the file says; None if it cannot be read: then everything is marked.

    A last line that was cut short is passed over: the change it was for had not been made, or not
    been answered. Zero bytes behind the last line are room kept for more.
    """
    *lines, _ = data.rstrip(b"\0").split(b"\n")
    texts = [_checked(line) for line in lines]
    try:
        head, *told = (text for text in texts if text is not None)
        if None in texts or not head.startswith(_HEAD + b" "):
            return None
        since_ns, _, reason = head[len(_HEAD) + 1 :].partition(b" ")
        return Noted(int(since_ns), reason.decode("ascii"), tuple(map(_mark, told)))
    except (ValueError, KeyError, RecordError):
        return None


def _mark(text: bytes) -> Mark:
    word, identity, path = text.split(b" ", 2)
    directory = ObjectId(bytes.fromhex(identity.decode("ascii")))
    split_handle_id(directory)
    return Mark(directory, _WHOLE[word], None if path == _UNKNOWN else _unescaped(path[1:]))


def _line(text: bytes) -> bytes:
    return b"%s %016x\n" % (text, xxhash.xxh3_64_intdigest(text))


def _checked(line: bytes) -> bytes | None:
    """The text of a line without its newline; None if it is not as it was written."""
    text, _, _ = line.rpartition(b" ")
    return text if _line(text) == line + b"\n" else None


def _escaped(path: bytes) -> bytes:
    return path.decode("latin-1").encode("unicode_escape")


def _unescaped(text: bytes) -> bytes:
    return text.decode("unicode_escape").encode("latin-1")
