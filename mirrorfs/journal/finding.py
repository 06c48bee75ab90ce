"""Which records somebody looks for: by path, job, user, kind and time; or all about one path.

Pure. What can be told from a record's bytes is told before it is decoded. Directories are followed
through their renames as far as the records that are read tell of them.
"""

from __future__ import annotations

import datetime
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from mirrorfs.journal.record import (
    Change,
    Kind,
    ObjectId,
    Place,
    Reconcile,
    Record,
)

_EXCHANGE: Final = 2
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_NANOSECONDS: Final = 1_000_000_000
_ABOUT_PLACES: Final = frozenset({int(Kind.RENAME), int(Kind.MKDIR)})
_REMOVALS: Final = frozenset({Kind.UNLINK, Kind.RMDIR})


def parse_moment(text: str, now_ns: int) -> int | None:
    """A time in ns since 1970: `2026-11-22`, `2026-11-22T05:00` (UTC, or with an offset), or so
    long ago: `90s`, `15m`, `3h`, `7d`, `2w`. None if it is none of them."""
    match = re.fullmatch(r"(\d{1,9})([smhdw])", text)
    if match is not None:
        return now_ns - int(match[1]) * _UNITS[match[2]] * _NANOSECONDS
    if re.match(r"\d{4}-\d\d-\d\d", text) is None:
        return None
    try:
        at = datetime.datetime.fromisoformat(text)
        if at.tzinfo is None:
            at = at.replace(tzinfo=datetime.UTC)
        since = at - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    except (ValueError, OverflowError):
        return None
    whole = since.days * 86400 + since.seconds
    return whole * _NANOSECONDS + since.microseconds * 1000


def relative(path: bytes, roots: Iterable[bytes], at: bytes) -> bytes:
    """A path as records have it: relative to the root of the source.

    `roots`: where the source's root is, also by way of a mount; `at`: the directory the path is
    meant from. A path that leads into none of the roots is one from the root on.
    """
    names = _names(path)
    absolute = names if path.startswith(b"/") else _names(at + b"/" + path)
    for root in map(_names, roots):
        if absolute[: len(root)] == root:
            return b"/".join(absolute[len(root) :])
    return b"/".join(names)


def _names(path: bytes) -> list[bytes]:
    names: list[bytes] = []
    for name in path.split(b"/"):
        if name == b"..":
            del names[-1:]
        elif name not in (b"", b"."):
            names.append(name)
    return names


class PathPattern:
    """A path and all below it; or a pattern of them: `*` and `?` within a name, `[...]`, and `**`
    for any number of names.

    Attributes:
        literal: bytes that the path of each record it matches has; b"" for a pattern.
    """

    def __init__(self, pattern: bytes) -> None:
        self._path = pattern
        self._below = pattern + b"/"
        special = any(sign in pattern for sign in b"*?[")
        self.literal = b"" if special else pattern
        self._pattern = re.compile(_translated(pattern) + rb"(?s:/.*)?") if special else None

    def matches(self, path: bytes) -> bool:
        """Whether that path, relative to the root, is meant."""
        if not self._path or path == self._path or path.startswith(self._below):
            return True
        return self._pattern is not None and self._pattern.fullmatch(path) is not None


def _translated(pattern: bytes) -> bytes:
    """The pattern as a regular expression."""
    parts = []
    for piece in re.split(rb"(\*\*/|\*\*|\*|\?|\[!?\]?[^\]]*\])", pattern):
        if piece == b"**/":
            parts.append(rb"(?s:.*/)?")
        elif piece == b"**":
            parts.append(rb"(?s:.*)")
        elif piece == b"*":
            parts.append(rb"[^/]*")
        elif piece == b"?":
            parts.append(rb"[^/]")
        elif piece[:1] == b"[" and len(piece) > 2:
            inner = piece[1:-1].replace(b"\\", rb"\\").replace(b"[", rb"\[")
            parts.append(b"[" + (b"^/" + inner[1:] if inner[:1] == b"!" else inner) + b"]")
        else:
            parts.append(re.escape(piece))
    return b"".join(parts)


class Directories:
    """Where directories are, as far as the records tell that were learned so far."""

    def __init__(self) -> None:
        self._paths: dict[ObjectId, bytes] = {}

    def learn(self, change: Change, kind: Kind) -> None:
        """Take in a record; after `old_path` was asked for it."""
        if change.path is None or not change.places or kind is Kind.LINK:
            return
        place = change.places[-1]
        above, _, name = change.path.rpartition(b"/")
        if place.name == name:
            self._paths[place.directory] = above
        if stat.S_ISDIR(change.mode) and kind not in _REMOVALS:
            self._paths[change.object] = change.path

    def old_path(self, change: Change) -> bytes | None:
        """Where a `rename` took its object from; None if that is not known."""
        old, new = change.places
        if change.path is not None and old.directory == new.directory:
            above = change.path.rpartition(b"/")[0]
        else:
            known = self._paths.get(old.directory)
            if known is None:
                return None
            above = known
        return above + b"/" + old.name if above else old.name


