"""Sites to run one test over every store: how each is made, looked into, and taken away again."""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import pytest

from mirrorfs.journal.record import ObjectId, SequenceNumber, Tag
from replicator.stores.base import (
    Attributes,
    Directory,
    Mark,
    SiteStore,
    StoreError,
    Version,
)
from replicator.stores.directory import DirectoryStore
from replicator.stores.memory import MemoryStore, Node
from replicator.stores.site_root import SiteRoot
from tests.support import mounting

VOLUME = bytes(range(16))
_numbers = itertools.count(1)


class Bytes:
    """base.Content of bytes: a memory file."""

    def __init__(self, data: bytes, version: Version | None = None) -> None:
        self.version = version
        self._data = data
        self._fd = os.memfd_create("content")
        os.write(self._fd, data)

    def fileno(self) -> int:
        """See base.Content."""
        return self._fd

    def check(self, count: int) -> int:
        """See base.Content."""
        return count

    def share(self, parts: Sequence[Callable[[], None]]) -> None:
        """See base.Content."""
        for part in parts:
            part()

    def read(self) -> bytes:
        """See base.Content."""
        return self._data

    def __del__(self) -> None:
        os.close(self._fd)


class Bench(Protocol):
    """A store under test, and what the protocol does not show of it."""

    store: SiteStore

    def content(self, directory: Directory, name: bytes) -> bytes:
        """Content of the file there."""

    def attributes(self, directory: Directory, name: bytes) -> Attributes:
        """Everything that stands there, access time as it was before looking."""

    def kept(self) -> dict[bytes, int]:
        """Paths below the days of `kept`, with the types of what is there; no directories that
        were made on the way."""

    def staged(self) -> int:
        """How many objects wait in the stage; 0 where that cannot be told."""


class MemoryBench:
    """Bench of a MemoryStore."""

    def __init__(self) -> None:
        self.store: SiteStore = MemoryStore()

    def _node(self, directory: Directory, name: bytes) -> Node:
        assert isinstance(directory, Node)
        assert directory.children is not None
        return directory.children[name]

    def content(self, directory: Directory, name: bytes) -> bytes:
        """See Bench."""
        return self._node(directory, name).data

    def attributes(self, directory: Directory, name: bytes) -> Attributes:
        """See Bench."""
        return self._node(directory, name).attributes

    def kept(self) -> dict[bytes, int]:
        """See Bench."""
        assert isinstance(self.store, MemoryStore)
        found: dict[bytes, int] = {}
        left = list(self.store.kept.items())
        while left:
            path, node = left.pop()
            if node.children:
                left += [(path + b"/" + name, child) for name, child in node.children.items()]
            else:
                found[path] = stat.S_IFMT(node.attributes.mode)
        return found

    def staged(self) -> int:
        """See Bench."""
        return 0


class _TidyStore(DirectoryStore):
    """A DirectoryStore that closes at its end what a test left open."""

    def __init__(self, site: SiteRoot, boot: bytes) -> None:
        super().__init__(site, boot)
        self._left: set[Directory] = set()

    def open_directory(self, directory: Directory, name: bytes) -> Directory | None:
        """See SiteStore."""
        opened = super().open_directory(directory, name)
        if opened is not None:
            self._left.add(opened)
        return opened

    def close_directory(self, directory: Directory) -> None:
        """See SiteStore."""
        self._left.discard(directory)
        super().close_directory(directory)

    def close(self) -> None:
        """See SiteStore."""
        for directory in list(self._left):
            self.close_directory(directory)
        super().close()


