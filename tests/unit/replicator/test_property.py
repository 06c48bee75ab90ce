"""The property every change must keep.

Whatever happens in between, a site ends equal to the source, and each of its places was at every
moment something the source had there, never older than before.
"""

from __future__ import annotations

import errno
import os
from random import Random

import pytest

from mirrorfs.journal.record import SequenceNumber
from replicator.commit_order import CommitOrder
from tests.support.mirror import Mirror, assert_equal
from tests.support.model_tree import change_at_random

SEEDS = 2500 if os.environ.get("CAMPAIGN") == "long" else 40


def run(
    seed: int,
    *,
    crashes: bool = False,
    tails: bool = False,
    faults: bool = False,
    initial: bool = False,
    workers: bool = False,
) -> Mirror:
    """A source that changes all the time, also while it is looked at; a site that follows.

    `workers`: bytes move on workers, many at a time, and arrive in any order.

    `initial`: the source has something already that no record speaks of.
    """
    random = Random(seed)
    mirror = Mirror(
        random,
        inline_bytes=-1 if workers else 1 << 20,
        commit_order=random.choice(list(CommitOrder)) if workers else CommitOrder.DIRECTORY,
    )
    names = [b"a", b"b", b"c", b"d"][: random.randint(2, 4)]

    def change() -> None:
        change_at_random(mirror.tree, random, names)

    if initial:
        for _ in range(random.randint(0, 40)):
            change()
        mirror.start_anew()
    often = random.choice([0.0, 0.01, 0.05])

    def meanwhile() -> None:
        if random.random() < often:
            change()

    mirror.tree.meanwhile = meanwhile
    for _ in range(random.randint(5, 40)):
        for _ in range(random.randint(1, 6)):
            change()
        if random.random() < 0.6:
            mirror.feed(random.randint(1, 8))
        upset(mirror, random, crashes=crashes, faults=faults)
        mirror.move_bytes()
        mirror.work(random.randint(0, 10))
        mirror.now += random.choice([0, 1_000_000_000, 70_000_000_000])
        if random.random() < 0.3:
            mirror.save()
        interrupt(mirror, random, crashes=crashes, tails=tails)
    mirror.drain()
    return mirror


def upset(mirror: Mirror, random: Random, *, crashes: bool, faults: bool) -> None:
    """Let one of the next calls of the store be the last, or fail, or neither."""
    if crashes and random.random() < 0.1:
        mirror.store.crash_in = random.randint(0, 6)
    if faults and random.random() < 0.2:
        mirror.store.fail_in = random.randint(0, 6)
        mirror.store.errno = random.choice([errno.EIO, errno.ENOSPC, errno.EPERM])


def interrupt(mirror: Mirror, random: Random, *, crashes: bool, tails: bool) -> None:
    """Kill the replicator, or cut the power of the source's host, or neither."""
    if crashes and random.random() < 0.1:
        mirror.crash()
    if tails and mirror.tree.records and random.random() < 0.15:
        head = mirror.tree.head
        floor = max(mirror.tree.first - 1, head - 12)
        mirror.lose_tail(SequenceNumber(random.randint(floor, head)))


@pytest.mark.parametrize("initial", [False, True], ids=["", "initial"])
@pytest.mark.parametrize("block", range(4))
def test_a_site_that_fails_now_and_then_ends_equal(block: int, initial: bool) -> None:
    for seed in range(block * SEEDS, block * SEEDS + SEEDS):
        assert_equal(run(seed, faults=True, crashes=bool(seed % 2), initial=initial), seed)


@pytest.mark.parametrize("initial", [False, True], ids=["", "initial"])
@pytest.mark.parametrize("tails", [False, True], ids=["", "tails"])
@pytest.mark.parametrize("crashes", [False, True], ids=["", "crashes"])
@pytest.mark.parametrize("block", range(4))
def test_ends_equal_and_shows_nothing_strange(
    block: int, crashes: bool, tails: bool, initial: bool
) -> None:
    for seed in range(block * SEEDS, block * SEEDS + SEEDS):
        assert_equal(run(seed, crashes=crashes, tails=tails, initial=initial), seed)


@pytest.mark.parametrize("initial", [False, True], ids=["", "initial"])
@pytest.mark.parametrize("upset", ["", "crashes", "tails", "both", "faults"])
@pytest.mark.parametrize("block", range(4))
def test_many_steps_under_way_end_equal_and_show_nothing_strange(
    block: int, upset: str, initial: bool
) -> None:
    for seed in range(block * SEEDS, block * SEEDS + SEEDS):
        mirror = run(
            seed,
            crashes=upset in ("crashes", "both", "faults"),
            tails=upset in ("tails", "both"),
            faults=upset == "faults",
            initial=initial,
            workers=True,
        )
        assert_equal(mirror, seed)
