"""What a site needs of a journal: its cursor, and what the journal says of it.

Pure. FORMAT.md beside this file, sections 2 and 10, is normative.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from mirrorfs.journal.record import SequenceNumber, Tag
from mirrorfs.journal.segment import Incarnation

CURSOR_VERSION: Final = 1
SiteStatus = Literal["attached", "detached", "forgotten"]


class SiteCursorError(Exception):
    """A cursor file that cannot be read."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """A cursor says nothing about this journal: an initial copy is due."""

    reason: str


class SiteCursor(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in `sites/NAME.cursor`.

    Attributes:
        volume, journal: UUIDs, 32 hex digits. tag: 16 hex digits.
        sequence: the working cursor: every record up to it has been worked on.
        since_ns: when the status last changed.
    """

    version: int = CURSOR_VERSION
    site: str
    status: SiteStatus
    volume: str
    journal: str
    tag: str
    sequence: int
    since_ns: int


def encode_cursor(cursor: SiteCursor) -> bytes:
    """The bytes of a cursor file (JSON)."""
    return msgspec.json.format(msgspec.json.encode(cursor), indent=1) + b"\n"


def decode_cursor(data: bytes) -> SiteCursor:
    """The cursor in those bytes; raises SiteCursorError."""
    try:
        cursor = msgspec.json.decode(data, type=SiteCursor)
        bytes.fromhex(cursor.journal)
        int(cursor.tag, 16)
    except (msgspec.DecodeError, ValueError) as error:
        raise SiteCursorError(f"cannot be read: {error}") from None
    if cursor.version != CURSOR_VERSION:
        raise SiteCursorError(f"version {cursor.version} is not known here")
    return cursor


def resolve(
    journal: bytes,
    incarnations: Iterable[Incarnation],
    first: SequenceNumber,
    cursor: tuple[bytes, Tag, SequenceNumber],
) -> SequenceNumber | Unknown:
    """The place of a cursor (journal, tag, sequence) in a journal: all up to it has been done.

    Cut back to the end of its incarnation if it lies beyond that. Unknown where the format says
    that an initial copy is due. `first` is the first kept record.
    """
    named, tag, sequence = cursor
    if named != journal:
        return Unknown("the cursor belongs to another journal")
    for incarnation in incarnations:
        if incarnation.tag == tag:
            cut = SequenceNumber(min(sequence, incarnation.last))
            break
    else:
        return Unknown("the journal does not know the cursor's incarnation")
    if cut + 1 < first:
        return Unknown(f"record {cut + 1} is no longer in the journal")
    return cut


def resolve_cursor(
    journal: bytes,
    incarnations: Iterable[Incarnation],
    first: SequenceNumber,
    cursor: SiteCursor,
) -> SequenceNumber | Unknown:
    """The same for what stands in a cursor file."""
    place = (
        bytes.fromhex(cursor.journal),
        Tag(int(cursor.tag, 16)),
        SequenceNumber(cursor.sequence),
    )
    return resolve(journal, incarnations, first, place)
