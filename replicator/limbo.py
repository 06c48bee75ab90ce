"""Limbo: where living objects wait at the site between two places, by object id.

What is here under a wrong name was left by a step that was cut off; it is put under its own. The
set of names saves looking: nearly always limbo is empty.
"""

from __future__ import annotations

from typing import Final

import xxhash

from mirrorfs.journal.record import ObjectId
from replicator.stores.base import SiteEntry, SiteStore

_SLOT: Final = b"incoming"
_NAME_MAX: Final = 200


def limbo_name(identity: ObjectId) -> bytes:
    """Name of a living object in limbo."""
    name = identity.hex()
    if len(name) > _NAME_MAX:
        name = xxhash.xxh3_128_hexdigest(identity)
    return name.encode()


class Limbo:
    """The limbo of one site.

    Attributes:
        directory: the store's.
        names: at least those that are in it.
    """

    def __init__(self, store: SiteStore) -> None:
        self._store = store
        self.directory = store.limbo()
        self.names = set(store.list(self.directory))

    def lookup(self, identity: ObjectId) -> SiteEntry | None:
        """The copy of that object that waits here."""
        name = limbo_name(identity)
        if name not in self.names:
            return None
        entry = self._store.lookup(self.directory, name)
        if entry is None or entry.mark is None or entry.mark.object != identity:
            return None
        return entry

    def place_for(self, identity: ObjectId) -> bytes:
        """The name for that object; something else that stands there is moved on."""
        name = limbo_name(identity)
        if name in self.names and self.lookup(identity) is None:
            self._expel(name)
        self.names.add(name)
        return name

    def slot(self) -> bytes:
        """A name for what passes through; `gone` when it has."""
        self.tidy()
        self.names.add(_SLOT)
        return _SLOT

    def tidy(self) -> None:
        """Put what a step left in the slot when it was cut off where it is found."""
        if _SLOT in self.names:
            self._expel(_SLOT)
            self.names.discard(_SLOT)

    def gone(self, name: bytes) -> None:
        """Nothing stands there any more."""
        self.names.discard(name)

    def _expel(self, name: bytes) -> None:
        entry = self._store.lookup(self.directory, name)
        if entry is None:
            return
        right = None if entry.mark is None else limbo_name(entry.mark.object)
        if right is None or self._store.lookup(self.directory, right) is not None:
            self._store.keep(self.directory, name, b"limbo/" + (right or name))
        else:
            self.names.add(right)
            self._store.move(self.directory, name, self.directory, right)
