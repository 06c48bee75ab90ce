"""Content is copied whole, holes stay holes, a source that is cut short is noticed."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from replicator import copying
from replicator.copying import copy_content
from replicator.view import SourceChangedError, SourceError
from tests.support import mounting

MIB = 1 << 20


@pytest.fixture(params=["same file system", "another one"])
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[int]:
    """An empty file; on another file system the kernel's own copy is refused (EXDEV)."""
    if request.param == "same file system":
        descriptor = os.open(tmp_path / "stage", os.O_RDWR | os.O_CREAT, 0o600)
    else:
        descriptor = os.memfd_create("stage")
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def source(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path / "source", os.O_RDWR | os.O_CREAT, 0o600)
    yield descriptor
    os.close(descriptor)


def content(descriptor: int) -> bytes:
    return os.pread(descriptor, os.fstat(descriptor).st_size + 1, 0)


def blocks(descriptor: int) -> int:
    return os.fstat(descriptor).st_blocks * 512


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, MIB, 3 * MIB + 17])
def test_content_is_copied_whole(source: int, stage: int, size: int) -> None:
    data = os.urandom(size)
    os.write(source, data)
    assert copy_content(source, stage) == size
    assert content(stage) == data


@pytest.mark.parametrize(
    "extents",
    [
        [],
        [(0, 4096)],
        [(MIB, 4096)],
        [(3 * MIB - 4096, 4096)],
        [(4096, 4096), (MIB, 65536), (2 * MIB, 1)],
        [(3 * MIB - 1, 1)],
    ],
)
def test_holes_stay_holes(source: int, stage: int, extents: list[tuple[int, int]]) -> None:
    os.ftruncate(source, 3 * MIB)
    for offset, length in extents:
        os.pwrite(source, b"x" * length, offset)
    assert copy_content(source, stage) == 3 * MIB
    assert content(stage) == content(source)
    assert blocks(stage) <= blocks(source)


@pytest.mark.fuse  # root, to mount
def test_blocks_are_shared_where_the_file_system_can(tmp_path: Path) -> None:
    data = os.urandom(20 * MIB)
    with mounting.xfs(tmp_path / "xfs") as mounted, ExitStack() as opened:
        source, stage = (
            opened.enter_context(mounted.joinpath(name).open("wb+", buffering=0))
            for name in ("source", "stage")
        )
        source.write(data)
        os.fsync(source.fileno())
        free = os.statvfs(mounted).f_bfree
        assert copy_content(source.fileno(), stage.fileno()) == len(data)
        os.fsync(stage.fileno())
        assert content(stage.fileno()) == data
        assert (free - os.statvfs(mounted).f_bfree) * 4096 < MIB


@pytest.mark.parametrize("small", [0, MIB])
def test_more_than_one_round_of_each_loop(
    source: int, stage: int, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "SMALL_BYTES", small)
    monkeypatch.setattr(copying, "KERNEL_COPY_BYTES", 1000)
    monkeypatch.setattr(copying, "BUFFER_BYTES", 1000)
    data = os.urandom(10_500)
    os.write(source, data)
    assert copy_content(source, stage) == len(data)
    assert content(stage) == data


def test_a_source_shorter_than_it_says_is_noticed() -> None:
    """Files of sysfs say 4,096 bytes and hold less: what a cut during the copy looks like."""
    source = os.open("/sys/kernel/uevent_seqnum", os.O_RDONLY)
    stage = os.memfd_create("stage")
    with pytest.raises(SourceChangedError):
        copy_content(source, stage)
    os.close(source)
    os.close(stage)


@pytest.mark.parametrize("sparse", [False, True])
def test_a_source_cut_after_its_data_was_copied_is_noticed(
    source: int, stage: int, sparse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.write(source, b"x" * 5000)
    if sparse:
        os.ftruncate(source, MIB)
    status = os.fstat

    def cut_then_look(descriptor: int) -> os.stat_result:
        """The first look is at the start, the second at the end."""
        found = status(descriptor)
        os.ftruncate(source, 4999)
        return found

    monkeypatch.setattr(os, "fstat", cut_then_look)
    with pytest.raises(SourceChangedError):
        copy_content(source, stage)


def test_a_source_that_grows_is_copied_as_long_as_it_was(source: int, stage: int) -> None:
    os.write(source, b"x" * 5000)
    os.lseek(source, 0, os.SEEK_SET)
    assert copy_content(source, stage) == 5000


def test_errors_of_the_source_are_told_from_those_of_the_stage(source: int, tmp_path: Path) -> None:
    os.write(source, b"x" * 5000)
    unreadable = os.open(tmp_path / "source", os.O_WRONLY)
    stage = os.memfd_create("stage")
    with pytest.raises(SourceError) as raised:
        copy_content(unreadable, stage)
    assert (raised.value.errno, raised.value.transient) == (errno.EBADF, False)
    os.close(unreadable)
    os.close(stage)

    full = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(OSError, match="No space left"):
        copy_content(source, full)
    os.close(full)
