"""What a thread spends: by side, the outermost call alone, errors included."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from replicator import copying, stopwatch
from replicator.stopwatch import here, timed


class Clock:
    """Goes on only by `spend`."""

    now = 0

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    made = Clock()
    monkeypatch.setattr(stopwatch, "clock", made)
    here().source = here().site = here().copy = 0
    yield made
    assert not here().inside


class Store:
    """Something with methods that take their time."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.calls = 0

    def write(self, nanoseconds: int) -> str:
        """Takes so long, of which a fifth is reading the source."""
        self.clock.now += nanoseconds
        here().source += nanoseconds // 5
        self.calls += 1
        return "done"

    def fail(self) -> None:
        """Takes 7, and fails."""
        self.clock.now += 7
        raise BlockingIOError

    def read_of(self, other: Store) -> None:
        """Another one's calls inside a call of this one."""
        other.write(10)


def test_a_call_counts_for_its_side_without_what_it_read(clock: Clock) -> None:
    store = timed(Store(clock), "site")
    assert store.write(100) == "done"
    assert store.calls == 1
    assert (here().source, here().site) == (20, 80)
    store.write(100)
    assert here().site == 160


def test_a_call_at_the_source(clock: Clock) -> None:
    source = timed(Store(clock), "source")
    with pytest.raises(BlockingIOError):
        source.fail()
    assert (here().source, here().site) == (7, 0)


def test_the_outermost_call_alone_counts(clock: Clock) -> None:
    site, source = timed(Store(clock), "site"), timed(Store(clock), "source")
    site.read_of(source)
    assert here().source + here().site == 10


def test_attributes_are_those_of_the_object_behind(clock: Clock) -> None:
    inner = Store(clock)
    store = timed(inner, "site")
    store.calls = 5
    assert (inner.calls, store.calls) == (5, 5)


def test_each_thread_has_an_account_of_its_own(clock: Clock) -> None:
    store = timed(Store(clock), "site")
    seen = []

    def work() -> None:
        store.write(50)
        seen.append(here().site)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert (seen, here().site) == ([40], 0)


@pytest.mark.parametrize("size", [0, 1000, copying.SMALL_BYTES + 4096])
def test_how_far_a_copy_is(tmp_path: Path, size: int) -> None:
    (tmp_path / "source").write_bytes(b"x" * size)
    here().size = here().copied = 0
    with (tmp_path / "source").open("rb") as source, (tmp_path / "stage").open("wb") as stage:
        copying.copy_content(source.fileno(), stage.fileno())
    assert here().size == size
    assert here().copied in (0, size)  # shared blocks are there at once
