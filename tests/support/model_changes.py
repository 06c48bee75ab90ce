"""Changes of a model tree, at random."""

from __future__ import annotations

import stat
from random import Random

from tests.support.model_tree import ModelTree, Thing


def directories(tree: ModelTree) -> list[Thing]:
    """All living directories below the root, and the root."""
    return [thing for thing in tree.things.values() if thing.is_directory and tree.living(thing)]


def is_below(tree: ModelTree, thing: Thing, above: Thing) -> bool:
    """Whether `thing` is `above` or below it."""
    while thing is not above:
        if not thing.places:
            return False
        thing = tree.things[thing.places[0].directory]
    return True


_DRAWS = {
    "create": 2,
    "write": 2,
    "begin_write": 1,
    "flush": 2,
    "save": 2,
    "unlink": 1,
    "mkdir": 1,
    "rename": 3,
    "link": 1,
    "attributes": 1,
    "exchange": 1,
    "symlink": 1,
}


def change_at_random(tree: ModelTree, random: Random, names: list[bytes]) -> None:
    """One operation, if the one drawn is possible."""
    (draw,) = random.choices([*_DRAWS], [*_DRAWS.values()])
    files = [thing for thing in tree.things.values() if thing.places and stat.S_ISREG(thing.mode)]
    if draw == "attributes":
        tree.attributes(random.choice([t for t in tree.things.values() if tree.living(t)]))
    elif draw in ("write", "begin_write", "flush"):
        if files:
            getattr(tree, draw)(random.choice(files))
    else:
        _change_place_at_random(tree, random, names, draw)


def _change_place_at_random(tree: ModelTree, random: Random, names: list[bytes], draw: str) -> None:
    parent, to = (random.choice(directories(tree)) for _ in range(2))
    name, to_name = (random.choice(names) for _ in range(2))
    here, there = parent.names.get(name), to.names.get(to_name)
    types = {"create": stat.S_IFREG, "save": stat.S_IFREG, "mkdir": stat.S_IFDIR}
    if here is None:
        if draw in types or draw == "symlink":
            here = tree.create(parent, name, types.get(draw, stat.S_IFLNK) | 0o755)
            if draw == "save":
                tree.write(here)
                tree.flush(here)
    elif draw == "save" and stat.S_ISREG(here.mode):
        tree.write(here)
        tree.flush(here)
    elif draw == "unlink" and not here.names:
        tree.unlink(parent, name)
    elif draw == "link" and not here.is_directory and there is None:
        tree.link(here, to, to_name)
    elif draw in ("rename", "exchange") and here is not there:
        _move_at_random(tree, draw, (parent, name, here), (to, to_name, there))


def _move_at_random(
    tree: ModelTree,
    draw: str,
    old: tuple[Thing, bytes, Thing],
    new: tuple[Thing, bytes, Thing | None],
) -> None:
    (parent, name, here), (to, to_name, there) = old, new
    if here.is_directory and is_below(tree, to, here):
        return
    if there is None:
        if draw == "rename":
            tree.rename(parent, name, to, to_name)
    elif draw == "exchange":
        if not (there.is_directory and is_below(tree, parent, there)):
            tree.exchange(parent, name, to, to_name)
    elif here.is_directory == there.is_directory and not there.names and here.id != there.id:
        tree.rename(parent, name, to, to_name)
