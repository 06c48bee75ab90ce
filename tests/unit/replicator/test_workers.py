"""Threads: real ones, copying between real directories."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from mirrorfs.journal.record import ObjectId, SequenceNumber, Tag
from replicator.copying import copy_content, read_back
from replicator.planner import ObjectItem
from replicator.staging import Copying
from replicator.view import SourceChangedError
from replicator.workers import Threads

PATIENCE_SECONDS = 60.0


def copying(number: int) -> Copying:
    identity, first = ObjectId(b"%d" % number), SequenceNumber(1)
    item = ObjectItem(identity, (first, 0))
    made = Copying(identity, number, number, (Tag(1), first), 0, item)
    made.wanted[None] = None
    return made


def test_so_many_at_once_and_no_more() -> None:
    woken = threading.Semaphore(0)
    workers = Threads(3, 0, lambda: woken.release())
    together, go = threading.Barrier(4), threading.Event()
    most, lock, now = [0], threading.Lock(), [0]

    def run(_: Copying) -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
            first = most[0] <= 3 and not go.is_set()
        if first:
            together.wait(PATIENCE_SECONDS)
            go.wait(PATIENCE_SECONDS)
        with lock:
            now[0] -= 1

    for number in range(12):
        workers.begin(copying(number), run)
    together.wait(PATIENCE_SECONDS)  # three are at it
    assert workers.busy == 3
    go.set()
    all_landed: list[Copying] = []
    while len(all_landed) < 12:
        all_landed += landed(workers)
    for _ in range(12):
        assert woken.acquire(timeout=PATIENCE_SECONDS)
    assert most[0] == 3
    assert {each.size for each in all_landed} == set(range(12))
    workers.close()


def landed(workers: Threads) -> list[Copying]:
    """Wait for one."""
    found: list[Copying] = []
    while not found:
        workers.wait()
        found += workers.landed()
    return found


def test_what_goes_wrong_in_a_worker_is_not_lost() -> None:
    workers = Threads(1, 0, lambda: None)

    def run(_: Copying) -> None:
        raise ZeroDivisionError

    workers.begin(copying(1), run)
    with pytest.raises(ZeroDivisionError):
        landed(workers)
    workers.close()


def test_close_waits_for_what_is_being_copied_and_begins_nothing() -> None:
    workers = Threads(1, 0, lambda: None)
    begun, go, done = threading.Event(), threading.Event(), []

    def run(each: Copying) -> None:
        begun.set()
        go.wait(PATIENCE_SECONDS)
        done.append(each.size)

    workers.begin(copying(1), run)
    workers.begin(copying(2), run)
    assert begun.wait(PATIENCE_SECONDS)
    closer = threading.Thread(target=workers.close)
    closer.start()
    while not workers.closing:
        select.select([], [], [], 0.001)
    go.set()
    closer.join(PATIENCE_SECONDS)
    assert done == [1]


def files(path: Path, source: bytes, stage: bytes) -> tuple[int, int]:
    descriptors = []
    for name, data in ((b"source", source), (b"stage", stage)):
        fd = os.open(bytes(path) + b"/" + name, os.O_RDWR | os.O_CREAT)
        os.write(fd, data)
        descriptors.append(fd)
    return descriptors[0], descriptors[1]


def test_what_is_read_back_is_compared(tmp_path: Path) -> None:
    source, stage = files(tmp_path, b"content", b"content")
    read_back(source, stage)
    os.pwrite(stage, b"C", 0)
    with pytest.raises(OSError, match="read back"):
        read_back(source, stage)
    for fd in (source, stage):
        os.close(fd)


def test_a_source_that_changes_meanwhile_proves_nothing(tmp_path: Path) -> None:
    source, stage = files(tmp_path, b"content", b"older")

    def change(count: int) -> int:
        os.pwrite(source, b"C", 0)
        os.utime(source, ns=(1, 1))
        return count

    with pytest.raises(SourceChangedError):
        read_back(source, stage, change)
    for fd in (source, stage):
        os.close(fd)


@pytest.mark.parametrize("size", [10, 3 << 20])
def test_a_copy_ends_when_nobody_waits_for_it(tmp_path: Path, size: int) -> None:
    source, stage = files(tmp_path, b"x" * size, b"")

    def give_up(_: int) -> int:
        raise SourceChangedError

    with pytest.raises(SourceChangedError):
        copy_content(source, stage, give_up)
    for fd in (source, stage):
        os.close(fd)


def parts_of(barrier: threading.Barrier, count: int) -> list[Callable[[], None]]:
    return [lambda: void(barrier.wait(PATIENCE_SECONDS)) for _ in range(count)]


def void(_: object) -> None: ...


def test_who_has_nothing_to_do_helps_with_a_large_file() -> None:
    workers = Threads(4, 0, lambda: None)
    barrier = threading.Barrier(3)  # nobody passes it alone: a quarter of four is for small files
    done = []

    def run(each: Copying) -> None:
        workers.share(parts_of(barrier, 6))
        done.append(each.size)

    workers.begin(copying(5 << 20), run)
    workers.wait()
    assert done == [5 << 20]
    workers.close()
    assert workers.busy == 0


def test_small_files_do_not_wait_for_those_who_help() -> None:
    workers = Threads(4, 0, lambda: None)
    began, go = threading.Barrier(4), threading.Event()
    order, turns = [], iter(range(100))

    def part() -> None:
        if next(turns) < 3:
            began.wait(PATIENCE_SECONDS)
        if not go.wait(PATIENCE_SECONDS):
            order.append(-1)

    def run(each: Copying) -> None:
        if each.size > 10:
            workers.share([part] * 6)
        order.append(each.size)

    workers.begin(copying(5 << 20), run)
    began.wait(PATIENCE_SECONDS)
    workers.begin(copying(7), run)
    workers.wait()
    assert order == [7]
    go.set()
    while len(order) < 2:
        workers.wait()
        workers.landed()
    workers.close()


def test_a_part_that_fails_ends_the_others_and_is_told() -> None:
    workers = Threads(2, 0, lambda: None)
    made = []

    def fail() -> None:
        raise SourceChangedError("one part")

    workers.closing = True  # nobody helps
    with pytest.raises(SourceChangedError, match="one part"):
        workers.share([fail, *([lambda: made.append(1)] * 100)])
    assert made == []
    workers.share([])
    workers.close()


def test_bandwidth_is_shared_and_nobody_waits_for_it_who_decides() -> None:
    workers = Threads(2, 1 << 20, lambda: None)
    assert workers.idle(1 << 20)
    assert workers.allow(5 << 20, None) == 5 << 20
    assert not workers.idle(1)
    looks = []

    def go_on() -> None:
        looks.append(1)
        if len(looks) > 2:
            raise SourceChangedError("nobody waits")

    with pytest.raises(SourceChangedError):  # it would be four seconds
        workers.allow(1, go_on)
    workers.close()
    with pytest.raises(SourceChangedError, match="closed"):
        workers.allow(1, lambda: None)


def test_without_a_limit_nobody_waits() -> None:
    workers = Threads(1, 0, lambda: None)
    assert workers.idle(1 << 40)
    assert workers.allow(1 << 40, lambda: None) == 1 << 40
    workers.close()


def test_the_end_does_not_wait_for_bandwidth() -> None:
    workers = Threads(1, 1000, lambda: None)
    began = threading.Event()
    errors: list[Exception] = []

    def run(each: Copying) -> None:
        workers.allow(10**9, None)  # a million seconds
        began.set()
        try:
            workers.allow(1, lambda: None)
        except SourceChangedError as error:
            errors.append(error)

    workers.begin(copying(1), run)
    assert began.wait(PATIENCE_SECONDS)
    workers.close()
    assert len(errors) == 1
