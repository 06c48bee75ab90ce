"""Which record a completed operation makes, or none.

Pure: facts of the operation in, record out. It knows neither descriptors nor the node table. The
caller appends what it gets after the change was made and before the job has its answer.
"""

from __future__ import annotations

import stat
from typing import Final, NamedTuple, TypeAlias

from mirrorfs.journal.record import SETTLED, Change, Kind, ObjectId, Place, Who

RESERVED: Final = b".mirrorfs"
"""The name in the root that jobs neither see nor use, and that is never replicated."""

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2

_RESERVED_XATTRS: Final = (b"user.mirrorfs.", b"trusted.mirrorfs.")
_KIND_OF_TYPE: Final = {
    stat.S_IFREG: Kind.CREATE,
    stat.S_IFDIR: Kind.MKDIR,
    stat.S_IFLNK: Kind.SYMLINK,
}

Captured: TypeAlias = tuple[Kind, Change, int]
"""Kind, body and flags of a record."""


class Subject(NamedTuple):
    """The object of an operation, after it.

    Attributes:
        mode: st_mode.  links: link count.  ctime_ns: ns since 1970, 0 if not looked at.
        dirty: a change of its content is still without a record.
    """

    object: ObjectId
    mode: int
    links: int
    ctime_ns: int
    dirty: bool


def reserved_xattr(name: bytes) -> bool:
    """That attribute is mirrorfs's own: jobs do not see it."""
    return name.startswith(_RESERVED_XATTRS)


def made(subject: Subject, place: Place, path: bytes | None) -> Captured:
    """A new object stands at a place: create, mkdir, symlink or mknod by its type."""
    kind = _KIND_OF_TYPE.get(stat.S_IFMT(subject.mode), Kind.MKNOD)
    return _captured(kind, subject, (place,), path)


def linked(subject: Subject, place: Place, path: bytes | None, other: Place | None) -> Captured:
    """An object got another name; `other` is one it had before, if one is known."""
    places = (place,) if other is None else (place, other)
    return _captured(Kind.LINK, subject, places, path)


def removed(subject: Subject, place: Place, path: bytes | None) -> Captured:
    """A name was removed: rmdir of a directory, unlink of anything else."""
    kind = Kind.RMDIR if stat.S_ISDIR(subject.mode) else Kind.UNLINK
    if not subject.links:
        subject = subject._replace(ctime_ns=0)
    return _captured(kind, subject, (place,), path)


def renamed(
    subject: Subject, places: tuple[Place, Place], path: bytes | None, flags: int,
    displaced: Subject | None,
) -> Captured | None:  # fmt: skip
    """A name became another one, or two changed their objects (RENAME_EXCHANGE in `flags`).

    `places` are the old and the new one, `displaced` is what stood at the new one. Two names of
    one object stay as they are: rename(2) does nothing then, and there is no record.
    """
    if displaced is not None and displaced.object == subject.object:
        return None
    change = Change(
        object=subject.object,
        places=places,
        path=path,
        mode=subject.mode,
        links=subject.links,
        ctime_ns=subject.ctime_ns,
        other=None if displaced is None else displaced.object,
        other_links=0 if displaced is None else displaced.links,
        other_ctime_ns=0 if displaced is None or displaced.dirty else displaced.ctime_ns,
        rename_flags=flags,
    )
    return Kind.RENAME, change, _flags(subject)


def written(
    subject: Subject, place: Place | None, path: bytes | None, size: int, mtime_ns: int,
    who: Who | None,
) -> Captured | None:  # fmt: skip
    """The content changed. No record for an object without a name: it can never get one again."""
    if not subject.links:
        return None
    change = Change(
        object=subject.object,
        places=() if place is None else (place,),
        path=path,
        mode=subject.mode,
        links=subject.links,
        ctime_ns=subject.ctime_ns,
        size=size,
        mtime_ns=mtime_ns,
        who=who,
    )
    return Kind.WRITE, change, _flags(subject)


def attributes(subject: Subject, place: Place | None, path: bytes | None) -> Captured | None:
    """Mode, owner or times were set; none for an object without a name."""
    if not subject.links:
        return None
    return _captured(Kind.ATTRIBUTES, subject, () if place is None else (place,), path)


def xattr(
    subject: Subject, place: Place | None, path: bytes | None, name: bytes
) -> Captured | None:
    """An extended attribute or ACL was set or removed; none for an object without a name."""
    if not subject.links:
        return None
    change = Change(
        object=subject.object,
        places=() if place is None else (place,),
        path=path,
        mode=subject.mode,
        links=subject.links,
        ctime_ns=subject.ctime_ns,
        xattr=name,
    )
    return Kind.XATTR, change, _flags(subject)


def _captured(
    kind: Kind, subject: Subject, places: tuple[Place, ...], path: bytes | None
) -> Captured:
    change = Change(subject.object, places, path, subject.mode, subject.links, subject.ctime_ns)
    return kind, change, _flags(subject)


def _flags(subject: Subject) -> int:
    return 0 if subject.dirty else SETTLED
