"""The property every change must keep.

Whatever happens in between, a site ends equal to the source, and each of its places was at every
moment something the source had there, never older than before.
"""

from __future__ import annotations

import errno
import os
import stat
from random import Random

import pytest

from mirrorfs.journal.record import SequenceNumber
from replicator.commit_order import CommitOrder
from replicator.patterns import Wanted
from replicator.window import Window
from tests.support.mirror import Mirror, assert_equal
from tests.support.model_changes import change_at_random, directories

SEEDS = 2500 if os.environ.get("CAMPAIGN") == "long" else 20


def run(
    seed: int,
    *,
    crashes: bool = False,
    tails: bool = False,
    faults: bool = False,
    initial: bool = False,
    degrades: bool = False,
    cuts: bool = False,
    compares: bool = False,
    workers: bool = False,
    filters: bool = False,
    grows: bool = False,
    narrow: bool = False,
    waits: bool = False,
) -> Mirror:
    """A source that changes all the time, also while it is looked at; a site that follows.

    `initial`: the source has something already that no record speaks of. `degrades`: now and then
    there are no records for a while, and what was marked is compared afterwards. `cuts`: of the
    site's power. `compares`: now and then a directory is compared, or all of them. `workers`: bytes
    move on workers, many at a time, and arrive in any order. `grows`: files are appended to, and
    copies go on where they ended. `filters`: the site has a part only. `narrow`: few records are
    read ahead. `waits`: jobs wait for records.
    """
    random = Random(seed)
    mirror = Mirror(
        random,
        inline_bytes=-1 if workers else 1 << 20,
        commit_order=random.choice(list(CommitOrder)) if workers else CommitOrder.DIRECTORY,
        wanted=some_wanted(random) if filters else None,
        grows=grows,
        window=small_window(seed) if narrow else None,
        deletes_max=Random(seed).choice([0, 0, 1, 4]),
    )
    mirror.may_go_back = degrades or mirror.window.held < 100  # docs/limits.md
    names = [b"a", b"b", b"c", b"d"][: random.randint(2, 4)]

    def change() -> None:
        change_one(mirror, random, names)

    if initial:
        for _ in range(random.randint(0, 40)):
            change()
        mirror.start_anew()
    often = random.choice([0.0, 0.01, 0.05])

    mirror.tree.meanwhile = lambda: change() if random.random() < often else None
    for _ in range(random.randint(5, 40)):
        degrade(mirror, random, degrades=degrades)
        ask(mirror, random, compares=compares)
        for _ in range(random.randint(1, 6)):
            change()
        if random.random() < 0.6:
            mirror.feed(random.randint(1, 8))
        upset(mirror, random, crashes=crashes, faults=faults)
        mirror.move_bytes()
        wait(mirror, random, waits=waits)
        mirror.work(random.randint(0, 10))
        mirror.look_at_awaited()
        mirror.now += random.choice([0, 1_000_000_000, 70_000_000_000])
        if random.random() < 0.3:
            mirror.save()
        interrupt(mirror, random, crashes=crashes, tails=tails, cuts=cuts)
        want_other(mirror, random, filters=filters)
    mirror.drain()
    return mirror


def change_one(mirror: Mirror, random: Random, names: list[bytes]) -> None:
    """A change of anything, or, if the mirror is one of what grows, more often of content."""
    tree = mirror.tree
    files = [thing for thing in tree.things.values() if thing.places and stat.S_ISREG(thing.mode)]
    if not (mirror.grows and files and random.random() < 0.6):
        change_at_random(tree, random, names)
        return
    thing = random.choice(files)
    getattr(tree, random.choice(["begin_write", "write", "write", "flush"]))(thing)
    if random.random() < 0.7:
        tree.flush(thing)


def small_window(seed: int) -> Window:
    """Some records ahead; also so that one of the bounds is met long before the others."""
    random = Random(seed)
    items, hints, records = (random.choice([2, 3, 5, 10, 20]) for _ in range(3))
    return Window(items, hints, records, held=random.choice([1, 2, 4, 100]))


def wait(mirror: Mirror, random: Random, *, waits: bool) -> None:
    """Have a job wait for one of the last records, or not."""
    if waits and random.random() < 0.7 and mirror.tree.records:
        mirror.await_record()


def degrade(mirror: Mirror, random: Random, *, degrades: bool) -> None:
    """The journal's disk is full from now on, or no more, or mirrorfs is killed meanwhile."""
    tree = mirror.tree
    if not degrades:
        return
    if tree.marks is None:
        if random.random() < 0.2:
            tree.degrade(random.choice([2, 4, 8192]))
    elif random.random() < 0.3:
        tree.resume()
    elif random.random() < 0.1:
        tree.restart()
        tree.resume()
        mirror.crash()


