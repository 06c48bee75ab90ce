"""Segments: whole, byte by byte, with trailing data; any prefix, any flipped byte."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from mirrorfs.journal.record import Change, Kind, RecordError, SequenceNumber, Tag
from mirrorfs.journal.segment import (
    FRAME_BYTES,
    HEADER_BYTES_MAX,
    PAYLOAD_BYTES_MAX,
    CorruptionError,
    Incarnation,
    decode_header,
    decode_records,
    encode_header,
    encode_record,
    parse_segment_name,
    scan_records,
    segment_name,
    valid_frame_offsets,
)
from tests.support.records import EVERY_KIND, ROOT, created, frames, header, random_bytes

GOLDEN = Path(__file__).parents[2] / "golden"
FIRST = SequenceNumber(1)

INCARNATIONS = (
    Incarnation(Tag(3), SequenceNumber(1), SequenceNumber(41)),
    Incarnation(Tag(1 << 63), SequenceNumber(42), SequenceNumber(41)),
)
GOLDEN_SEGMENTS: dict[str, Callable[[], bytes]] = {
    "every-kind.seg": lambda: encode_header(header()) + b"".join(frames()),
    "later.seg": lambda: (
        encode_header(header(42, tag=7, incarnations=INCARNATIONS))
        + encode_record(SequenceNumber(42), -1, Kind.CREATE, 1, created(1))
    ),
    "empty.seg": lambda: encode_header(header()),
    "torn.seg": lambda: encode_header(header()) + b"".join(frames())[:-5],
}


@pytest.mark.parametrize("name", GOLDEN_SEGMENTS)
def test_golden_segment(name: str) -> None:
    """The bytes bind every implementation. A new file: WRITE_GOLDEN=1, once, and look at it."""
    data = GOLDEN_SEGMENTS[name]()
    path = GOLDEN / name
    if os.environ.get("WRITE_GOLDEN") and not path.exists():
        path.write_bytes(data)
    assert path.read_bytes() == data


def test_golden_segment_is_read_back() -> None:
    data = (GOLDEN / "every-kind.seg").read_bytes()
    decoded = decode_header(data)
    assert decoded is not None
    assert decoded[0] == header()
    example = "49000000fab943a81a7a117b020000000000000017cd853dfe9c971702010000"
    assert bytes.fromhex(example) in data  # what FORMAT.md shows
    records, length = decode_records(data[decoded[1] :], FIRST, decoded[1])
    assert [(r.kind, r.flags, r.body) for r in records] == list(EVERY_KIND)
    assert decoded[1] + length == len(data)


def test_names() -> None:
    name = segment_name(SequenceNumber(41873), Tag(0x5F2C))
    assert name == "00000000000000041873-0000000000005f2c.seg"
    assert parse_segment_name(name) == (41873, 0x5F2C)
    for other in ("journal.lock", name + ".new", "x" + name, name.replace("5f2c", "5F2C")):
        assert parse_segment_name(other) is None


# Header


def test_header_whole_byte_by_byte_and_with_trailing_data() -> None:
    written = header(42, incarnations=INCARNATIONS)
    data = encode_header(written)
    for length in range(len(data)):
        assert decode_header(data[:length]) is None
    assert decode_header(data) == (written, len(data))
    assert decode_header(memoryview(data + b"tail")) == (written, len(data))


def test_any_flipped_bit_of_a_header_is_corruption() -> None:
    data = encode_header(header())
    for at in range(len(data)):
        for bit in (0x01, 0x80):
            bad = bytearray(data)
            bad[at] ^= bit
            length = int.from_bytes(bad[12:16], "little")
            if len(data) - 24 < length <= HEADER_BYTES_MAX:  # it asks for more than there is
                assert decode_header(bytes(bad)) is None
                continue
            with pytest.raises(CorruptionError, match="corrupt at offset"):
                decode_header(bytes(bad))


def _header_with(body: bytes, version: int = 1, flags: int = 0) -> bytes:
    head = struct.pack("<8sHHI", b"\x89MFSJ\r\n\x1a", version, flags, len(body)) + body
    return head + struct.pack("<Q", xxhash.xxh3_64_intdigest(head))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"not a segment at all", "not a journal segment"),
        (b"sho", "not a journal segment"),
        (_header_with(b"", version=2), "format version 2"),
        (_header_with(b"", flags=4), "flags 0x4"),
        (_header_with(bytes(HEADER_BYTES_MAX + 1)), "header of 1048577 bytes"),
        (_header_with(b"\x90"), "bad header"),
    ],
)
def test_bad_headers(data: bytes, reason: str) -> None:
    with pytest.raises(CorruptionError, match=reason):
        decode_header(data)


def test_corruption_names_its_file() -> None:
    error = CorruptionError(17, "why").of("/j/x.seg")
    assert str(error) == "/j/x.seg: corrupt at offset 17: why"
    assert (error.offset, error.reason, error.file) == (17, "why", "/j/x.seg")


def test_elements_a_newer_writer_adds_to_the_header_are_ignored() -> None:
    data = encode_header(header())
    (length,) = struct.unpack_from("<I", data, 12)
    elements = msgspec.msgpack.decode(data[16 : 16 + length])
    longer = _header_with(msgspec.msgpack.encode([*elements, "new"]))
    assert decode_header(longer) == (header(), len(longer))


# Records


def test_records_whole_byte_by_byte_and_with_trailing_data() -> None:
    each = frames()
    data = b"".join(each)
    ends = [sum(map(len, each[:count])) for count in range(len(each) + 1)]
    for length in range(len(data) + 1):
        whole = max(end for end in ends if end <= length)
        records, taken = decode_records(data[:length], FIRST)
        scan = scan_records(data[:length], FIRST)
        assert taken == scan.length == whole
        assert len(records) == scan.sequence - 1 == ends.index(whole)
        assert scan.error is None
    records, taken = decode_records(memoryview(data + each[0][:20]), FIRST)
    assert (len(records), taken) == (len(each), len(data))
    assert [record.sequence for record in records] == list(range(1, len(each) + 1))


def test_settled_flag() -> None:
    records, _ = decode_records(b"".join(frames()), FIRST)
    assert [record.settled for record in records] == [bool(f & 1) for _, f, _ in EVERY_KIND]


def test_scan_stops_where_told() -> None:
    each = frames()
    scan = scan_records(b"".join(each), FIRST, 100, SequenceNumber(3))
    assert scan[:4] == (3, len(each[0]) + len(each[1]), Kind.MKDIR, None)
    assert scan_records(b"", FIRST)[:4] == (1, 0, None, None)


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_any_flipped_byte_is_found(at: int, flip: int) -> None:
    """Never a record that was not written: the records before it, then corruption or waiting."""
    data = bytearray(b"".join(frames()))
    at %= len(data)
    data[at] ^= flip
    scan = scan_records(bytes(data), FIRST, 500)
    assert scan.length <= at
    if scan.error is None:  # a length that asks for more bytes than there are
        assert len(data) - scan.length < FRAME_BYTES + PAYLOAD_BYTES_MAX
        assert at < scan.length + 4
    else:
        assert scan.error.offset == 500 + scan.length
        with pytest.raises(CorruptionError) as raised:
            decode_records(bytes(data), FIRST, 500)
        assert raised.value.offset == scan.error.offset
    untouched, _ = decode_records(bytes(data[: scan.length]), FIRST)
    assert [(r.kind, r.body) for r in untouched] == [
        (kind, body) for kind, _, body in EVERY_KIND[: len(untouched)]
    ]


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_flipped_byte_before_the_last_record_is_no_torn_tail(at: int, flip: int) -> None:
    each = frames()
    data = bytearray(b"".join(each))
    at %= len(data) - len(each[-1])
    data[at] ^= flip
    scan = scan_records(bytes(data), FIRST)
    later = valid_frame_offsets(bytes(data[scan.length :]), SequenceNumber(scan.sequence - 1))
    assert next(later) > 0


@given(st.integers(0, 10_000), st.binary(max_size=500))
def test_a_cut_and_noise_after_it_are_a_torn_tail(length: int, noise: bytes) -> None:
    data = b"".join(frames())
    data = data[: length % len(data)] + noise
    scan = scan_records(data, FIRST)
    later = valid_frame_offsets(data[scan.length :], SequenceNumber(scan.sequence - 1))
    assert list(later) == []


def test_valid_frames_are_found_across_a_high_sequence() -> None:
    """The upper half of the sequence changes within the bytes that are searched."""
    before = SequenceNumber((1 << 32) - 2)
    later = encode_record(SequenceNumber(1 << 32), 0, Kind.CREATE, 0, created(1))
    assert list(valid_frame_offsets(b"?" * 9 + later, before)) == [9]
    assert list(valid_frame_offsets(later, SequenceNumber(1 << 32))) == []
    assert list(valid_frame_offsets(later[:-1], before)) == []


@pytest.mark.parametrize("filling", [bytes(200_000), b"\xff" * 200_000, random_bytes(1, 200_000)])
def test_noise_holds_no_frame(filling: bytes) -> None:
    assert list(valid_frame_offsets(filling, SequenceNumber(0))) == []


def _frame(length: int, sequence: int, kind: int, payload: bytes) -> bytes:
    rest = struct.pack("<QqBBH", sequence, 0, kind, 0, 0) + payload
    return struct.pack("<IQ", length, xxhash.xxh3_64_intdigest(rest, length)) + rest


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (_frame(PAYLOAD_BYTES_MAX + 1, 1, 1, b""), "record of 16777217 bytes"),
        (_frame(1, 1, 99, b"\x90"), "unknown record kind 99"),
        (_frame(1, 1, 1, b"\x90"), "bad create record"),
        (_frame(1, 2, 1, b"\x90"), "sequence 2 where 1 should be"),
        (bytes(FRAME_BYTES), "checksum"),
    ],
)
def test_bad_frames(frame: bytes, reason: str) -> None:
    with pytest.raises(CorruptionError, match=reason) as raised:
        decode_records(frame, FIRST, 77)
    assert raised.value.offset == 77


def test_a_record_of_a_kind_not_known_is_no_torn_tail() -> None:
    frame = _frame(1, 1, 99, b"\x90")
    assert scan_records(frame, FIRST).last_kind == 99
    assert list(valid_frame_offsets(frame, SequenceNumber(0))) == [0]


def test_a_record_too_long_is_refused() -> None:
    body = Change(ROOT, (), bytes(PAYLOAD_BYTES_MAX), 0, 0)
    with pytest.raises(RecordError, match="at most 16777216"):
        encode_record(FIRST, 0, Kind.CREATE, 0, body)
