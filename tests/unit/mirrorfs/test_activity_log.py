"""The file of the activity log: what is waited for is in it, and what left is not."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from mirrorfs import activity_log
from mirrorfs.activity import Activity, Slot
from mirrorfs.activity_log import ActivityLog, read
from mirrorfs.inodes import Node
from mirrorfs.journal.activity_header import FILE_NAME, ActivityHeader
from mirrorfs.journal.record import ObjectId, Tag

HEADER = ActivityHeader(bytes(range(16)), Tag(77), 76, activity_log.boot_id())


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


def node(number: int) -> tuple[Node, ObjectId]:
    made = Node(number, directory=True)
    made.identity = ObjectId(b"\1%d" % number)
    return made, made.identity


def names(directory: int) -> list[ObjectId]:
    told = read(directory)
    assert told is not None
    return sorted(slot.object for slot in told[1])


def make(directory: int, make_durable: Callable[[], bool] = lambda: True) -> ActivityLog:
    return ActivityLog(directory, HEADER, Activity(node(1)[0]), make_durable)


def test_nothing_there(directory: int) -> None:
    assert read(directory) is None


def test_a_new_file_says_whose_it_is(directory: int) -> None:
    log = make(directory)
    log.close()
    assert read(directory) == (HEADER._replace(generation=1, durable=1), [])
    assert sorted(os.listdir(directory)) == [FILE_NAME, f"{FILE_NAME}.new"]


def test_the_file_before_is_the_space_of_the_next(directory: int, tmp_path: Path) -> None:
    def inodes() -> list[int]:
        return [(tmp_path / name).stat().st_ino for name in (FILE_NAME, f"{FILE_NAME}.new")]

    activity = Activity(node(1)[0])
    activity.adopt(Slot(ObjectId(b"old"), 5, whole=True, is_object=False))
    ActivityLog(directory, HEADER, activity, lambda: True).close()
    first = inodes()
    make(directory).close()
    assert inodes() == first[::-1]
    make(directory).close()
    assert inodes() == first
    told = read(directory)
    assert told is not None
    assert told[1] == [], "nothing is left of what it said before"


def test_a_damaged_header_is_no_file(directory: int, tmp_path: Path) -> None:
    make(directory).close()
    data = bytearray((tmp_path / FILE_NAME).read_bytes())
    for at in (0, 9, 30, 90):
        (tmp_path / FILE_NAME).write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert read(directory) is None
    (tmp_path / FILE_NAME).write_bytes(data[:50])
    assert read(directory) is None


def test_entries_of_the_mount_before_are_in_the_new_file(directory: int) -> None:
    activity = Activity(node(1)[0])
    activity.adopt(Slot(ObjectId(b"old"), 5, whole=True, is_object=False))
    log = ActivityLog(directory, HEADER, activity, lambda: True)
    log.close()
    told = HEADER._replace(generation=1, durable=1)
    assert read(directory) == (told, [Slot(ObjectId(b"old"), 5, whole=True, is_object=False)])


async def test_what_is_waited_for_is_in_the_file(directory: int, nursery: trio.Nursery) -> None:
    log = make(directory)
    nursery.start_soon(log.run)
    for number in range(2, 5):
        entry = log.activity.touch(*node(number), 0)
        assert not entry.reliable
        assert await log.durable()
        assert entry.reliable
        assert len(names(directory)) == number - 1
    nursery.cancel_scope.cancel()
    log.close()


async def test_what_nobody_waits_for_follows(directory: int, nursery: trio.Nursery) -> None:
    log = make(directory)
    nursery.start_soon(log.run)
    entry = log.activity.touch(*node(2), 0)
    log.nudge()
    while not entry.durable:
        await trio.lowlevel.checkpoint()
    assert names(directory) == [node(2)[1]]
    nursery.cancel_scope.cancel()
    log.close()


async def test_a_sweep_makes_durable_first(directory: int, nursery: trio.Nursery) -> None:
    told: list[str] = []
    refused = True

    def make_durable() -> bool:
        told.append("durable")
        return not refused

    log = make(directory, make_durable)
    log.on_sweep = lambda: told.append("touch again")
    nursery.start_soon(log.run)
    log.activity.touch(*node(2), 0)
    assert await log.durable()
    await log.sweep()
    assert told == ["touch again", "durable"]
    assert len(log.activity) == 1
    refused = False
    await log.sweep()
    assert len(log.activity) == 0
    assert await log.durable()
    assert names(directory) == []
    nursery.cancel_scope.cancel()
    log.close()


async def test_what_is_touched_meanwhile_stays(directory: int, nursery: trio.Nursery) -> None:
    first = node(2)

    def touch_again() -> None:
        log.activity.touch(*first, 0)

    log = make(directory)
    log.on_sweep = touch_again
    nursery.start_soon(log.run)
    log.activity.touch(*first, 0)
    log.activity.touch(*node(3), 0)
    assert await log.durable()
    await log.sweep()
    assert await log.durable()
    assert names(directory) == [first[1]]
    nursery.cancel_scope.cancel()
    log.close()


async def test_a_disk_that_refuses_is_told_and_tried_again(
    directory: int,
    nursery: trio.Nursery,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = make(directory)
    nursery.start_soon(log.run)
    entry = log.activity.touch(*node(2), 0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", _refuse)
        assert not await log.durable()
    assert not entry.reliable
    assert log.failure is not None
    assert await log.durable()
    assert entry.reliable
    assert caplog.messages == [
        "activity: cannot be written: No space left on device",
        "activity: can be written again",
    ]
    nursery.cancel_scope.cancel()
    log.close()


def _refuse(_fd: int) -> None:
    raise OSError(28, "No space left on device")


def test_a_generation_is_told_of_when_it_is_on_the_disk(directory: int) -> None:
    seen: list[int] = []

    def witness(generation: int) -> bool:
        seen.append(generation)
        return generation < 12

    activity = Activity(node(1)[0])
    log = ActivityLog(directory, HEADER._replace(generation=9), activity, lambda: True, 0, witness)
    assert seen == [10]

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(log.run)
            assert not log.touch(*node(2))
            assert await log.durable()
            assert seen == [10, 11]
            await log.sweep()
            assert await log.durable()
            nursery.cancel_scope.cancel()

    trio.run(main)
    log.close()
    told = read(directory)
    assert told is not None
    assert told[0].generation == told[0].durable >= 12
    assert told[0].swept_ns > 0
    assert told[0].witnessed == 11