def some_wanted(random: Random) -> Wanted:
    """Patterns that fit some of what the model has, by name and by path."""
    some = ["a", "/b", "*/c", "/a/b/", "b/", "/a/*/a", "!/a/c", "**/b/a", "/c/**"]
    exclude = random.sample(some, random.randint(0, 3))
    include = random.sample(["/a", "/b/", "a", "/a/b", "c", "/a/*"], random.choice([0, 0, 1, 2]))
    return Wanted(include, exclude)


def want_other(mirror: Mirror, random: Random, *, filters: bool) -> None:
    """Have the site get another part from now on, or not."""
    if filters and random.random() < 0.03:
        mirror.wanted = some_wanted(random)
        mirror.crash()


def ask(mirror: Mirror, random: Random, *, compares: bool) -> None:
    """Have a directory compared, or not."""
    if compares and random.random() < 0.15:
        thing = random.choice([mirror.tree.root_thing, *directories(mirror.tree)])
        mirror.tree.reconcile(thing, whole=random.random() < 0.7)


def upset(mirror: Mirror, random: Random, *, crashes: bool, faults: bool) -> None:
    """Let one of the next calls of the store be the last, or fail, or neither."""
    often, calls = (0.5, 20) if mirror.grows else (0.1, 6)
    if crashes and random.random() < often:
        mirror.store.crash_in = random.randint(0, calls)
    if faults and random.random() < max(often, 0.2):
        mirror.store.fail_in = random.randint(0, calls)
        mirror.store.errno = random.choice([errno.EIO, errno.ENOSPC, errno.EPERM])


def interrupt(mirror: Mirror, random: Random, *, crashes: bool, tails: bool, cuts: bool) -> None:
    """Kill the replicator, or cut the power of the source's host or of the site, or neither."""
    if crashes and random.random() < 0.1:
        mirror.crash()
    if tails and mirror.tree.records and random.random() < 0.15:
        head = mirror.tree.head
        floor = max(mirror.tree.first - 1, head - 12)
        mirror.lose_tail(SequenceNumber(random.randint(floor, head)))
    if cuts and random.random() < 0.15:
        mirror.cut_power()


@pytest.mark.parametrize("block", range(4))
def test_all_that_can_upset_it_ends_equal(block: int) -> None:
    for seed in (*range(block * SEEDS, block * SEEDS + SEEDS), 107_553):
        chance = Random(seed * 7 + 1)
        mirror = run(
            seed,
            crashes=chance.random() < 0.6,
            tails=chance.random() < 0.4,
            faults=chance.random() < 0.4,
            initial=chance.random() < 0.5,
            degrades=chance.random() < 0.25,
            cuts=chance.random() < 0.4,
            compares=chance.random() < 0.4,
            workers=chance.random() < 0.5,
            narrow=chance.random() < 0.5,
        )
        assert_equal(mirror, seed)


def test_a_comparison_and_what_others_owe_do_not_wait_for_each_other() -> None:
    """A comparison that a record asks for, behind steps that come after what is owed."""
    mirror = run(110, tails=True, initial=True, cuts=True, compares=True, workers=True)
    assert_equal(mirror, 110)
    for seed, kill in ((813, False), (2320, True)):
        mirror = run(
            seed, crashes=kill, tails=True, faults=True, initial=True, degrades=not kill,
            compares=not kill, workers=True, narrow=True,
        )  # fmt: skip
        assert_equal(mirror, seed)


def test_what_a_part_of_a_comparison_held_is_not_forgotten_when_it_fails_then() -> None:
    assert_equal(run(7401, faults=True, waits=True, filters=True), 7401)


def test_a_file_where_a_directory_was_looked_for_is_left_to_its_record() -> None:
    mirror = run(
        108_447, crashes=True, tails=True, faults=True, initial=True, cuts=True, workers=True,
        narrow=True,
    )  # fmt: skip
    assert_equal(mirror, 108_447)


def test_content_that_is_being_written_comes_to_no_other_name() -> None:
    mirror = run(305_560, crashes=True, faults=True, initial=True, compares=True, narrow=True)
    assert_equal(mirror, 305_560)


