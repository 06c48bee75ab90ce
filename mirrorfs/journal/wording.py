"""Records as people and programs read them: as lines, and as values for JSON.

Pure. It prints nothing. The names and meanings of the values are documented in mirrorfs(1), and
stay.
"""

from __future__ import annotations

import datetime
from typing import Any

from mirrorfs.journal.record import (
    Body,
    Change,
    Checkpoint,
    Kind,
    Mount,
    Reconcile,
    Record,
    Unmount,
)

_PRINTABLE = frozenset(range(0x20, 0x7F)) - {0x5C}


def escaped(name: bytes) -> str:
    """A name or path as text without loss: what is not printable UTF-8 becomes \\xNN."""
    text = name.decode("utf-8", errors="surrogateescape")
    parts = []
    for sign in text:
        if ord(sign) in _PRINTABLE or (ord(sign) > 0x9F and sign.isprintable()):
            parts.append(sign)
        else:
            raw = sign.encode("utf-8", errors="surrogateescape")
            parts.append("".join(f"\\x{byte:02x}" for byte in raw))
    return "".join(parts)


def moment(time_ns: int) -> str:
    """A time in UTC to the microsecond."""
    seconds, rest = divmod(time_ns, 1_000_000_000)
    try:
        at = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    except (OverflowError, ValueError):
        return f"{time_ns} ns"
    return f"{at:%Y-%m-%dT%H:%M:%S}.{rest // 1000:06d}Z"


def record_value(record: Record) -> dict[str, Any]:
    """A record for JSON. Names and paths are escaped, ids are hexadecimal."""
    return {
        "sequence": record.sequence,
        "time": moment(record.time_ns),
        "kind": record.kind.label,
        "settled": record.settled,
        **_body_value(record.kind, record.body),
    }


def record_line(record: Record) -> str:
    """A record as one line."""
    words = [f"{record.sequence:>10}", moment(record.time_ns), f"{record.kind.label:<10}"]
    match record.body:
        case Change() as change:
            words += _change_words(record.kind, change)
            words += [] if record.settled else ["(open)"]
        case Mount(host, pid, version, mountpoint, clean):
            end = "after a clean end" if clean else "after an unclean end"
            where = escaped(mountpoint) or "recovered, not mounted,"
            words.append(f"{where} on {host}, process {pid}, {version}, {end}")
        case Unmount(host):
            words.append(f"on {host}")
        case Reconcile(directory, whole, path, reason):
            where = directory.hex() if path is None else f"/{escaped(path)}"
            words.append(f"{where}{' and below' if whole else ''}: {reason}")
        case Checkpoint(name):
            words.append(name)
        case _ as body:
            words.append(f"{body.epoch}: {body.reason}")
    return "  ".join(words)


def _change_words(kind: Kind, change: Change) -> list[str]:
    path = change.path
    words = ["?" if path is None else escaped(path) or "/"]
    if kind is Kind.RENAME:
        words.insert(0, f"{escaped(change.places[0].name)} ->")
    if kind is Kind.WRITE:
        words.append(f"{change.size} bytes")
        if change.who is not None:
            job = f" job {change.who.job}" if change.who.job else ""
            words.append(f"by {change.who.pid} uid {change.who.uid}{job}")
    if change.xattr is not None:
        words.append(escaped(change.xattr))
    if change.other is not None:
        words.append("(exchanged)" if change.rename_flags & 2 else "(replaced)")
    if change.links != 1 and kind is not Kind.MKDIR:
        words.append(f"{change.links} links")
    return words


def _body_value(kind: Kind, body: Body) -> dict[str, Any]:
    match body:
        case Change():
            return _change_value(kind, body)
        case Mount(host, pid, version, mountpoint, clean):
            return {
                "host": host,
                "pid": pid,
                "version": version,
                "mountpoint": escaped(mountpoint),
                "clean": clean,
            }
        case Unmount(host):
            return {"host": host}
        case Reconcile(directory, whole, path, reason):
            return {
                "directory": directory.hex(),
                "whole": whole,
                "path": None if path is None else escaped(path),
                "reason": reason,
            }
        case Checkpoint(name):
            return {"name": name}
        case _:
            return {"epoch": body.epoch, "reason": body.reason}


def _change_value(kind: Kind, change: Change) -> dict[str, Any]:
    value: dict[str, Any] = {
        "object": change.object.hex(),
        "places": [
            {"directory": place.directory.hex(), "name": escaped(place.name)}
            for place in change.places
        ],
        "path": None if change.path is None else escaped(change.path),
        "mode": f"{change.mode:o}",
        "links": change.links,
        "ctime_ns": change.ctime_ns,
    }
    if kind is Kind.RENAME:
        value["other"] = None if change.other is None else change.other.hex()
        value["other_links"] = change.other_links
        value["other_ctime_ns"] = change.other_ctime_ns
        value["rename_flags"] = change.rename_flags
    if kind is Kind.WRITE:
        value["size"] = change.size
        value["mtime_ns"] = change.mtime_ns
        value["extents"] = change.extents
        who = change.who
        value["who"] = who and {"pid": who.pid, "uid": who.uid, "job": who.job}
    if kind is Kind.XATTR:
        value["xattr"] = None if change.xattr is None else escaped(change.xattr)
    return value
