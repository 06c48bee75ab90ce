"""Segments: names, header, framing; bytes to records and back.

Pure: no I/O. FORMAT.md beside this file is normative. Nothing here decides what to do about a
torn tail or corruption; it only tells which it is.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, TypeAlias

import msgspec
import xxhash

from mirrorfs.journal.record import (
    Body,
    Kind,
    ObjectId,
    Record,
    RecordError,
    SequenceNumber,
    Tag,
    decode_body,
    encode_body,
)

MAGIC: Final = b"\x89MFSJ\r\n\x1a"
VERSION: Final = 1
HEADER_BYTES_MAX: Final = 1 << 20
PAYLOAD_BYTES_MAX: Final = 16 << 20
INCARNATIONS_MAX: Final = 1024

COMPRESSED: Final = 0x1
"""Header flag: the records are in compressed blocks (FORMAT.md section 9)."""
ARCHIVE: Final = 0x2
"""Header flag: a copy made to be read; nothing is appended to it."""
_FLAGS_KNOWN = COMPRESSED | ARCHIVE

_PREFIX = struct.Struct("<8sHHI")
_CHECKSUM = struct.Struct("<Q")
_FRAME = struct.Struct("<IQQqBBH")
_CHECKED_FROM = 12
FRAME_BYTES: Final = _FRAME.size

_NAME = re.compile(r"(\d{20})-([0-9a-f]{16})\.seg")
_xxh3 = xxhash.xxh3_64_intdigest


class CorruptionError(Exception):
    """Bytes that no writer leaves behind, not even when it is killed."""

    def __init__(self, offset: int, reason: str, file: str = "") -> None:
        super().__init__(f"{file or 'segment'}: corrupt at offset {offset}: {reason}")
        self.offset = offset
        self.reason = reason
        self.file = file

    def of(self, file: str) -> CorruptionError:
        """The same error, with the file it is in."""
        return CorruptionError(self.offset, self.reason, file)


class SourceIdentity(msgspec.Struct, frozen=True, array_like=True):
    """Which tree is journaled (FORMAT.md section 2, element 8)."""

    path: bytes
    fs_uuid: bytes
    fsid: int
    root: ObjectId
    ctime_granularity_ns: int


class Incarnation(msgspec.Struct, frozen=True, array_like=True):
    """The records one start of the writer wrote: first to last, last = first - 1 for none.

    `generation`: of the activity log that was found after it; 0 if there was none of it.
    """

    tag: Tag
    first: SequenceNumber
    last: SequenceNumber
    generation: int = 0


class Header(msgspec.Struct, frozen=True, array_like=True):
    """A segment's header (FORMAT.md section 2)."""

    volume: bytes
    journal: bytes
    tag: Tag
    node: str
    epoch: int
    first: SequenceNumber
    created_ns: int
    source: SourceIdentity
    incarnations: tuple[Incarnation, ...]


_header_decoder = msgspec.msgpack.Decoder(Header)
_header_encoder = msgspec.msgpack.Encoder()


def segment_name(first: SequenceNumber, tag: Tag) -> str:
    """File name of the segment whose first record is `first`."""
    return f"{first:020d}-{tag:016x}.seg"


def parse_segment_name(name: str) -> tuple[SequenceNumber, Tag] | None:
    """First sequence and tag of a segment's file name; None for other files."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    return SequenceNumber(int(match[1])), Tag(int(match[2], 16))


def encode_header(header: Header, flags: int = 0) -> bytes:
    """The bytes a segment starts with."""
    body = _header_encoder.encode(header)
    head = _PREFIX.pack(MAGIC, VERSION, flags, len(body)) + body
    return head + _CHECKSUM.pack(_xxh3(head))


def decode_header(data: bytes | memoryview) -> tuple[Header, int] | None:
    """The header and its length in bytes; None if `data` ends before it does.

    Raises CorruptionError.
    """
    if len(data) < _PREFIX.size:
        if not MAGIC.startswith(bytes(data[: len(MAGIC)])):
            raise CorruptionError(0, "not a journal segment")
        return None
    magic, version, flags, length = _PREFIX.unpack_from(data)
    if magic != MAGIC:
        raise CorruptionError(0, "not a journal segment")
    if version != VERSION or flags & ~_FLAGS_KNOWN:
        raise CorruptionError(8, f"format version {version} flags {flags:#x} are not known here")
    if length > HEADER_BYTES_MAX:
        raise CorruptionError(12, f"header of {length} bytes")
    end = _PREFIX.size + length
    if len(data) < end + _CHECKSUM.size:
        return None
    (checksum,) = _CHECKSUM.unpack_from(data, end)
    if checksum != _xxh3(data[:end]):
        raise CorruptionError(0, "header checksum does not match")
    try:
        header = _header_decoder.decode(data[_PREFIX.size : end])
    except msgspec.DecodeError as error:
        raise CorruptionError(0, f"bad header: {error}") from None
    return header, end + _CHECKSUM.size


def header_flags(data: bytes | memoryview) -> int:
    """COMPRESSED, ARCHIVE: of a header that `decode_header` took."""
    flags: int = _PREFIX.unpack_from(data)[2]
    return flags


def began(header: Header) -> SequenceNumber:
    """First sequence of the incarnation a header belongs to."""
    if header.incarnations:
        return SequenceNumber(header.incarnations[-1].last + 1)
    return SequenceNumber(1)


def known_incarnations(header: Header, head: SequenceNumber) -> list[Incarnation]:
    """All known ones, oldest first, by the newest segment's header; the last is up to `head`."""
    return [*header.incarnations, Incarnation(header.tag, began(header), head)]


