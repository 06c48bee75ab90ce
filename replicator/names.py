"""The names a site has for objects with several of them: a table in memory, a log on the site.

A name is added before it is made and taken out after it is gone, so the table may hold names that
no longer stand; whoever uses one looks at the mark that stands there. It never misses one, except
after a power cut of the site, when the places in doubt are reconciled by content anyway.
"""

from __future__ import annotations

import struct
from collections.abc import Collection

import msgspec

from mirrorfs.journal.record import ObjectId, Place
from replicator.stores.base import SiteStore

FILE = "names"
_LENGTH = struct.Struct("<I")
_COMPACT_BYTES = 1 << 20


class _Entry(msgspec.Struct, frozen=True, array_like=True):
    added: bool
    object: ObjectId
    place: Place


class NameTable:
    """Object id -> places of the site that may hold it, for objects with several names."""

    def __init__(self, store: SiteStore) -> None:
        self._store = store
        self._places: dict[ObjectId, dict[Place, None]] = {}
        self._torn = False
        data = store.read_file(FILE) or b""
        used = self._load(data)
        if used < len(data) or len(data) > _COMPACT_BYTES:
            self._write_anew()

    def _write_anew(self) -> None:
        entries = (
            _Entry(True, identity, place)
            for identity, places in self._places.items()
            for place in places
        )
        self._store.write_file(FILE, b"".join(map(_frame, entries)))

    def _load(self, data: bytes) -> int:
        """Apply the log; the number of bytes that are whole entries."""
        offset = 0
        while offset + _LENGTH.size <= len(data):
            (length,) = _LENGTH.unpack_from(data, offset)
            end = offset + _LENGTH.size + length
            if end > len(data):
                break
            try:
                entry = msgspec.msgpack.decode(data[offset + _LENGTH.size : end], type=_Entry)
            except msgspec.DecodeError:
                break
            self._apply(entry)
            offset = end
        return offset

    def _apply(self, entry: _Entry) -> None:
        if entry.added:
            self._places.setdefault(entry.object, {})[entry.place] = None
            return
        places = self._places.get(entry.object)
        if places is not None:
            places.pop(entry.place, None)
            if not places:
                del self._places[entry.object]

    def places(self, identity: ObjectId) -> Collection[Place]:
        """Where the site may hold this object."""
        return tuple(self._places.get(identity, ()))

    def add(self, identity: ObjectId, place: Place) -> None:
        """The object is about to get this name (or has it)."""
        if place not in self._places.get(identity, ()):
            self._record(_Entry(True, identity, place))

    def discard(self, identity: ObjectId, place: Place) -> None:
        """The object has lost this name."""
        if place in self._places.get(identity, ()):
            self._record(_Entry(False, identity, place))

    def forget(self, identity: ObjectId) -> None:
        """The object has one name left, which needs no table."""
        for place in self.places(identity):
            self.discard(identity, place)

    def _record(self, entry: _Entry) -> None:
        if self._torn:  # it may end with half an entry: what comes after that would not be read
            self._write_anew()
        self._torn = True
        self._store.append_file(FILE, _frame(entry))
        self._torn = False
        self._apply(entry)


def _frame(entry: _Entry) -> bytes:
    payload = msgspec.msgpack.encode(entry)
    return _LENGTH.pack(len(payload)) + payload
