"""The reserved directory `.mirrorfs` at the root of a source: who this volume is, what is marked.

Works relative to the root's descriptor, so it means the source even when a mount lies over it. It
keeps nothing else there and touches no mirrored file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import struct
import time
import uuid
from collections.abc import Iterator
from typing import Final, NamedTuple

import xxhash

from mirrorfs.errors import CannotWriteError, RefusedError, UnusableError

_log = logging.getLogger(__name__)

RESERVED: Final = ".mirrorfs"
_UUID_NAME = "volume"
_MARKS_NAME = "degraded"
_SPARE_NAME = "spare"
_SPARE_BYTES = 64 << 10
_CHECKSUM_BYTES = 8
_NODES_NAME = "nodes"
_UNTOLD_NAME = "untold"
_WITNESS_NAME = "activity"
_WITNESS = struct.Struct("<16sQQ")
_MARK = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Witness(NamedTuple):
    """What the source says of a journal.

    Attributes:
        journal: its UUID.
        generation: there was this one of its activity log.
        written_ns: when that was said, by the clock of the source's file system.
    """

    journal: bytes
    generation: int
    written_ns: int = 0


class VolumeDirectory:
    """`.mirrorfs` of one source; holds the lock that keeps a second mirrorfs away from it."""

    def __init__(self, root_fd: int, source: str, node: str = "") -> None:
        """Open or make it. UnusableError, CannotWriteError.

        `node`: this node's id, if several may have the source mounted; "" if one only.
        """
        self._source = source
        self._marks_fd = -1
        self._marks_end = 0
        self._node = node
        self._marks_name = f"{_MARKS_NAME}-{node}" if node else _MARKS_NAME
        self._spare_name = f"{_SPARE_NAME}-{node}" if node else _SPARE_NAME
        self._witness_name = f"{_WITNESS_NAME}-{node}" if node else _WITNESS_NAME
        self._witness_fd = -1
        self._untold_name = f"{_UNTOLD_NAME}-{node}" if node else _UNTOLD_NAME
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(RESERVED, 0o700, dir_fd=root_fd)
            self._fd = os.open(RESERVED, _DIRECTORY, dir_fd=root_fd)
        except NotADirectoryError:
            raise UnusableError(
                f"{source}/{RESERVED}: not a directory: the name is reserved for mirrorfs"
            ) from None
        except OSError as error:
            raise CannotWriteError(f"{source}/{RESERVED}: {error.strerror}") from None

    def close(self) -> None:
        """Let the source go; what was forked meanwhile holds the lock as well."""
        self._close_marks()
        if self._witness_fd >= 0:
            os.close(self._witness_fd)
        os.close(self._fd)

    @property
    def descriptor(self) -> int:
        """Of the directory; the lock is on it."""
        return self._fd

    def lock(self) -> None:
        """Keep other mirrorfs away until `close`, but those of other nodes where several may be
        there. RefusedError if one is there."""
        try:
            fcntl.flock(self._fd, (fcntl.LOCK_SH if self._node else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            reason = "one is allowed" if not self._node else "with writers=one"
            raise RefusedError(
                f"{self._source}: another mirrorfs has mounted this source: {reason}"
            ) from None
        except OSError as error:
            _log.warning("%s: cannot be locked: %s", self._source, error.strerror)

    def uuid(self) -> bytes | None:
        """The volume's UUID; None if the source has none yet. UnusableError if it is unreadable."""
        path = f"{self._source}/{RESERVED}/{_UUID_NAME}"
        try:
            text = self._read(_UUID_NAME)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UnusableError(f"{path}: {error.strerror}") from None
        try:
            return uuid.UUID(text.decode("ascii").strip()).bytes
        except ValueError:
            raise UnusableError(f"{path}: not a UUID: put the right one back") from None

    def make_uuid(self) -> bytes:
        """Give the source a UUID, durably: this one, or the one of a node that was faster.

        CannotWriteError, UnusableError.
        """
        made = f"{uuid.uuid4()}"
        new = f"{_UUID_NAME}-{made}"
        try:
            self._write(new, f"{made}\n".encode())
            try:
                with contextlib.suppress(FileExistsError):
                    os.link(new, _UUID_NAME, src_dir_fd=self._fd, dst_dir_fd=self._fd)
            finally:
                os.unlink(new, dir_fd=self._fd)
            os.fsync(self._fd)
        except OSError as error:
            path = f"{self._source}/{RESERVED}/{_UUID_NAME}"
            raise CannotWriteError(f"{path}: {error.strerror}") from None
        found = self.uuid()
        assert found is not None
        return found

    # -- whether the activity log tells of everything --------------------------------------------

    def distrust_activity(self) -> None:
        """Say durably that the activity log does not tell of all changes. OSError."""
        self._write(self._untold_name, b"")

    def trusts_activity(self) -> bool:
        """It tells of all changes."""
        return not os.access(self._untold_name, os.F_OK, dir_fd=self._fd)

    def trust_activity(self) -> None:
        """It does from now on. OSError."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._untold_name, dir_fd=self._fd)
            os.fsync(self._fd)

    def witness(self) -> Witness | None:
        """Of the journal whose activity log told last of changes here; None if that is not known.
        OSError."""
        try:
            data = self._read(self._witness_name)
            found = os.stat(self._witness_name, dir_fd=self._fd)
        except FileNotFoundError:
            return None
        if len(data) != _WITNESS.size:
            return None
        journal, generation, checksum = _WITNESS.unpack(data)
        if checksum != xxhash.xxh3_64_intdigest(data[:-_CHECKSUM_BYTES]):
            return None
        return Witness(journal, generation, found.st_mtime_ns)

    def bear_witness(self, journal: bytes, generation: int) -> None:
        """There is that generation of the activity log. Not synced: after a power cut an older one
        may be told of. OSError."""
        if self._witness_fd < 0:
            self._witness_fd = os.open(self._witness_name, _MARK, 0o600, dir_fd=self._fd)
        packed = _WITNESS.pack(journal, generation, 0)[:-_CHECKSUM_BYTES]
        checksum = xxhash.xxh3_64_intdigest(packed).to_bytes(_CHECKSUM_BYTES, "little")
        _write_all(self._witness_fd, packed + checksum, 0)

    def ahead_ns(self) -> int:
        """The clock of the source's file system, less that of this host. OSError."""
        os.fchmod(self._fd, 0o700)
        return os.fstat(self._fd).st_ctime_ns - time.time_ns()

    # -- the file of marks: which directories were changed without a record ----------------------

    @property
    def marks_begun(self) -> bool:
        """There is one, begun by us."""
        return self._marks_fd >= 0

    def read_marks(self) -> bytes | None:
        """What a mirrorfs before this one left; None if there is none. UnusableError."""
        try:
            return self._read(self._marks_name)
        except FileNotFoundError:
            return None
        except OSError as error:
            path = f"{self._source}/{RESERVED}/{self._marks_name}"
            raise UnusableError(f"{path}: {error.strerror}") from None

    def prepare_marks(self) -> None:
        """Take space for some marks now: the source may be full when they are needed. OSError."""
        fd = self._open_spare()
        try:
            os.ftruncate(fd, 0)
            os.posix_fallocate(fd, 0, _SPARE_BYTES)
        finally:
            os.close(fd)

    def begin_marks(self, data: bytes) -> None:
        """Make the file with that in it, whole and durable, in place of one that is there.

        OSError.
        """
        fd = self._open_spare()
        try:
            _write_all(fd, data, 0)
            os.fsync(fd)
            os.replace(self._spare_name, self._marks_name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
            os.fsync(self._fd)
        except BaseException:
            os.close(fd)
            raise
        self._close_marks()
        self._marks_fd, self._marks_end = fd, len(data)

    def append_marks(self, data: bytes) -> None:
        """Write more behind it, durably. OSError: it may be there, or in part, or not."""
        _write_all(self._marks_fd, data, self._marks_end)
        os.fdatasync(self._marks_fd)
        self._marks_end += len(data)

    def overwrite_marks(self, data: bytes) -> None:
        """Write that over the beginning, where no more space is needed: what is left of the rest
        makes the file unreadable if `data` does not end it. OSError."""
        if not self.marks_begun:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        _write_all(self._marks_fd, data, 0)
        os.fdatasync(self._marks_fd)

    def clear_marks(self) -> None:
        """Durable records cover them now. OSError."""
        self._close_marks()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._marks_name, dir_fd=self._fd)
        os.fsync(self._fd)
        with contextlib.suppress(OSError):
            self.prepare_marks()

    def _open_spare(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(self._spare_name, flags, 0o600, dir_fd=self._fd)

    def _close_marks(self) -> None:
        if self._marks_fd >= 0:
            os.close(self._marks_fd)
            self._marks_fd = -1

    # -- small files -----------------------------------------------------------------------------

    def nodes(self) -> list[str]:
        """The nodes that write journals of their own of this source. CannotWriteError."""
        try:
            with self._nodes() as nodes:
                return sorted(os.listdir(nodes))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._nodes_error(error) from None

    def changed_by_others(self) -> bool:
        """Since the last mirrorfs of this node's journal others may have written theirs."""
        nodes = self.nodes()
        return self._node not in nodes if self._node else bool(nodes)

    def note_writers(self) -> None:
        """Note durably who writes from now on: this node, too, or one alone. CannotWriteError."""
        try:
            if self._node:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(_NODES_NAME, 0o700, dir_fd=self._fd)
                    os.fsync(self._fd)
                with self._nodes() as nodes:
                    os.close(os.open(self._node, _MARK, 0o600, dir_fd=nodes))
                    os.fsync(nodes)
                return
            for node in self.nodes():
                os.unlink(f"{_NODES_NAME}/{node}", dir_fd=self._fd)
        except OSError as error:
            raise self._nodes_error(error) from None

    @contextlib.contextmanager
    def _nodes(self) -> Iterator[int]:
        nodes = os.open(_NODES_NAME, _DIRECTORY, dir_fd=self._fd)
        try:
            yield nodes
        finally:
            os.close(nodes)

    def _nodes_error(self, error: OSError) -> CannotWriteError:
        return CannotWriteError(f"{self._source}/{RESERVED}/{_NODES_NAME}: {error.strerror}")

    def _read(self, name: str) -> bytes:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._fd)
        try:
            return b"".join(iter(lambda: os.read(fd, 1 << 20), b""))
        finally:
            os.close(fd)

    def _write(self, name: str, data: bytes) -> None:
        """Replace a file, whole and durable."""
        new = f"{name}.new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(new, flags, 0o600, dir_fd=self._fd)
        try:
            os.write(fd, data)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(new, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        os.fsync(self._fd)


def _write_all(fd: int, data: bytes, offset: int) -> None:
    """All of it, or OSError."""
    if os.pwrite(fd, data, offset) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
