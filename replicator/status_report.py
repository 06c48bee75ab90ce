"""What `replicator status` tells, as values; `--json` prints them as they are.

Pure. The names and meanings of the fields are documented in replicator(1) and stay.
"""

from __future__ import annotations

import enum

import msgspec

from replicator.work import Bottleneck, WorkReport


class Severity(enum.IntEnum):
    """How urgent it is; also the exit code."""

    OK = 0
    WARNING = 1
    CRITICAL = 2


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Something to act upon. `severity`: 1 warning, 2 critical."""

    severity: int
    text: str


class HeldStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A step of the failed set, or one that waits for a writer.

    Attributes:
        id: what `retry` and `skip` take, beside the path.
        path: as far as it is known, escaped; null if it is not.
        sequence: of its first record. since, next_try: UTC.
    """

    id: str
    kind: str
    path: str | None
    sequence: int
    error: str
    errno: int
    tries: int
    since: str
    next_try: str


class SkippedStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A step that an operator passed over. `by`: the operator's user id; `time`: UTC."""

    kind: str
    path: str | None
    sequence: int
    error: str
    reason: str
    by: int
    time: str


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """From where on a site is a warning, or critical: seconds behind, failed steps. 0: never."""

    warn_lag: float
    critical_lag: float
    warn_failed: int
    critical_failed: int


class VolumeStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The volume; null where it cannot be told.

    Attributes:
        head, first: newest and oldest record. journal_bytes: what it takes on its disk.
        mounted: whether mirrorfs runs.
        degraded: why no records can be made; degraded_since: since when, UTC.
        marked: directories that were changed meanwhile, to be compared.
        write_through: the sites that jobs wait for, each with how that fares, in words.
    """

    journal: str
    source: str | None = None
    uuid: str | None = None
    head: int | None = None
    first: int | None = None
    journal_bytes: int | None = None
    mounted: bool | None = None
    mountpoint: str | None = None
    degraded: str | None = None
    degraded_since: str | None = None
    marked: int | None = None
    write_through: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()


class SiteStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One site; null where it cannot be told.

    Attributes:
        state: a Phase, "never ran" or "unreadable"; reason: in words.
        attached: the journal keeps all records for it; false: it is detached; null: not known to
        the journal. attachment_since: UTC.
        running: a replicator works on it. updated, since (of the state): UTC.
        working, clean: cursors; null before the initial copy is complete.
        lag_records: records after the working cursor. lag_seconds: age of the oldest of them.
        lag_p50_seconds, lag_p99_seconds: of the last hour. eta_seconds: until it has caught up.
        bottleneck: what bounds the rate, from the times that the steps of the last minute took.
        work: these times. free_bytes: at the site. limits: from where on there are problems.
        skipped: how many steps operators passed over; skipped_steps: all of them.
        failed, waiting: how many steps failed, or wait for a writer; failed_steps,
        waiting_steps: all of them.
    """

    site: str
    url: str
    state: str
    reason: str = ""
    attached: bool | None = None
    attachment_since: str | None = None
    running: bool = False
    host: str | None = None
    pid: int | None = None
    updated: str | None = None
    since: str | None = None
    since_seconds: float | None = None
    working: int | None = None
    clean: int | None = None
    lag_records: int | None = None
    lag_seconds: float | None = None
    lag_p50_seconds: float | None = None
    lag_p99_seconds: float | None = None
    queue: int | None = None
    records_per_second: float | None = None
    eta_seconds: float | None = None
    failed: int = 0
    waiting: int = 0
    failed_steps: tuple[HeldStatus, ...] = ()
    waiting_steps: tuple[HeldStatus, ...] = ()
    skipped: int = 0
    skipped_steps: tuple[SkippedStatus, ...] = ()
    bottleneck: Bottleneck | None = None
    work: WorkReport | None = None
    free_bytes: int | None = None
    limits: Limits | None = None
    counters: dict[str, int] = {}
    problems: tuple[Problem, ...] = ()


class VolumeReport(msgspec.Struct, frozen=True, kw_only=True):
    """All of it: what `replicator status --json` prints. `severity`: the exit code."""

    severity: int
    time: str
    volume: VolumeStatus
    sites: tuple[SiteStatus, ...]


def encode_status(report: VolumeReport) -> bytes:
    """The report as one line of JSON."""
    return msgspec.json.encode(report)


def status_schema() -> dict[str, object]:
    """The JSON schema of a report."""
    return msgspec.json.schema(VolumeReport)
