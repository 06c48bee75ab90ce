"""Virtual attributes: what mirrorfs knows of an object, for `getfattr -n user.mirrorfs.NAME FILE`.

They are not listed, so that cp, tar and rsync do not copy them. What is told of a site is true or
"unknown": it comes from the record of the object's last change, and from the report that the site's
replicator keeps beside the journal. Changes nothing.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Final, NamedTuple

from mirrorfs.inodes import Node
from mirrorfs.journal.record import SequenceNumber
from mirrorfs.journal.segment import Header
from mirrorfs.objects import Objects
from mirrorfs.recorder import Recorder
from mirrorfs.site_reports import Held, State, read_reports

PREFIX: Final = b"user.mirrorfs."


class JournalFacts(NamedTuple):
    """What is known of the journal now.

    Attributes:
        directory: where it is. header: of the segment being written.
        begun: the record with which this mount began.
        reconciled: the last `reconcile` record, 0 if this mount made none.
        degraded: changes go without records.
    """

    directory: str
    header: Header
    begun: SequenceNumber
    reconciled: SequenceNumber
    degraded: bool


class _Subject(NamedTuple):
    """What there is to know of an object before sites are asked.

    Attributes:
        sequence: its last record is this one, or (`exact` is false) not later than this one.
        ids: it and the directories above it. places: their known names.
    """

    sequence: int
    exact: bool
    ids: frozenset[bytes]
    parents: frozenset[bytes]
    places: frozenset[tuple[bytes, bytes]]


class VirtualAttributes:
    """Values for the objects of one mount."""

    def __init__(
        self, objects: Objects, recorder: Recorder, facts: Callable[[], JournalFacts]
    ) -> None:
        self._objects = objects
        self._recorder = recorder
        self._facts = facts

    def value(self, node: Node, name: bytes) -> bytes | None:
        """The value of that attribute; None if there is none, or it is not known."""
        match name.removeprefix(PREFIX):
            case b"path":
                return self._objects.table.path(node)
            case b"object":
                return self._objects.identity(node).hex().encode()
            case b"volume":
                return str(uuid.UUID(bytes=self._facts().header.volume)).encode()
            case b"sequence":
                sequence = self._recorder.recent.get(self._objects.identity(node))
                return None if sequence is None else b"%d" % sequence
            case b"state":
                return self._state(node)
        return None

    def _state(self, node: Node) -> bytes:
        """`SITE=STATE` for every site, separated by commas."""
        facts = self._facts()
        subject = self._subject(node, facts)
        told = []
        for site, report in read_reports(facts.directory):
            said = "unknown"
            state = None if report is None else report.state
            if state is not None and not facts.degraded:
                working = _reached(facts.header, state, state.working)
                clean = _reached(facts.header, state, state.clean)
                if working is not None and clean is not None:
                    said = "pending" if node.dirty else _standing(subject, state, working, clean)
            told.append(f"{site}={said}")
        return ",".join(told).encode(errors="surrogateescape")

    def _subject(self, node: Node, facts: JournalFacts) -> _Subject:
        """An object is where it should be if what is above it is, too."""
        recent = self._recorder.recent
        floor = max(facts.begun, facts.reconciled, self._recorder.forgotten)
        chain = [node]
        while chain[-1].parent is not None:
            chain.append(chain[-1].parent)
        ids = [self._objects.identity(each) for each in chain]
        last = max((recent.get(identity, 0) for identity in ids), default=0)
        places = {
            (bytes(self._objects.identity(directory)), name)
            for each in chain
            for directory, name in each.names()
        }
        parents = {directory for directory, _ in places}
        return _Subject(
            max(last, floor), last > floor, frozenset(ids), frozenset(parents), frozenset(places)
        )


def _standing(subject: _Subject, state: State, working: int, clean: int) -> str:
    held = [step for step in state.held if _concerns(step, subject)]
    if any(not step.waiting for step in held):
        return "failed"
    if held or clean < 0:
        return "pending"
    if state.comparing and not subject.exact:
        working = clean  # what no record tells of may not be compared yet
    if subject.sequence <= max(working, clean):
        return "clean"
    return "pending" if subject.exact else "unknown"


def _concerns(step: Held, subject: _Subject) -> bool:
    if step.kind == "reconcile":
        return step.directory in (subject.ids if step.whole else subject.parents | subject.ids)
    return step.object in subject.ids or (step.directory, step.name) in subject.places


def _reached(header: Header, state: State, sequence: int) -> int | None:
    """A site's cursor in this journal; None if it is not one of this journal."""
    if state.journal != header.journal.hex():
        return None
    if state.tag == f"{header.tag:016x}":
        return sequence
    for incarnation in header.incarnations:
        if state.tag == f"{incarnation.tag:016x}":
            return min(sequence, incarnation.last)  # a power cut took what was after it
    return None
