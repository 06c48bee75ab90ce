"""The root of a site directory: whose it is, what of ours is in it, who uses it.

    SITE/.mirrorfs/       0700
      site                JSON: format, volume UUID, name of the site
      lock                the lease (lease.py)
      stage/              objects being made; emptied when the site is opened, but for large files
                          that are not finished (unfinished.py)
      limbo/  kept/       living objects without a place; what was removed or replaced, by day
      state and others    files of the caller

Nothing outside `.mirrorfs` is touched here.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from replicator.stores.attributes import MARK
from replicator.stores.base import (
    NO_SPACE,
    RESERVED,
    TRANSIENT,
    SiteEmptiedError,
    SiteMissingError,
    SiteReadOnlyError,
    SiteRefusedError,
)
from replicator.stores.lease import Lease
from replicator.stores.unfinished import PREFIX

FORMAT = 1
_DAEMON = "trusted.mirrorfs.daemon"  # an attribute that only the root of a mirrorfs mount has
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_NOFOLLOW | os.O_CLOEXEC
_NOT_WRITABLE = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


@dataclass(frozen=True, slots=True)
class Claim:
    """Which site is wanted, and what the operator allows for it.

    Attributes:
        volume: its UUID, 16 bytes.  name: of the site.
        known: it was replicated to before: nothing of it may not be taken for a new site.
        adopt: one that is not empty and of no volume, or of this one under another name.
        take_over: one of another volume, too, or one that was emptied.
    """

    volume: bytes
    name: str
    known: bool = False
    adopt: bool = False
    take_over: bool = False

    @property
    def volume_text(self) -> str:
        """The UUID as people write it."""
        return str(uuid.UUID(bytes=self.volume))


class SiteFile(msgspec.Struct, frozen=True):
    """What `.mirrorfs/site` says."""

    format: int
    volume: str
    name: str


@dataclass(slots=True)
class SiteRoot:
    """An open site directory, its lease held.

    Attributes:
        path: as the operator gave it.
        root, reserved, stage, limbo, kept: descriptors of the site, `.mirrorfs` and what is in it.
    """

    path: bytes
    root: int
    reserved: int
    stage: int
    limbo: int
    kept: int
    lease: Lease

    @classmethod
    def open(cls, path: bytes, claim: Claim, source: int | None) -> SiteRoot:
        """See DirectoryStore.open. Raises SiteRefusedError, OSError."""
        with contextlib.ExitStack() as opened, _refusals(os.fsdecode(path)):
            root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            opened.callback(os.close, root)
            if source is not None:
                _refuse_overlap(root, source)
            _refuse_foreign(root, claim)  # before anything is changed there
            reserved = _subdirectory(root, RESERVED)
            opened.callback(os.close, reserved)
            lease = Lease(reserved)
            opened.callback(lease.release)
            found = _refuse_foreign(root, claim)  # nobody else changes it now
            stage, limbo, kept = (
                _opened(_subdirectory(reserved, part), opened)
                for part in (b"stage", b"limbo", b"kept")
            )
            _empty(stage, spare=PREFIX)
            _refuse_markless(stage)
            wanted = SiteFile(FORMAT, claim.volume_text, claim.name)
            if found is not None and found.volume != wanted.volume:
                _put_by(root, reserved, kept)
                limbo = _opened(_subdirectory(reserved, b"limbo"), opened)
            if found != wanted:
                _replace(reserved, b"site", msgspec.json.encode(wanted) + b"\n")
            opened.pop_all()
            return cls(path, root, reserved, stage, limbo, kept, lease)

    def read(self, name: str) -> bytes | None:
        """A file under `.mirrorfs`; None if there is none."""
        return _read(self.reserved, _own(name))

    def write(self, name: str, data: bytes) -> None:
        """Replace it, durably, by one rename."""
        _replace(self.reserved, _own(name), data)

    def append(self, name: str, data: bytes, *, durable: bool) -> None:
        """Append to it."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | _FILE
        fd = os.open(_own(name), flags, 0o600, dir_fd=self.reserved)
        with open(fd, "wb", buffering=0) as file:
            may_be_new = os.fstat(fd).st_size == 0
            _write(file, data, sync=durable)
        if durable and may_be_new:
            os.fsync(self.reserved)

    def close(self) -> None:
        """Give back the lease and all descriptors; the second time nothing happens."""
        if self.root < 0:
            return
        self.lease.release()
        for fd in (self.stage, self.limbo, self.kept, self.reserved, self.root):
            os.close(fd)
        self.root = -1


