"""What the file `activity` of a journal begins with: how far the log of changing directories goes.

Pure. FORMAT.md beside this file, section 11, is normative; what follows the header is the writer's.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

import xxhash

from mirrorfs.journal.record import Tag

FILE_NAME: Final = "activity"
HEADER_BYTES: Final = 256
_MAGIC: Final = b"\x89MFSA\r\n\x1a"
_VERSION: Final = 1
_PREFIX: Final = struct.Struct("<8sHHI")
_FIELDS: Final = struct.Struct("<16sQQ36sQqQQQQ")
_CHECKSUM: Final = struct.Struct("<Q")


class ActivityHeader(NamedTuple):
    """Slot 0 of the file.

    Attributes:
        journal: UUID of the journal.
        tag: incarnation whose changes it tells of.
        previous: the incarnation before: the file tells of its changes too; 0 if there is none.
        boot: the boot of this host in which it was made.
        mount: which mount of the source's file system it tells of; 0 if that cannot be told.
        swept_ns: what was changed before was durable then, by the clock of the source's file
            system; 0 if that is not known.
        generation: goes up whenever the file is written, over all incarnations.
        durable: the generation that is known to be on the disk.
        synced: every record up to it was on the disk of the journal.
        witnessed: the source durably knows of that generation, or a later one.
    """

    journal: bytes
    tag: Tag
    previous: int
    boot: bytes
    mount: int = 0
    swept_ns: int = 0
    generation: int = 0
    durable: int = 0
    synced: int = 0
    witnessed: int = 0


def encode_activity_header(header: ActivityHeader, slots: int) -> bytes:
    """The bytes of slot 0 of so many."""
    packed = _PREFIX.pack(_MAGIC, _VERSION, HEADER_BYTES, slots) + _FIELDS.pack(*header)
    return (packed + _CHECKSUM.pack(xxhash.xxh3_64_intdigest(packed))).ljust(HEADER_BYTES, b"\0")


def decode_activity_header(data: bytes) -> tuple[ActivityHeader, int] | None:
    """The header, and how many slots there are; None if these bytes are none."""
    end = _PREFIX.size + _FIELDS.size
    if len(data) < end + _CHECKSUM.size:
        return None
    if _CHECKSUM.unpack_from(data, end)[0] != xxhash.xxh3_64_intdigest(data[:end]):
        return None
    magic, version, slot_bytes, slots = _PREFIX.unpack_from(data)
    if (magic, version, slot_bytes) != (_MAGIC, _VERSION, HEADER_BYTES):
        return None
    return ActivityHeader(*_FIELDS.unpack_from(data, _PREFIX.size)), slots
