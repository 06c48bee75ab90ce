"""A site that has a part of the source, and then another one."""

from __future__ import annotations

from random import Random

from replicator.patterns import Wanted
from tests.support.mirror import Mirror, assert_equal
from tests.support.model_changes import change_at_random


def grown(wanted: Wanted) -> Mirror:
    """A site to be copied to of a source that has something."""
    random = Random(7)
    mirror = Mirror(random, wanted=wanted)
    for _ in range(60):
        change_at_random(mirror.tree, random, [b"a", b"b", b"c"])
    mirror.start_anew()
    return mirror


def test_the_initial_copy_of_a_part_is_one() -> None:
    mirror = grown(Wanted(["/a", "c"]))
    assert mirror.engine.state.initial
    mirror.engine.work(1)
    mirror.save()
    assert mirror.engine.state.clean < 0
    mirror.drain()
    assert not mirror.engine.state.initial
    assert_equal(mirror, 7)


def test_another_part_is_compared_once() -> None:
    mirror = grown(Wanted())
    mirror.drain()
    mirror.wanted = Wanted((), ["b"])
    mirror.crash()
    assert mirror.engine.state.clean >= 0
    assert mirror.engine.comparing
    mirror.drain()
    assert_equal(mirror, 7)
    assert not mirror.store.inner.kept
    mirror.crash()
    assert not mirror.engine.comparing
