"""Compressed segments as bytes: golden, whole, and with any byte of them flipped or missing."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
import xxhash
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from mirrorfs.journal.blocks import (
    BLOCK_BYTES,
    BLOCK_HEAD_BYTES,
    SIZE_MAX,
    TRAILER_BYTES,
    Block,
    BlockCoder,
    Index,
    cut_block,
    decode_index,
    encode_index,
    index_bounds,
)
from mirrorfs.journal.record import Checkpoint, Kind, SequenceNumber
from mirrorfs.journal.segment import (
    COMPRESSED,
    CorruptionError,
    decode_header,
    encode_header,
    encode_record,
    header_flags,
    scan_records,
)
from tests.support.records import frames, header

GOLDEN = Path(__file__).parents[2] / "golden" / "compressed.seg"
FIRST = SequenceNumber(1)
PER_BLOCK = 3


def grouped(count: int = PER_BLOCK) -> list[tuple[SequenceNumber, bytes, int]]:
    """Every kind of record, some in each block: first, frames, how many."""
    each = frames()
    groups = []
    for at in range(0, len(each), count):
        part = each[at : at + count]
        groups.append((SequenceNumber(at + 1), b"".join(part), len(part)))
    return groups


def compressed() -> bytes:
    """A compressed segment of every kind of record."""
    data = encode_header(header(), COMPRESSED)
    blocks, size = [], 0
    coder = BlockCoder()
    for first, part, count in grouped():
        blocks.append(Block(first, len(data)))
        size += len(part)
        data += coder.encode(part, first, count)
    end = SequenceNumber(len(frames()) + 1)
    return data + encode_index(Index(tuple(blocks), len(data), end, size))


def read(data: bytes) -> bytes:
    """All its frames. CorruptionError."""
    decoded = decode_header(data)
    if decoded is None:
        raise CorruptionError(len(data), "header cut short")
    found, start = decoded
    if not header_flags(data) & COMPRESSED:
        raise CorruptionError(0, "not compressed")
    at, stop = index_bounds(data[-TRAILER_BYTES:], len(data), start)
    index = decode_index(data[at:stop], at, start, found.first)
    coder = BlockCoder()
    parts = []
    for number in range(len(index.blocks)):
        begin, end = index.bounds(number)
        parts.append(coder.decode(data[begin:end], index, number))
    assert sum(map(len, parts)) == index.size
    return b"".join(parts)


def test_golden_segment() -> None:
    """What the file says binds readers; other libraries may compress to other bytes."""
    if os.environ.get("WRITE_GOLDEN") and not GOLDEN.exists():
        GOLDEN.write_bytes(compressed())
    data = GOLDEN.read_bytes()
    assert read(data) == b"".join(frames())
    assert decode_header(data) == decode_header(encode_header(header()))
    stop = len(data) - TRAILER_BYTES
    numbers = struct.unpack_from("<QQQQ", data, stop)
    blocks = -(-len(frames()) // PER_BLOCK)
    assert numbers == (
        stop - 16 * blocks,
        blocks,
        len(frames()) + 1,
        len(b"".join(frames())),
    )
    assert data[-8:] == b"\x89MFSE\r\n\x1a"


def test_what_is_written_is_read_back() -> None:
    assert read(compressed()) == b"".join(frames())


@given(st.integers(0, 100_000), st.integers(1, 255))
def test_any_flipped_byte_is_found(at: int, flip: int) -> None:
    data = bytearray(GOLDEN.read_bytes())
    data[at % len(data)] ^= flip
    with pytest.raises(CorruptionError):
        read(bytes(data))


def test_any_prefix_is_corrupt() -> None:
    """A compressed segment is never torn."""
    data = GOLDEN.read_bytes()
    for length in range(len(data)):
        with pytest.raises(CorruptionError):
            read(data[:length])


def index_of(*blocks: tuple[int, int], stop: int, end: int) -> Index:
    return Index(
        tuple(Block(SequenceNumber(first), at) for first, at in blocks),
        stop,
        SequenceNumber(end),
        1,
    )


@pytest.mark.parametrize(
    "index",
    [
        index_of((2, 100), stop=200, end=9),  # another first record
        index_of((1, 101), stop=200, end=9),  # a gap after the header
        index_of((1, 100), (1, 150), stop=200, end=9),  # a block without records
        index_of((1, 100), (5, 120), stop=200, end=9),  # blocks too close
        index_of((1, 100), (5, 150), stop=170, end=9),
        index_of((1, 100), (5, 150), stop=200, end=5),  # nothing in the last one
    ],
)
def test_an_index_that_does_not_fit(index: Index) -> None:
    with pytest.raises(CorruptionError, match="an index that does not fit"):
        decode_index(encode_index(index), index.stop, 100, FIRST)


@pytest.mark.parametrize(("stop", "blocks"), [(199, 1), (200, 0), (200, 2), (200, 1 << 60)])
def test_a_trailer_that_does_not_fit(stop: int, blocks: int) -> None:
    trailer = struct.pack("<QQQQQ", stop, blocks, 9, 1, 0) + b"\x89MFSE\r\n\x1a"
    with pytest.raises(CorruptionError, match="an index that does not fit"):
        index_bounds(trailer, 200 + 16 + TRAILER_BYTES, 100)


def test_an_index_before_the_blocks() -> None:
    trailer = struct.pack("<QQQQQ", 90, 1, 9, 1, 0) + b"\x89MFSE\r\n\x1a"
    with pytest.raises(CorruptionError, match="an index that does not fit"):
        index_bounds(trailer, 90 + 16 + TRAILER_BYTES, 100)


def test_going_to_a_record() -> None:
    index = index_of((5, 100), (9, 200), (12, 300), stop=400, end=20)
    assert [index.number_of(SequenceNumber(n)) for n in (5, 8, 9, 11, 12, 19)] == [0, 0, 1, 1, 2, 2]
    assert [index.bounds(n) for n in range(3)] == [(100, 200), (200, 300), (300, 400)]
    assert [index.after(n) for n in range(3)] == [9, 12, 20]


def block(data: bytes, size: int, count: int = 1, first: int = 1) -> bytes:
    """A block with a good checksum, whatever it says."""
    head = struct.pack("<IIIIQ", len(data), size, count, 0, first)
    return head + struct.pack("<Q", xxhash.xxh3_64_intdigest(head + data)) + data


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "a block cut short"),
        (block(zstandard.compress(b"abc"), 3)[:-1], "checksum"),
        (block(zstandard.compress(b"abc"), 3, count=2), "not the one the index names"),
        (block(zstandard.compress(b"abc"), 3, first=2), "not the one the index names"),
        (block(zstandard.compress(b"abc"), SIZE_MAX + 1), "a block of 17825793 bytes"),
        (block(zstandard.compress(b"abc"), 4), "does not hold 4 bytes"),
        (block(b"no zstd frame", 3), "cannot be decompressed"),
        (block(zstandard.compress(b"abc") + b"more", 3), "cannot be decompressed"),
        (block(zstandard.compress(b"abc")[:-1], 3), "cannot be decompressed"),
    ],
)
def test_bad_blocks(data: bytes, reason: str) -> None:
    index = index_of((1, 100), stop=100 + len(data), end=2)
    with pytest.raises(CorruptionError, match=reason) as raised:
        BlockCoder().decode(data, index, 0)
    assert raised.value.offset == 100
    assert BLOCK_HEAD_BYTES == 32


# Where a block ends


def test_a_block_ends_with_the_frame_that_fills_it() -> None:
    large = encode_record(FIRST, 0, Kind.CHECKPOINT, 0, Checkpoint("x" * BLOCK_BYTES))
    small = encode_record(SequenceNumber(2), 0, Kind.CHECKPOINT, 0, Checkpoint("y"))
    assert cut_block(large + small, FIRST, 0, last=False) == (len(large), 2)
    assert cut_block(large + small, FIRST, 0, last=True) == (len(large), 2)
    assert cut_block(large[:-1], FIRST, 0, last=False) is None
    assert cut_block(small, SequenceNumber(2), 0, last=False) is None
    assert cut_block(small, SequenceNumber(2), 0, last=True) == (len(small), 3)
    with pytest.raises(CorruptionError, match="offset 70: a record cut short"):
        cut_block(large[:-1], FIRST, 70, last=True)
    with pytest.raises(CorruptionError, match="checksum"):
        cut_block(large[:-1] + b"?", FIRST, 0, last=True)


def test_a_scan_that_stops_at_some_bytes() -> None:
    each = frames()
    scan = scan_records(b"".join(each), FIRST, bytes_max=len(each[0]) + 1)
    assert (scan.sequence, scan.length) == (3, len(each[0]) + len(each[1]))
