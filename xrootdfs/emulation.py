"""Owner, times, symlinks and special mode bits, as server attributes: the words of docs/xattrs.md.

Pure. Encoding and decoding stand side by side. What does not parse is taken as absent: other
programs may write these attributes too, and none of them may make a file unusable.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from xrootdfs.values import Kind, Stat

MODE: Final = "mirrorfs.mode"
OWNER: Final = "mirrorfs.owner"
TIMES: Final = "mirrorfs.times"
LINK: Final = "mirrorfs.link"
ALL: Final = (MODE, OWNER, TIMES, LINK)

RESERVED: Final = (b"mirrorfs.", b"xrootd.")
"""How names of users' attributes may not begin."""

_GROUP_BITS: Final = 0o070
_MARK: Final = 0o030
_KEPT_BITS: Final = 0o705
_PLAIN_BITS: Final = 0o775
"""What servers set when they are asked to: write permission for others they do not."""
_MODE_BITS: Final = 0o7777

_SECOND_NS: Final = 1_000_000_000
_TIME: Final = re.compile(r"(-?\d{1,18})\.(\d{9})", re.ASCII)
_NUMBER: Final = re.compile(r"\d{1,10}", re.ASCII)
_OCTAL: Final = re.compile(r"[0-7]{1,4}", re.ASCII)
_ESCAPE: Final = re.compile(rb"%([0-9A-Fa-f]{2})")
_PLAIN: Final = frozenset(range(0x21, 0x7F)) - {ord("%")}


@dataclass(frozen=True, slots=True)
class Times:
    """Times that were set, and what the server showed then. In nanoseconds; `server` in seconds.
    `size` is None for a directory."""

    mtime_ns: int
    atime_ns: int
    server: int
    size: int | None

    def hold(self, stat: Stat) -> bool:
        """The content has not changed since they were set."""
        size = None if stat.kind is Kind.DIRECTORY else stat.size
        return (self.server, self.size) == (stat.mtime, size)


@dataclass(frozen=True, slots=True)
class Emulated:
    """The attributes of one object; None: it does not have that one. `owner` is (uid, gid)."""

    mode: int | None = None
    owner: tuple[int, int] | None = None
    times: Times | None = None
    link: bytes | None = None


NOTHING: Final = Emulated()


def is_marked(mode: int) -> bool:
    """These permission bits at the server say that there are attributes to be read."""
    return mode & _GROUP_BITS == _MARK


def marked(mode: int) -> int:
    """The permission bits for the server of an object with that mode and with attributes."""
    return mode & _KEPT_BITS | _MARK


def needs_mark(mode: int) -> bool:
    """A server cannot keep this mode, or would take it for the mark."""
    return mode & ~_PLAIN_BITS != 0 or is_marked(mode)


def encode(emulated: Emulated) -> dict[str, str]:
    """Attributes as the server keeps them."""
    texts: dict[str, str] = {}
    if emulated.mode is not None:
        texts[MODE] = f"{emulated.mode & _MODE_BITS:04o}"
    if emulated.owner is not None:
        texts[OWNER] = f"{emulated.owner[0]}:{emulated.owner[1]}"
    if emulated.times is not None:
        times = emulated.times
        size = "-" if times.size is None else str(times.size)
        texts[TIMES] = f"{_time(times.mtime_ns)} {_time(times.atime_ns)} {times.server} {size}"
    if emulated.link is not None:
        texts[LINK] = escape(emulated.link)
    return texts


def decode(texts: Mapping[str, str]) -> Emulated:
    """The other way."""
    link = texts.get(LINK)
    return Emulated(
        mode=_mode_of(texts.get(MODE, "")),
        owner=_owner_of(texts.get(OWNER, "")),
        times=_times_of(texts.get(TIMES, "")),
        link=unescape(link) if link else None,
    )


def escape(value: bytes) -> str:
    """Arbitrary bytes as printable text."""
    return "".join(chr(byte) if byte in _PLAIN else f"%{byte:02X}" for byte in value)


def unescape(text: str) -> bytes:
    """The other way; what `escape` never writes stands for itself."""
    raw = text.encode("utf-8", "surrogateescape")
    return _ESCAPE.sub(lambda found: bytes((int(found[1], 16),)), raw)


def _time(nanoseconds: int) -> str:
    seconds, rest = divmod(nanoseconds, _SECOND_NS)
    return f"{seconds}.{rest:09d}"


def _time_of(text: str) -> int | None:
    found = _TIME.fullmatch(text)
    return None if found is None else int(found[1]) * _SECOND_NS + int(found[2])


def _mode_of(text: str) -> int | None:
    return int(text, 8) if _OCTAL.fullmatch(text) else None


def _owner_of(text: str) -> tuple[int, int] | None:
    uid, colon, gid = text.partition(":")
    if not (colon and _NUMBER.fullmatch(uid) and _NUMBER.fullmatch(gid)):
        return None
    return int(uid), int(gid)


def _times_of(text: str) -> Times | None:
    words = text.split(" ")
    if len(words) != len(("mtime", "atime", "server", "size")):
        return None
    mtime_ns, atime_ns = _time_of(words[0]), _time_of(words[1])
    if mtime_ns is None or atime_ns is None or not _NUMBER.fullmatch(words[2].lstrip("-")):
        return None
    if words[3] == "-":
        return Times(mtime_ns, atime_ns, int(words[2]), None)
    return Times(mtime_ns, atime_ns, int(words[2]), int(words[3])) if words[3].isdecimal() else None
