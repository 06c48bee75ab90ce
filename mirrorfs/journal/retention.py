"""Which segments of a journal may be removed, and what keeps the others.

Pure: decides, and removes nothing. FORMAT.md beside this file, section 10, is normative. Doubt
keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from mirrorfs.journal.record import SequenceNumber

RETENTION_VERSION: Final = 1
_NANOSECONDS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Limits:
    """How long records are kept, at least (seconds); a detached site's budget."""

    keep_seconds: float
    detached_keep_seconds: float
    detached_bytes: int


@dataclass(frozen=True, slots=True)
class Sealed:
    """A sealed segment. `sealed_ns`: when the one after it was begun; None: not looked at, it is
    younger than any that may go."""

    name: str
    last: SequenceNumber
    size: int
    sealed_ns: int | None


@dataclass(frozen=True, slots=True)
class Need:
    """A site's claim: it needs every record after `cursor`. `detached_ns`: since when it is
    detached; None: it is attached."""

    site: str
    cursor: SequenceNumber
    detached_ns: int | None = None


class Holder(msgspec.Struct, frozen=True):
    """Why more is kept than `journal_keep` asks for: a site, and what is about it."""

    site: str
    reason: str


class Retention(msgspec.Struct, frozen=True, kw_only=True):
    """What the writer remembers, and tells, of retention: `JOURNAL/retention.json`.

    Attributes:
        sites: attached and detached ones it has seen; one whose cursor file is missing is a doubt.
        holders: as Holder; at `time_ns`.
    """

    version: int = RETENTION_VERSION
    time_ns: int = 0
    sites: tuple[str, ...] = ()
    holders: tuple[Holder, ...] = ()


class RetentionError(Exception):
    """A `retention.json` that cannot be read."""


def encode_retention(retention: Retention) -> bytes:
    """The bytes of `retention.json`."""
    return msgspec.json.format(msgspec.json.encode(retention), indent=1) + b"\n"


def decode_retention(data: bytes) -> Retention:
    """What stands in `retention.json`; raises RetentionError."""
    try:
        retention = msgspec.json.decode(data, type=Retention)
    except msgspec.DecodeError as error:
        raise RetentionError(f"cannot be read: {error}") from None
    if retention.version != RETENTION_VERSION:
        raise RetentionError(f"version {retention.version} is not known here")
    return retention


def removable(
    segments: Sequence[Sealed],
    active_bytes: int,
    needs: Sequence[Need],
    limits: Limits,
    now_ns: int,
) -> tuple[list[Sealed], list[Holder]]:
    """The segments to remove, oldest first, and who keeps the next one although it is old enough.

    `segments`: all sealed ones, oldest first. `needs`: of every site that needs records.
    """
    holding = [need for need in needs if not _lapsed(need, segments, active_bytes, limits, now_ns)]
    removed: list[Sealed] = []
    for segment in segments:
        if segment.sealed_ns is None:
            break
        if now_ns - segment.sealed_ns <= limits.keep_seconds * _NANOSECONDS:
            break
        holders = [
            Holder(need.site, "detached" if need.detached_ns is not None else "attached")
            for need in holding
            if need.cursor < segment.last
        ]
        if holders:
            return removed, holders
        removed.append(segment)
    return removed, []


def held_bytes(cursor: SequenceNumber, segments: Sequence[Sealed], active_bytes: int) -> int:
    """Bytes of the segments that hold records after a cursor."""
    return active_bytes + sum(segment.size for segment in segments if segment.last > cursor)


def _lapsed(
    need: Need, segments: Sequence[Sealed], active_bytes: int, limits: Limits, now_ns: int
) -> bool:
    """Whether a detached site's budget is used up."""
    if need.detached_ns is None:
        return False
    if now_ns - need.detached_ns > limits.detached_keep_seconds * _NANOSECONDS:
        return True
    return held_bytes(need.cursor, segments, active_bytes) > limits.detached_bytes