@contextlib.contextmanager
def _refusals(shown: str) -> Iterator[None]:
    """Puts the site's path before a refusal; what a wrong path gives is a refusal, too."""
    try:
        yield
    except SiteRefusedError as error:
        raise type(error)(f"{shown}: {error}") from error.__cause__
    except FileNotFoundError:
        raise SiteMissingError(f"{shown}: does not exist") from None
    except NotADirectoryError:
        raise SiteMissingError(f"{shown}: not a directory") from None
    except OSError as error:
        if error.errno not in _NOT_WRITABLE:
            raise
        raise SiteReadOnlyError(f"{shown}: not writable: {error.strerror}") from error


def _refuse_overlap(root: int, source: int) -> None:
    """Refuse a site that is the source, in it (below a mount, too), or around it."""
    here, there = os.fstat(root), os.fstat(source)
    for directory in _upwards(root):
        if os.path.samestat(os.fstat(directory), there):
            raise SiteRefusedError("is inside the source tree")
        if _is_mirrorfs(directory):
            raise SiteRefusedError("is inside a tree that mirrorfs is mounted over")
    for directory in _upwards(source):
        if os.path.samestat(os.fstat(directory), here):
            raise SiteRefusedError("the source tree is inside it")


def _upwards(directory: int) -> Iterator[int]:
    """The directory, and all above it."""
    with contextlib.ExitStack() as opened:
        while True:
            yield directory
            parent = _opened(os.open(b"..", os.O_PATH | os.O_CLOEXEC, dir_fd=directory), opened)
            if os.path.samestat(os.fstat(directory), os.fstat(parent)):
                return
            directory = parent


def _is_mirrorfs(directory: int) -> bool:
    """Whether it is the root of a mirrorfs mount."""
    try:
        return bool(os.getxattr(f"/proc/self/fd/{directory}", _DAEMON))
    except OSError:
        return False


def _put_by(root: int, reserved: int, kept: int) -> None:
    """All that another volume's replicator made is kept, by one rename each: its marks mean nothing
    here. What that replicator knew of the site goes."""
    day = time.strftime("%Y-%m-%d", time.gmtime()).encode()
    os.close(_subdirectory(kept, day))
    number = 0
    while True:
        to = b"%s/taken-over.%d" % (day, number)
        with contextlib.suppress(FileExistsError):
            os.mkdir(to, 0o700, dir_fd=kept)
            break
        number += 1
    os.replace(b"limbo", to + b"/.limbo", src_dir_fd=reserved, dst_dir_fd=kept)
    for name in map(os.fsencode, os.listdir(root)):
        if name != RESERVED:
            os.replace(name, to + b"/" + name, src_dir_fd=root, dst_dir_fd=kept)
    for name in map(os.fsencode, os.listdir(reserved)):
        found = os.stat(name, dir_fd=reserved, follow_symlinks=False)
        if name not in (b"site", b"lock") and not stat.S_ISDIR(found.st_mode):
            os.unlink(name, dir_fd=reserved)


def _refuse_foreign(root: int, claim: Claim) -> SiteFile | None:
    """Refuse what is not this volume's; what `.mirrorfs/site` says now."""
    found = source = None
    reserved = _reserved(root)
    if reserved is not None:
        try:
            found, source = _site_file(reserved), _read(reserved, b"volume")
        finally:
            os.close(reserved)
    if source is not None:
        raise SiteRefusedError("is the source tree of a volume")
    if found is None:
        _refuse_unknown(root, claim)
        return None
    if found.format != FORMAT:
        raise SiteRefusedError(f"has format {found.format}, only {FORMAT} is known here")
    if claim.take_over:
        return found
    if found.volume != claim.volume_text:
        raise SiteRefusedError(
            f"belongs to another volume, {found.volume}; 'replicator attach --take-over' takes it"
        )
    if found.name != claim.name and not claim.adopt:
        raise SiteRefusedError(
            f"is site {found.name!r} of this volume, not {claim.name!r}; "
            "'replicator attach --adopt' renames it"
        )
    return found


