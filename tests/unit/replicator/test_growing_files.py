"""The directory store: files that have only grown, on real disks."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from replicator import copying
from replicator.stores.base import Mark, MarkFlag, StoreError
from tests.support import mounting
from tests.support.copies import EXTENT, FILE, SIZE, Bench, bench
from tests.support.dying import KilledError, killed_at, moments
from tests.support.sites import attributes, mark

__all__ = ["bench"]

pytestmark = pytest.mark.fuse  # root, for owners and marks

CAPABILITIES = bytes.fromhex("01000002 00040000 00000000 00000000 00000000")


@pytest.fixture
def sharing(tmp_path: Path) -> Iterator[Bench]:
    """On a disk that can share blocks, with a source that is on another one."""
    with mounting.xfs(tmp_path / "disk") as disk:
        made = Bench(disk)
        made.source = tmp_path / "source"
        made.source.write_bytes(os.urandom(SIZE))
        yield made
        made.close()


def grow(bench: Bench, size: int = EXTENT) -> None:
    with bench.source.open("ab") as file:
        file.write(os.urandom(size))


def test_what_has_grown_is_appended_to(bench: Bench) -> None:
    bench.put()
    inode = (bench.site / "f").stat().st_ino
    with (bench.site / "f").open("rb") as reader:
        grow(bench)
        assert bench.put(xattrs={b"security.capability": CAPABILITIES}) == EXTENT
        assert reader.read() == bench.source.read_bytes()
    assert (bench.site / "f").stat().st_ino == inode
    assert bench.entry().mark == mark(b"f", 5)
    assert bench.entry().uid == 12
    xattrs = bench.store.xattrs(bench.store.root(), b"f")
    assert xattrs == {b"security.capability": CAPABILITIES}
    assert bench.staged() == []


def test_blocks_are_shared_and_readers_keep_what_they_had(sharing: Bench) -> None:
    sharing.put()
    old = sharing.file()
    with (sharing.site / "f").open("rb") as reader:
        grow(sharing)
        assert sharing.put() == EXTENT
        assert reader.read() == old
    assert sharing.file() == sharing.source.read_bytes()
    assert sharing.staged() == []


@pytest.mark.parametrize("at", [0, SIZE // 2, SIZE - 1])
def test_what_has_changed_is_copied_anew(bench: Bench, at: int) -> None:
    bench.put()
    grow(bench)
    with bench.source.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    assert bench.put() == SIZE + EXTENT
    assert bench.file() == bench.source.read_bytes()


def test_the_end_may_be_a_hole(bench: Bench) -> None:
    bench.put()
    with bench.source.open("r+b") as file:
        file.truncate(SIZE + 5 * EXTENT)
        file.seek(SIZE + 2 * EXTENT)
        file.write(b"x")
    bench.put()
    assert bench.file() == bench.source.read_bytes()
    assert (bench.site / "f").stat().st_blocks <= bench.source.stat().st_blocks + 8


@pytest.mark.parametrize("how", ["link", "replaced", "longer"])
def test_only_what_was_looked_at_is_appended_to(bench: Bench, how: str) -> None:
    bench.put()
    grow(bench)
    root = bench.store.root()
    base = bench.store.base(root, b"f")
    staged = bench.store.stage(attributes(FILE), bench.content(), mark(b"f", 6), base)
    assert bench.store.is_tail(staged)
    if how == "link":
        os.link(bench.site / "f", bench.path / "kept")
    elif how == "replaced":
        (bench.path / "other").write_bytes(b"x" * SIZE)
        (bench.path / "other").rename(bench.site / "f")
    else:
        with (bench.site / "f").open("ab") as file:
            file.write(b"x")
    before = bench.file()
    assert not bench.store.extend(staged, root, b"f")
    assert bench.file() == before
    assert bench.store.is_tail(staged)
    bench.store.discard(staged)
    assert bench.staged() == []


def test_the_mark_is_asked_for_when_all_is_there(bench: Bench) -> None:
    """What is appended after a state was saved must not look as if it were on the disk with it."""
    bench.put()
    grow(bench)
    root, saved = bench.store.root(), [1]
    base = bench.store.base(root, b"f")

    def told() -> Mark:
        return replace(mark(b"f", 5), saved=saved[0])

    staged = bench.store.stage(attributes(FILE), bench.content(), told, base)
    saved[0] = 2
    assert bench.store.extend(staged, root, b"f")
    found = bench.entry().mark
    assert found is not None
    assert found.saved == 2


def test_killed_at_every_call_an_appended_file_is_a_beginning_and_known_to_be(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "KERNEL_COPY_BYTES", 4096)
    whole = bench.source.read_bytes()
    old = whole[: -3 * 4096]
    seen = set()

    def attempt(call: int) -> bool:
        bench.source.write_bytes(old)
        (bench.site / "f").unlink(missing_ok=True)
        bench.put()
        bench.source.write_bytes(whole)
        killed = False
        with killed_at(call), suppress(KilledError):
            try:
                bench.put(sequence=6)
            except KilledError:
                killed = True
        bench.reopen()
        found, size = bench.entry().mark, bench.entry().size
        assert found is not None
        assert whole.startswith(bench.file())
        seen.add((size, found.sequence, MarkFlag.CONTENT in found.flags))
        if not killed:
            assert (size, found.sequence) == (len(whole), 6)
        bench.put()
        assert bench.file() == whole
        return killed

    assert moments(attempt) > 10
    assert seen == {
        (len(old), 5, True),
        *((len(old) + part * 4096, 6, False) for part in range(4)),
        (len(whole), 6, True),
    }


def test_data_is_never_in_place_before_the_mark_is(bench: Bench) -> None:
    bench.put()
    grow(bench)
    with killed_at(1 << 30) as made:
        bench.put()
    appended = made[made.index("setxattr") :]
    assert appended[:2] == ["setxattr", "fsync"]
    order = [name for name in appended if name in ("copy_file_range", "chmod", "utime")]
    assert order == ["copy_file_range", "chmod", "utime"]
    assert "setxattr" in appended[appended.index("utime") :]  # the mark, last


def test_an_append_that_fails_leaves_nothing_staged(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.put()
    grow(bench)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreError):
            bench.put()
    assert bench.staged() == []
    assert bench.put() == EXTENT


def test_a_file_that_cannot_be_read_at_the_site_is_copied_anew(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.put()
    grow(bench)
    content = bench.content()
    real = os.pread

    def fail_there(fd: int, count: int, offset: int) -> bytes:
        if fd != content.fileno():
            raise OSError(errno.EIO, "")
        return real(fd, count, offset)

    monkeypatch.setattr(os, "pread", fail_there)
    assert bench.put(content) == SIZE + EXTENT
    monkeypatch.undo()
    assert bench.file() == bench.source.read_bytes()
