"""Where a site stands: what it, or the report of its replicator, says, held against the journal.

Only reads. A cursor is worth what the journal says of it: one past the end of its incarnation is
cut back, one of another journal is worth nothing.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import Final

from mirrorfs.journal.reader import JournalReader
from mirrorfs.journal.record import SequenceNumber, Tag
from mirrorfs.journal.site_cursor import Unknown
from replicator.site_state import Phase, SiteReport, SiteState
from replicator.wording import span

STALE_SECONDS: Final = 10.0
"""A replicator reports every second; one that was silent for so long is not relied upon."""


@dataclass(frozen=True, slots=True)
class Standing:
    """The cursors of a site in this journal.

    Attributes:
        working, clean: -1: an initial copy is due or under way (nothing is known to be done).
        reason: why that is so, if the journal does not know the cursors.
    """

    working: int
    clean: int
    reason: str = ""


def standing(reader: JournalReader, state: SiteState) -> Standing:
    """The cursors of that state, in that journal."""
    sequence = SequenceNumber(state.working)
    try:
        found = reader.resolve(bytes.fromhex(state.journal), Tag(int(state.tag, 16)), sequence)
    except ValueError as error:
        found = Unknown(f"its cursor cannot be read: {error}")
    if isinstance(found, Unknown):
        return Standing(-1, -1, found.reason)
    if state.initial:
        return Standing(-1, -1)
    return Standing(found, min(state.clean, found))


def why_silent(report: SiteReport, now_ns: int) -> str | None:
    """Why no replicator works on that site now; None if one does."""
    age = max(0, now_ns - report.updated_ns) / 1e9
    if report.phase == Phase.HALTED.value:
        return f"not running: halted {span(age)} ago"
    paused = report.phase == Phase.PAUSED.value
    if report.phase == Phase.STOPPED.value or (report.state.stopped and not paused):
        return f"not running: stopped {span(age)} ago"
    if _is_gone(report):
        return f"not running: process {report.pid} ended without stopping, {span(age)} ago"
    if age > STALE_SECONDS:
        return f"silent for {span(age)}: process {report.pid} on {report.host}"
    return None


def boot_id() -> str:
    """Id of this boot of this host."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def _is_gone(report: SiteReport) -> bool:
    """Whether it is certain that the process does not run any more."""
    if report.host != socket.gethostname():
        return False
    return report.boot != boot_id() or not os.path.exists(f"/proc/{report.pid}")
