"""What every site store offers: the protocol, its values and its errors.

A site store writes one copy of the source tree. It knows nothing of records, plans or cursors; it
carries out small, single actions on directories it has handed out, and keeps a few files of its own
under the reserved directory `.mirrorfs` at the site's root. Every store passes tests/conformance.
"""

from __future__ import annotations

import enum
import errno as codes
import struct
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, Self

from mirrorfs.journal.record import ObjectId, SequenceNumber, Tag

RESERVED: Final = b".mirrorfs"
"""Name at the root of a volume and of a site that belongs to mirrorfs: hidden, never replicated."""

NO_SPACE: Final = frozenset({codes.ENOSPC, codes.EDQUOT})
"""Errors that removing files may cure."""

TRANSIENT: Final = frozenset(
    getattr(codes, name)
    for name in (
        *("EAGAIN", "EBUSY", "EINTR", "EIO", "EROFS", "ESTALE", "EMFILE", "ENFILE", "ENOLCK"),
        *("ENOMEM", "ENOBUFS", "ETIMEDOUT", "ENOTCONN", "ECONNABORTED", "ECONNREFUSED"),
        *("ECONNRESET", "EPIPE", "ESHUTDOWN", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN"),
        *("ENETUNREACH", "EREMOTEIO"),
    )
)
"""Errors of a disk, server or network that may be well again later."""

_MARK = struct.Struct("<BBQQqQ")
_MARK_VERSION = 2
_MARK_1 = struct.Struct("<BBQQq")


class MarkFlag(enum.IntFlag):
    """What a mark says beyond its fields."""

    CONTENT = 1
    """The content was copied; without it the object is there, its content is not."""
    AHEAD = 2
    """It was read when no record spoke of it yet: a write may have been under way, which moves the
    change time first and the content later. So its change time proves nothing."""
    OWED = 4
    """A record about its attributes was applied while it stood elsewhere: compare them all."""


@dataclass(frozen=True, slots=True)
class Mark:
    """What a site remembers of a copy.

    Attributes:
        object: id of the source object this is a copy of.
        tag: incarnation of the journal that `sequence` belongs to.
        sequence: every record up to it described a change made before the source was read.
        ctime_ns: change time of the source object when its content was read; 0 if unknown.
        flags: see MarkFlag.
        saved: which of the site's saved states was the last one when the content was copied: the
            next one is saved when it is durable.
    """

    object: ObjectId
    tag: Tag
    sequence: SequenceNumber
    ctime_ns: int
    flags: MarkFlag = MarkFlag.CONTENT
    saved: int = 0

    def encode(self) -> bytes:
        """The bytes kept in the mark attribute."""
        told = self.flags, self.tag, self.sequence, self.ctime_ns, self.saved
        return _MARK.pack(_MARK_VERSION, *told) + self.object

    @classmethod
    def decode(cls, data: bytes) -> Mark | None:
        """The mark in those bytes; None if they are not one (such an object is not trusted)."""
        if data[:1] == b"\1" and len(data) > _MARK_1.size:  # before 2026
            packed, saved = _MARK_1, 0
            _, flags, tag, sequence, ctime_ns = _MARK_1.unpack_from(data)
        elif data[:1] == bytes((_MARK_VERSION,)) and len(data) > _MARK.size:
            packed = _MARK
            _, flags, tag, sequence, ctime_ns, saved = _MARK.unpack_from(data)
        else:
            return None
        return cls(
            ObjectId(data[packed.size :]),
            Tag(tag),
            SequenceNumber(sequence),
            ctime_ns,
            MarkFlag(flags),
            saved,
        )


@dataclass(frozen=True, slots=True)
class SiteEntry:
    """What stands at a place of the site.

    Attributes:
        identity: equal for the names of one object (device and inode number, say).
        mode: st_mode.  rdev: st_rdev.  size: bytes.  mtime_ns: nanoseconds since 1970.
    """

    identity: Hashable
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    rdev: int
    links: int
    mark: Mark | None


@dataclass(frozen=True, slots=True)
class Attributes:
    """Everything a copy gets beyond its content; applied in the order owner, xattrs, mode, times.

    Attributes:
        target: of a symlink (bytes as readlink(2) gives them), else None.
        xattrs: all of them but mirrorfs's own: user.*, trusted.*, security.*, ACLs as
            system.posix_acl_access and system.posix_acl_default.
    """

    mode: int
    uid: int
    gid: int
    atime_ns: int
    mtime_ns: int
    rdev: int
    xattrs: Mapping[bytes, bytes]
    target: bytes | None = None


@dataclass(frozen=True, slots=True)
class Version:
    """The content of an object between two changes: equal versions have equal content.

    Attributes:
        tag: incarnation of the journal: a source that lost power may have lost content, and kept
            the times. It has another one then.
    """

    object: ObjectId
    tag: Tag
    size: int
    mtime_ns: int
    ctime_ns: int


class Content(Protocol):
    """An open file of the source.

    Attributes:
        version: which content it has, if any later change will show in its times; None: a write may
            be under way, which moves them first and the content later.
    """

    version: Version | None

    def fileno(self) -> int:
        """A descriptor open for reading. Its offset is nobody's: use pread or reset it."""

    def read(self) -> bytes:
        """The whole content, for stores that keep it in memory."""

    def check(self, count: int) -> int:
        """To be called before so many bytes are read: how many may be, at least one. Waits until
        then; raises what is to end the reading."""

    def share(self, parts: Sequence[Callable[[], None]]) -> None:
        """Do all these, several at once if there are hands. When one fails the rest is left, and
        that error raised when nobody is at one of them any more."""


class StoreError(Exception):
    """A site could not do what it was asked.

    Attributes:
        errno: the errno behind it.
        transient: trying again later, with nothing changed by an operator, may help.
        no_space: ENOSPC or EDQUOT: removing files may help.
    """

    def __init__(
        self, message: str, errno: int, *, transient: bool, no_space: bool = False
    ) -> None:
        super().__init__(message)
        self.errno = errno
        self.transient = transient
        self.no_space = no_space

    @classmethod
    def of(cls, what: str, errno: int) -> Self:
        """The error for an errno; `what` says what was tried, and where."""
        no_space = errno in NO_SPACE
        return cls(what, errno, transient=no_space or errno in TRANSIENT, no_space=no_space)


class UnsyncedError(StoreError):
    """What was written since the last state was saved may be lost: it must be copied again. To ask
    for it to be synced once more would be answered with success."""


class SiteRefusedError(Exception):
    """This is no site for this volume (not empty, another volume's, in use …): say why."""


class SiteMissingError(SiteRefusedError):
    """There is no such directory."""


class SiteEmptiedError(SiteRefusedError):
    """It was a site, and nothing of it is there: it may not be mounted."""


class SiteBusyError(SiteRefusedError):
    """Another replicator is at work on it."""


class SiteReadOnlyError(SiteRefusedError):
    """It cannot be written."""


Directory = Hashable
"""An open directory of a store, as the store hands it out (a descriptor, a node)."""

Staged = Hashable
"""A complete object that has no place yet."""

Base = Hashable
"""A file of the site that may be the beginning of a longer one; a value, nothing is held open."""


class Syncing(Protocol):
    """Some of what was done at a site, to be made durable. Any thread may do it."""

    def begin(self) -> None:
        """Have the disk begin with it, so that several can share what follows."""

    def finish(self, seen: set[Hashable]) -> None:
        """It is durable when this returns. `seen`: directories that were synced since the last
        `begin`, which are not synced again; those of this one are added. UnsyncedError."""

    def close(self) -> None:
        """It is done, or need not be."""


class SiteStore(Protocol):
    """One site. All methods may raise StoreError. One caller at a time; only `stage` may be called
    from several threads at once, beside anything else.

    `list` is counted in `directories_listed`, bytes written by `stage` in `bytes_written`,
    attributes that the site refused to keep in `fidelity_debt`. No name may be empty, `.` or `..`
    or hold a `/` (EINVAL); at the root the reserved name is never there and cannot be made (EPERM).
    """

    directories_listed: int
    bytes_written: int
    fidelity_debt: int

    def root(self) -> Directory:
        """The site's root; stays open."""

    def limbo(self) -> Directory:
        """Where living objects wait for their place, under names the caller chooses."""

    def open_directory(self, directory: Directory, name: bytes) -> Directory | None:
        """The directory of that name (never through a symlink); None if there is none."""

    def close_directory(self, directory: Directory) -> None:
        """The caller is done with it (root and limbo stay open)."""

    def lookup(self, directory: Directory, name: bytes) -> SiteEntry | None:
        """What stands there, with its mark."""

    def list(self, directory: Directory) -> list[bytes]:
        """The names in it, without the reserved one at the root."""

    def xattrs(self, directory: Directory, name: bytes) -> dict[bytes, bytes]:
        """The extended attributes there, as `Attributes.xattrs` defines them."""

    def root_entry(self) -> SiteEntry:
        """The root itself, as `lookup` would show it."""

    def stage(
        self,
        attributes: Attributes,
        content: Content | None,
        mark: Mark | Callable[[], Mark],
        base: Base | None = None,
    ) -> Staged:
        """Make a complete object outside the tree: file (with content, or empty for None),
        directory, symlink, fifo, socket or device by `attributes.mode`, with attributes and mark:
        a callable is asked for it when the content is there.

        What is done of a large file may be kept if it fails, for the next time it is asked for with
        the same `Content.version`. If what `base` holds proves, byte for byte, to be the beginning
        of the content, only the rest may be copied: then see `is_tail`.

        What goes wrong in reading `content` is raised as the source puts it (replicator.view).
        """

    def base(self, directory: Directory, name: bytes) -> Base | None:
        """The regular file there, for `stage`; None if the store can do nothing with it."""

    def is_tail(self, staged: Staged) -> bool:
        """Whether it is the rest of a longer file, to be given to `extend` and not to `commit`."""

    def extend(self, staged: Staged, directory: Directory, name: bytes) -> bool:
        """Append a staged rest to its base, then give that attributes and mark. False: that is not
        what stands there now (any more), or it has other names: nothing was done, and it is still
        staged. After an error it is not staged any more.

        Its mark loses CONTENT, durably, before the first byte is appended: after a kill in the
        middle the file is a longer beginning of its content, and known to be no more.
        """

    def forget_unfinished(self) -> None:
        """Nothing that failed will be tried again: what is kept of it may go."""

    def discard(self, staged: Staged) -> None:
        """Remove a staged object that was not committed."""

    def is_alike(self, staged: Staged, directory: Directory, name: bytes) -> bool:
        """Whether the regular file there has the content of the staged one."""

    def commit(self, staged: Staged, directory: Directory, name: bytes) -> None:
        """Give it a place, atomically replacing a non-directory or an empty directory there."""

    def move(
        self, directory: Directory, name: bytes, to_directory: Directory, to_name: bytes
    ) -> None:
        """rename(2), atomically replacing what `commit` would replace. Two names of one object:
        the old name goes (rename(2) itself would do nothing). A directory over something else, or
        the reverse: what stood there may be away for a moment before."""

    def exchange(
        self, directory: Directory, name: bytes, to_directory: Directory, to_name: bytes
    ) -> None:
        """Both places change their objects atomically."""

    def link(
        self, directory: Directory, name: bytes, to_directory: Directory, to_name: bytes
    ) -> None:
        """Make the second place another name of the object at the first, atomically replacing a
        non-directory there."""

    def remove(self, directory: Directory, name: bytes) -> None:
        """unlink(2), or rmdir(2) of an empty directory. A missing name is success."""

    def keep(self, directory: Directory, name: bytes, path: bytes) -> None:
        """Move it to `.mirrorfs/kept/YYYY-MM-DD/PATH` (numbered if that is taken): what must not
        be lost. `path` is relative to the root; a name that becomes too long is cut. Nothing there:
        nothing is done."""

    def set_attributes(
        self, directory: Directory, name: bytes, attributes: Attributes, mark: Mark
    ) -> None:
        """Make attributes and mark of an existing object so (xattrs: exactly those)."""

    def set_root_attributes(self, attributes: Attributes, mark: Mark) -> None:
        """The same for the root."""

    def set_mark(self, directory: Directory, name: bytes, mark: Mark) -> None:
        """Replace the mark alone."""

    def set_directory_times(self, directory: Directory, atime_ns: int, mtime_ns: int) -> None:
        """Times of an open directory."""

    def read_file(self, name: str) -> bytes | None:
        """A file of ours under `.mirrorfs`; None if there is none."""

    def write_file(self, name: str, data: bytes) -> None:
        """Replace it atomically and durably (after everything written before). UnsyncedError."""

    def append_file(self, name: str, data: bytes, *, durable: bool = False) -> None:
        """Append to it; `durable`: synced, before whatever is done after it."""

    def sync(self) -> None:
        """Everything done so far is durable when this returns. UnsyncedError."""

    def keep_order(self) -> None:
        """From now on a file is replaced only by one whose content has gone to the disk: else a
        power cut may leave an empty one."""

    def syncing(
        self, wanted: Iterable[tuple[Directory, bytes | None]], *, whole: bool = False
    ) -> Syncing:
        """To make these durable: names of open directories with the objects there, or (None) what
        names a directory has. What is gone meanwhile is left out. `whole`: all the rest, too."""

    def close(self) -> None:
        """Release all descriptors and the lease."""
