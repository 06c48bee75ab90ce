"""Only the tree the journal names is opened as its source."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from mirrorfs.journal.record import ObjectId, SequenceNumber, Tag, handle_id
from mirrorfs.journal.segment import Header, SourceIdentity
from replicator import system_calls
from replicator.opening import adopt_source, open_source
from replicator.view import SourceRefusedError
from tests.support import mounting

pytestmark = pytest.mark.fuse  # root, for handles

VOLUME = uuid.UUID("12345678-9abc-def0-1234-56789abcdef0")
EPOCH = 2


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    made = tmp_path / "source"
    (made / ".mirrorfs").mkdir(parents=True)
    (made / ".mirrorfs" / "volume").write_text(f"{VOLUME}\n")
    return made


def identity(path: Path) -> SourceIdentity:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        handle = system_calls.handle_of(descriptor)
        return SourceIdentity(
            path=os.fsencode(path),
            fs_uuid=system_calls.file_system_uuid(descriptor),
            fsid=system_calls.file_system_id(descriptor),
            root=handle_id(EPOCH, handle.type, handle.handle),
            ctime_granularity_ns=0,
        )
    finally:
        os.close(descriptor)


def header(source: SourceIdentity) -> Header:
    return Header(
        volume=VOLUME.bytes,
        journal=b"j" * 16,
        tag=Tag(1),
        node="n",
        epoch=EPOCH,
        first=SequenceNumber(1),
        created_ns=0,
        source=source,
        incarnations=(),
    )


def test_the_source_is_opened(tree: Path) -> None:
    (tree / "f").touch()
    made = header(identity(tree))
    for source in (open_source(made), adopt_source(made, os.open(tree, os.O_RDONLY))):
        assert source.root.id == made.source.root
        assert source.list(source.root) == [b"f"]
        source.close()


def test_a_file_system_without_a_uuid_is_known_by_its_id(tree: Path) -> None:
    made = identity(tree)
    open_source(header(msgspec.structs.replace(made, fs_uuid=b""))).close()
    open_source(header(msgspec.structs.replace(made, fs_uuid=b"", fsid=0))).close()


Change = Callable[[SourceIdentity], SourceIdentity]

OTHERS: dict[str, Change] = {
    "it is another directory": lambda made: msgspec.structs.replace(
        made, root=ObjectId(made.root[:-1] + b"\0\0")
    ),
    "it is on another file system": lambda made: msgspec.structs.replace(made, fs_uuid=b"u" * 16),
    "on another file system": lambda made: msgspec.structs.replace(
        made, fs_uuid=b"", fsid=made.fsid + 1
    ),
}


@pytest.mark.parametrize(("reason", "change"), OTHERS.items(), ids=OTHERS.keys())
def test_another_tree_is_refused(tree: Path, reason: str, change: Change) -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(SourceRefusedError, match=reason):
        open_source(header(change(identity(tree))))
    assert os.listdir("/proc/self/fd") == before


def test_another_volume_is_refused(tree: Path) -> None:
    made = header(identity(tree))
    (tree / ".mirrorfs" / "volume").write_text("0000\n")
    with pytest.raises(SourceRefusedError, match=r"says 0000, the journal 12345678-"):
        open_source(made)
    (tree / ".mirrorfs" / "volume").unlink()
    with pytest.raises(SourceRefusedError, match="says nothing"):
        open_source(made)
    (tree / ".mirrorfs").rmdir()
    (tree / ".mirrorfs").touch()
    with pytest.raises(SourceRefusedError, match="says nothing"):
        open_source(made)


def test_wrong_paths_are_refused(tree: Path) -> None:
    made = identity(tree)
    (tree / "f").touch()
    for path, reason in (
        (tree / "none", "does not exist"),
        (tree / "f", "not a directory"),
        (tree / "f" / "x", "not a directory"),
        (Path("/x" + "y" * 300), "File name too long"),
    ):
        wrong = header(msgspec.structs.replace(made, path=os.fsencode(path)))
        with pytest.raises(SourceRefusedError, match=reason) as raised:
            open_source(wrong)
        assert "\n" not in str(raised.value)
        assert str(raised.value).startswith(f"{path}: ")


def test_a_mount_over_the_source_is_not_the_source(tree: Path, tmp_path: Path) -> None:
    made = header(identity(tree))
    (tmp_path / "other").mkdir()
    with mounting.bindfs(tmp_path / "other", tree) as process:
        with pytest.raises(SourceRefusedError, match="a mounted FUSE file system"):
            open_source(made)
        process.kill()
        process.wait()
        with pytest.raises(SourceRefusedError, match="mount it again"):
            open_source(made)
    open_source(made).close()
