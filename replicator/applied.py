"""The apply log of a site: what became whole there, and when.

One line of JSON a file in `JOURNAL/sites/NAME.applied/`, in a log for each hour (UTC) of the time
of application; hours that are over are compressed. It is for people: it is not synced, losing it
loses nothing, and a line that was cut short is passed over. Kept 30 days, and up to 2 GiB.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator
from typing import Final

import msgspec
import zstandard

KEEP_DAYS: Final = 30
KEEP_BYTES: Final = 2 << 30
_NS: Final = 1_000_000_000
_HOUR_NS: Final = 3600 * _NS
_PLAIN: Final = ".jsonl"
_PACKED: Final = ".jsonl.zst"


class Applied(msgspec.Struct, frozen=True, array_like=True):
    """A file has become whole at the site.

    Attributes:
        record_ns: time of the first record that made it differ from the site while it was complete
            in the source. applied_ns: when the site had it. Both are times of the journaling host.
        size: bytes. sequence: the newest of its records that was applied.
        object: its id, in hex. path: escaped.
    """

    record_ns: int
    applied_ns: int
    size: int
    sequence: int
    object: str
    path: str


_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(Applied).decode


class ApplyLog:
    """Appends to the log of one site."""

    def __init__(
        self,
        journal: str,
        site: str,
        *,
        keep_bytes: int = KEEP_BYTES,
        keep_days: int = KEEP_DAYS,
    ) -> None:
        self._directory = directory_of(journal, site)
        self._keep_bytes = keep_bytes
        self._keep_days = keep_days
        self._waiting: list[bytes] = []
        self._hour = ""

    def add(self, applied: Applied) -> None:
        """Note it."""
        self._waiting.append(_encode(applied))

    def take(self) -> list[bytes]:
        """What was noted, for `write`: in between, others may go on adding."""
        lines, self._waiting = self._waiting, []
        return lines

    def write(self, taken: list[bytes], now_ns: int) -> None:
        """Write what was noted. OSError: it is lost then."""
        if not taken:
            return
        lines = b"\n".join(taken) + b"\n"
        hour = _hour_name(now_ns)
        os.makedirs(self._directory, exist_ok=True)
        if hour != self._hour:
            self._hour = hour
            self._tidy(now_ns)
        with open(f"{self._directory}/{hour}{_PLAIN}", "ab") as file:
            end = file.tell()
            if end and not _ends_with_newline(file.name):
                lines = b"\n" + lines  # somebody was killed here
            file.write(lines)

    def _tidy(self, now_ns: int) -> None:
        """Compress the hours that are over; drop what is too old, or too much."""
        oldest = _hour_name(now_ns - self._keep_days * 24 * _HOUR_NS)
        total = 0
        for name in sorted(os.listdir(self._directory), reverse=True):
            path, hour = f"{self._directory}/{name}", name.partition(".")[0]
            with contextlib.suppress(FileNotFoundError):
                if name.endswith(_PLAIN) and hour < self._hour:
                    path = _compress(path)
                total += os.stat(path).st_size
                if hour < oldest or total > self._keep_bytes:
                    os.unlink(path)


def directory_of(journal: str, site: str) -> str:
    """Where the apply log of a site lies."""
    return f"{journal}/sites/{site}.applied"


def read_applied(journal: str, site: str, since_ns: int = 0) -> Iterator[Applied]:
    """What became whole since then, in the order of application."""
    directory, first = directory_of(journal, site), _hour_name(max(0, since_ns))
    try:
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        return
    for name in names:
        if name.partition(".")[0] < first or not name.endswith((_PLAIN, _PACKED)):
            continue
        for line in _lines(f"{directory}/{name}"):
            try:
                applied = _decode(line)
            except msgspec.DecodeError:
                continue  # cut short by a kill
            if applied.applied_ns >= since_ns:
                yield applied


def last_applied(journal: str, site: str, object: str, since_ns: int) -> Applied | None:
    """The last time since then that an object (its id in hex) became whole."""
    directory, first = directory_of(journal, site), _hour_name(max(0, since_ns))
    try:
        names = sorted(os.listdir(directory), reverse=True)
    except FileNotFoundError:
        return None
    sign = f'"{object}"'.encode()
    for name in names:
        if name.partition(".")[0] < first or not name.endswith((_PLAIN, _PACKED)):
            continue
        for line in reversed(_lines(f"{directory}/{name}")):
            if sign in line:
                with contextlib.suppress(msgspec.DecodeError):
                    return _decode(line)
    return None


def _lines(path: str) -> list[bytes]:
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:  # compressed or dropped just now
        packed = path.removesuffix(_PLAIN) + _PACKED
        if path.endswith(_PLAIN) and os.path.exists(packed):
            return _lines(packed)
        return []
    if path.endswith(_PACKED):
        with contextlib.suppress(zstandard.ZstdError):
            data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
    return data.split(b"\n")


def _compress(path: str) -> str:
    packed = path.removesuffix(_PLAIN) + _PACKED
    with open(path, "rb") as file:
        data = zstandard.ZstdCompressor(level=3).compress(file.read())
    with open(f"{packed}.new", "wb") as file:
        file.write(data)
    os.replace(f"{packed}.new", packed)
    os.unlink(path)
    return packed


def _ends_with_newline(path: str) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _hour_name(time_ns: int) -> str:
    at = datetime.datetime.fromtimestamp(time_ns // _NS, datetime.UTC)
    return f"{at:%Y-%m-%dT%H}"