class DirectoryBench:
    """Bench of a DirectoryStore at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store: SiteStore = _TidyStore.open(os.fsencode(path), volume=VOLUME, name="test")

    def content(self, directory: Directory, name: bytes) -> bytes:
        """See Bench."""
        assert isinstance(directory, int)
        with open(os.open(name, os.O_RDONLY | os.O_NOATIME, dir_fd=directory), "rb") as file:
            return file.read()

    def attributes(self, directory: Directory, name: bytes) -> Attributes:
        """See Bench."""
        assert isinstance(directory, int)
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        link = stat.S_ISLNK(found.st_mode)
        return Attributes(
            mode=found.st_mode,
            uid=found.st_uid,
            gid=found.st_gid,
            atime_ns=found.st_atime_ns,
            mtime_ns=found.st_mtime_ns,
            rdev=found.st_rdev,
            xattrs=self.store.xattrs(directory, name),
            target=os.readlink(name, dir_fd=directory) if link else None,
        )

    def kept(self) -> dict[bytes, int]:
        """See Bench."""
        found: dict[bytes, int] = {}
        top = os.fsencode(self.path / ".mirrorfs" / "kept")
        for day in os.listdir(top):
            above = os.path.join(top, day)
            for directory, directories, files in os.walk(above):
                for name in files + [
                    d for d in directories if not os.listdir(directory + b"/" + d)
                ]:
                    path = os.path.join(directory, name)
                    found[os.path.relpath(path, above)] = stat.S_IFMT(os.lstat(path).st_mode)
        return found

    def staged(self) -> int:
        """See Bench."""
        return len(os.listdir(self.path / ".mirrorfs" / "stage"))


@contextlib.contextmanager
def memory() -> Iterator[Bench]:
    """A memory store."""
    yield MemoryBench()


@contextlib.contextmanager
def on_directory(below: Path) -> Iterator[Bench]:
    """A directory store in a fresh directory there."""
    with tempfile.TemporaryDirectory(prefix="site-", dir=below) as path:
        bench = DirectoryBench(Path(path))
        try:
            yield bench
        finally:
            bench.store.close()


@contextlib.contextmanager
def on_bindfs() -> Iterator[Bench]:
    """A directory store on a real file system that knows no RENAME_EXCHANGE."""
    options = "attr_timeout=0,entry_timeout=0,negative_timeout=0"
    with tempfile.TemporaryDirectory(prefix="mirrorfs-bindfs-") as base:
        beneath, mounted = Path(base, "beneath"), Path(base, "mounted")
        beneath.mkdir()
        mounted.mkdir()
        with mounting.bindfs(beneath, mounted, "-o", options), on_directory(mounted) as bench:
            yield bench


@contextlib.contextmanager
def refused(*codes: int) -> Iterator[None]:
    """The store refuses what is done here, with one of these errors."""
    with pytest.raises(StoreError) as raised:
        yield
    assert raised.value.errno in codes, raised.value


def all_refused(code: int, *actions: Callable[[], object]) -> None:
    """The store refuses each of them."""
    for action in actions:
        with refused(code):
            action()


def listed(store: SiteStore, directory: Directory) -> list[bytes]:
    """The names in a directory, sorted."""
    return sorted(store.list(directory))


def mark(text: bytes = b"object", sequence: int = 1, **fields: Any) -> Mark:
    """A mark; only what a test is about need be said."""
    return Mark(ObjectId(b"\1" + text), Tag(7), SequenceNumber(sequence), 0, **fields)


def attributes(mode: int, **fields: Any) -> Attributes:
    """Attributes with odd times, different for every call."""
    number = next(_numbers)
    values: dict[str, Any] = {
        "uid": 0,
        "gid": 0,
        "atime_ns": 1_500_000_000_123_000_000 + number,
        "mtime_ns": 1_600_000_000_123_000_000 + number,
        "rdev": 0,
        "xattrs": {},
    }
    return Attributes(mode=mode, **{**values, **fields})


def put_file(
    store: SiteStore, directory: Directory, name: bytes, data: bytes = b"", **fields: Any
) -> None:
    """A file at that place."""
    content = Bytes(data)
    wanted = attributes(stat.S_IFREG | 0o644, **fields)
    store.commit(store.stage(wanted, content, mark(name)), directory, name)


def put_directory(store: SiteStore, directory: Directory, name: bytes) -> Directory:
    """A directory at that place, opened."""
    staged = store.stage(attributes(stat.S_IFDIR | 0o755), None, mark(name))
    store.commit(staged, directory, name)
    made = store.open_directory(directory, name)
    assert made is not None
    return made


def put_symlink(store: SiteStore, directory: Directory, name: bytes, target: bytes) -> None:
    """A symlink at that place."""
    wanted = attributes(stat.S_IFLNK | 0o777, target=target)
    store.commit(store.stage(wanted, None, mark(name)), directory, name)
