"""The directory store: large files in extents, and files that have only grown, on real disks."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from mirrorfs.journal.record import ObjectId, Tag
from replicator import copying
from replicator.stores.base import Attributes, Mark, MarkFlag, SiteEntry, StoreError, Version
from replicator.stores.directory import DirectoryStore
from replicator.stores.unfinished import EXTENTS
from replicator.view import SourceChangedError
from tests.support import mounting
from tests.support.dying import KilledError, killed_at, moments
from tests.support.sites import VOLUME, attributes, mark

pytestmark = pytest.mark.fuse  # root, for owners and marks

EXTENT = 16 << 10
SIZE = 10 * EXTENT + 100
BOOT = "this one"
FILE = stat.S_IFREG | 0o640
CAPABILITIES = bytes.fromhex("01000002 00040000 00000000 00000000 00000000")


class Real:
    """base.Content of a file of a disk; `failing` ends the reading after so many bytes."""

    def __init__(self, path: Path, failing: BaseException | None = None, after: int = 0) -> None:
        self.file = path.open("rb", buffering=0)
        found = os.fstat(self.file.fileno())
        self.version: Version | None = Version(
            ObjectId(b"\1f"), Tag(7), found.st_size, found.st_mtime_ns, found.st_ctime_ns
        )
        self.failing, self.left, self.read_bytes = failing, after, 0
        self.shared = 0

    def fileno(self) -> int:
        return self.file.fileno()

    def read(self) -> bytes:
        raise AssertionError("the store copies")

    def check(self, count: int) -> int:
        if self.failing is not None and self.left <= 0:
            raise self.failing
        self.left -= count
        self.read_bytes += count
        return count

    def share(self, parts: Sequence[Callable[[], None]]) -> None:
        self.shared += len(parts)
        for part in parts:
            part()

    def close(self) -> None:
        self.file.close()


class Bench:
    """A source file and a site on one disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.site = path / "site"
        self.source = path / "source"
        self.site.mkdir()
        self.store = self.opened()
        self.contents: list[Real] = []

    def opened(self, boot: str = BOOT) -> DirectoryStore:
        store = DirectoryStore.open(bytes(self.site), volume=VOLUME, name="s", boot=boot)
        store.unfinished.large_bytes = 2 * EXTENT
        store.unfinished.each = store.unfinished.sync_bytes = EXTENT
        return store

    def reopen(self, boot: str = BOOT) -> None:
        self.store.close()
        self.store = self.opened(boot)

    def content(self, failing: BaseException | None = None, after: int = 0) -> Real:
        made = Real(self.source, failing, after)
        self.contents.append(made)
        return made

    def put(self, content: Real | None = None, *, sequence: int = 5, **fields: object) -> int:
        """A copy at `f`; how many bytes were written for it."""
        before = self.store.bytes_written
        root = self.store.root()
        entry = self.store.lookup(root, b"f")
        base = None if entry is None else self.store.base(root, b"f")
        wanted = attributes(FILE, uid=12, **fields)
        staged = self.store.stage(
            wanted, content or self.content(), lambda: mark(b"f", sequence), base
        )
        if not self.store.is_tail(staged):
            self.store.commit(staged, root, b"f")
        elif not self.store.extend(staged, root, b"f"):
            self.store.discard(staged)
        return self.store.bytes_written - before

    def file(self) -> bytes:
        return (self.site / "f").read_bytes()

    def entry(self) -> SiteEntry:
        found = self.store.lookup(self.store.root(), b"f")
        assert found is not None
        return found

    def staged(self) -> list[str]:
        return sorted(os.listdir(self.site / ".mirrorfs" / "stage"))

    def close(self) -> None:
        self.store.close()
        for each in self.contents:
            each.close()


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """On a disk that cannot share blocks, whatever the machine's own can do."""
    monkeypatch.setattr(copying, "SMALL_BYTES", 0)
    with mounting.ext4(tmp_path / "disk", 64 << 20) as disk:
        made = Bench(disk)
        made.source.write_bytes(os.urandom(SIZE))
        yield made
        made.close()


@pytest.fixture
def sharing(tmp_path: Path) -> Iterator[Bench]:
    """On a disk that can share blocks, with a source that is on another one."""
    with mounting.xfs(tmp_path / "disk") as disk:
        made = Bench(disk)
        made.source = tmp_path / "source"
        made.source.write_bytes(os.urandom(SIZE))
        yield made
        made.close()


# extents


def test_a_large_file_is_copied_in_extents(bench: Bench) -> None:
    content = bench.content()
    assert bench.put(content) == SIZE
    assert content.shared == 11
    assert bench.file() == bench.source.read_bytes()
    assert bench.entry().mark == mark(b"f", 5)
    assert EXTENTS not in os.listxattr(bench.site / "f")
    assert bench.staged() == []


def test_nothing_is_written_down_before_it_is_on_the_disk(bench: Bench) -> None:
    with killed_at(1 << 30) as made:
        bench.put()
    copied = made[: made.index("chown") - 1]  # then come the mark, and the rest
    told = [number for number, name in enumerate(copied) if name == "setxattr"]
    assert len(told) == 10
    assert all(copied[number - 1] == "fdatasync" for number in told)


