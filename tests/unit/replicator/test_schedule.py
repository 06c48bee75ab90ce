"""Decisions about one step, by tables."""

from __future__ import annotations

import stat
from dataclasses import dataclass, replace
from typing import cast

import pytest

from mirrorfs.journal.record import ObjectId, Place, SequenceNumber, Tag
from mirrorfs.journal.segment import Incarnation
from replicator import schedule
from replicator.planner import NO_HINTS, Hints, PlaceItem
from replicator.schedule import ContentState, Incarnations, content_state
from replicator.stores.base import Attributes, Mark, MarkFlag, SiteEntry
from replicator.view import SourceObject

X, Y = ObjectId(b"x"), ObjectId(b"y")
OLD, NEW = Tag(1), Tag(2)
KNOWN = Incarnations([Incarnation(OLD, SequenceNumber(1), SequenceNumber(10))], NEW)


def mark(sequence: int = 20, *, tag: Tag = NEW, ctime: int = 5, content: bool = True) -> Mark:
    flags = MarkFlag.CONTENT if content else MarkFlag(0)
    return Mark(X, tag, SequenceNumber(sequence), ctime, flags)


def hints(write: int = 0, *, tag: Tag = NEW, unsettled: bool = False, settled: int = 0) -> Hints:
    found = Hints(SequenceNumber(30), unsettled=unsettled, settled_ctime_ns=settled)
    found.write = (tag, SequenceNumber(write)) if write else None
    return found


CURRENT, STALE, COMING = ContentState.CURRENT, ContentState.STALE, ContentState.COMING


@pytest.mark.parametrize(
    ("copy", "ctime", "known", "options", "state"),
    [
        # there is no copy
        (None, 5, NO_HINTS, {}, STALE),
        (None, 5, hints(unsettled=True), {}, COMING),
        (None, 5, hints(25, unsettled=True), {}, COMING),
        (None, 5, hints(25, unsettled=True), {"wait": False}, STALE),
        (mark(content=False), 5, NO_HINTS, {}, STALE),
        (mark(content=False), 5, hints(unsettled=True), {}, COMING),
        # the same change time: the same content, whatever the records say
        (mark(), 5, hints(25), {}, CURRENT),
        (mark(), 5, NO_HINTS, {"trust": False}, CURRENT),
        (mark(ctime=0), 0, NO_HINTS, {"trust": False}, STALE),
        # another one, and the records tell
        (mark(), 6, NO_HINTS, {}, CURRENT),
        (mark(), 6, NO_HINTS, {"trust": False}, STALE),
        (mark(), 6, hints(20), {}, CURRENT),
        (mark(), 6, hints(21), {}, STALE),
        (mark(), 6, hints(unsettled=True), {}, COMING),
        (mark(), 6, hints(21, unsettled=True), {}, COMING),
        (mark(), 6, hints(21, unsettled=True), {"wait": False}, STALE),
        (None, 6, hints(unsettled=True), {"trust": False}, COMING),
        (None, 6, hints(unsettled=True), {"trust": False, "wait": False}, STALE),
        (mark(), 6, hints(unsettled=True), {"wait": False}, CURRENT),
        # incarnations
        (mark(10, tag=OLD), 5, NO_HINTS, {}, CURRENT),
        (mark(11, tag=OLD), 5, NO_HINTS, {}, STALE),  # the journal lost that record
        (mark(10, tag=OLD), 6, hints(5), {}, STALE),  # 5 of the new one is later than 10 of the old
        (mark(15), 6, hints(9, tag=OLD), {}, CURRENT),
        (mark(15), 6, hints(9, tag=Tag(3)), {}, STALE),
        (mark(15, tag=Tag(3)), 5, NO_HINTS, {}, STALE),
        # arriving at another place: the records must account for what is seen
        (mark(), 6, hints(settled=6), {"arriving": True}, CURRENT),
        (mark(), 6, hints(settled=7), {"arriving": True}, COMING),
        (mark(), 5, NO_HINTS, {"arriving": True}, CURRENT),
        (None, 6, NO_HINTS, {"arriving": True}, STALE),
        # copies that may have lost their content
        (mark(20), 5, NO_HINTS, {"lost": True}, STALE),
        (mark(20), 5, NO_HINTS, {"unproven": True}, CURRENT),
        (mark(20), 5, NO_HINTS, {"unproven": True, "trust": False}, STALE),
    ],
)  # fmt: skip
def test_content_state(
    copy: Mark | None, ctime: int, known: Hints, options: dict[str, bool], state: ContentState
) -> None:
    arguments = {"trust": True, **options}
    assert content_state(copy, ctime, known, KNOWN, **arguments) is state


