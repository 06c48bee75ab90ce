"""The beginning of the activity log: what is written is read back, anything else is none."""

from __future__ import annotations

import struct

import pytest
import xxhash

from mirrorfs.journal.activity_header import (
    HEADER_BYTES,
    ActivityHeader,
    decode_activity_header,
    encode_activity_header,
)
from mirrorfs.journal.record import Tag

HEADER = ActivityHeader(bytes(range(16)), Tag(2**64 - 1), 7, b"b" * 36, 8, -9, 10, 11, 12, 13)


def test_what_is_written_is_read_back() -> None:
    data = encode_activity_header(HEADER, 99)
    assert len(data) == HEADER_BYTES
    assert decode_activity_header(data) == (HEADER, 99)


@pytest.mark.parametrize("at", [0, 9, 30, 90, 120])
def test_a_flipped_byte(at: int) -> None:
    data = bytearray(encode_activity_header(HEADER, 99))
    data[at] ^= 1
    assert decode_activity_header(bytes(data)) is None


def test_a_short_one() -> None:
    assert decode_activity_header(encode_activity_header(HEADER, 99)[:100]) is None
    assert decode_activity_header(b"") is None


def test_another_version() -> None:
    data = bytearray(encode_activity_header(HEADER, 99).rstrip(b"\0")[:-8])
    struct.pack_into("<H", data, 8, 2)
    data += struct.pack("<Q", xxhash.xxh3_64_intdigest(bytes(data)))
    assert decode_activity_header(bytes(data)) is None
