"""A source file, and a site of a directory store that copies it; extents are small.

Import `bench` (a fixture) into the module of tests.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from mirrorfs.journal.record import ObjectId, Tag
from replicator import copying
from replicator.stores.base import SiteEntry, Version
from replicator.stores.directory import DirectoryStore
from tests.support import mounting
from tests.support.sites import VOLUME, attributes, mark

EXTENT = 16 << 10
SIZE = 10 * EXTENT + 100
BOOT = "this one"
FILE = stat.S_IFREG | 0o640


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
