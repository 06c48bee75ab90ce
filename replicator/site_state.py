"""The state of a site, as values: what its replicator must remember, and what it is doing.

Pure. `SiteState` is what lies at the site in `.mirrorfs/state`; `Phase` and its table say how the
driver of a site may change between what people see in `status`.

        start -> catching up <-> tailing        catching up: records wait;  tailing: none wait
                     |  ^          |
                     v  |          v
                  backing off <----+            the site or the source is in trouble: try again
                     |                          paused: an operator holds it up; from and to
                     v                          anything but halted
                                                stalled: it works, or is being opened, and nothing
                                                comes of it
                   halted                       an operator must act
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Final

import msgspec
import xxhash

from mirrorfs.journal.record import SequenceNumber
from replicator.work import WorkReport

STATE_FILE: Final = "state"
STATE_VERSION: Final = 1
COMPARING_VERSION: Final = 2
"""Of a state with comparisons under way: who does not know of them must not go on from it."""

BACKOFF_SECONDS_MAX: Final = 60.0
NEVER_NS: Final = 1 << 62
"""When a step is tried again that waits for an operator."""
WRITER_WAIT_SECONDS: Final = 60.0
"""How long a step waits for the `write` record of an object that is open for writing."""


class Phase(enum.Enum):
    """What a site's driver is doing."""

    STARTING = "starting"
    INITIAL_COPY = "initial copy"
    CATCHING_UP = "catching up"
    TAILING = "tailing"
    BACKING_OFF = "backing off"
    PAUSED = "paused"
    STALLED = "stalled"
    HALTED = "halted"
    STOPPED = "stopped"


_WORKING = frozenset({Phase.INITIAL_COPY, Phase.CATCHING_UP, Phase.TAILING})
_ANY_TIME = frozenset({Phase.BACKING_OFF, Phase.PAUSED, Phase.STALLED, Phase.HALTED, Phase.STOPPED})

TRANSITIONS: Final[dict[Phase, frozenset[Phase]]] = {
    Phase.STARTING: _WORKING | _ANY_TIME,
    Phase.INITIAL_COPY: _WORKING | _ANY_TIME,
    Phase.CATCHING_UP: _WORKING | _ANY_TIME,
    Phase.TAILING: _WORKING | _ANY_TIME,
    Phase.BACKING_OFF: _WORKING | _ANY_TIME,
    Phase.PAUSED: _WORKING | _ANY_TIME,
    Phase.STALLED: _WORKING | _ANY_TIME,
    Phase.HALTED: frozenset({Phase.STOPPED}),
    Phase.STOPPED: frozenset(),
}


class HeldStep(msgspec.Struct, kw_only=True):
    """A step that could not be done: it failed after its retries, or waits for a writer.

    Attributes:
        kind: "place" (directory, name), "object" (object) or "reconcile" (directory, whole). What
            else is filled in is what was known: the object at a place, a place of an object.
        occupant: what the site has at the place.
        keep: of a "reconcile": what has gone from the source goes to `kept`.
        unsure: records may not tell all that has changed there: it was to be compared.
        sequence: of its first record; the clean cursor stays below it.
        waiting: it has not failed: its object is open for writing (`writer`), or a record is still
            to come.
        deletion: it would remove more than is allowed; an operator is asked.
        later: of a "reconcile": steps in it waited for records still to come; all others are told.
        since_ns: when it was first held.  due_ns: when it is tried again; 0: an operator wants it
            now; NEVER_NS: not before.
    """

    kind: str
    directory: bytes = b""
    name: bytes = b""
    object: bytes = b""
    occupant: bytes = b""
    whole: bool = False
    keep: bool = True
    unsure: bool = False
    path: bytes | None = None
    sequence: int
    waiting: bool = False
    writer: bool = False
    deletion: bool = False
    later: bool = False
    since_ns: int
    due_ns: int
    tries: int = 1
    error: str = ""
    errno: int = 0

    @property
    def key(self) -> tuple[str, bytes, bytes, bytes]:
        """What makes two held steps the same."""
        if self.kind == "object":
            return (self.kind, b"", b"", self.object)
        return (self.kind, self.directory, self.name, b"")

    @property
    def id(self) -> str:
        """What people call it by: 8 hex digits, the same as long as it is held."""
        return xxhash.xxh32_hexdigest(msgspec.msgpack.encode(self.key))


