"""Waiting for sites: reached, out of time, out of hope. The clock is the test's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mirrorfs.journal.reader import NoJournalError
from mirrorfs.journal.record import Checkpoint, Kind, SequenceNumber
from mirrorfs.journal.writer import JournalWriter
from replicator.site_state import SkippedStep
from replicator.waiting import POLL_SECONDS, UNHEARD_SECONDS, Answer, Goal, Outcome, wait
from tests.support.reports import held, journal_at, put_report, state_of


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def writer(journal: Path) -> Iterator[JournalWriter]:
    made = journal_at(journal)
    append(made)
    yield made
    made.close()


def append(writer: JournalWriter) -> None:
    writer.append(Kind.CHECKPOINT, Checkpoint("x"))


class Clock:
    """A clock that only sleeping moves; `then` happens in the first sleeps, one in each."""

    def __init__(self, *then: Callable[[], object]) -> None:
        self.now = 0.0
        self._then = list(then)

    def sleep(self, seconds: float) -> None:
        """Move on."""
        assert seconds == POLL_SECONDS
        self.now += seconds
        if self._then:
            self._then.pop(0)()

    def monotonic(self) -> float:
        """The time."""
        return self.now


def ask(
    journal: Path,
    *names: str,
    target: int | None = None,
    timeout: float | None = 1.0,
    clock: Clock | None = None,
) -> list[Answer]:
    clock = clock or Clock()
    wanted = None if target is None else SequenceNumber(target)
    names = names or ("backup",)
    return wait(
        str(journal), names, Goal(wanted), timeout, sleep=clock.sleep, monotonic=clock.monotonic
    )


def test_reached_at_once(journal: Path, writer: JournalWriter) -> None:
    put_report(journal, state_of(writer))
    clock = Clock()
    (answer,) = ask(journal, timeout=0, clock=clock)
    assert answer == Answer("backup", Outcome.REACHED, "record 1 reached")
    assert clock.now == 0


def test_now_is_the_head_when_it_was_asked(journal: Path, writer: JournalWriter) -> None:
    state = state_of(writer)

    def catch_up() -> None:
        append(writer)
        put_report(journal, state)

    (answer,) = ask(journal, clock=Clock(catch_up))
    assert answer.outcome is Outcome.REACHED


def test_it_is_the_clean_cursor_that_counts(journal: Path, writer: JournalWriter) -> None:
    put_report(journal, state_of(writer, held=[held(1, waiting=True)]))
    (answer,) = ask(journal, clock=Clock(lambda: put_report(journal, state_of(writer))))
    assert answer.outcome is Outcome.REACHED
    put_report(journal, state_of(writer, held=[held(1, waiting=True)]))
    (answer,) = ask(journal)
    assert answer == Answer("backup", Outcome.TIMED_OUT, "record 0 of 1")


def test_a_record_that_is_still_to_come(journal: Path, writer: JournalWriter) -> None:
    put_report(journal, state_of(writer))
    assert ask(journal, target=2)[0].outcome is Outcome.TIMED_OUT

    def go_on() -> None:
        append(writer)
        put_report(journal, state_of(writer))

    assert ask(journal, target=2, clock=Clock(go_on))[0].outcome is Outcome.REACHED


def test_all_the_sites_must_get_there(journal: Path, writer: JournalWriter) -> None:
    put_report(journal, state_of(writer), site="one")
    put_report(journal, state_of(writer, working=0), site="two")
    answers = ask(journal, "one", "two")
    assert [answer.outcome for answer in answers] == [Outcome.REACHED, Outcome.TIMED_OUT]


def test_steps_that_failed_end_the_wait(journal: Path, writer: JournalWriter) -> None:
    clock = Clock()
    put_report(journal, state_of(writer, held=[held(1), held(1, path=None)]))
    (answer,) = ask(journal, timeout=None, clock=clock)
    assert answer.outcome is Outcome.UNREACHABLE
    assert answer.reason == "2 steps failed, the first is /a/b: Permission denied"
    assert clock.now == 0


def test_steps_that_may_still_succeed_do_not(journal: Path, writer: JournalWriter) -> None:
    for steps in ([held(1, tries=1)], [held(1), held(1, waiting=True)]):
        put_report(journal, state_of(writer, held=steps))
        assert ask(journal)[0].outcome is Outcome.TIMED_OUT
    append(writer)
    put_report(journal, state_of(writer, working=1, held=[held(1)]))
    assert ask(journal)[0].outcome is Outcome.TIMED_OUT
    put_report(journal, state_of(writer, held=[held(2)]))
    assert ask(journal, target=1)[0].outcome is Outcome.REACHED


def test_a_halted_site_ends_the_wait_for_all(journal: Path, writer: JournalWriter) -> None:
    put_report(journal, state_of(writer, working=0), site="one")
    put_report(journal, state_of(writer, working=0), site="two", phase="halted", reason="no lease")
    answers = ask(journal, "one", "two", timeout=None)
    assert [answer.outcome for answer in answers] == [Outcome.TIMED_OUT, Outcome.UNREACHABLE]
    assert answers[1].reason == "halted: no lease"


def test_an_unreadable_report_ends_the_wait(journal: Path, writer: JournalWriter) -> None:
    (journal / "sites").mkdir()
    (journal / "sites" / "backup.json").write_text("{")
    assert ask(journal, timeout=None)[0].outcome is Outcome.UNREACHABLE


def test_a_replicator_may_just_be_starting(journal: Path, writer: JournalWriter) -> None:
    clock = Clock(lambda: None, lambda: put_report(journal, state_of(writer)))
    assert ask(journal, timeout=None, clock=clock)[0].outcome is Outcome.REACHED
    clock = Clock()
    (answer,) = ask(journal, "other", timeout=None, clock=clock)
    assert answer == Answer("other", Outcome.UNREACHABLE, "no replicator has ever reported on it")
    assert UNHEARD_SECONDS <= clock.now < UNHEARD_SECONDS + 1
    assert ask(journal, "other", timeout=20)[0].outcome is Outcome.TIMED_OUT


def test_a_known_site_is_waited_for_beyond_that(journal: Path, writer: JournalWriter) -> None:
    put_report(journal, state_of(writer, working=0))
    nothing = [lambda: None] * 1000
    clock = Clock(*nothing, lambda: put_report(journal, state_of(writer)))
    assert ask(journal, timeout=None, clock=clock)[0].outcome is Outcome.REACHED
    assert clock.now > UNHEARD_SECONDS


def test_a_silent_replicator_is_named(journal: Path, writer: JournalWriter) -> None:
    put_report(journal, state_of(writer, working=0), phase="stopped")
    assert ask(journal)[0].reason.startswith("record 0 of 1; its replicator is not running: stop")


def test_an_initial_copy_is_not_there_yet(journal: Path, writer: JournalWriter) -> None:
    put_report(journal, state_of(writer, initial=True))
    (answer,) = ask(journal)
    assert answer == Answer("backup", Outcome.TIMED_OUT, "the initial copy is not complete")


def test_a_cursor_of_another_journal_reaches_nothing(journal: Path, writer: JournalWriter) -> None:
    put_report(journal, state_of(writer, journal="00" * 16))
    (answer,) = ask(journal)
    assert answer.outcome is Outcome.TIMED_OUT
    assert answer.reason == "the cursor belongs to another journal"


def test_no_journal(tmp_path: Path) -> None:
    with pytest.raises(NoJournalError):
        ask(tmp_path)


def skipped(sequence: int, path: bytes = b"a/b", time_ns: int = 1) -> SkippedStep:
    return SkippedStep(
        kind="place",
        path=path,
        sequence=sequence,
        error="Permission denied",
        reason="not needed",
        by=0,
        time_ns=time_ns,
    )


def one(journal: Path, goal: Goal) -> Answer:
    clock = Clock()
    seconds = {"sleep": clock.sleep, "monotonic": clock.monotonic}
    (answer,) = wait(str(journal), ["backup"], goal, 0.2, **seconds)  # type: ignore[arg-type]
    return answer


def test_a_skip_counts_from_the_checkpoint_before_and_while_we_wait(
    journal: Path, writer: JournalWriter
) -> None:
    for _ in range(9):
        append(writer)
    put_report(journal, state_of(writer, skipped=[skipped(5)]))
    ten = SequenceNumber(10)
    assert one(journal, Goal(ten)).outcome is Outcome.REACHED
    assert one(journal, Goal(ten, SequenceNumber(5))).outcome is Outcome.REACHED
    answer = one(journal, Goal(ten, SequenceNumber(4)))
    assert answer.outcome is Outcome.UNREACHABLE
    assert answer.reason == "/a/b was skipped by an operator: not needed"
    assert one(journal, Goal(SequenceNumber(4), SequenceNumber(0))).outcome is Outcome.REACHED
    put_report(journal, state_of(writer, skipped=[skipped(5, time_ns=2**62)]))
    assert one(journal, Goal(ten)).outcome is Outcome.UNREACHABLE
    elsewhere = Goal(ten, SequenceNumber(4), b"c")
    assert one(journal, elsewhere).outcome is Outcome.REACHED


def test_for_a_path_only_its_own_steps_count(journal: Path, writer: JournalWriter) -> None:
    append(writer)
    steps = [held(1, path=b"a/b", object=b"7"), held(2, path=b"d", kind="reconcile")]
    put_report(journal, state_of(writer, held=steps))
    two = SequenceNumber(2)
    for path, identity, outcome in (
        (b"a/b", b"", Outcome.UNREACHABLE),
        (b"moved", b"7", Outcome.UNREACHABLE),
        (b"d/e", b"", Outcome.UNREACHABLE),
        (b"a", b"8", Outcome.REACHED),
        (b"dd", b"", Outcome.REACHED),
    ):
        assert one(journal, Goal(two, None, path, identity)).outcome is outcome, path
    put_report(journal, state_of(writer, working=1))
    answer = one(journal, Goal(two, None, b"a"))
    assert (answer.outcome, answer.reason) == (Outcome.TIMED_OUT, "record 1 of 2")
