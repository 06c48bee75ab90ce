"""Reads what `replicator lag` tells: apply logs, the journal, and where each site stands.

The statistics are made in `lag_report`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from mirrorfs.journal.reader import JournalReader
from mirrorfs.journal.record import ObjectId, SequenceNumber
from replicator.applied import read_applied
from replicator.cursor import read_reports
from replicator.lag_report import (
    SLICES,
    Absence,
    Arrival,
    Files,
    LagReport,
    LagSlice,
    excluded,
    joined,
    shown_path,
    start_of,
    summarize,
)
from replicator.patterns import Wanted
from replicator.scanning import Expected, between, since
from replicator.site_state import SiteReport
from replicator.standing import standing
from replicator.wording import moment


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked for: slices since then, limits in seconds, patterns of paths to leave out."""

    slice: str
    since_ns: int
    limits: Sequence[float]
    exclude: Sequence[str]


@dataclass(slots=True)
class _Site:
    """A site as far as it is known: what it has for sure, and what is held."""

    done: int = -1
    held: set[bytes] = field(default_factory=set)
    paths: set[bytes] = field(default_factory=set)
    wanted: Wanted = field(default_factory=Wanted)

    def has(self, identity: ObjectId, sequence: int, path: bytes) -> bool:
        """Whether the site has what that record was about."""
        return sequence <= self.done and identity not in self.held and path not in self.paths


def read_lag(journal: str, sites: Sequence[str], asked: Asked, now_ns: int) -> LagReport:
    """The report on these sites. NoJournalError, CorruptionError, OSError."""
    expected, length = Expected(), SLICES[asked.slice]
    start = asked.since_ns // length * length
    with JournalReader(journal) as reader:
        first = reader.segments()[0].first
        oldest = next(between(reader, first, SequenceNumber(first + 1)), None)
        for record in since(reader, start):
            expected.add(record, length)
        known = {name: _look(reader, journal, name) for name in sites}
    whole_ns = 0 if first <= 1 or oldest is None else oldest.time_ns
    slices: list[LagSlice] = []
    totals: list[LagSlice] = []
    for name in sites:
        files = _files(journal, name, known[name], expected, asked, (whole_ns, now_ns))
        slices += [
            summarize(name, start_of(at, asked.slice), each, asked.limits)
            for at, each in files.items()
        ]
        totals.append(summarize(name, "total", joined(files.values()), asked.limits))
    return LagReport(
        slice=asked.slice, since=moment(start), slices=tuple(slices), total=tuple(totals)
    )


def _look(reader: JournalReader, journal: str, name: str) -> _Site:
    report = read_reports(journal).get(name)
    if not isinstance(report, SiteReport):
        return _Site()
    held = report.state.held
    return _Site(
        standing(reader, report.state).working,
        {each for step in held for each in (step.object, step.occupant)} - {b""},
        {step.path for step in held if step.path is not None},
        Wanted(report.state.include, report.state.exclude),
    )


def _files(
    journal: str,
    name: str,
    site: _Site,
    expected: Expected,
    asked: Asked,
    span_ns: tuple[int, int],
) -> dict[int, Files]:
    """The files of each slice of one site, the oldest slice first; `span_ns`: from where on the
    journal tells all, and now."""
    timed, newest = _timed(journal, name, asked)
    found: dict[int, Files] = {}
    for at in sorted(timed.keys() | expected.slices.keys()):
        here = timed.get(at, {})
        arrived = {object for object, _ in here}
        missing: list[Absence] = []
        untimed = 0
        for identity, (sequence, time_ns, path) in expected.slices.get(at, {}).items():
            shown = shown_path(path)
            if excluded(shown, asked.exclude) or not site.wanted(path, directory=False):
                continue
            if newest.get(identity.hex(), 0) >= sequence:
                arrived.add(identity.hex())
            elif identity in expected.gone:
                continue
            elif site.has(identity, sequence, path):
                untimed += identity.hex() not in arrived
            else:
                missing.append(Absence(max(0, span_ns[1] - time_ns) / 1e9, shown))
        complete = at >= span_ns[0]
        found[at] = Files(list(here.values()), missing, len(arrived), untimed, complete)
    return found


def _timed(
    journal: str, name: str, asked: Asked
) -> tuple[dict[int, dict[tuple[str, int], Arrival]], dict[str, int]]:
    """What the apply log has of each slice, and the newest record it has of each object."""
    length = SLICES[asked.slice]
    start = asked.since_ns // length * length
    slices: dict[int, dict[tuple[str, int], Arrival]] = {}
    newest: dict[str, int] = {}
    for each in read_applied(journal, name, start):
        newest[each.object] = max(newest.get(each.object, 0), each.sequence)
        path = "/" + each.path
        if each.record_ns < start or excluded(path, asked.exclude):
            continue
        seconds = max(0, each.applied_ns - each.record_ns) / 1e9
        of_slice = slices.setdefault(each.record_ns // length * length, {})
        # applied again after a kill: the first time counts
        of_slice.setdefault((each.object, each.sequence), Arrival(seconds, each.size, path))
    return slices, newest