class SkippedStep(msgspec.Struct, frozen=True, kw_only=True):
    """A step that an operator passed over: the site may differ from the source there.

    Attributes:
        reason: as the operator gave it. by: the operator's user id. time_ns: when.
        The others: as of the held step.
    """

    kind: str
    path: bytes | None
    sequence: int
    error: str
    reason: str
    by: int
    time_ns: int


class Level(msgspec.Struct, kw_only=True):
    """A directory on the way of a comparison.

    Attributes:
        below: its own names are done: it is about the directories in it.
        after: names up to this one are done; with `below`, the directory of this name is on the
            way itself, or done. None: none is.
    """

    directory: bytes
    below: bool = False
    after: bytes | None = None


class Root(msgspec.Struct, kw_only=True):
    """A directory to be compared, because of that record; with `whole` all below it, too."""

    directory: bytes
    whole: bool
    sequence: int
    path: bytes | None = None


class Owed(msgspec.Struct, kw_only=True):
    """A place, or an object under all its names, to which bytes were on their way.

    Attributes:
        directory, name: the place; empty for an object.
        object: it; at a place, the one that was copied.
    """

    directory: bytes = b""
    name: bytes = b""
    object: bytes = b""


class ComparisonState(msgspec.Struct, kw_only=True):
    """How far a comparison has come.

    Attributes:
        roots: all are swept, and then created, one after the other.
        doubt: it is about a directory that steps left in doubt.
        initial, adopt: it is the initial copy, and may adopt what was there.
        keep: what has gone from the source goes to `kept`.
        creating: all are swept.  at: how many roots have been begun in this pass.
        way: from the root it is at to the directory it is at; none: the next root comes.
        owed: passed over on the way, and still to be done.
    """

    roots: list[Root]
    doubt: bool = False
    initial: bool = False
    adopt: bool = False
    keep: bool = True
    creating: bool = False
    owed: list[Owed] = []
    at: int = 0
    way: list[Level] = []


class SiteState(msgspec.Struct, kw_only=True):
    """What a site remembers: cursors, and the steps that are held.

    Attributes:
        volume, journal: UUIDs, 32 hex digits. tag: 16 hex digits.
        working: every record up to it has been worked on.
        clean: every place touched by a record up to it has been made true; -1: the initial copy
            is not complete.
        initial: the initial copy is to be made, or is not complete.
        adopt: the initial copy may adopt what was there.
        escaping: a reconcile has ended shortly before: what has moved meanwhile is compared again.
        keeping: and what is found gone then is kept.
        comparing: comparisons under way, the one at work last.
        skipped: the steps that an operator passed over, for ever.
        include, exclude: the patterns of what it is to have.
        boot, mount: boot id of the host that wrote this, and which mount of the site's file system
            it was; with `stopped` false and another one, what was copied since may be lost.
        log_tag, generation: the activity log that the records up to `working` rely on: the
            incarnation it told of then, and how far it surely was on the disk.
        saves: how many states were saved; marks name the one before them.
        site_cuts, source_cuts: see `losses`; tags with 16 hex digits.
        deletions: how many objects were removed, by minute, in the last hour.
        promised: jobs have waited for it: what they were told must outlast power cuts.
    """

    version: int = STATE_VERSION
    volume: str
    site: str
    journal: str
    tag: str
    working: int
    clean: int
    initial: bool = False
    adopt: bool = False
    escaping: bool = False
    keeping: bool = False
    held: list[HeldStep] = []
    comparing: list[ComparisonState] = []
    skipped: list[SkippedStep] = []
    include: list[str] = []
    exclude: list[str] = []
    boot: str = ""
    mount: int = 0
    stopped: bool = False
    saved_ns: int = 0
    log_tag: str = ""
    generation: int = 0
    saves: int = 0
    site_cuts: list[tuple[int, int]] = []
    source_cuts: list[tuple[str, int]] = []
    deletions: list[tuple[int, int]] = []
    promised: bool = False