def _reserved(root: int) -> int | None:
    """A descriptor of `.mirrorfs`; None if there is none."""
    try:
        return os.open(RESERVED, _DIRECTORY, dir_fd=root)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in TRANSIENT:
            raise
        raise SiteRefusedError(f"its .mirrorfs cannot be opened: {error.strerror}") from error


def _refuse_unknown(root: int, claim: Claim) -> None:
    """Of a directory that bears no sign of a site."""
    if claim.adopt or claim.take_over:
        return
    if claim.known:
        raise SiteEmptiedError(
            f"has nothing of site {claim.name!r}, which was replicated to before: is it not "
            "mounted? If it was emptied, 'replicator attach --take-over' makes it anew"
        )
    others = [entry for entry in os.listdir(root) if os.fsencode(entry) != RESERVED]
    if others:
        raise SiteRefusedError(
            f"not empty ({min(others)!r}) and not a site of this volume; "
            "'replicator attach --adopt' takes it"
        )


def _site_file(reserved: int) -> SiteFile | None:
    text = _read(reserved, b"site")
    if text is None:
        return None
    try:
        return msgspec.json.decode(text, type=SiteFile)
    except msgspec.DecodeError as error:
        raise SiteRefusedError(f"its .mirrorfs/site cannot be read: {error}") from None


def _refuse_markless(stage: int) -> None:
    """Refuse a file system on which copies cannot be marked."""
    os.symlink(b"probe", b"probe", dir_fd=stage)
    fd = os.open(b"probe", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=stage)
    try:
        os.setxattr(b"/proc/self/fd/%d" % fd, MARK, b"probe")
    except OSError as error:
        if error.errno in TRANSIENT | NO_SPACE:
            raise
        raise SiteRefusedError(
            f"its file system does not keep trusted.* extended attributes ({error.strerror})"
        ) from error
    finally:
        os.close(fd)
        os.unlink(b"probe", dir_fd=stage)


def _subdirectory(parent: int, name: bytes) -> int:
    """A descriptor of that private directory, made if need be. Its entries inherit no ACL."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=parent)
    fd = os.open(name, _DIRECTORY, dir_fd=parent)
    try:
        os.fchmod(fd, 0o700)
        with contextlib.suppress(OSError):
            os.removexattr(fd, "system.posix_acl_default")
    except BaseException:
        os.close(fd)
        raise
    return fd


def _empty(directory: int, spare: bytes | None = None) -> None:
    for name in os.listdir(directory):
        if spare is not None and os.fsencode(name).startswith(spare):
            continue  # see unfinished.py
        try:
            os.unlink(name, dir_fd=directory)
        except IsADirectoryError:
            fd = os.open(name, _DIRECTORY, dir_fd=directory)
            try:
                _empty(fd)
            finally:
                os.close(fd)
            os.rmdir(name, dir_fd=directory)


def _opened(fd: int, opened: contextlib.ExitStack) -> int:
    opened.callback(os.close, fd)
    return fd


def _own(name: str) -> bytes:
    if "/" in name or name in ("", ".", "..", "site", "lock"):
        raise ValueError(f"no name for a file of ours: {name!r}")
    return os.fsencode(name)


def _read(directory: int, name: bytes) -> bytes | None:
    try:
        fd = os.open(name, os.O_RDONLY | _FILE, dir_fd=directory)
    except FileNotFoundError:
        return None
    with open(fd, "rb") as file:
        return file.read()


def _replace(directory: int, name: bytes, data: bytes) -> None:
    fresh = b"new." + name
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _FILE
    with open(os.open(fresh, flags, 0o600, dir_fd=directory), "wb", buffering=0) as file:
        _write(file, data, sync=True)
    os.replace(fresh, name, src_dir_fd=directory, dst_dir_fd=directory)
    os.fsync(directory)


def _write(file: io.FileIO, data: bytes, *, sync: bool) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]
    if sync:
        os.fsync(file.fileno())
