"""A site that is a directory of a mounted file system.

Works on directory descriptors and single names, never on paths below the site's root, and never
follows a symlink: nothing outside the root can be touched. What is not complete is under
`.mirrorfs/stage`; it is renamed to its place in one step. Whether an object belongs there is not
decided here.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Self

import xxhash

from replicator import system_calls
from replicator.copying import copy_content, read_back, same_content
from replicator.stores.attributes import change, dress, entry_of, read_mark, write_mark
from replicator.stores.base import (
    RESERVED,
    Attributes,
    Base,
    Content,
    Directory,
    Mark,
    SiteEntry,
    Staged,
    Syncing,
    UnsyncedError,
)
from replicator.stores.border import border
from replicator.stores.durable import DescriptorSyncing, Order
from replicator.stores.growing import FileBase, Grown, Tail, base_of, grow
from replicator.stores.site_root import Claim, SiteRoot
from replicator.stores.stage import DIRECTORY, Stage, names, open_directory, put_away, remove
from replicator.stores.unfinished import PREFIX, Unfinished
from replicator.xattrs import At, path_of, read_xattrs

_OBJECT = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOATIME | os.O_CLOEXEC
_NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class DirectoryStore:
    """SiteStore over a directory. Directories are descriptors, staged objects names in the stage.

    Attributes:
        fidelity_debt: how many attributes the site's file system refused to keep.
        mount: which mount of the site's file system this is: under another one, what was not
            synced may be gone. 0 if that cannot be told.
        read_back: content is read again after it was written, and compared.
        unfinished: large files being copied, or that failed.
    """

    def __init__(self, site: SiteRoot, boot: bytes) -> None:
        self.mount = system_calls.mount_id(site.root)
        self.directories_listed = 0
        self.bytes_written = 0
        self.fidelity_debt = 0
        self._order = Order(site.root)
        self._site = site
        self._root = site.root
        self.unfinished = Unfinished(site.stage, boot)
        self._stage = Stage(site.stage)
        self._tails: dict[Staged, Tail] = {}
        self.read_back = False
        self._counting = threading.Lock()

    @classmethod
    def open(
        cls,
        path: bytes,
        *,
        volume: bytes,
        name: str,
        known: bool = False,
        adopt: bool = False,
        take_over: bool = False,
        source: int | None = None,
        read_back: bool = False,
        boot: str = "",
    ) -> Self:
        """Take the site directory at `path` for the volume of that UUID (16 bytes).

        `known`, `adopt`, `take_over`: see Claim. `source` is a descriptor of the source's root:
        neither may hold the other. `read_back`: content is read again after it was written, and
        compared. `boot`: id of this boot of the host: what was begun in another one is not gone on
        with. Raises SiteRefusedError, StoreError.
        """
        with border("open the site", path):
            site = SiteRoot.open(path, Claim(volume, name, known, adopt, take_over), source)
            try:
                store = cls(site, xxhash.xxh3_128_digest(boot.encode()))
                store.read_back = read_back
                store.unfinished.tidy()
            except BaseException:
                site.close()
                raise
            return store

    def renew(self) -> None:
        """Renew the lease; to be called every `lease.RENEW_SECONDS`, from any thread.

        Raises SiteRefusedError when it is lost (stop at once), StoreError.
        """
        with border("renew the lease of", self._site.path):
            self._site.lease.renew()

    # Directories

    def root(self) -> Directory:
        """See SiteStore."""
        return self._root

    def limbo(self) -> Directory:
        """See SiteStore."""
        return self._site.limbo

    def open_directory(self, directory: Directory, name: bytes) -> Directory | None:
        """See SiteStore."""
        if directory == self._root and name == RESERVED:
            return None
        with border("open", name):
            return open_directory(self._at(directory, name), name)

    def close_directory(self, directory: Directory) -> None:
        """See SiteStore."""
        if directory not in (self._root, self._site.limbo):
            os.close(_fd(directory))

    # Looking

    def lookup(self, directory: Directory, name: bytes) -> SiteEntry | None:
        """See SiteStore."""
        if directory == self._root and name == RESERVED:
            return None
        with border("look at", name):
            try:
                fd = os.open(name, _OBJECT, dir_fd=self._at(directory, name))
            except FileNotFoundError:
                return None
            try:
                return entry_of(os.fstat(fd), read_mark(path_of(fd)))
            finally:
                os.close(fd)

    def list(self, directory: Directory) -> list[bytes]:
        """See SiteStore."""
        self.directories_listed += 1
        with border("list a directory of", self._site.path):
            found = names(_fd(directory))
        return [name for name in found if name != RESERVED or directory != self._root]

    def xattrs(self, directory: Directory, name: bytes) -> dict[bytes, bytes]:
        """See SiteStore."""
        with border("read the attributes of", name), self._object(directory, name) as fd:
            return read_xattrs(path_of(fd))

    def root_entry(self) -> SiteEntry:
        """See SiteStore."""
        with border("look at", self._site.path):
            return entry_of(os.fstat(self._root), read_mark(self._root))

    # Making

    def stage(
        self,
        attributes: Attributes,
        content: Content | None,
        mark: Mark | Callable[[], Mark],
        base: Base | None = None,
    ) -> Staged:
        """See SiteStore. Passes on what reading the source raises."""
        slot = self._stage.slot(directory=stat.S_ISDIR(attributes.mode))
        with border("stage an object at", self._site.path):
            try:
                if content is not None and stat.S_ISREG(attributes.mode):
                    if base is not None and self._grow(slot, attributes, content, mark, base):
                        return slot
                    large = self._stage_large(attributes, content, mark)
                    if large is not None:
                        return large
                self._make(slot, attributes, content, mark)
            except BaseException:
                self._stage.clear(slot)
                raise
        return slot

    def base(self, directory: Directory, name: bytes) -> Base | None:
        """See SiteStore. None on file systems without file handles."""
        with border("look at", name), self._object(directory, name) as fd:
            return base_of(fd)

    def is_tail(self, staged: Staged) -> bool:
        """See SiteStore."""
        return staged in self._tails

    def extend(self, staged: Staged, directory: Directory, name: bytes) -> bool:
        """See SiteStore."""
        slot = _slot(staged)
        with border("append to", name):
            try:
                debt = self._tails[slot].append_to(self._at(directory, name), name)
            except BaseException:
                self._clear(slot)
                raise
            if debt is not None:
                self.fidelity_debt += debt
                self._clear(slot)
            return debt is not None

    def forget_unfinished(self) -> None:
        """See SiteStore."""
        with border("clear the stage of", self._site.path):
            self.unfinished.tidy(0)

    def discard(self, staged: Staged) -> None:
        """See SiteStore."""
        with border("clear the stage of", self._site.path):
            self._clear(_slot(staged))

    def is_alike(self, staged: Staged, directory: Directory, name: bytes) -> bool:
        """See SiteStore."""
        with border("compare", name):
            one = os.open(_slot(staged), _READ, dir_fd=self._stage.fd)
            try:
                other = os.open(name, _READ, dir_fd=self._at(directory, name))
                try:
                    return same_content(one, other)
                finally:
                    os.close(other)
            finally:
                os.close(one)

    def commit(self, staged: Staged, directory: Directory, name: bytes) -> None:
        """See SiteStore."""
        with border("put in place", name):
            slot = _slot(staged)
            at = self._at(directory, name)
            if slot.startswith(PREFIX):
                self.unfinished.finished(slot)
            self._order.keep(self._stage.fd, slot, at, name)
            self._stage.commit(slot, at, name)
            self._gone(slot)

    def move(
        self, directory: Directory, name: bytes, to_directory: Directory, to_name: bytes
    ) -> None:
        """See SiteStore. Where one of the two is a directory and the other is not, what stood
        there is taken away first."""
        with border("move", name):
            source, target = self._at(directory, name), self._at(to_directory, to_name)
            self._order.keep(source, name, target, to_name)
            self._stage.move(source, name, target, to_name)

    def exchange(
        self, directory: Directory, name: bytes, to_directory: Directory, to_name: bytes
    ) -> None:
        """See SiteStore. Where the file system cannot, in three renames."""
        with border("exchange", name):
            source, target = self._at(directory, name), self._at(to_directory, to_name)
            self._order.keep(source, name, target, to_name)
            self._stage.exchange(source, name, target, to_name)

    def link(
        self, directory: Directory, name: bytes, to_directory: Directory, to_name: bytes
    ) -> None:
        """See SiteStore."""
        with border("link", name):
            source, target = self._at(directory, name), self._at(to_directory, to_name)
            self._order.keep(source, name, target, to_name)
            self._stage.link(source, name, target, to_name)

    def remove(self, directory: Directory, name: bytes) -> None:
        """See SiteStore."""
        with border("remove", name):
            remove(self._at(directory, name), name)

    def keep(self, directory: Directory, name: bytes, path: bytes) -> None:
        """See SiteStore."""
        day = time.strftime("%Y-%m-%d", time.gmtime()).encode()
        parts = [part for part in path.split(b"/") if part not in (b"", b".", b"..")]
        with border("keep", name):
            source = self._at(directory, name)
            with contextlib.suppress(FileNotFoundError):
                os.stat(name, dir_fd=source, follow_symlinks=False)
                put_away(source, name, self._site.kept, [day, *(parts or [name])])

    # Attributes

    def set_attributes(
        self, directory: Directory, name: bytes, attributes: Attributes, mark: Mark
    ) -> None:
        """See SiteStore."""
        with border("set the attributes of", name), self._object(directory, name) as fd:
            self.fidelity_debt += change(path_of(fd), os.fstat(fd), attributes, mark)

    def set_root_attributes(self, attributes: Attributes, mark: Mark) -> None:
        """See SiteStore."""
        with border("set the attributes of", self._site.path):
            self.fidelity_debt += change(self._root, os.fstat(self._root), attributes, mark)

    def set_mark(self, directory: Directory, name: bytes, mark: Mark) -> None:
        """See SiteStore."""
        with border("mark", name), self._object(directory, name) as fd:
            write_mark(path_of(fd), mark)

    def set_directory_times(self, directory: Directory, atime_ns: int, mtime_ns: int) -> None:
        """See SiteStore."""
        with border("set the times of a directory of", self._site.path):
            os.utime(_fd(directory), ns=(atime_ns, mtime_ns))

    # Our own files, durability, the end

    def read_file(self, name: str) -> bytes | None:
        """See SiteStore."""
        with border("read", name.encode()):
            return self._site.read(name)

    def write_file(self, name: str, data: bytes) -> None:
        """See SiteStore."""
        self.sync()
        with border("write", name.encode()):
            self._site.write(name, data)

    def append_file(self, name: str, data: bytes, *, durable: bool = False) -> None:
        """See SiteStore."""
        with border("append to", name.encode()):
            self._site.append(name, data, durable=durable)

    def sync(self) -> None:
        """See SiteStore."""
        with border("sync", self._site.path, UnsyncedError):
            system_calls.syncfs(self._root)

    def keep_order(self) -> None:
        """See SiteStore."""
        self._order.kept = True

    def syncing(
        self, wanted: Iterable[tuple[Directory, bytes | None]], *, whole: bool = False
    ) -> Syncing:
        """See SiteStore."""
        with border("open what is to be synced at", self._site.path):
            names = ((_fd(directory), name) for directory, name in wanted)
            return DescriptorSyncing(self._site.path, names, whole=whole)

    def close(self) -> None:
        """See SiteStore."""
        self._site.close()

    # Inside

    def _at(self, directory: Directory, name: bytes) -> int:
        """The descriptor of a directory, for a name that may stand there."""
        if name in (b"", b".", b"..") or b"/" in name:
            raise OSError(errno.EINVAL, "no name of a directory entry")
        if name == RESERVED and directory == self._root:
            raise OSError(errno.EPERM, "the reserved name")
        return _fd(directory)

    @contextlib.contextmanager
    def _object(self, directory: Directory, name: bytes) -> Iterator[int]:
        fd = os.open(name, _OBJECT, dir_fd=self._at(directory, name))
        try:
            yield fd
        finally:
            os.close(fd)

    def _make(
        self,
        name: bytes,
        attributes: Attributes,
        content: Content | None,
        mark: Mark | Callable[[], Mark],
    ) -> None:
        stage, kind = self._stage.fd, stat.S_IFMT(attributes.mode)
        if kind == stat.S_IFREG:
            fd = os.open(name, _NEW_FILE, 0o600, dir_fd=stage)
        elif kind == stat.S_IFDIR:
            os.mkdir(name, 0o700, dir_fd=stage)
            fd = os.open(name, DIRECTORY, dir_fd=stage)
        else:
            if kind == stat.S_IFLNK:
                os.symlink(attributes.target or b"", name, dir_fd=stage)
            else:
                os.mknod(name, kind | 0o600, attributes.rdev, dir_fd=stage)
            fd = os.open(name, _OBJECT, dir_fd=stage)
        try:
            at: At = fd if kind in (stat.S_IFREG, stat.S_IFDIR) else path_of(fd)
            written = 0
            if content is not None and kind == stat.S_IFREG:
                written = copy_content(content.fileno(), fd, content.check)
                if written >= self.unfinished.large_bytes:
                    os.fdatasync(fd)  # as all large files
                self._read_back(content, fd)
            self._dress(at, attributes, mark, written)
        finally:
            os.close(fd)

    def _stage_large(
        self, attributes: Attributes, content: Content, mark: Mark | Callable[[], Mark]
    ) -> bytes | None:
        """A copy of which what is done outlives a failure; None: a common one is to be made."""
        version = content.version
        if version is None or version.size < self.unfinished.large_bytes:
            return None
        made = self.unfinished.copy(content, version)
        if made is None:
            return None
        name, fd, written = made
        try:
            try:
                self._read_back(content, fd)
                self._dress(fd, attributes, mark, written)
            finally:
                os.close(fd)
        except BaseException:
            self._clear(name)
            raise
        return name

    def _grow(
        self,
        slot: bytes,
        attributes: Attributes,
        content: Content,
        mark: Mark | Callable[[], Mark],
        base: Base,
    ) -> bool:
        """Stage what has only grown; False: that is not so."""
        version = content.version
        if version is None:
            return False
        assert isinstance(base, FileBase)
        fd = os.open(slot, _NEW_FILE, 0o600, dir_fd=self._stage.fd)
        try:
            grown = grow(self._root, base, content, version, fd)
            if grown is Grown.TAIL:
                tail = Tail(self._stage.fd, slot, base, version.size, attributes, mark)
                self._tails[slot] = tail
                with self._counting:
                    self.bytes_written += version.size - base.size
            elif grown is Grown.WHOLE:
                if version.size >= self.unfinished.large_bytes:
                    os.fdatasync(fd)  # as all large files
                self._read_back(content, fd)
                self._dress(fd, attributes, mark, version.size - base.size)
        finally:
            os.close(fd)
        if grown is Grown.NOTHING:
            self._stage.clear(slot)
        return grown is not Grown.NOTHING

    def _read_back(self, content: Content, fd: int) -> None:
        if self.read_back:
            read_back(content.fileno(), fd, content.check)

    def _dress(
        self, at: At, attributes: Attributes, mark: Mark | Callable[[], Mark], written: int
    ) -> None:
        debt = dress(at, attributes, mark() if callable(mark) else mark)
        with self._counting:
            self.bytes_written += written
            self.fidelity_debt += debt

    def _clear(self, slot: bytes) -> None:
        try:
            self._stage.clear(slot)
        finally:
            self._gone(slot)

    def _gone(self, slot: bytes) -> None:
        """It is not in the stage any more."""
        self.unfinished.release(slot)
        self._tails.pop(slot, None)


def _fd(directory: Directory) -> int:
    assert isinstance(directory, int)
    return directory


def _slot(staged: Staged) -> bytes:
    assert isinstance(staged, bytes)
    return staged