def encode_record(
    sequence: SequenceNumber, time_ns: int, kind: Kind, flags: int, body: Body
) -> bytes:
    """One frame."""
    payload = encode_body(body)
    length = len(payload)
    if length > PAYLOAD_BYTES_MAX:
        raise RecordError(f"a record of {length} bytes; at most {PAYLOAD_BYTES_MAX} are allowed")
    frame = bytearray(FRAME_BYTES)
    _FRAME.pack_into(frame, 0, length, 0, sequence, time_ns, kind, flags, 0)
    frame += payload
    checksum = _xxh3(memoryview(frame)[_CHECKED_FROM:], length)
    _CHECKSUM.pack_into(frame, 4, checksum)
    return bytes(frame)


def _check_frame(
    view: memoryview, offset: int, sequence: SequenceNumber, base: int
) -> tuple[int, int, int, int] | None:
    """End, time, kind and flags of the frame at `offset`; None if `view` ends before it does."""
    length, checksum, number, time_ns, kind, flags, _ = _FRAME.unpack_from(view, offset)
    if length > PAYLOAD_BYTES_MAX:
        raise CorruptionError(base + offset, f"record of {length} bytes")
    end = offset + FRAME_BYTES + length
    if end > len(view):
        return None
    if checksum != _xxh3(view[offset + _CHECKED_FROM : end], length):
        raise CorruptionError(base + offset, "record checksum does not match")
    if number != sequence:
        raise CorruptionError(base + offset, f"sequence {number} where {sequence} should be")
    return end, time_ns, kind, flags


Wanted: TypeAlias = Callable[[int, int, memoryview], bool]
"""Whether a record is wanted, by its kind, time (ns) and payload, before it is decoded."""


class Decoded(NamedTuple):
    """The whole records at the start of some bytes: a result of `select_records`."""

    records: list[Record]
    """Those that are wanted."""
    length: int
    """Bytes of all of them."""
    sequence: SequenceNumber
    """What the next one must carry."""


def decode_records(
    data: bytes | memoryview, sequence: SequenceNumber, base: int = 0
) -> tuple[list[Record], int]:
    """The whole records at the start of `data`, and how many bytes they take.

    `sequence` is what the first of them must carry; `base` is the offset of `data` in the
    segment, for error messages. What is left over is the beginning of a frame, or nothing.
    Raises CorruptionError.
    """
    return select_records(data, sequence, base)[:2]


def select_records(
    data: bytes | memoryview,
    sequence: SequenceNumber,
    base: int = 0,
    wanted: Wanted | None = None,
) -> Decoded:
    """Check all whole records as `decode_records` does, and decode those that are wanted."""
    records: list[Record] = []
    view = memoryview(data)
    size = len(view)
    offset = 0
    while size - offset >= FRAME_BYTES:
        frame = _check_frame(view, offset, sequence, base)
        if frame is None:
            break
        end, time_ns, kind, flags = frame
        payload = view[offset + FRAME_BYTES : end]
        if wanted is None or wanted(kind, time_ns, payload):
            try:
                known, body = decode_body(kind, payload)
            except RecordError as error:
                raise CorruptionError(base + offset, str(error)) from None
            records.append(Record(sequence, time_ns, known, flags, body))
        sequence = SequenceNumber(sequence + 1)
        offset = end
    return Decoded(records, offset, sequence)


class Scan(NamedTuple):
    """How far a segment's bytes are whole records: a result of `scan_records`."""

    sequence: SequenceNumber
    """What the next record must carry."""
    length: int
    """Bytes of whole records."""
    last_kind: int | None
    """Kind of the last of them."""
    error: CorruptionError | None
    """Why the bytes after them are no record; None if they are the beginning of one, or none."""
    last_ns: int = 0
    """Time of the last of them; 0 if there is none."""


def scan_records(
    data: bytes | memoryview,
    sequence: SequenceNumber,
    base: int = 0,
    until: SequenceNumber | None = None,
    bytes_max: int | None = None,
) -> Scan:
    """Check frames as `decode_records` does, without decoding them, up to before `until`.

    With `bytes_max` no more frames than it takes to have so many bytes.
    """
    view = memoryview(data)
    offset = 0
    last_kind, last_ns = None, 0
    size = len(view)
    stop = size if bytes_max is None else bytes_max
    while size - offset >= FRAME_BYTES and offset < stop and sequence != until:
        try:
            frame = _check_frame(view, offset, sequence, base)
        except CorruptionError as error:
            return Scan(sequence, offset, last_kind, error, last_ns)
        if frame is None:
            break
        offset, last_ns, last_kind, _ = frame
        sequence = SequenceNumber(sequence + 1)
    return Scan(sequence, offset, last_kind, None, last_ns)


def valid_frame_offsets(data: bytes | memoryview, after: SequenceNumber) -> Iterator[int]:
    """Offsets in `data` at which a whole valid frame with a sequence above `after` stands.

    Any offset may be one; the pattern finds those where the upper half of the sequence, the kind
    and the reserved bytes can be right, so that a segment's worth of bytes takes seconds at most.
    """
    view = memoryview(data)
    size = len(view)
    halves = b"|".join(
        re.escape(struct.pack("<I", half))
        for half in range(after >> 32, ((after + size) >> 32) + 1)
    )
    possible = re.compile(rb"(?s)(?=.{16}(?:" + halves + rb").{8}[^\0].\0\0)")
    for match in possible.finditer(view):
        offset = match.start()
        length, checksum, number, *_ = _FRAME.unpack_from(view, offset)
        end = offset + FRAME_BYTES + length
        if (
            end <= size
            and after < number <= after + size
            and checksum == _xxh3(view[offset + _CHECKED_FROM : end], length)
        ):
            yield offset
