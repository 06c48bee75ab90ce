"""Compressed segments: blocks of whole frames, an index, a trailer; bytes and back.

Pure: no I/O. FORMAT.md beside this file, section 9, is normative. Frames go through unchanged.
"""

from __future__ import annotations

import bisect
import itertools
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

import xxhash
import zstandard

from mirrorfs.journal.record import SequenceNumber
from mirrorfs.journal.segment import (
    FRAME_BYTES,
    PAYLOAD_BYTES_MAX,
    CorruptionError,
    scan_records,
)

BLOCK_BYTES: Final = 128 << 10
"""A block ends when it holds so many bytes of frames or more."""
SIZE_MAX: Final = 17 << 20
"""Bytes of frames that a block may hold."""
TRAILER_MAGIC: Final = b"\x89MFSE\r\n\x1a"

_LEVEL = 3
_CHECKSUM = struct.Struct("<Q")
_BLOCK = struct.Struct("<IIIIQ")
_INDEX = struct.Struct("<QQ")
_TRAILER = struct.Struct("<QQQQ")
BLOCK_HEAD_BYTES: Final = _BLOCK.size + _CHECKSUM.size
TRAILER_BYTES: Final = _TRAILER.size + _CHECKSUM.size + len(TRAILER_MAGIC)
_INDEX_BYTES_MAX = 64 << 20

_xxh3 = xxhash.xxh3_64_intdigest


class Block(NamedTuple):
    """Where a block is, and with which record it begins."""

    first: SequenceNumber
    offset: int


class Index(NamedTuple):
    """All blocks of a compressed segment; `stop` is where they end in the file.

    Attributes:
        end: sequence after the last record. size: bytes of all frames.
    """

    blocks: tuple[Block, ...]
    stop: int
    end: SequenceNumber
    size: int

    def bounds(self, number: int) -> tuple[int, int]:
        """Where that block begins and ends in the file."""
        following = self.blocks[number + 1].offset if number + 1 < len(self.blocks) else self.stop
        return self.blocks[number].offset, following

    def number_of(self, sequence: SequenceNumber) -> int:
        """Which block holds that record, which is in the segment."""
        return bisect.bisect_right(self.blocks, sequence, key=lambda block: block.first) - 1

    def after(self, number: int) -> SequenceNumber:
        """Sequence of the record after that block."""
        return self.blocks[number + 1].first if number + 1 < len(self.blocks) else self.end


class Cut(NamedTuple):
    """The next frames for a block: so many bytes, and the sequence after them."""

    length: int
    sequence: SequenceNumber


def cut_block(
    data: bytes | memoryview, sequence: SequenceNumber, base: int, *, last: bool
) -> Cut | None:
    """How much of `data`, which begins with record `sequence`, makes a block.

    None if more bytes are needed. `last`: no more will come. Every frame is checked.
    CorruptionError, also if the last frame is cut short; `base` is the offset for its message.
    """
    scan = scan_records(data, sequence, base, bytes_max=BLOCK_BYTES)
    if scan.error is not None:
        raise scan.error
    if scan.length < BLOCK_BYTES and not last:
        return None
    if scan.length < BLOCK_BYTES and scan.length < len(data):
        raise CorruptionError(base + scan.length, "a record cut short in a sealed segment")
    return Cut(scan.length, scan.sequence)


class BlockCoder:
    """Compresses and decompresses blocks. Not thread-safe."""

    def __init__(self) -> None:
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL, write_content_size=True)
        self._decompressor = zstandard.ZstdDecompressor()

    def encode(self, frames: bytes | memoryview, first: SequenceNumber, count: int) -> bytes:
        """One block."""
        data = self._compressor.compress(frames)
        head = _BLOCK.pack(len(data), len(frames), count, 0, first)
        return b"".join((head, _CHECKSUM.pack(_checksum(head, data)), data))

    def decode(self, block: bytes, index: Index, number: int) -> bytes:
        """The frames in the bytes of that block. Raises CorruptionError."""
        first, offset = index.blocks[number]
        if len(block) < BLOCK_HEAD_BYTES:
            raise CorruptionError(offset, "a block cut short")
        length, size, count, reserved, found = _BLOCK.unpack_from(block)
        data = memoryview(block)[BLOCK_HEAD_BYTES:]
        (checksum,) = _CHECKSUM.unpack_from(block, _BLOCK.size)
        if checksum != _checksum(block[: _BLOCK.size], data):
            raise CorruptionError(offset, "block checksum does not match")
        after = index.after(number)
        if (length, count, reserved, found) != (len(data), after - first, 0, first):
            raise CorruptionError(offset, "a block that is not the one the index names")
        if size > SIZE_MAX:
            raise CorruptionError(offset, f"a block of {size} bytes")
        try:
            if zstandard.frame_content_size(data) != size:
                raise CorruptionError(offset, f"a block that does not hold {size} bytes")
            return self._decompressor.decompress(data, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise CorruptionError(offset, f"a block that cannot be decompressed: {error}") from None


def _checksum(head: bytes, data: bytes | memoryview) -> int:
    digest = xxhash.xxh3_64(head)
    digest.update(data)
    return digest.intdigest()


def encode_index(index: Index) -> bytes:
    """Index and trailer."""
    entries = b"".join(_INDEX.pack(*block) for block in index.blocks)
    numbers = _TRAILER.pack(index.stop, len(index.blocks), index.end, index.size)
    checksum = _xxh3(entries + numbers)
    return entries + numbers + _CHECKSUM.pack(checksum) + TRAILER_MAGIC


def index_bounds(trailer: bytes, file_size: int, start: int) -> tuple[int, int]:
    """Where index and trailer begin and end, by the last TRAILER_BYTES of the file.

    `start` is where the blocks begin. Raises CorruptionError.
    """
    at = file_size - TRAILER_BYTES
    if at < start or not trailer.endswith(TRAILER_MAGIC):
        raise CorruptionError(max(at, 0), "a compressed segment without its end")
    stop, blocks, _, _ = _TRAILER.unpack_from(trailer)
    length = blocks * _INDEX.size
    if not 0 < length <= _INDEX_BYTES_MAX or stop + length != at or stop < start:
        raise CorruptionError(at, "an index that does not fit")
    return stop, file_size


def decode_index(data: bytes, offset: int, start: int, first: SequenceNumber) -> Index:
    """The index and trailer in `data`, which stand at `offset`.

    `start` is where the blocks begin, `first` the segment's first record. Raises CorruptionError.
    """
    length = len(data) - TRAILER_BYTES
    (checksum,) = _CHECKSUM.unpack_from(data, length + _TRAILER.size)
    if checksum != _xxh3(data[: length + _TRAILER.size]):
        raise CorruptionError(offset, "index checksum does not match")
    stop, _, end, size = _TRAILER.unpack_from(data, length)
    blocks = tuple(
        Block(SequenceNumber(number), at) for number, at in _INDEX.iter_unpack(data[:length])
    )
    if blocks[0] != (first, start) or not _rising([*blocks, Block(end, stop)]):
        raise CorruptionError(offset, "an index that does not fit")
    return Index(blocks, stop, SequenceNumber(end), size)


def _rising(blocks: Sequence[Block]) -> bool:
    """Whether each block has records and bytes."""
    return all(
        one.first < other.first and one.offset + BLOCK_HEAD_BYTES < other.offset
        for one, other in itertools.pairwise(blocks)
    )


assert SIZE_MAX >= BLOCK_BYTES + FRAME_BYTES + PAYLOAD_BYTES_MAX
