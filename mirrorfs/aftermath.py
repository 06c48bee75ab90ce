"""After an unclean stop: which directories may differ from what the journal says.

Follows the entries of the activity log into what was made or changed below them since. Looks, and
changes nothing; what follows from it (records) is the caller's.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from typing import Final, NamedTuple

from mirrorfs.activity import Slot
from mirrorfs.backing_tree import BackingTree
from mirrorfs.capture import RESERVED
from mirrorfs.journal.record import ObjectId

DIRECTORIES_MAX: Final = 10_000
"""Below one entry; where there are more, all that is below it is in doubt."""


class Doubt(NamedTuple):
    """An object that must be looked at.

    Attributes:
        object: a directory: its names and attributes; or a file, if `is_object`: all of it.
        path: relative to the root; None if it is not known.
        whole: everything below it, too.
        is_object: a file of which no name was known.
    """

    object: ObjectId
    path: bytes | None
    whole: bool = False
    is_object: bool = False


def doubts(tree: BackingTree, slots: Iterable[Slot]) -> list[Doubt]:
    """What is in doubt, each object once, sorted by path. OSError."""
    found: dict[ObjectId, Doubt] = {}
    for slot in slots:
        for doubt in _of(tree, slot):
            known = found.get(doubt.object)
            if known is None or doubt.whole:
                found[doubt.object] = doubt
    return sorted(found.values(), key=lambda doubt: (doubt.path is None, doubt.path or b""))


def _of(tree: BackingTree, slot: Slot) -> list[Doubt]:
    """What one entry leads to; nothing if it is gone: the directory it was in is an entry too."""
    todo = [slot.object]
    found: dict[ObjectId, Doubt] = {}
    while todo:
        object_id = todo.pop()
        try:
            descriptor = tree.reopen(object_id)
        except OSError as error:
            if error.errno == errno.ESTALE:
                continue
            raise
        try:
            path = _path(tree, descriptor)
            if slot.whole or slot.is_object:
                return [Doubt(object_id, path, slot.whole, slot.is_object)]
            found[object_id] = Doubt(object_id, path)
            if len(found) > DIRECTORIES_MAX:
                return [found[slot.object]._replace(whole=True)]
            hidden = RESERVED if path == b"" else b""
            changed = _changed_below(tree, descriptor, slot.since_ns, hidden)
            todo += [each for each in changed if each not in found]
        finally:
            tree.close_descriptor(descriptor)
    return list(found.values())


def _changed_below(
    tree: BackingTree, descriptor: int, since_ns: int, hidden: bytes
) -> list[ObjectId]:
    """Directories in that one whose change time is not older, but for one that jobs do not see."""
    changed = []
    fd = tree.open_directory(descriptor)
    try:
        with os.scandir(fd) as entries:
            names = [os.fsencode(e.name) for e in entries if e.is_dir(follow_symlinks=False)]
        for name in names:
            if name == hidden:
                continue
            try:
                attributes = tree.attributes_at(fd, name)
                if (
                    stat.S_ISDIR(attributes.st_mode)
                    and attributes.st_ctime_ns >= since_ns
                    and attributes.st_dev == tree.device
                ):
                    changed.append(tree.object_id(fd, name))
            except FileNotFoundError:
                continue
    finally:
        tree.close_descriptor(fd)
    return changed


def _path(tree: BackingTree, descriptor: int) -> bytes | None:
    """Of a descriptor, as the kernel tells it; None of what has no name, or lies elsewhere."""
    root = os.readlink(b"/proc/self/fd/%d" % tree.root)
    path = os.readlink(b"/proc/self/fd/%d" % descriptor)
    if path == root:
        return b""
    prefix = root.rstrip(b"/") + b"/"
    return path.removeprefix(prefix) if path.startswith(prefix) else None