def test_holes_of_a_large_file_stay_holes(bench: Bench) -> None:
    with bench.source.open("wb") as file:
        file.truncate(100 * EXTENT)
        for at in (0, 50 * EXTENT, 99 * EXTENT):
            file.seek(at)
            file.write(b"x" * 10)
    bench.put()
    assert bench.file() == bench.source.read_bytes()
    assert (bench.site / "f").stat().st_blocks <= bench.source.stat().st_blocks


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
def test_a_copy_that_failed_goes_on_where_it_ended(bench: Bench, code: int) -> None:
    with pytest.raises(StoreError):
        bench.put(bench.content(OSError(code, ""), after=5 * EXTENT))
    (name,) = bench.staged()
    assert name.startswith("P")
    assert bench.put() == SIZE - 5 * EXTENT
    assert bench.file() == bench.source.read_bytes()
    assert bench.staged() == []


@pytest.mark.parametrize("how", ["source", "boot", "no version", "garbage", "the stage"])
def test_of_another_content_nothing_is_taken(bench: Bench, how: str) -> None:
    with pytest.raises(StoreError):
        bench.put(bench.content(OSError(errno.EIO, ""), after=5 * EXTENT))
    (name,) = bench.staged()
    left = bench.site / ".mirrorfs" / "stage" / name
    if how == "source":
        bench.source.write_bytes(os.urandom(SIZE))
    elif how == "boot":
        bench.reopen("another")
    elif how == "garbage":
        os.setxattr(left, EXTENTS, b"\1" * 80)
    elif how == "the stage":
        os.truncate(left, 5)
    content = bench.content()
    if how == "no version":
        content.version = None
    assert bench.put(content) == SIZE
    assert bench.file() == bench.source.read_bytes()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_what_there_was_no_space_for_takes_none(bench: Bench, code: int) -> None:
    with pytest.raises(StoreError) as raised:
        bench.put(bench.content(OSError(code, ""), after=5 * EXTENT))
    assert raised.value.no_space
    assert bench.staged() == []


def test_a_failed_sync_proves_nothing_that_was_copied(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked again, the kernel says that all is well."""
    calls = []

    def fail_once(fd: int) -> None:
        calls.append(fd)
        if len(calls) == 3:
            raise OSError(errno.EIO, "")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail_once)
        with pytest.raises(StoreError):
            bench.put()
    assert bench.staged() == []


def test_what_failed_is_forgotten_or_bounded(bench: Bench) -> None:
    def fail() -> None:
        with pytest.raises(StoreError):
            bench.put(bench.content(OSError(errno.EIO, ""), after=5 * EXTENT))

    fail()
    bench.reopen()
    assert len(bench.staged()) == 1
    bench.store.forget_unfinished()
    assert bench.staged() == []
    bench.store.unfinished.left_bytes_max = EXTENT
    fail()
    assert len(bench.staged()) == 1  # it is in use until its error is told
    bench.store.unfinished.tidy()
    assert bench.staged() == []
    (bench.site / ".mirrorfs" / "stage" / "Pwhatever").touch()
    bench.reopen()
    assert bench.staged() == []


def test_who_gave_up_leaves_what_is_on_the_disk(bench: Bench) -> None:
    with pytest.raises(SourceChangedError):
        bench.put(bench.content(SourceChangedError("nobody waits"), after=3 * EXTENT))
    assert bench.put() == SIZE - 3 * EXTENT
    with pytest.raises(SourceChangedError):
        bench.put(bench.content(SourceChangedError("nobody waits")))
    assert bench.staged() == []


def test_two_copies_of_one_object_do_not_meet(bench: Bench) -> None:
    staged = bench.store.stage(attributes(FILE), bench.content(), mark(b"f", 1))
    other = bench.store.stage(attributes(FILE), bench.content(), mark(b"f", 2))
    bench.store.discard(staged)
    bench.store.commit(other, bench.store.root(), b"f")
    assert bench.file() == bench.source.read_bytes()


def test_killed_at_every_call_a_large_copy_goes_on(bench: Bench) -> None:
    def attempt(call: int) -> bool:
        bench.store.forget_unfinished()
        (bench.site / "f").unlink(missing_ok=True)
        killed = False
        with killed_at(call), suppress(KilledError):
            try:
                bench.put()
            except KilledError:
                killed = True
        bench.reopen()
        for name in bench.staged():  # as much as its attribute says is on the disk
            assert name.startswith("P")
        if not (bench.site / "f").exists():
            bench.put()
        assert bench.file() == bench.source.read_bytes()
        assert bench.entry().mark == mark(b"f", 5)
        assert EXTENTS not in os.listxattr(bench.site / "f")
        assert bench.staged() == []
        return killed

    assert moments(attempt) > 30


# growing


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


def test_attributes_come_after_content_in_the_one_right_order(bench: Bench) -> None:
    """A later one would undo an earlier one: chown takes capabilities away, ACLs change the mode,
    and everything moves the times."""
    wanted: Attributes = attributes(
        stat.S_IFREG | 0o6755, uid=12, gid=34, xattrs={b"security.capability": CAPABILITIES}
    )
    with killed_at(1 << 30) as made:
        staged = bench.store.stage(wanted, bench.content(), mark(b"f", 1))
    bench.store.discard(staged)
    last = made[::-1]
    assert last[:3] == ["utime", "chmod", "setxattr"]
    assert made.index("chown") > max(
        number for number, name in enumerate(made) if name in ("pwrite", "copy_file_range")
    )
    assert made.index("chown") < len(made) - 3


def test_many_hands_make_one_file(bench: Bench) -> None:
    content = bench.content()

    def share(parts: Sequence[Callable[[], None]]) -> None:
        threads = [threading.Thread(target=part) for part in parts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    content.share = share  # type: ignore[method-assign]
    assert bench.put(content) == SIZE
    assert bench.file() == bench.source.read_bytes()
