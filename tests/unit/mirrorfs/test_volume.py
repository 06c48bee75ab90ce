"""The reserved directory of a source: its UUID, its lock, its mark."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirrorfs.errors import RefusedError, UnusableError
from mirrorfs.volume import VolumeDirectory


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_PATH)
    yield fd
    os.close(fd)


def test_uuid(tmp_path: Path, root: int) -> None:
    volume = VolumeDirectory(root, str(tmp_path))
    assert volume.uuid() is None
    made = volume.make_uuid()
    assert volume.uuid() == made
    assert (tmp_path / ".mirrorfs" / "volume").read_text() == f"{uuid.UUID(bytes=made)}\n"
    assert (tmp_path / ".mirrorfs").stat().st_mode & 0o777 == 0o700
    volume.close()
    again = VolumeDirectory(root, str(tmp_path))
    assert again.uuid() == made
    again.close()


@pytest.mark.parametrize("data", [b"", b"nonsense", b"\xff\xfe", bytes(5000)])
def test_a_spoiled_uuid(tmp_path: Path, root: int, data: bytes) -> None:
    volume = VolumeDirectory(root, str(tmp_path))
    (tmp_path / ".mirrorfs" / "volume").write_bytes(data)
    with pytest.raises(UnusableError, match=r"/\.mirrorfs/volume: not a UUID"):
        volume.uuid()
    volume.close()


def test_one_lock(tmp_path: Path, root: int) -> None:
    first, second = VolumeDirectory(root, "here"), VolumeDirectory(root, "here")
    first.lock()
    with pytest.raises(RefusedError, match="here: another mirrorfs"):
        second.lock()
    first.close()
    second.lock()
    second.close()


def test_marks(tmp_path: Path, root: int) -> None:
    volume = VolumeDirectory(root, str(tmp_path))
    file = tmp_path / ".mirrorfs" / "degraded"
    assert volume.read_marks() is None
    volume.prepare_marks()
    spare = (tmp_path / ".mirrorfs" / "spare").stat()
    assert spare.st_blocks * 512 >= 64 << 10
    volume.begin_marks(b"one\n")
    volume.append_marks(b"two\n")
    assert file.stat().st_ino == spare.st_ino, "in the space that was kept"
    assert file.read_bytes().rstrip(b"\0") == b"one\ntwo\n"
    volume.begin_marks(b"anew\n")
    assert file.read_bytes() == b"anew\n"
    volume.overwrite_marks(b"ANE")
    assert volume.read_marks() == b"ANEw\n"
    volume.clear_marks()
    volume.clear_marks()
    assert volume.read_marks() is None
    assert not volume.marks_begun
    with pytest.raises(OSError, match="Bad file"):
        volume.overwrite_marks(b"nothing to write over")
    assert os.listdir(tmp_path / ".mirrorfs") == ["spare"]
    volume.close()


def test_marks_that_cannot_be_read(tmp_path: Path, root: int) -> None:
    volume = VolumeDirectory(root, str(tmp_path))
    (tmp_path / ".mirrorfs" / "degraded").mkdir()
    with pytest.raises(UnusableError, match=r"/\.mirrorfs/degraded: Is a directory"):
        volume.read_marks()
    volume.close()


def test_a_reserved_name_that_is_a_symlink(tmp_path: Path, root: int) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / ".mirrorfs").symlink_to("other")
    with pytest.raises(UnusableError, match="the name is reserved"):
        VolumeDirectory(root, str(tmp_path))


def test_it_bears_witness_of_the_journal(tmp_path: Path, root: int) -> None:
    volume, journal = VolumeDirectory(root, str(tmp_path)), bytes(range(16))
    assert volume.witness() is None
    volume.bear_witness(journal, 7)
    volume.bear_witness(journal, 8)
    found = volume.witness()
    assert found is not None
    assert found[:2] == (journal, 8)
    volume.close()
    again = VolumeDirectory(root, str(tmp_path))
    assert again.witness() == found
    path = tmp_path / ".mirrorfs" / "activity"
    data = path.read_bytes()
    for spoiled in (b"", data[:-1], data[:-1] + b"x", bytes(len(data))):
        path.write_bytes(spoiled)
        assert again.witness() is None
    again.close()
