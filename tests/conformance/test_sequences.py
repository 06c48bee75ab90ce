"""Every short sequence of changes, with every way steps and bytes may come between them.

Two directories of three names, one file with a name in each of them at the beginning; what differs
by names alone is tried once. Between two changes nothing may happen, or one record is taken in and
one step done, or all steps and one copy that is not told of, or all there is, or all and then a
kill. The property is that of `tests/unit/replicator/test_property`. Every day every other sequence
of three is tried, in long campaigns all.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from itertools import islice, product
from random import Random
from typing import TypeAlias

import pytest

from tests.support import campaign
from tests.support.mirror import Mirror, assert_equal
from tests.support.model_tree import ModelTree, Thing

ALL = 1 << 30
NAMES = (b"a", b"b", b"c")
At: TypeAlias = tuple[int, bytes]
"""A directory (0 or 1) and a name."""
Operation: TypeAlias = tuple[str, At, At | None]
Held: TypeAlias = dict[At, int]
"""What stands where: the number of a file."""

FIRST: Held = {(0, b"a"): 0, (1, b"a"): 0}
NOTHING, ONE, BYTES, EVERYTHING, KILL = range(5)


def operations(held: Held, used: frozenset[At]) -> Iterator[Operation]:
    """Those possible now. Of the names never used one stands for all."""
    free = [at for at in product((0, 1), NAMES) if at not in held and at in used]
    for directory in (0, 1):
        never = [(directory, name) for name in NAMES if (directory, name) not in used]
        free += never[:1]
    for at in free:
        yield "save", at, None
    for at, number in held.items():
        yield "unlink", at, None
        if at == min(each for each in held if held[each] == number):
            yield "write", at, None
            for to in free:
                yield "link", at, to
        for to in [*free, *(other for other in held if held[other] != number)]:
            yield "rename", at, to


def after(operation: Operation, held: Held, serial: int) -> Held:
    """What stands where then."""
    kind, at, to = operation
    changed = dict(held)
    if kind == "save":
        changed[at] = serial
    elif kind == "link" and to is not None:
        changed[to] = changed[at]
    elif kind == "rename" and to is not None:
        changed[to] = changed.pop(at)
    elif kind == "unlink":
        del changed[at]
    return changed


def sequences(count: int) -> Iterator[tuple[Operation, ...]]:
    """All of so many operations."""

    def go_on(
        done: tuple[Operation, ...], held: Held, used: frozenset[At]
    ) -> Iterator[tuple[Operation, ...]]:
        if len(done) == count:
            yield done
            return
        for operation in operations(held, used):
            places = {each for each in operation[1:] if each is not None}
            changed = after(operation, held, len(done) + 1)
            yield from go_on((*done, operation), changed, used | places)

    return go_on((), FIRST, frozenset(FIRST))


def carry_out(tree: ModelTree, directories: list[Thing], operation: Operation) -> None:
    kind, (number, name), to = operation
    parent = directories[number]
    if kind == "save":
        tree.create(parent, name)
    if kind in ("save", "write"):
        tree.write(parent.names[name])
        tree.flush(parent.names[name])
    elif kind == "unlink":
        tree.unlink(parent, name)
    elif to is not None and kind == "link":
        tree.link(parent.names[name], directories[to[0]], to[1])
    elif to is not None:
        tree.rename(parent, name, directories[to[0]], to[1])


def let(mirror: Mirror, program: int) -> None:
    """What happens between two changes."""
    if program == NOTHING:
        return
    mirror.feed(1 if program == ONE else ALL)
    mirror.engine.work(1 if program == ONE else ALL)
    if program == BYTES:
        mirror.workers.copy()
    elif program == EVERYTHING:
        mirror.work_off()
    elif program == KILL:
        mirror.crash()


def attempt(sequence: tuple[Operation, ...], programs: tuple[int, ...]) -> None:
    mirror = Mirror(Random(1), inline_bytes=-1)
    tree = mirror.tree
    directories = [tree.root_thing, tree.create(tree.root_thing, b"D", stat.S_IFDIR | 0o755)]
    first = tree.create(tree.root_thing, b"a")
    tree.write(first)
    tree.flush(first)
    tree.link(first, directories[1], b"a")
    mirror.feed(ALL)
    mirror.work_off()
    mirror.engine.save()
    try:
        for operation, program in zip(sequence, programs, strict=True):
            carry_out(tree, directories, operation)
            let(mirror, program)
        mirror.drain()
        assert_equal(mirror, 0)
    except AssertionError as error:
        raise AssertionError(f"{sequence} {programs}") from error


@pytest.mark.parametrize(
    ("count", "ways"),
    [
        (2, (NOTHING, ONE, BYTES, EVERYTHING, KILL)),
        (3, campaign.pick((NOTHING, BYTES), (NOTHING, ONE, BYTES, EVERYTHING, KILL))),
        *campaign.pick([], [(4, (NOTHING, BYTES, KILL))]),
    ],
)
def test_every_short_sequence(
    count: int, ways: tuple[int, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    tried = 0
    share = campaign.pick(2, 1) if count > 2 else 1
    for sequence in islice(sequences(count), 0, None, share):
        for programs in product(ways, repeat=count - 1):
            attempt(sequence, (*programs, NOTHING))
            tried += 1
    with capfd.disabled():
        print(f"\n{count} operations: {tried} runs, 0 differences")  # noqa: T201
