"""Sample records and journals for tests; every kind once, and values at their limits."""

from __future__ import annotations

import random

from mirrorfs.journal.record import (
    SETTLED,
    Body,
    Change,
    Checkpoint,
    Epoch,
    Kind,
    Mount,
    ObjectId,
    Place,
    Reconcile,
    SequenceNumber,
    Tag,
    Unmount,
    Who,
    birth_id,
    handle_id,
)
from mirrorfs.journal.segment import Header, Incarnation, SourceIdentity, encode_record

VOLUME = bytes(range(16))
JOURNAL = bytes(range(16, 32))
ROOT = handle_id(1, 1, bytes.fromhex("0200000000000000"))
TIME_NS = 1_700_000_000_123_456_789
SOURCE = SourceIdentity(b"/srv/data", bytes(range(32, 48)), 0x1122334455667788, ROOT, 0)


def object_id(number: int) -> ObjectId:
    """Id of the sample object of that inode number."""
    return handle_id(1, 1, number.to_bytes(4, "little") + bytes.fromhex("77d1f0a2"))


def header(
    first: int = 1,
    tag: int = 0x5F2C9E0D1B7A4C38,
    incarnations: tuple[Incarnation, ...] = (),
) -> Header:
    """A segment's header."""
    return Header(
        volume=VOLUME,
        journal=JOURNAL,
        tag=Tag(tag),
        node="node17",
        epoch=1,
        first=SequenceNumber(first),
        created_ns=TIME_NS,
        source=SOURCE,
        incarnations=incarnations,
    )


def created(number: int) -> Change:
    """Body of a `create` record."""
    name = b"file%06d" % number
    return Change(object_id(number), (Place(ROOT, name),), name, 0o100644, 1, TIME_NS + number)


EVERY_KIND: tuple[tuple[Kind, int, Body], ...] = (
    (Kind.MOUNT, 0, Mount("node17", 4711, "0.1.0", b"/srv/data", True)),
    (
        Kind.MKDIR,
        SETTLED,
        Change(object_id(12), (Place(ROOT, b"results"),), b"results", 0o40755, 2),
    ),
    (Kind.CREATE, 0, created(13)),
    (
        Kind.WRITE,
        SETTLED,
        Change(
            object_id(13),
            (Place(object_id(12), b"file000013"),),
            b"results/file000013",
            0o100644,
            1,
            TIME_NS,
            size=1 << 40,
            mtime_ns=-1,
            extents=((0, 4096), (1 << 30, 1)),
            who=Who(1234, 1000, "8812.batch"),
        ),
    ),
    (
        Kind.WRITE,
        0,
        Change(object_id(13), (), None, 0o100644, 0, size=0, mtime_ns=TIME_NS),
    ),
    (
        Kind.MKNOD,
        SETTLED,
        Change(object_id(14), (Place(ROOT, b"fifo"),), b"fifo", 0o10600, 1),
    ),
    (
        Kind.SYMLINK,
        SETTLED,
        Change(object_id(15), (Place(ROOT, b"\xff\n\\"),), b"\xff\n\\", 0o120777, 1),
    ),
    (
        Kind.LINK,
        SETTLED,
        Change(
            object_id(13),
            (Place(ROOT, b"second"), Place(object_id(12), b"file000013")),
            b"second",
            0o100644,
            2,
        ),
    ),
    (
        Kind.RENAME,
        SETTLED,
        Change(
            object_id(13),
            (Place(ROOT, b"second"), Place(ROOT, b"third")),
            b"third",
            0o100644,
            2,
            TIME_NS,
            other=birth_id(1, 99, TIME_NS),
            other_links=0,
            rename_flags=2,
        ),
    ),
    (Kind.ATTRIBUTES, SETTLED, Change(object_id(12), (), None, 0o40700, 2, TIME_NS)),
    (
        Kind.XATTR,
        SETTLED,
        Change(ROOT, (), b"", 0o40755, 3, TIME_NS, xattr=b"user.colour"),
    ),
    (
        Kind.UNLINK,
        SETTLED,
        Change(object_id(13), (Place(ROOT, b"third"),), b"third", 0o100644, 0),
    ),
    (
        Kind.RMDIR,
        SETTLED,
        Change(object_id(12), (Place(ROOT, b"results"),), b"results", 0o40755, 0),
    ),
    (Kind.RECONCILE, 0, Reconcile(ROOT, True, b"", "mirrorfs stopped without unmounting")),
    (Kind.CHECKPOINT, 0, Checkpoint("cycle 2026-01-01T00")),
    (Kind.EPOCH, 0, Epoch(2, "restored to another file system")),
    (Kind.UNMOUNT, 0, Unmount("node17")),
)


def frames(first: int = 1) -> list[bytes]:
    """EVERY_KIND as frames, with sequences from `first`."""
    return [
        encode_record(SequenceNumber(sequence), TIME_NS + sequence, kind, flags, body)
        for sequence, (kind, flags, body) in enumerate(EVERY_KIND, first)
    ]


def random_bytes(seed: int, length: int) -> bytes:
    """Seeded noise."""
    return random.Random(seed).randbytes(length)
