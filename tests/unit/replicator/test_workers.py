"""Threads: real ones, copying between real directories."""

from __future__ import annotations

import os
import select
import threading
from pathlib import Path

import pytest

from mirrorfs.journal.record import ObjectId, SequenceNumber, Tag
from replicator.copying import copy_content, read_back
from replicator.staging import Copying
from replicator.view import SourceChangedError
from replicator.workers import Threads

PATIENCE_SECONDS = 60.0


def copying(number: int) -> Copying:
    made = Copying(ObjectId(b"%d" % number), number, number, (Tag(1), SequenceNumber(1)), 0)
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
    landed: list[Copying] = []
    while len(landed) < 12:
        workers.wait()
        landed += workers.landed()
    for _ in range(12):
        assert woken.acquire(timeout=PATIENCE_SECONDS)
    assert most[0] == 3
    assert {each.size for each in landed} == set(range(12))
    workers.close()


def test_what_goes_wrong_in_a_worker_is_not_lost() -> None:
    workers = Threads(1, 0, lambda: None)

    def run(_: Copying) -> None:
        raise ZeroDivisionError

    workers.begin(copying(1), run)
    workers.wait()
    with pytest.raises(ZeroDivisionError):
        workers.landed()
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
