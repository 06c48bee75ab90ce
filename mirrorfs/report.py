"""How mirrorfs and its journal fare, as people and programs read it: as lines or as JSON values.

Pure: values in, text and values out. It prints nothing.
"""

from __future__ import annotations

from typing import Any

import msgspec

from mirrorfs.journal.control_client import Status, ThroughStatus
from mirrorfs.journal.record import SequenceNumber
from mirrorfs.journal.retention import Holder
from mirrorfs.journal.wording import escaped, moment

_RESTART_TOLD_NS = 3600 * 10**9
_SHOWN_MAX = 5
_MEANWHILE = {"block": "wait", "readonly": "are refused"}


def status_lines(status: Status) -> list[str]:
    """What a running mirrorfs says of itself."""
    behind = status.head - status.durable_head
    durable = "all durable" if behind <= 0 else f"{behind} not yet durable"
    lines = [
        f"mirrorfs {status.version} on {status.host}, process {status.pid}",
        f"  source      {escaped(status.source)}",
        f"  mountpoint  {escaped(status.mountpoint)}",
        f"  since       {moment(status.started_ns)}",
        f"  journal     {status.head} records, {durable}",
        f"  room        {_room(status)}",
        f"  directory   {escaped(status.journal.encode(errors='surrogateescape'))}",
        f"  in use      {status.nodes} objects, {status.open_files} open files",
        f"  writers     {status.writers}, this node is {status.node}",
        f"  options     {', '.join(status.kernel_options) or 'rw'}",
        f"  guard       {_guard(status)}",
        f"  engine      {_engine(status)}",
    ]
    lines += _through(status)
    if status.holders:
        held = ", ".join(status.holders[:_SHOWN_MAX])
        more = len(status.holders) - _SHOWN_MAX
        held += f" and {more} more" if more > 0 else ""
        lines.append(f"  PASSED BY   {held}: what they change in the source has no record")
    if status.degraded is not None:
        changes = _MEANWHILE.get(status.journal_full, "go on without records")
        lines.append(f"  DEGRADED    {status.degraded}: changes {changes}")
        lines.append(f"              since {moment(status.degraded_since_ns)}; {_marked(status)}")
    return lines


def _through(status: Status) -> list[str]:
    """Whom jobs wait for; nothing if nobody."""
    if not status.through:
        return []
    sites = f"all wait for {', '.join(status.write_through)}" if status.write_through else ""
    below = f"{status.write_through_directories} directories name sites of their own"
    told = [sites] if sites else []
    told += [below] if status.write_through_directories else []
    lines = [f"  through     {'; '.join(told)}"]
    for site in status.through:
        name = f"site {site.site}"
        if site.down is not None:
            since = moment(site.down_since_ns)
            lines.append(f"  NOT THROUGH {name}: {site.down}")
            lines.append(f"              since {since}; {_answers(site.passed)} without it so far")
        elif not site.known:
            lines.append(f"  NOT KNOWN   {name}: no replicator has ever reported of it")
        else:
            there = "" if site.followed else "; its replicator is not there"
            jobs = "1 job waits" if site.waiting == 1 else f"{site.waiting} jobs wait"
            passed = f", {_answers(site.passed)} without it so far" if site.passed else ""
            lines.append(f"              {name}: {jobs}{passed}{there}")
        if site.undone:
            lines.append(f"  NOT THROUGH {name}: {site.undone} objects: {site.undone_reason}")
    return lines


def _answers(count: int) -> str:
    return "1 answer" if count == 1 else f"{count} answers"


def _room(status: Status) -> str:
    """What is left on the journal's disk."""
    if status.room_bytes is None:
        return "not known"
    left = f"{_size(status.room_bytes)} on the journal's disk"
    if status.room_seconds is None:
        return left
    return f"{left}, {status.room_seconds / 3600:.1f} hours at the rate of late"


def _marked(status: Status) -> str:
    if status.everything:
        return "the whole tree is marked to be compared"
    directories = "1 directory" if status.marks == 1 else f"{status.marks} directories"
    return f"{directories} marked to be compared"


