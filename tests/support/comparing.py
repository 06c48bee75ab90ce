"""A model site whose comparisons are looked at while they are under way.

Import the fixture `mirror` into the module that asks for it.
"""

from __future__ import annotations

import stat
from collections import Counter
from random import Random
from typing import Any

import pytest

from tests.support.mirror import Mirror
from tests.support.model_tree import ModelObject, ModelTree, Thing

ALL = 1 << 30
DIRECTORY = stat.S_IFDIR | 0o755


class Listings:
    """Counts how often directories of the source are listed."""

    def __init__(self, tree: ModelTree) -> None:
        self.counted: Counter[bytes] = Counter()
        self._list = tree.list
        tree.list = self  # type: ignore[method-assign]

    def __call__(self, directory: ModelObject) -> list[bytes]:
        self.counted[directory.id] += 1
        return self._list(directory)

    def take(self) -> Counter[bytes]:
        """Those counted since the last time."""
        counted, self.counted = self.counted, Counter()
        return counted


def save_file(tree: ModelTree, parent: Thing, name: bytes) -> Thing:
    """A new file, written and closed."""
    thing = tree.create(parent, name)
    tree.write(thing)
    tree.flush(thing)
    return thing


def grow(tree: ModelTree, parent: Thing, *, depth: int, width: int = 3) -> list[Thing]:
    """Directories below that one, with two files each."""
    made = []
    for index in range(width):
        child = tree.create(parent, b"d%d" % index, DIRECTORY)
        made += [child, *(grow(tree, child, depth=depth - 1, width=width) if depth else [])]
        for name in (b"a", b"z"):
            save_file(tree, child, name)
    return made


def site_names(mirror: Mirror, directory: Thing) -> dict[bytes, Any]:
    """Name -> content of what the site has in that directory."""
    return {
        place.name: node.data for place, node in mirror.site() if place.directory == directory.id
    }


def unrecorded(tree: ModelTree) -> None:
    """What happens from now on has no record."""
    tree.degrade(0)


def recorded(tree: ModelTree) -> None:
    """Records again; nothing says what happened meanwhile."""
    tree.marks = None


@pytest.fixture
def mirror() -> Mirror:
    """One that compares two names at a time."""
    mirror = Mirror(Random(1))
    mirror.names_max = 2
    mirror.start(mirror.engine.state)
    return mirror


def settle(mirror: Mirror) -> None:
    """Apply everything, and save."""
    mirror.feed(ALL)
    while mirror.engine.work(ALL):
        pass
    mirror.engine.save()
