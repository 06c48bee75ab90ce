"""What comparisons may have missed, and for how long."""

from __future__ import annotations

from mirrorfs.journal.record import ObjectId, SequenceNumber, Tag
from replicator import escape as module
from replicator.escape import Escape, Sightings

A, B = ObjectId(b"a"), ObjectId(b"b")
SECOND_NS = 1_000_000_000


class World:
    now_ns = 0
    head = SequenceNumber(5)

    def escape(self) -> Escape:
        return Escape(lambda: self.now_ns, lambda: self.head)


def gap(sequence: int) -> tuple[Tag, SequenceNumber]:
    return Tag(1), SequenceNumber(sequence)


def test_it_is_open_until_the_records_of_the_comparisons_time_were_applied() -> None:
    world = World()
    escape = world.escape()
    assert not escape.open
    escape.made(A)  # nobody asks
    escape.begin(gap(3), keep=True)
    escape.begin(gap(2), keep=False)
    assert (escape.gap, escape.keep) == (gap(3), True)
    escape.passed(SequenceNumber(99))
    assert escape.open, "it is under way"
    escape.end()
    escape.passed(SequenceNumber(99))
    assert escape.open, "a record may come late"
    world.now_ns = SECOND_NS
    escape.passed(SequenceNumber(4))
    world.head = SequenceNumber(9)
    assert escape.open, "record 5 was there then"
    escape.passed(SequenceNumber(5))
    assert (escape.open, escape.gap, escape.keep) == (False, None, False)
    escape.passed(SequenceNumber(5))


def test_a_directory_is_missed_unless_it_was_seen_since_the_newest_began() -> None:
    escape = World().escape()
    assert not escape.missed(A)
    escape.begin(gap(1), keep=True)
    escape.made(B)
    assert (escape.missed(A), escape.missed(B)) == (True, False)
    escape.saw(A)
    assert not escape.missed(A)
    assert escape.compared(A)
    escape.begin(gap(2), keep=True)
    assert (escape.missed(A), escape.missed(B)) == (True, True)
    assert escape.under_way


def test_what_changed_after_the_newest_record_may_have_moved_by_one_not_read() -> None:
    escape = World().escape()
    assert escape.ahead(SequenceNumber(4), 10 * SECOND_NS, 10 * SECOND_NS)
    assert not escape.ahead(SequenceNumber(4), 10 * SECOND_NS, 8 * SECOND_NS)
    assert not escape.ahead(SequenceNumber(5), 10 * SECOND_NS, 10 * SECOND_NS)


def test_the_oldest_sightings_are_forgotten() -> None:
    known = Sightings()
    for moment in range(module._KNOWN_MAX + 1):
        known.add(ObjectId(b"%d" % moment), moment)
    assert not known.since(ObjectId(b"0"), -1)
    assert known.since(ObjectId(b"1"), 0)
    assert not known.since(ObjectId(b"1"), 1)
