"""Wait until sites have everything up to a record, or all that records say of one path.

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
from replicator.site_state import (
    NEVER_NS,
    HeldStep,
    Phase,
    SiteReport,
    SiteState,
    SkippedStep,
    StateError,
)
from replicator.standing import Standing, standing, why_silent
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


@dataclass(frozen=True, slots=True)
class Goal:
    """What sites are to have.

    Attributes:
        sequence: everything up to that record; None: up to the head as it is now.
        after: of steps that operators skipped, those after this record count; None: those that are
            skipped while we wait.
        path: only what is at that path (relative to the root) counts, and `object`, which is there.
    """

    sequence: SequenceNumber | None = None
    after: SequenceNumber | None = None
    path: bytes | None = None
    object: bytes = b""

    def concerns(self, step: HeldStep | SkippedStep) -> bool:
        """Whether the step must be done for it."""
        if self.path is None:
            return True
        if isinstance(step, HeldStep) and self.object and self.object == step.object:
            return True
        above = step.kind == "reconcile" and step.path is not None
        return step.path == self.path or (above and self.path.startswith(_below(step.path or b"")))


def _below(directory: bytes) -> bytes:
    return directory + b"/" if directory else b""


def wait(
    journal: str,
    sites: Sequence[str],
    goal: Goal,
    timeout_seconds: float | None,
    *,
    sleep: Callable[[float], None] = time.sleep,
    monotonic: Callable[[], float] = time.monotonic,
) -> list[Answer]:
    """Until all the sites have what is asked for.

    An answer for each site. Ends at once when a site cannot get there without an operator. Raises
    NoJournalError, CorruptionError, OSError.
    """
    began = monotonic()
    with JournalReader(journal) as reader:
        wanted = reader.head() if goal.sequence is None else goal.sequence
        began_ns = time.time_ns()
        while True:
            reports = read_reports(journal)
            question = _Question(reader, goal, wanted, began_ns)
            answers = [_answer(site, reports.get(site), question) for site in sites]
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


@dataclass(frozen=True, slots=True)
class _Question:
    reader: JournalReader
    goal: Goal
    wanted: SequenceNumber
    began_ns: int

    def has(self, at: Standing, state: SiteState) -> bool:
        """Whether the site has it."""
        if self.goal.path is None:
            return at.clean >= self.wanted
        held = (step for step in state.held if step.sequence <= self.wanted)
        return at.working >= self.wanted and not any(map(self.goal.concerns, held))

    def skipped(self, state: SiteState) -> SkippedStep | None:
        """A step that it needs, and that an operator passed over."""
        for step in reversed(state.skipped):
            late = step.time_ns >= self.began_ns
            after = self.goal.after is not None and step.sequence > self.goal.after
            if step.sequence <= self.wanted and (late or after) and self.goal.concerns(step):
                return step
        return None


def _answer(site: str, report: SiteReport | StateError | None, question: _Question) -> Answer:
    wanted = question.wanted
    if report is None:
        return Answer(site, None, "no replicator has ever reported on it")
    if isinstance(report, StateError):
        return Answer(site, Outcome.UNREACHABLE, f"its report {report}")
    at = standing(question.reader, report.state)
    skipped = question.skipped(report.state)
    if skipped is not None:
        told = f"{_shown(skipped)} was skipped by an operator: {skipped.reason}"
        return Answer(site, Outcome.UNREACHABLE, told)
    if question.has(at, report.state):
        return Answer(site, Outcome.REACHED, f"record {wanted} reached")
    if report.phase == Phase.HALTED.value:
        return Answer(site, Outcome.UNREACHABLE, f"halted: {report.reason}")
    failed = _failed([step for step in report.state.held if question.goal.concerns(step)], wanted)
    if at.working >= wanted and failed:
        first = failed[0]
        told = f"{count(len(failed), 'step')} failed, the first is {_shown(first)}: {first.error}"
        return Answer(site, Outcome.UNREACHABLE, told)
    if at.clean < 0:
        where = at.reason or "the initial copy is not complete"
    else:
        reached = at.clean if question.goal.path is None else at.working
        where = f"record {reached} of {wanted}"
    silent = why_silent(report, time.time_ns())
    return Answer(site, None, where if silent is None else f"{where}; its replicator is {silent}")


def _shown(step: HeldStep | SkippedStep) -> str:
    return "/" + escaped(step.path) if step.path is not None else step.kind


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