@pytest.mark.parametrize("tails", [False, True], ids=["", "tails"])
@pytest.mark.parametrize("upset", ["", "crashes", "faults"])
@pytest.mark.parametrize("block", range(2))
def test_a_site_that_reads_little_ahead_ends_equal(block: int, upset: str, tails: bool) -> None:
    for seed in range(block * SEEDS, block * SEEDS + SEEDS):
        mirror = run(
            seed,
            crashes=upset != "",
            tails=tails,
            faults=upset == "faults",
            initial=not seed % 3,
            compares=not seed % 4,
            workers=bool(seed % 2),
            narrow=True,
        )
        assert_equal(mirror, seed)


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
@pytest.mark.parametrize("crashes", [False, True], ids=["", "crashes"])
@pytest.mark.parametrize("block", range(2))
def test_what_changed_without_records_is_found_at_the_marks(
    block: int, crashes: bool, initial: bool
) -> None:
    for seed in range(block * SEEDS, block * SEEDS + SEEDS):
        mirror = run(
            seed, crashes=crashes, tails=not seed % 3, faults=not seed % 4, initial=initial,
            degrades=True,
        )  # fmt: skip
        assert_equal(mirror, seed)


@pytest.mark.parametrize("initial", [False, True], ids=["", "initial"])
@pytest.mark.parametrize("crashes", [False, True], ids=["", "crashes"])
def test_a_site_whose_power_is_cut_ends_equal(crashes: bool, initial: bool) -> None:
    for seed in range(SEEDS // 2):
        mirror = run(
            seed, crashes=crashes, tails=not seed % 3, faults=not seed % 4, initial=initial,
            degrades=not seed % 5, cuts=True,
        )  # fmt: skip
        assert_equal(mirror, seed)


@pytest.mark.parametrize("tails", [False, True], ids=["", "tails"])
@pytest.mark.parametrize("upset", ["", "crashes", "faults"])
@pytest.mark.parametrize("block", range(2))
def test_records_are_applied_beside_comparisons_that_go_on_after_a_kill(
    block: int, upset: str, tails: bool
) -> None:
    """Also: what lives and was at the site is never missing there, and nothing is taken from where
    it stands (see Mirror.check)."""
    for seed in range(block * SEEDS, block * SEEDS + SEEDS):
        mirror = run(
            seed,
            crashes=upset != "",
            tails=tails,
            faults=upset == "faults",
            initial=bool(seed % 2),
            compares=True,
        )
        assert_equal(mirror, seed)


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


@pytest.mark.parametrize("upset", ["", "crashes", "tails", "all"])
@pytest.mark.parametrize("block", range(3))
def test_a_site_that_has_a_part_has_just_that(block: int, upset: str) -> None:
    for seed in range(block * SEEDS, block * SEEDS + SEEDS):
        mirror = run(
            seed,
            crashes=upset in ("crashes", "all"),
            tails=upset in ("tails", "all"),
            faults=upset == "all",
            initial=bool(seed % 2),
            compares=not seed % 3,
            workers=not seed % 4,
            filters=True,
        )
        assert_equal(mirror, seed)


@pytest.mark.parametrize("workers", [False, True], ids=["", "workers"])
@pytest.mark.parametrize("block", range(4))
def test_what_goes_on_where_it_ended_is_never_torn(block: int, workers: bool) -> None:
    for seed in range(block * SEEDS, block * SEEDS + SEEDS):
        mirror = run(
            seed,
            crashes=bool(seed % 4),
            tails=not seed % 3,
            faults=bool(seed % 2),
            initial=not seed % 5,
            cuts=not seed % 7,
            compares=not seed % 6,
            workers=workers,
            grows=True,
        )
        assert_equal(mirror, seed)


@pytest.mark.parametrize("initial", [False, True], ids=["", "initial"])
@pytest.mark.parametrize("upset", ["", "crashes", "tails", "faults", "compares", "filters"])
def test_what_jobs_wait_for_passes_the_rest_and_is_there_when_they_hear_of_it(
    upset: str, initial: bool
) -> None:
    kept = 0
    for seed in range(SEEDS):
        mirror = run(
            seed,
            crashes=upset in ("crashes", "faults"),
            tails=upset == "tails",
            faults=upset == "faults",
            compares=upset == "compares",
            filters=upset == "filters",
            initial=initial,
            workers=bool(seed % 4),
            waits=True,
        )
        assert_equal(mirror, seed)
        kept += mirror.kept
    assert kept >= SEEDS // 2


def test_what_a_power_cut_took_is_not_told_of() -> None:
    """Another object had come to the place that a job waits for, and lost its content."""
    mirror = run(637_978, crashes=True, faults=True, cuts=True, compares=True, waits=True)
    assert_equal(mirror, 637_978)


def test_names_are_known_when_their_hints_are_not() -> None:
    mirror = run(618_722, faults=True, initial=True, compares=True, waits=True)
    assert_equal(mirror, 618_722)
