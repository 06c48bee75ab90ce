"""Values as people read them: names, numbers, spans of time.

Pure. It does not know what the values mean, and prints nothing.
"""

from __future__ import annotations

import datetime
from typing import Final

_UNITS: Final = ("kB", "MB", "GB", "TB", "PB")
_SPANS: Final = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def escaped(name: bytes) -> str:
    r"""A name or path as text without loss: what is not printable UTF-8, and a backslash,
    becomes \xNN."""
    parts = []
    for sign in name.decode("utf-8", errors="surrogateescape"):
        if sign != "\\" and sign.isprintable():
            parts.append(sign)
        else:
            raw = sign.encode("utf-8", errors="surrogateescape")
            parts.append("".join(f"\\x{byte:02x}" for byte in raw))
    return "".join(parts)


def printable(text: str) -> str:
    """Text that somebody else has chosen, safe to show."""
    return escaped(text.encode("utf-8", errors="surrogateescape"))


def count(number: int, what: str) -> str:
    """`1 record`, `12,345 records`."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def lag(seconds: float | None) -> str:
    """A lag with as many digits as it deserves; a dash for None."""
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms" if seconds else "0 s"
    return f"{seconds:.1f} s" if seconds < 60 else span(seconds)


def span(seconds: float) -> str:
    """A span of time in its largest unit and the next: `3 s`, `4 min 10 s`, `2 d 5 h`."""
    left = max(0, round(seconds))
    parts = []
    for size, unit in _SPANS:
        parts.append((left // size, unit))
        left %= size
    first = next((index for index, (value, _) in enumerate(parts) if value), len(parts) - 1)
    shown = [parts[first], *(part for part in parts[first + 1 : first + 2] if part[0])]
    return " ".join(f"{value} {unit}" for value, unit in shown)


def size(number: int) -> str:
    """Bytes with as many digits as they deserve: `17 bytes`, `3.1 GB`."""
    if number < 1000:
        return count(number, "byte")
    value, unit = number / 1000, 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.3g} {_UNITS[unit]}" if value < 999.5 else f"{value:,.0f} {_UNITS[unit]}"


def moment(time_ns: int) -> str:
    """A time in UTC to the second; `never` for 0."""
    if not time_ns:
        return "never"
    try:
        at = datetime.datetime.fromtimestamp(time_ns // 1_000_000_000, datetime.UTC)
    except (OverflowError, ValueError, OSError):
        return f"{time_ns} ns"
    return f"{at:%Y-%m-%dT%H:%M:%SZ}"
