"""Space kept on a journal's disk: real small file systems, filled up."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from mirrorfs import reserve as reserve_module
from mirrorfs.reserve import RESERVE_NAME, Reserve, Room
from tests.support.failing_system import FAILED, NO_SPACE, FailingSystem
from tests.support.mounting import ext4, fill, tmpfs

SIZE = 256 << 10


def test_it_takes_and_gives_part_by_part(tmp_path: Path) -> None:
    reserve = Reserve(str(tmp_path), SIZE)
    file = tmp_path / RESERVE_NAME
    assert not reserve.give(), "there is none"
    assert reserve.make_whole()
    assert file.stat().st_blocks * 512 >= SIZE
    sizes = []
    while reserve.give():
        sizes.append(file.stat().st_size if file.exists() else 0)
    assert sizes == [192 << 10, 128 << 10, 64 << 10, 0]
    assert not file.exists()
    assert reserve.make_whole()
    assert Reserve(str(tmp_path), SIZE // 2).make_whole()
    assert file.stat().st_size == SIZE // 2, "less is asked for now"


def test_none_is_wanted(tmp_path: Path) -> None:
    assert Reserve(str(tmp_path), 0).make_whole()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fuse
@pytest.mark.parametrize("make", [ext4, tmpfs])
def test_a_disk_that_fills_up(
    tmp_path: Path, make: Callable[[Path], AbstractContextManager[Path]]
) -> None:
    with make(tmp_path / "disk") as disk:
        reserve = Reserve(str(disk), 64 << 20)
        assert reserve.make_whole()
        statistics = os.statvfs(disk)
        total = statistics.f_blocks * statistics.f_frsize
        assert (disk / RESERVE_NAME).stat().st_size == total // 16, "a sixteenth at most"
        filler = fill(disk)
        with (disk / "records").open("wb", buffering=0) as records:
            with pytest.raises(OSError, match="No space"):
                records.write(bytes(4096))
            assert reserve.give()
            assert records.write(bytes(4096)) == 4096
        assert not reserve.make_whole(), "there is no room"
        assert reserve.give(), "and what it has, it keeps"
        filler.unlink()
        assert reserve.make_whole()


@pytest.mark.parametrize("call", ["statvfs", "open", "posix_fallocate", "fsync", "ftruncate"])
def test_a_disk_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    reserve = Reserve(str(tmp_path), SIZE)
    assert reserve.make_whole()
    assert reserve.give()
    system = FailingSystem()
    monkeypatch.setattr(reserve_module, "os", system)
    system.failing[call] = FAILED if call != "posix_fallocate" else NO_SPACE
    before = (tmp_path / RESERVE_NAME).stat().st_size
    assert reserve.make_whole() == (call == "ftruncate")
    if call in ("open", "ftruncate", "fsync"):
        assert not reserve.give()
    elif call == "posix_fallocate":
        assert (tmp_path / RESERVE_NAME).stat().st_size == before


def test_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = Room(str(tmp_path))
    assert (room.bytes, room.seconds) == (None, None)
    left = iter([1000, 900, 950, 500])

    class System:
        """`os`, of a disk with that much left."""

        def statvfs(self, path: str) -> object:
            class Found:
                f_bfree, f_frsize = next(left), 10

            return Found

    monkeypatch.setattr(reserve_module, "os", System())
    room.look(100.0)
    assert (room.bytes, room.seconds) == (10000, None)
    room.look(110.0)
    assert (room.bytes, room.seconds) == (9000, 90.0)
    room.look(120.0)
    assert (room.bytes, room.seconds) == (9500, 380.0)
    room.look(150.0)
    assert (room.bytes, room.seconds) == (5000, 50.0)
    system = FailingSystem()
    system.failing["statvfs"] = FAILED
    monkeypatch.setattr(reserve_module, "os", system)
    room.look(160.0)
    assert (room.bytes, room.seconds) == (None, None)
