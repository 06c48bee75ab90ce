"""Wait until sites have everything up to a record.

Looks at the reports beside the journal, again and again; what it asks for is the clean cursor, so
that "reached" means that nothing up to there is missing at the site.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from mirrorfs.journal.reader import JournalReader
from mirrorfs.journal.record import SequenceNumber
from replicator.cursor import read_reports
from replicator.site_state import NEVER_NS, HeldStep, Phase, SiteReport, StateError
from replicator.standing import standing, why_silent
from replicator.wording import count, escaped

POLL_SECONDS: Final = 0.05
UNHEARD_SECONDS: Final = 10.0
"""Without a time-out: how long a site may go unheard of; its replicator may just be starting."""

_TRIES_MAX: Final = 3
"""A step that failed so often is not waited for."""


class Outcome(enum.IntEnum):
    """How the wait ended; also the exit code."""

    REACHED = 0
    TIMED_OUT = 1
    UNREACHABLE = 2


@dataclass(frozen=True, slots=True)
class Answer:
    """How it stands with one site; `outcome` None: not decided yet. `reason`: in words."""

    site: str
    outcome: Outcome | None
    reason: str


def wait(
    journal: str,
    sites: Sequence[str],
    target: SequenceNumber | None,
    timeout_seconds: float | None,
    *,
    sleep: Callable[[float], None] = time.sleep,
    monotonic: Callable[[], float] = time.monotonic,
) -> list[Answer]:
    """Until all the sites have every record up to `target` (None: the head as it is now).

    An answer for each site. Ends at once when a site cannot get there without an operator. Raises
    NoJournalError, CorruptionError, OSError.
    """
    began = monotonic()
    with JournalReader(journal) as reader:
        wanted = reader.head() if target is None else target
        while True:
            reports = read_reports(journal)
            answers = [_answer(site, reports.get(site), reader, wanted) for site in sites]
            if all(answer.outcome is Outcome.REACHED for answer in answers):
                return answers
            lasted = monotonic() - began
            if timeout_seconds is None and lasted >= UNHEARD_SECONDS:
                answers = [_unheard(answer, reports) for answer in answers]
            if any(answer.outcome is Outcome.UNREACHABLE for answer in answers):
                return [_timed_out(answer) for answer in answers]
            if timeout_seconds is not None and lasted >= timeout_seconds:
                return [_timed_out(answer) for answer in answers]
            sleep(POLL_SECONDS)


def _answer(
    site: str,
    report: SiteReport | StateError | None,
    reader: JournalReader,
    wanted: SequenceNumber,
) -> Answer:
    if report is None:
        return Answer(site, None, "no replicator has ever reported on it")
    if isinstance(report, StateError):
        return Answer(site, Outcome.UNREACHABLE, f"its report {report}")
    at = standing(reader, report.state)
    if at.clean >= wanted:
        return Answer(site, Outcome.REACHED, f"record {wanted} reached")
    if report.phase == Phase.HALTED.value:
        return Answer(site, Outcome.UNREACHABLE, f"halted: {report.reason}")
    failed = _failed(report.state.held, wanted)
    if at.working >= wanted and failed:
        first = failed[0]
        path = "/" + escaped(first.path) if first.path is not None else first.kind
        told = f"{count(len(failed), 'step')} failed, the first is {path}: {first.error}"
        return Answer(site, Outcome.UNREACHABLE, told)
    if at.clean < 0:
        where = at.reason or "the initial copy is not complete"
    else:
        where = f"record {at.clean} of {wanted}"
    silent = why_silent(report, time.time_ns())
    return Answer(site, None, where if silent is None else f"{where}; its replicator is {silent}")


def _failed(held: Sequence[HeldStep], wanted: SequenceNumber) -> list[HeldStep]:
    """The steps that hold the clean cursor, if all of them have failed for good."""
    below = [step for step in held if step.sequence <= wanted]
    if all(step.due_ns == NEVER_NS or _is_lost(step) for step in below):
        return below
    return []


def _is_lost(step: HeldStep) -> bool:
    return not step.waiting and step.tries >= _TRIES_MAX


def _unheard(answer: Answer, reports: dict[str, SiteReport | StateError]) -> Answer:
    if answer.site in reports:
        return answer
    return Answer(answer.site, Outcome.UNREACHABLE, answer.reason)


def _timed_out(answer: Answer) -> Answer:
    if answer.outcome is not None:
        return answer
    return Answer(answer.site, Outcome.TIMED_OUT, answer.reason)
