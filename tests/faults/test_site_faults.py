"""Every call of a site store fails, one after the other, in every kind of change: once, and for
ever. The site ends equal, or says what it could not do; and it is equal when the fault is over.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from random import Random
from typing import Any

import pytest

from mirrorfs.journal.record import ObjectId, Place, SequenceNumber
from replicator.stores.base import StoreError
from replicator.surroundings import TroubleError
from tests.support import campaign
from tests.support.failing_store import FailingStore
from tests.support.mirror import Mirror, assert_equal, contents_of_site, contents_of_source
from tests.support.model_tree import ModelTree, Thing

ERRORS = (
    *(errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.ESTALE),
    errno.EINTR,
)
EVERY = campaign.pick(23, 1)
"""One in so many of all combinations is tried."""
_ALL = 1 << 30
_DIRECTORY = stat.S_IFDIR | 0o755


def made(tree: ModelTree, parent: Thing, *names: bytes) -> list[Thing]:
    """Files with content."""
    things = [tree.create(parent, name) for name in names]
    for thing in things:
        tree.write(thing)
        tree.flush(thing)
    return things


def grow(tree: ModelTree) -> None:
    """What is there before."""
    root = tree.root_thing
    one, two, three = (tree.create(root, name, _DIRECTORY) for name in (b"one", b"two", b"three"))
    first, *_ = made(tree, one, b"linked", b"file", b"other")
    tree.link(first, two, b"linked")
    below = tree.create(two, b"below", _DIRECTORY)
    made(tree, below, b"deep", b"deeper")
    made(tree, three, b"gone", b"saved")


def at(tree: ModelTree, path: bytes) -> Thing:
    """What is there."""
    thing = tree.root_thing
    for name in path.split(b"/"):
        thing = thing.names[name]
    return thing


def write(tree: ModelTree, path: bytes) -> None:
    """New content."""
    tree.write(at(tree, path))
    tree.flush(at(tree, path))


def create(mirror: Mirror) -> None:
    tree, root = mirror.tree, mirror.tree.root_thing
    made(tree, at(tree, b"one"), b"new")
    made(tree, tree.create(root, b"fresh", _DIRECTORY), b"in", b"it")


def rewrite(mirror: Mirror) -> None:
    tree = mirror.tree
    for path in (b"one/file", b"one/linked"):
        write(tree, path)
    tree.attributes(at(tree, b"one/other"))
    tree.attributes(at(tree, b"two"))


def rename(mirror: Mirror) -> None:
    tree = mirror.tree
    tree.rename(at(tree, b"one"), b"file", at(tree, b"two"), b"file")
    tree.rename(at(tree, b"three"), b"saved", at(tree, b"one"), b"other")
    write(tree, b"two/file")


def links(mirror: Mirror) -> None:
    tree = mirror.tree
    tree.link(at(tree, b"one/linked"), at(tree, b"three"), b"linked")
    tree.unlink(at(tree, b"one"), b"linked")
    write(tree, b"three/linked")
    tree.link(at(tree, b"one/file"), at(tree, b"two"), b"second")


def move_directories(mirror: Mirror) -> None:
    tree, root = mirror.tree, mirror.tree.root_thing
    tree.rename(at(tree, b"two"), b"below", at(tree, b"one"), b"below")
    write(tree, b"one/below/deep")
    tree.rename(root, b"one", at(tree, b"three"), b"one")


def remove_directories(mirror: Mirror) -> None:
    tree, root = mirror.tree, mirror.tree.root_thing
    tree.rename(at(tree, b"three"), b"saved", root, b"saved")
    tree.unlink(at(tree, b"three"), b"gone")
    if not at(tree, b"three").names:
        tree.unlink(root, b"three")
    tree.rename(at(tree, b"two/below"), b"deep", at(tree, b"one"), b"deep")
    tree.unlink(at(tree, b"two/below"), b"deeper")
    tree.unlink(at(tree, b"two"), b"below")


def exchange(mirror: Mirror) -> None:
    tree, root = mirror.tree, mirror.tree.root_thing
    tree.exchange(root, b"one", at(tree, b"two"), b"below")
    tree.exchange(root, b"three", at(tree, b"two"), b"linked")


def reconcile(mirror: Mirror) -> None:
    """There are no records of what was done."""
    tree = mirror.tree
    tree.degrade(8192)
    tree.link(at(tree, b"one/linked"), at(tree, b"three"), b"linked")
    tree.unlink(at(tree, b"one"), b"linked")
    write(tree, b"one/file")
    tree.rename(at(tree, b"one"), b"other", at(tree, b"two"), b"other")
    remove_directories(mirror)
    tree.resume()


def initial(mirror: Mirror) -> None:
    mirror.start_anew()


SCENARIOS: tuple[Callable[[Mirror], None], ...] = (
    *(create, rewrite, rename, links, move_directories, remove_directories, exchange),
    *(reconcile, initial),
)


class Trial:
    """One scenario with a site whose calls may fail."""

    def __init__(self, scenario: Callable[[Mirror], None], *, workers: bool) -> None:
        mirror = self.mirror = Mirror(Random(1), inline_bytes=-1 if workers else 1 << 20)
        grow(mirror.tree)
        self.failing = FailingStore(mirror.store.inner)
        mirror.store.inner = self.failing  # type: ignore[assignment]
        mirror.start(deepcopy(mirror.fresh))
        if scenario is not initial:
            self.work()
        self.failing.count, self.failing.calls = 0, []
        scenario(mirror)

    def work(self) -> str:
        """As a driver would, for a while; why it does not come to an end, or ""."""
        mirror, reason = self.mirror, ""
        for _ in range(14):
            mirror.feed(_ALL)
            mirror.begun = mirror.tree.clock
            reason = ""
            for _ in range(12):
                try:
                    more = mirror.engine.work(_ALL) > 0
                    mirror.engine.step.finish()
                except (TroubleError, StoreError) as error:
                    reason, more = str(error), True
                if mirror.workers.busy:
                    mirror.workers.wait()
                elif not more:
                    break
            mirror.now += 100_000_000_000
            with suppress(StoreError):
                mirror.engine.save()
            mirror.check_held()
        return reason

    def differing(self) -> list[bytes]:
        """Paths that are not as in the source."""
        want = contents_of_source(self.mirror.tree, self.mirror.wanted)
        have = contents_of_site(self.failing.inner)
        return [path for path in want.keys() | have.keys() if want.get(path) != have.get(path)]

    def unsaid(self) -> list[bytes]:
        """Those of them of which no held step tells."""
        steps = self.mirror.engine.held
        tree, told = self.mirror.tree, []
        for step in steps:
            thing: Any = next(
                (each for each in tree.things.values() if each.id == step.object), None
            )
            if step.kind == "reconcile":
                thing = next(each for each in tree.things.values() if each.id == step.directory)
            elif step.directory:
                place = Place(ObjectId(step.directory), step.name)
                told.append(path_of(tree, place).rstrip(b"/"))
            if thing is tree.root_thing:
                told.append(b"")
            told += [] if thing is None else [path_of(tree, place) for place in thing.places]
        return [
            path
            for path in self.differing()
            if not any(near(name, each) for name in self.names(path.lstrip(b"/")) for each in told)
        ]

    def names(self, path: bytes) -> list[bytes]:
        """All paths of what the source has there."""
        try:
            thing = at(self.mirror.tree, path)
        except KeyError:
            return [path]
        return [path, *(path_of(self.mirror.tree, place) for place in thing.places)]


def path_of(tree: ModelTree, place: Any) -> bytes:
    """Of a place, now."""
    thing = tree.things[place.directory]
    above = b"" if not thing.places else path_of(tree, thing.places[0])
    return b"/".join(part for part in (above, place.name) if part)


def near(path: bytes, held: bytes) -> bool:
    """Whether a step that is held there may be why it differs: it is there, below or above."""
    return (
        not path
        or not held
        or path == held
        or path.startswith(held + b"/")
        or held.startswith(path + b"/")
    )


def count(scenario: Callable[[Mirror], None], *, workers: bool) -> list[str]:
    """The methods called if nothing fails."""
    trial = Trial(scenario, workers=workers)
    assert trial.work() == ""
    assert_equal_now(trial)
    return trial.failing.calls


def assert_equal_now(trial: Trial) -> None:
    trial.failing.heal()
    inner, trial.mirror.store.inner = trial.mirror.store.inner, trial.failing.inner
    assert_equal(trial.mirror, 0)
    trial.mirror.store.inner = inner


@pytest.mark.parametrize("for_ever", [False, True], ids=["once", "for ever"])
@pytest.mark.parametrize("workers", [False, True], ids=["inline", "workers"])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_every_call_fails(
    scenario: Callable[[Mirror], None],
    workers: bool,
    for_ever: bool,
    capfd: pytest.CaptureFixture[str],
) -> None:
    calls, tried, waited = count(scenario, workers=workers), 0, 0
    for number, (call, code) in enumerate(
        (call, code) for call in range(1, len(calls) + 1) for code in ERRORS
    ):
        remembers = calls[call - 1] == "write_file" and code == errno.EIO
        if (number + campaign.FIRST_SEED) % EVERY and not remembers:
            continue
        trial = Trial(scenario, workers=workers)
        failing = trial.failing
        failing.fail_at, failing.errno, failing.for_ever = call, code, for_ever
        reason = trial.work()
        tried += 1
        what = f"{scenario.__name__}: call {call}, {failing.met}, {errno.errorcode[code]}"
        if for_ever and reason:
            waited += 1  # the site as a whole waits, and says so
        elif for_ever:
            assert trial.unsaid() == [], what
        else:
            assert (reason, trial.differing()) == ("", []), what
        if trial.differing():
            clean = trial.mirror.engine.state.clean
            assert clean < trial.mirror.tree.head, what
        failing.heal()
        trial.work()
        assert_equal_now(trial)
        assert trial.mirror.engine.state.clean == trial.mirror.tree.head, what
        assert trial.mirror.engine.held == [], what
    with capfd.disabled():
        print(f"\n{tried} of {len(calls) * len(ERRORS)} faults, {waited} stopped all")  # noqa: T201


def twice(first: int, second: int, *, workers: bool) -> tuple[Trial, FailingStore]:
    """An initial copy in which one call fails for good, and then another one once."""
    trial = Trial(initial, workers=workers)
    failing, others = trial.failing, FailingStore(trial.failing)
    trial.mirror.store.inner = others  # type: ignore[assignment]
    trial.mirror.names_max = 64
    trial.mirror.start(deepcopy(trial.mirror.fresh))
    failing.count = others.count = 0
    failing.fail_at, failing.errno, failing.for_ever = first, errno.EACCES, True
    others.fail_at, others.errno = second, errno.EIO
    trial.work()
    return trial, others


@pytest.mark.parametrize("workers", [False, True], ids=["inline", "workers"])
def test_what_failed_in_a_comparison_is_not_forgotten_for_what_fails_next(workers: bool) -> None:
    """Nor is what waits for its bytes there."""
    calls = len(count(initial, workers=workers))
    met = {first: twice(first, 0, workers=workers)[0].failing.met for first in range(1, calls)}
    first = next(number for number, each in met.items() if each == ("lookup", b"file"))
    for second in range(first + 1, first + 20):
        trial, others = twice(first, second, workers=workers)
        assert trial.unsaid() == [], others.met
        assert trial.differing() == [b"/one/file"], others.met
        state = trial.mirror.engine.state
        assert (state.initial, state.clean < trial.mirror.tree.head) == (False, True), others.met


def test_the_clean_cursor_is_below_a_held_step() -> None:
    trial = Trial(rewrite, workers=False)
    trial.failing.fail_at, trial.failing.errno, trial.failing.for_ever = 1, errno.EACCES, True
    trial.work()
    first = SequenceNumber(min(step.sequence for step in trial.mirror.engine.held))
    assert trial.mirror.engine.state.clean == first - 1