@dataclass
class Search:
    """The records that somebody looks for; what is not given is not looked at."""

    path: PathPattern | None = None
    job: str | None = None
    uid: int | None = None
    kinds: frozenset[Kind] = frozenset()
    since_ns: int | None = None
    until_ns: int | None = None
    _directories: Directories = field(default_factory=Directories)

    def wanted(self, kind: int, time_ns: int, payload: memoryview) -> bool:
        """Whether a record must be decoded to tell."""
        if self.path is not None and kind in _ABOUT_PLACES:
            return True
        if not self._in_time(time_ns) or (self.kinds and kind not in self.kinds):
            return False
        if self.job is None and (self.path is None or not self.path.literal):
            return True
        data = bytes(payload)
        if self.job is not None and self.job.encode() not in data:
            return False
        return self.path is None or self.path.literal in data

    def matches(self, record: Record) -> bool:
        """Whether it is one of them. Every record that is `wanted` must be asked for, in order."""
        body = record.body
        at_path = self.path is None or self._at_path(self.path, record)
        if not at_path or not self._in_time(record.time_ns):
            return False
        if self.kinds and record.kind not in self.kinds:
            return False
        if self.job is None and self.uid is None:
            return True
        who = body.who if isinstance(body, Change) else None
        if who is None or (self.uid is not None and who.uid != self.uid):
            return False
        return self.job is None or who.job == self.job

    def _in_time(self, time_ns: int) -> bool:
        if self.since_ns is not None and time_ns < self.since_ns:
            return False
        return self.until_ns is None or time_ns <= self.until_ns

    def _at_path(self, pattern: PathPattern, record: Record) -> bool:
        body = record.body
        if isinstance(body, Reconcile):
            return body.path is not None and pattern.matches(body.path)
        if not isinstance(body, Change):
            return False
        old = self._directories.old_path(body) if record.kind is Kind.RENAME else None
        self._directories.learn(body, record.kind)
        return any(path is not None and pattern.matches(path) for path in (body.path, old))


class Trail:
    """The records about one path, and about the object that is there or was there last.

    Two readings: every record that is `wanted` goes through `look` first, then through `tells`.

    Attributes:
        path: relative to the root.
        object: which object that is; None: no record tells.
    """

    def __init__(self, path: bytes, found: ObjectId | None = None) -> None:
        """`found`: the object there, if that is known."""
        self.path = path
        self.object = found
        self._fixed = found is not None
        self._name = path.rpartition(b"/")[2]
        self._places: set[Place] = set()
        self._directories = Directories()

    def wanted(self, kind: int, time_ns: int, payload: memoryview) -> bool:
        """Whether a record must be decoded to tell."""
        if kind in _ABOUT_PLACES or kind == Kind.RECONCILE:
            return True
        data = bytes(payload)
        return self._name in data or (self.object is not None and bytes(self.object) in data)

    def look(self, record: Record) -> None:
        """First reading: learn which places and which object the path stands for."""
        body = record.body
        if not isinstance(body, Change):
            return
        kind = record.kind
        if body.path == self.path:
            self._places.update(body.places[1:] if kind is Kind.RENAME else body.places[:1])
            self._stands(body.object)
        elif kind is Kind.RENAME and self._left(body):
            arrived = body.other if body.rename_flags & _EXCHANGE else body.object
            self._stands(arrived or body.object)

    def _stands(self, found: ObjectId) -> None:
        if not self._fixed:
            self.object = found

    def _left(self, body: Change) -> bool:
        """Whether a rename took something away from the path."""
        return body.places[0] in self._places

    def tells(self, record: Record) -> bool:
        """Second reading: whether the record is about the path, or about the object."""
        body = record.body
        if isinstance(body, Reconcile):
            return body.path is not None and self._covered(body.path, whole=body.whole)
        if not isinstance(body, Change):
            return False
        old = None
        if record.kind is Kind.RENAME:
            old = self._directories.old_path(body)
        self._directories.learn(body, record.kind)
        if self.object is not None and self.object in (body.object, body.other):
            return True
        if self.path in (body.path, old) or not self._places.isdisjoint(body.places):
            return True
        moved = record.kind is Kind.RENAME and stat.S_ISDIR(body.mode)
        return moved and any(path is not None and self._below(path) for path in (body.path, old))

    def _covered(self, path: bytes, *, whole: bool) -> bool:
        above = self.path.rpartition(b"/")[0]
        return path in (self.path, above) or (whole and self._below(path))

    def _below(self, path: bytes) -> bool:
        """Whether our path is below that one."""
        return not path or self.path.startswith(path + b"/")
