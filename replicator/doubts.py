"""Objects that must be compared, directories to their whole depth, whatever records say.

They are written down at the site before the step that puts them in doubt: if it is killed then, the
next start finds them there. Nearly always there are none.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from itertools import count
from typing import Final

from mirrorfs.journal.record import ObjectId
from replicator.stores.base import SiteStore

FILE: Final = "doubts"
_LENGTH = struct.Struct("<H")


class Doubts:
    """The objects in doubt at one site."""

    def __init__(self, store: SiteStore, now: Callable[[], int] | None = None) -> None:
        """Go on with those at the site; `now` tells moments, as numbers that grow."""
        self._store = store
        self._now = now or count(1).__next__
        data = store.read_file(FILE) or b""
        self._objects = dict.fromkeys(_read(data), 0)
        self._torn = sum(map(len, map(_frame, _read(data)))) < len(data)

    def __bool__(self) -> bool:
        return bool(self._objects)

    def __iter__(self) -> Iterator[ObjectId]:
        return iter(list(self._objects))

    def since(self, object: ObjectId) -> int | None:
        """The moment it came into doubt last; None: it is not in doubt."""
        return self._objects.get(object)

    def add(self, object: ObjectId) -> None:
        """To be called before what puts it in doubt is done. Raises StoreError."""
        if object not in self._objects:
            if self._torn:  # it may end with a part of one: what comes after that would be misread
                self._store.write_file(FILE, b"".join(map(_frame, self._objects)))
            self._torn = True
            self._store.append_file(FILE, _frame(object), durable=True)
            self._torn = False
        self._objects[object] = self._now()

    def settled(self, object: ObjectId, since: int | None = None) -> None:
        """It was compared; if it came into doubt again after the moment `since` it stays."""
        at = self._objects.get(object)
        if at is None or (since is not None and at > since):
            return
        del self._objects[object]
        if not self._objects:
            self._store.write_file(FILE, b"")


def _frame(object: ObjectId) -> bytes:
    return _LENGTH.pack(len(object)) + object


def _read(data: bytes) -> Iterator[ObjectId]:
    """Those written down; an end cut short is dropped: its step was not begun."""
    offset = 0
    while offset + _LENGTH.size <= len(data):
        (length,) = _LENGTH.unpack_from(data, offset)
        offset += _LENGTH.size + length
        if offset <= len(data):
            yield ObjectId(data[offset - length : offset])
