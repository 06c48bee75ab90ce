"""What there is to report of a site: what its engine has come to, and what its disk has left."""

from __future__ import annotations

import os
import socket
from dataclasses import asdict

import msgspec

from mirrorfs.journal.record import SequenceNumber
from replicator.config import SiteSettings
from replicator.cursor import read_reports
from replicator.engine import Engine
from replicator.site_state import SiteReport
from replicator.standing import boot_id


def seen(
    settings: SiteSettings, engine: Engine, head: SequenceNumber, started_ns: int, oldest_ns: int
) -> SiteReport:
    """All but the phase and what is measured. `started_ns`: when this process began with it;
    `oldest_ns`: of the oldest record still to be worked on; 0: there is none."""
    store = engine.store
    counters = asdict(engine.counters)
    counters["directories_listed"] = store.directories_listed
    counters["bytes_written"] = store.bytes_written
    return SiteReport(
        site=settings.name,
        url=settings.url,
        host=socket.gethostname(),
        boot=boot_id(),
        pid=os.getpid(),
        started_ns=started_ns,
        updated_ns=0,
        phase="",
        phase_ns=0,
        head=head,
        read=engine.plan.known,
        done=engine.plan.working(),
        queue=len(engine.plan),
        oldest_ns=oldest_ns,
        counters=counters,
        state=engine.state,
    )


def seen_before(journal: str, site: str, started_ns: int) -> SiteReport | None:
    """What was reported before a start that found the site held up."""
    found = read_reports(journal).get(site)
    if not isinstance(found, SiteReport):
        return None
    us = {"host": socket.gethostname(), "boot": boot_id(), "pid": os.getpid()}
    return msgspec.structs.replace(found, started_ns=started_ns, **us)


def free_bytes(path: str) -> int | None:
    """Bytes that may still be written to a site; None if it cannot be told."""
    try:
        found = os.statvfs(path)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize
