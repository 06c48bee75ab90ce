"""The source tree as it is now, through a descriptor of its root; never through the mount.

Objects are opened by file handle, or by a name in a directory held open: what an id is told of and
what is read is one object, whatever is renamed meanwhile. Nothing here writes to the source, and no
access time of a file or directory is moved. See `replicator.view` for what each call means.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Final, Self, TypeAlias

from mirrorfs.journal.record import ObjectId, Place, RecordError, handle_id, split_handle_id
from replicator import system_calls
from replicator.stores.base import RESERVED, TRANSIENT, Attributes, Content, Version
from replicator.view import SourceError, SourceObject, SourceStat, Steps
from replicator.xattrs import path_of, read_xattrs

_OBJECT: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOATIME | os.O_CLOEXEC
_CONTENT: Final = os.O_RDONLY | os.O_NOATIME | os.O_CLOEXEC
_DELETED: Final = b" (deleted)"
_RACES_MAX: Final = 10
_QUIET_NS: Final = 2_000_000_000

Names: TypeAlias = list[bytes]
"""(parent, name, child) from the root down."""


class FileContent:
    """An open file of the source: base.Content."""

    def __init__(self, descriptor: int) -> None:
        self.version: Version | None = None
        self._descriptor = descriptor

    def fileno(self) -> int:
        """See base.Content."""
        return self._descriptor

    def read(self) -> bytes:
        """See base.Content."""
        parts = []
        offset = 0
        with _border("read"):
            while part := os.pread(self._descriptor, 1 << 20, offset):
                parts.append(part)
                offset += len(part)
        return b"".join(parts)

    def check(self, count: int) -> int:
        """See base.Content."""
        return count

    def share(self, parts: Sequence[Callable[[], None]]) -> None:
        """See base.Content."""
        for part in parts:
            part()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._descriptor)


class OpenObject:
    """One object of the source by an O_PATH descriptor: view.SourceObject."""

    __slots__ = ("_stat", "descriptor", "id", "keep_open")

    def __init__(
        self, descriptor: int, id: ObjectId, found: os.stat_result, keep_open: bool = False
    ) -> None:
        self.descriptor = descriptor
        self.id = id
        self.keep_open = keep_open
        self._stat = found

    @property
    def mode(self) -> int:
        """See SourceObject."""
        return self._stat.st_mode

    @property
    def uid(self) -> int:
        """See SourceObject."""
        return self._stat.st_uid

    @property
    def gid(self) -> int:
        """See SourceObject."""
        return self._stat.st_gid

    @property
    def size(self) -> int:
        """See SourceObject."""
        return self._stat.st_size

    @property
    def mtime_ns(self) -> int:
        """See SourceObject."""
        return self._stat.st_mtime_ns

    @property
    def atime_ns(self) -> int:
        """See SourceObject."""
        return self._stat.st_atime_ns

    @property
    def ctime_ns(self) -> int:
        """See SourceObject."""
        return self._stat.st_ctime_ns

    @property
    def rdev(self) -> int:
        """See SourceObject."""
        return self._stat.st_rdev

    @property
    def links(self) -> int:
        """See SourceObject."""
        return self._stat.st_nlink

    def seen(self) -> SourceStat:
        """See SourceObject."""
        return _stat_of(self._stat)

    def stat(self) -> SourceStat:
        """See SourceObject."""
        with _border("look at"):
            return _stat_of(os.fstat(self.descriptor))

    def xattrs(self) -> dict[bytes, bytes]:
        """See SourceObject."""
        with _border("read the attributes of"):
            return read_xattrs(path_of(self.descriptor))

    def target(self) -> bytes:
        """See SourceObject."""
        with _border("read the symlink"):
            return os.readlink(b"", dir_fd=self.descriptor)

    def attributes(self, now: SourceStat | None = None) -> Attributes:
        """See SourceObject."""
        now = now or self.stat()
        return Attributes(
            mode=now.mode,
            uid=now.uid,
            gid=now.gid,
            atime_ns=now.atime_ns,
            mtime_ns=now.mtime_ns,
            rdev=now.rdev,
            xattrs=self.xattrs(),
            target=self.target() if stat.S_ISLNK(now.mode) else None,
        )

    def content(self) -> AbstractContextManager[Content]:
        """See SourceObject."""
        if not stat.S_ISREG(self.mode):
            raise _error("read", errno.EINVAL)
        with _border("open"):
            return FileContent(os.open(path_of(self.descriptor), _CONTENT))

    def close(self) -> None:
        """See SourceObject."""
        if self.descriptor >= 0 and not self.keep_open:
            os.close(self.descriptor)
            self.descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Source:
    """The source: view.SourceTree."""

    def __init__(self, root_fd: int, epoch: int, granularity_ns: int) -> None:
        """`root_fd` (O_RDONLY | O_DIRECTORY) becomes ours. `granularity_ns` as in the journal's
        header. Raises SourceError."""
        self._epoch = epoch
        self._granularity_ns = granularity_ns
        with _border("open the root"):
            handle = system_calls.handle_of(root_fd)
            self._mount_id = handle.mount_id
            id = handle_id(epoch, handle.type, handle.handle)
            self.root: SourceObject = OpenObject(root_fd, id, os.fstat(root_fd), keep_open=True)
        self.root_fd = root_fd

    def close(self) -> None:
        """Give the root back."""
        if self.root_fd >= 0:
            os.close(self.root_fd)
            self.root_fd = -1

    def open(self, id: ObjectId) -> OpenObject | None:
        """See SourceTree. Whether the object is below the root only `ancestors` can tell."""
        try:
            epoch, kind, handle = split_handle_id(id)
        except RecordError as error:
            raise SourceError(str(error), errno.EINVAL, transient=False) from error
        if epoch != self._epoch:
            return None
        with _border("open by handle"):
            try:
                descriptor = system_calls.open_handle(self.root_fd, kind, handle, _OBJECT)
            except OSError as error:
                if error.errno == errno.ESTALE:
                    return None
                raise
            found = _stat_or_close(descriptor)
        if found.st_nlink == 0:
            os.close(descriptor)
            return None
        return OpenObject(descriptor, id, found)

    def lookup(self, directory: SourceObject, name: bytes) -> OpenObject | None:
        """See SourceTree."""
        if name == RESERVED and directory.id == self.root.id:
            return None
        with _border("look up"):
            try:
                return self._open_at(_fd(directory), name)
            except FileNotFoundError:
                return None

    def ancestors(self, directory: SourceObject) -> Steps | None:
        """See SourceTree."""
        with _border("find the way to"):
            for _ in range(_RACES_MAX):
                if directory.id == self.root.id:
                    return []
                if os.fstat(_fd(directory)).st_nlink == 0:
                    return None
                names = self._relative_path(directory)
                steps = self._walk_down(names) if names is not None else None
                if steps and steps[-1][2] == directory.id:
                    return steps
                with contextlib.suppress(_MovedError):
                    return self._walk_up(_fd(directory))
        raise SourceError("the way to a directory keeps changing", errno.EAGAIN, transient=True)

    @property
    def partial(self) -> bool:
        """See SourceTree."""
        return False

    def hides(self, id: ObjectId, places: Iterable[Place]) -> bool:
        """See SourceTree."""
        return False

    def path_key(self, directory: SourceObject) -> bytes | None:
        """See SourceTree."""
        try:
            path = os.readlink(path_of(_fd(directory)))
        except OSError:
            return None
        return None if path.endswith(_DELETED) else path

    def settle_delay(self, ctime_ns: int) -> float:
        """See SourceTree. Never more than the granularity, whatever the clocks say."""
        left = ctime_ns + self._granularity_ns - time.time_ns()
        return max(0, min(left, self._granularity_ns)) / 1e9

    def is_quiet(self, ctime_ns: int) -> bool:
        """See SourceTree."""
        return ctime_ns + _QUIET_NS < time.time_ns()

    def list(self, directory: SourceObject) -> list[bytes]:
        """See SourceTree."""
        with _border("list"), contextlib.suppress(FileNotFoundError):
            descriptor = os.open(b".", _DIRECTORY, dir_fd=_fd(directory))
            try:
                names = [os.fsencode(name) for name in os.listdir(descriptor)]
            finally:
                os.close(descriptor)
            if directory.id == self.root.id and RESERVED in names:
                names.remove(RESERVED)
            return names
        return []

    def _open_at(self, directory: int, name: bytes) -> OpenObject:
        """What stands there. EXDEV: it is the root of another mount, not of the source."""
        descriptor = os.open(name, _OBJECT, dir_fd=directory)
        try:
            handle = system_calls.handle_of(descriptor)
            if handle.mount_id != self._mount_id:
                raise OSError(errno.EXDEV, "another file system is mounted there")
            id = handle_id(self._epoch, handle.type, handle.handle)
            return OpenObject(descriptor, id, os.fstat(descriptor))
        except BaseException:
            os.close(descriptor)
            raise

    def _relative_path(self, directory: SourceObject) -> Names | None:
        """Names from the root to it as the kernel tells them; None if it does not."""
        try:
            root = os.readlink(path_of(self.root_fd)).rstrip(b"/")
            path = os.readlink(path_of(_fd(directory)))
        except OSError:  # longer than a page
            return None
        return path[len(root) + 1 :].split(b"/") if path.startswith(root + b"/") else None

    def _walk_down(self, names: Names) -> Steps | None:
        """The steps by these names; None if they lead nowhere (any more)."""
        steps = []
        with contextlib.ExitStack() as opened:
            parent, parent_id = self.root_fd, self.root.id
            for name in names:
                try:
                    child = opened.enter_context(self._open_at(parent, name))
                except OSError as error:
                    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EXDEV):
                        return None
                    raise
                steps.append((parent_id, name, child.id))
                parent, parent_id = child.descriptor, child.id
        return steps

    def _walk_up(self, descriptor: int) -> Steps | None:
        """The steps by `..` and a search in each directory for what we came from: for paths the
        kernel cannot tell. None: not below the root. Raises _MovedError on a race."""
        steps: Steps = []
        with contextlib.ExitStack() as opened:
            child = opened.enter_context(self._open_at(descriptor, b"."))
            while child.id != self.root.id:
                try:
                    parent = opened.enter_context(self._open_at(child.descriptor, b".."))
                except OSError as error:
                    if error.errno == errno.EXDEV:  # left the mount the source is on
                        return None
                    raise
                if parent.id == child.id:
                    return None
                steps.append((parent.id, self._name_of(child, parent), child.id))
                child.close()
                child = parent
        return steps[::-1]

    def _name_of(self, child: OpenObject, parent: OpenObject) -> bytes:
        inode = os.fstat(child.descriptor).st_ino
        descriptor = os.open(b".", _DIRECTORY, dir_fd=parent.descriptor)
        try:
            with os.scandir(descriptor) as entries:
                names = [os.fsencode(entry.name) for entry in entries if entry.inode() == inode]
            for name in names:
                with contextlib.suppress(OSError), self._open_at(descriptor, name) as found:
                    if found.id == child.id:
                        return name
        finally:
            os.close(descriptor)
        raise _MovedError


class _MovedError(Exception):
    """A directory was renamed while the way to it was being looked for."""


def _stat_or_close(descriptor: int) -> os.stat_result:
    try:
        return os.fstat(descriptor)
    except BaseException:
        os.close(descriptor)
        raise


def _stat_of(found: os.stat_result) -> SourceStat:
    return SourceStat(
        found.st_mode,
        found.st_uid,
        found.st_gid,
        found.st_size,
        found.st_mtime_ns,
        found.st_atime_ns,
        found.st_ctime_ns,
        found.st_rdev,
        found.st_nlink,
    )


def _fd(object: SourceObject) -> int:
    assert isinstance(object, OpenObject)
    return object.descriptor


def _error(what: str, code: int) -> SourceError:
    message = f"cannot {what} an object of the source: {os.strerror(code)}"
    return SourceError(message, code, transient=code in TRANSIENT)


class _border:
    """Turns OSError into SourceError, and nothing else. (A class: it is entered for each call.)"""

    __slots__ = ("_what",)

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, OSError):
            raise _error(self._what, error.errno or errno.EIO) from error
