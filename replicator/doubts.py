"""Directories that must be reconciled to their whole depth before the next step.

They are written down at the site before the step that puts them in doubt: if it is killed then, the
next start finds them there. Nearly always there are none.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from mirrorfs.journal.record import ObjectId
from replicator.stores.base import SiteStore

FILE: Final = "doubts"
_LENGTH = struct.Struct("<H")


class Doubts:
    """The directories in doubt at one site."""

    def __init__(self, store: SiteStore) -> None:
        self._store = store
        self._directories = dict.fromkeys(_read(store.read_file(FILE) or b""))

    def __bool__(self) -> bool:
        return bool(self._directories)

    def add(self, directory: ObjectId) -> None:
        """To be called before what puts it in doubt is done. Raises StoreError."""
        if directory not in self._directories:
            told = _LENGTH.pack(len(directory)) + directory
            self._store.append_file(FILE, told, durable=True)
            self._directories[directory] = None

    def next(self) -> ObjectId | None:
        """The first of them; it stays until `settled`."""
        return next(iter(self._directories), None)

    def settled(self, directory: ObjectId) -> None:
        """It was reconciled."""
        if directory in self._directories:
            del self._directories[directory]
            if not self._directories:
                self._store.write_file(FILE, b"")


def _read(data: bytes) -> Iterator[ObjectId]:
    """The directories written down; an end cut short is dropped: its step was not begun."""
    offset = 0
    while offset + _LENGTH.size <= len(data):
        (length,) = _LENGTH.unpack_from(data, offset)
        offset += _LENGTH.size + length
        if offset <= len(data):
            yield ObjectId(data[offset - length : offset])
