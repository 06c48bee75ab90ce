"""The journal's records: what one change says, as bytes and back.

Pure: values in, values out. FORMAT.md beside this file is normative for the bytes.
This module does not know about files, segments or framing.

What is decoded by the million cannot be part of a cycle: the garbage collector need not follow it
(gc=False), which took as long as the decoding.
"""

from __future__ import annotations

import enum
import struct
from typing import NewType, TypeAlias

import msgspec

SequenceNumber = NewType("SequenceNumber", int)
"""Position of a record in its journal, from 1, without gaps; 0 is before the first."""

Tag = NewType("Tag", int)
"""Random 64 bits that name one incarnation (one start of the writer) of a journal."""

ObjectId = NewType("ObjectId", bytes)
"""Identity of an object of the source: epoch and file handle (FORMAT.md section 4)."""

SETTLED = 0x01
"""Record flag: when it was made, no content change of the object was unrecorded."""

FORM_HANDLE = 1
FORM_BIRTH = 2
_HANDLE_HEAD = struct.Struct("<BIi")
_BIRTH = struct.Struct("<BIQq")


class RecordError(Exception):
    """A payload that FORMAT.md does not allow."""


class Kind(enum.IntEnum):
    """What happened. The values are fixed by FORMAT.md section 5."""

    CREATE = 1
    MKDIR = 2
    MKNOD = 3
    SYMLINK = 4
    LINK = 5
    UNLINK = 6
    RMDIR = 7
    RENAME = 8
    WRITE = 9
    ATTRIBUTES = 10
    XATTR = 11
    MOUNT = 64
    UNMOUNT = 65
    RECONCILE = 66
    CHECKPOINT = 67
    EPOCH = 68

    @property
    def label(self) -> str:
        """The kind's name as people read it."""
        return self.name.lower()


class Place(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where a name stands: a directory object and a name in it."""

    directory: ObjectId
    name: bytes


class Who(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The process that changed the content, and its batch job ("" for none)."""

    pid: int
    uid: int
    job: str


class Change(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Body of the records about objects. FORMAT.md section 5 says what each field means."""

    object: ObjectId
    places: tuple[Place, ...]
    path: bytes | None
    mode: int
    links: int
    ctime_ns: int = 0
    other: ObjectId | None = None
    other_links: int = 0
    other_ctime_ns: int = 0
    rename_flags: int = 0
    size: int = 0
    mtime_ns: int = 0
    extents: tuple[tuple[int, int], ...] | None = None
    xattr: bytes | None = None
    who: Who | None = None


class Mount(msgspec.Struct, frozen=True, array_like=True):
    """The writer came up: the first record of an incarnation."""

    host: str
    pid: int
    version: str
    mountpoint: bytes
    clean: bool


class Unmount(msgspec.Struct, frozen=True, array_like=True):
    """The clean end of an incarnation: its last record."""

    host: str


class Reconcile(msgspec.Struct, frozen=True, array_like=True):
    """What changed in this directory (`whole`: and below it) is not known: compare it.

    `since_ns` not 0: wherever in the tree, a change time not older than this proves no content.
    """

    directory: ObjectId
    whole: bool
    path: bytes | None
    reason: str
    since_ns: int = 0


class Checkpoint(msgspec.Struct, frozen=True, array_like=True):
    """A named position."""

    name: str


class Epoch(msgspec.Struct, frozen=True, array_like=True):
    """From here on object ids carry this epoch."""

    epoch: int
    reason: str


Body: TypeAlias = Change | Mount | Unmount | Reconcile | Checkpoint | Epoch

_CONTROL: dict[Kind, type[Body]] = {
    Kind.MOUNT: Mount,
    Kind.UNMOUNT: Unmount,
    Kind.RECONCILE: Reconcile,
    Kind.CHECKPOINT: Checkpoint,
    Kind.EPOCH: Epoch,
}


class Record(msgspec.Struct, frozen=True, gc=False):
    """One record: frame fields and body."""

    sequence: SequenceNumber
    time_ns: int
    kind: Kind
    flags: int
    body: Body

    @property
    def settled(self) -> bool:
        """See SETTLED."""
        return bool(self.flags & SETTLED)


_DECODERS = {kind: msgspec.msgpack.Decoder(_CONTROL.get(kind, Change)) for kind in Kind}
_KINDS = {int(kind): kind for kind in Kind}
_encode = msgspec.msgpack.Encoder().encode


def encode_body(body: Body) -> bytes:
    """A record's payload."""
    return _encode(body)


def decode_body(kind: int, payload: bytes | memoryview) -> tuple[Kind, Body]:
    """The kind and body of a payload.

    Raises RecordError when the kind is unknown or the payload is not one of that kind.
    """
    known = _KINDS.get(kind)
    if known is None:
        raise RecordError(f"unknown record kind {kind}")
    try:
        return known, _DECODERS[known].decode(payload)
    except msgspec.DecodeError as error:
        raise RecordError(f"bad {known.label} record: {error}") from None


def handle_id(epoch: int, handle_type: int, handle: bytes) -> ObjectId:
    """The id of an object known by a file handle of name_to_handle_at(2)."""
    return ObjectId(_HANDLE_HEAD.pack(FORM_HANDLE, epoch, handle_type) + handle)


def split_handle_id(identity: ObjectId) -> tuple[int, int, bytes]:
    """Epoch, handle type and handle of an id; RecordError if it is not of that form."""
    if len(identity) <= _HANDLE_HEAD.size or identity[0] != FORM_HANDLE:
        raise RecordError(f"not the id of a file handle: {identity.hex()}")
    _, epoch, handle_type = _HANDLE_HEAD.unpack_from(identity)
    return epoch, handle_type, identity[_HANDLE_HEAD.size :]


def birth_id(epoch: int, inode: int, birth_ns: int) -> ObjectId:
    """The id of an object known by inode number and birth time (ns since 1970)."""
    return ObjectId(_BIRTH.pack(FORM_BIRTH, epoch, inode, birth_ns))