def needs_attention(status: Status, now_ns: int) -> bool:
    """It runs, and somebody should look."""
    return (
        status.degraded is not None
        or bool(status.holders)
        or any(each.down is not None or each.undone or not each.known for each in status.through)
        or (status.restart == "on" and not status.supervisor)
        or now_ns - status.restarted_ns < _RESTART_TOLD_NS
    )


def _engine(status: Status) -> str:
    """What becomes of it when it dies, and whether it did."""
    if status.restart == "off":
        return "not started again when it dies"
    by = f"started again by process {status.supervisor}"
    if not status.supervisor:
        by = "NOT started again when it dies: the process that did is gone"
    if not status.restarts:
        return by
    times = "once" if status.restarts == 1 else f"{status.restarts} times"
    return f"{by}: {times}, last {moment(status.restarted_ns)}: {status.restart_reason}"


def _guard(status: Status) -> str:
    if status.guard == "off":
        return "off: changes behind the mount are not noticed"
    told = f"on; {status.foreign} directories were changed behind the mount"
    return f"{told}, {status.lost} times the tree was compared" if status.lost else told


def status_value(status: Status) -> dict[str, Any]:
    """The same for JSON."""
    return {
        "pid": status.pid,
        "host": status.host,
        "version": status.version,
        "source": escaped(status.source),
        "mountpoint": escaped(status.mountpoint),
        "head": status.head,
        "durable_head": status.durable_head,
        "degraded": status.degraded,
        "degraded_since": moment(status.degraded_since_ns) if status.degraded else None,
        "marks": status.marks,
        "everything": status.everything,
        "journal_full": status.journal_full,
        "room_bytes": status.room_bytes,
        "room_seconds": status.room_seconds,
        "nodes": status.nodes,
        "open_files": status.open_files,
        "journal": escaped(status.journal.encode(errors="surrogateescape")),
        "volume": status.volume,
        "node": status.node,
        "started": moment(status.started_ns),
        "writers": status.writers,
        "kernel_options": list(status.kernel_options),
        "guard": status.guard,
        "guard_directories": status.foreign,
        "guard_overflows": status.lost,
        "restart": status.restart,
        "supervisor": status.supervisor,
        "restarts": status.restarts,
        "restarted": moment(status.restarted_ns) if status.restarts else None,
        "restart_reason": status.restart_reason or None,
        "holders": list(status.holders),
        "write_through": list(status.write_through),
        "write_through_directories": status.write_through_directories,
        "through": [_through_value(each) for each in status.through],
    }


def _through_value(site: ThroughStatus) -> dict[str, Any]:
    value: dict[str, Any] = msgspec.to_builtins(site)
    down_since_ns = value.pop("down_since_ns")
    value["down_since"] = moment(down_since_ns) if site.down is not None else None
    return value


class Kept(msgspec.Struct, frozen=True):
    """What is kept of a journal: records, segments, room on the disk; who keeps more than time."""

    first: SequenceNumber
    segments: int
    disk_bytes: int
    holders: tuple[Holder, ...]


def kept_lines(kept: Kept) -> list[str]:
    """How much the journal takes, and why."""
    number = "1 segment" if kept.segments == 1 else f"{kept.segments} segments"
    lines = [f"  kept        from record {kept.first}: {_size(kept.disk_bytes)} in {number}"]
    lines += [
        f"  kept for    {f'site {holder.site}: ' if holder.site else ''}{holder.reason}"
        for holder in kept.holders
    ]
    return lines


def kept_value(kept: Kept) -> dict[str, Any]:
    """The same for JSON."""
    value: dict[str, Any] = msgspec.to_builtins(kept)
    return value


def _size(number: int) -> str:
    """Bytes in the largest unit."""
    units = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")
    power = min(max(number.bit_length() - 1, 0) // 10, len(units) - 1)
    return f"{number / (1 << 10 * power):.{1 if power else 0}f} {units[power]}"