class SiteReport(msgspec.Struct, kw_only=True):
    """What a replicator says of one of its sites; a copy lies in `JOURNAL/sites/NAME.json`.

    Attributes:
        url: where the site is. host, boot, pid: the replicator. started_ns: when it came up.
        phase: see Phase; reason: in words, why it is in it ("" if there is nothing to say).
        phase_ns: since when. updated_ns: when this was written (every second or so).
        head: newest record of the journal seen. read: newest record taken into the plan.
        done: newest record up to which all was worked on (`state.working` is the saved one).
        work: what the steps spend their time on. free_bytes: at the site; None: not known.
        queue: places and objects waiting in the plan. oldest_ns: time of the oldest record that
            was not worked on, 0 if there is none.
        lag_p50, lag_p99: seconds from record to site, over the last hour; None without samples.
        records_per_second: over the last minute. counters: what was done since it came up.
    """

    version: int = STATE_VERSION
    site: str
    url: str
    host: str
    boot: str
    pid: int
    started_ns: int
    updated_ns: int
    phase: str
    phase_ns: int
    reason: str = ""
    head: int = 0
    read: int = 0
    done: int = 0
    queue: int = 0
    free_bytes: int | None = None
    work: WorkReport | None = None
    oldest_ns: int = 0
    lag_p50: float | None = None
    lag_p99: float | None = None
    records_per_second: float = 0.0
    counters: dict[str, int] = {}
    state: SiteState


class StateError(Exception):
    """A state file that cannot be read."""


def encode_state(state: SiteState) -> bytes:
    """The bytes of a state file (JSON)."""
    state.version = COMPARING_VERSION if state.comparing else STATE_VERSION
    return msgspec.json.format(msgspec.json.encode(state), indent=1) + b"\n"


def decode_state(data: bytes) -> SiteState:
    """The state in those bytes; raises StateError."""
    try:
        state = msgspec.json.decode(data, type=SiteState)
    except msgspec.DecodeError as error:
        raise StateError(f"cannot be read: {error}") from None
    if state.version not in (STATE_VERSION, COMPARING_VERSION):
        raise StateError(f"version {state.version} is not known here")
    return state


def encode_report(report: SiteReport) -> bytes:
    """The bytes of a report file (JSON)."""
    return msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n"


def decode_report(data: bytes) -> SiteReport:
    """The report in those bytes; raises StateError."""
    try:
        report = msgspec.json.decode(data, type=SiteReport)
    except msgspec.DecodeError as error:
        raise StateError(f"cannot be read: {error}") from None
    if report.version != STATE_VERSION:
        raise StateError(f"version {report.version} is not known here")
    return report


def clean_cursor(
    working: SequenceNumber,
    held: list[HeldStep],
    comparing: Sequence[ComparisonState] = (),
    *,
    initial: bool,
) -> int:
    """The clean cursor: below every step that is held, and every directory that is to be compared;
    -1 before the initial copy is complete."""
    if initial:
        return -1
    roots = (root.sequence for each in comparing if not each.doubt for root in each.roots)
    return min([working, *(step.sequence - 1 for step in held), *(at - 1 for at in roots)])


def backoff_seconds(tries: int, jitter: float) -> float:
    """How long to wait after so many failures: doubling from 1 s to a minute.

    `jitter` (0 to 1) takes up to a quarter off, so that many sites do not come back at once.
    """
    return float(min(BACKOFF_SECONDS_MAX, 2.0 ** min(max(0, tries - 1), 10)) * (1 - jitter / 4))