def test_recency_puts_the_copy_read_last_on_top() -> None:
    order = [None, mark(content=False, ctime=9), mark(ctime=3), mark(ctime=8), mark(ctime=7)]
    shuffled = [order[3], order[0], order[4], order[2], order[1]]
    assert sorted(shuffled, key=lambda each: schedule.recency(each, 7))[2:] == order[2:]


@pytest.mark.parametrize(
    ("first", "vacated", "arrived", "came"),
    [
        (1, [], None, None),
        (1, [1], (3, Y), None),  # another object stands there now
        (1, [1], (3, X), 3),
        (1, [2], (3, X), 3),
        (1, [], (3, X), None),  # never empty in between: replaced by renames
        (1, [4], (3, X), None),  # emptied after it came
        (3, [], (3, X), None),
    ],
)
def test_a_place_that_was_emptied_is_shown_empty_first(
    first: int,
    vacated: list[SequenceNumber],
    arrived: tuple[SequenceNumber, ObjectId] | None,
    came: int | None,
) -> None:
    item = PlaceItem(Place(Y, b"n"), (SequenceNumber(first), 0), None, vacated, arrived)
    assert schedule.absent_until(item, X) == came


@dataclass
class Found:
    """As much of a SourceObject as the decisions look at."""

    mode: int
    id: ObjectId = X
    rdev: int = 0
    size: int = 3
    mtime_ns: int = 4


def source(mode: int, rdev: int = 0) -> SourceObject:
    return cast(SourceObject, Found(mode, rdev=rdev))


def entry(mode: int, rdev: int = 0, copy: Mark | None = None) -> SiteEntry:
    return SiteEntry(1, mode, 0, 0, 3, 4, rdev, 1, copy)


FILE, DIRECTORY, LINK, DEVICE = (
    kind | 0o644 for kind in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR)
)


def test_kind_and_device_number_make_a_copy() -> None:
    assert schedule.same_kind(source(FILE), entry(FILE))
    assert not schedule.same_kind(source(FILE), entry(DIRECTORY))
    assert schedule.same_kind(source(DEVICE, 7), entry(DEVICE, 7))
    assert not schedule.same_kind(source(DEVICE, 7), entry(DEVICE, 8))
    assert schedule.is_copy(source(FILE), entry(FILE, copy=mark()))
    assert not schedule.is_copy(source(FILE), entry(FILE))
    assert not schedule.is_copy(source(FILE), entry(LINK, copy=mark()))
    assert not schedule.is_copy(source(FILE), None)
    assert not schedule.is_copy(source(FILE), entry(FILE, copy=replace(mark(), object=Y)))


def test_what_looks_like_it_may_be_adopted() -> None:
    assert schedule.looks_like(source(FILE), entry(FILE))
    assert not schedule.looks_like(source(FILE), replace(entry(FILE), size=2))
    assert not schedule.looks_like(source(FILE), replace(entry(FILE), mtime_ns=2))
    assert schedule.looks_like(source(DIRECTORY), replace(entry(DIRECTORY), mtime_ns=2))
    assert not schedule.looks_like(source(LINK), entry(LINK))
    assert not schedule.looks_like(source(LINK), entry(FILE))


def test_attributes_differ_in_what_lstat_shows() -> None:
    wanted = Attributes(FILE, 0, 0, 9, 4, 0, {})
    assert not schedule.attributes_differ(wanted, entry(FILE))
    assert schedule.attributes_differ(replace(wanted, uid=1), entry(FILE))
    assert schedule.attributes_differ(replace(wanted, mode=FILE ^ 1), entry(FILE))
    assert schedule.attributes_differ(replace(wanted, mtime_ns=5), entry(FILE))
    link = replace(wanted, mode=LINK)
    assert not schedule.attributes_differ(link, replace(entry(LINK), mode=stat.S_IFLNK | 0o777))
    directory = replace(wanted, mode=DIRECTORY, mtime_ns=5)
    assert not schedule.attributes_differ(directory, entry(DIRECTORY))
