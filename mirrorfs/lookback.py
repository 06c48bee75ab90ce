"""What the mount before this one may have left unsaid, and the activity log of the new one.

Puts the entries it left, how it ended and what stands in the source together into what must be
compared. The journal and the source are only read; what follows is appended by the caller.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from mirrorfs import activity_log, capture, system_calls
from mirrorfs.activity import Activity, Slot
from mirrorfs.activity_log import ActivityLog
from mirrorfs.aftermath import Doubt, doubts
from mirrorfs.backing_tree import BackingTree
from mirrorfs.capture import Captured, Subject
from mirrorfs.inodes import Node
from mirrorfs.journal.activity_header import (
    FILE_NAME,
    HEADER_BYTES,
    ActivityHeader,
    decode_activity_header,
)
from mirrorfs.journal.record import ObjectId
from mirrorfs.journal.recovery import Opened
from mirrorfs.journal.segment import Incarnation
from mirrorfs.journal.writer import JournalWriteError, JournalWriter
from mirrorfs.marks import Mark, Noted, decode
from mirrorfs.volume import VolumeDirectory, Witness

_log = logging.getLogger(__name__)

UNCLEAN = "mirrorfs stopped without unmounting"
RESTARTED = "the source was mounted again since: the last changes may not have reached its disk"
OTHERS = "other nodes may have changed the source"
WENT_BACK = "source and journal are not of the same time: one of them is an older copy"
_WRITTEN_BACK_NS: Final = 600_000_000_000
"""Longer than a kernel keeps changed content from the disk, where nothing better is known."""


class Ended(NamedTuple):
    """How a journal ended.

    Attributes:
        journal: its UUID.
        tags: incarnations with a record, oldest first.
        clean: it ended with `unmount`.
        last_ns: time of the last record; 0 if there is none.
    """

    journal: bytes
    tags: tuple[int, ...]
    clean: bool
    last_ns: int


def tags_of(incarnations: Iterable[Incarnation]) -> tuple[int, ...]:
    """Of these, oldest first, those with a record."""
    return tuple(each.tag for each in incarnations if each.last >= each.first)


@dataclass(frozen=True, slots=True)
class Left:
    """What the mount before left.

    Attributes:
        slots: entries of its activity log, to be taken over.
        doubts: what must be compared.
        reason: why.
        since_ns: content that was changed from that time on may be lost, the change times being
            there; 0: the source has lost nothing.
        header: of that log; None if it tells nothing.
        generation: the last one of that log that anybody may have seen.
    """

    slots: list[Slot]
    doubts: list[Doubt]
    reason: str
    since_ns: int = 0
    header: ActivityHeader | None = None
    generation: int = 0

    @property
    def marks(self) -> list[Mark]:
        """Directories to reconcile."""
        return [Mark(d.object, d.whole, d.path) for d in self.doubts if not d.is_object]


def look_back(
    journal: str,
    opened: Opened,
    tree: BackingTree,
    *,
    trusted: bool,
    others: bool,
    witness: Witness | None,
) -> Left:
    """What a mount that begins must have compared: see `foresee`."""
    header = opened.writer.header
    ended = Ended(header.journal, tags_of(header.incarnations), opened.clean, opened.ended_ns)
    return foresee(journal, ended, tree, trusted=trusted, others=others, witness=witness)


def foresee(
    journal: str,
    ended: Ended,
    tree: BackingTree,
    *,
    trusted: bool,
    others: bool,
    witness: Witness | None,
) -> Left:
    """What must be compared. Changes nothing.

    `trusted`: the log that was left tells of everything. `others`: somebody else has changed the
    source since. `witness`: what the source says of the log (VolumeDirectory).
    """
    told = _read(journal, ended, witness)
    left = _left(ended, tree, told, trusted=trusted, others=others, witness=witness)
    seen = 0 if witness is None else witness.generation
    return replace(left, generation=max(seen, 0 if told is None else told[0].generation))


def _left(
    ended: Ended,
    tree: BackingTree,
    told: tuple[ActivityHeader, list[Slot]] | None,
    *,
    trusted: bool,
    others: bool,
    witness: Witness | None,
) -> Left:
    everything = [Doubt(tree.root_id, b"", whole=True)]
    stood = told is not None and _stood(told[0], tree)
    since_ns = 0 if stood else _since_ns(ended, told)
    if others:
        return Left([], everything, OTHERS, since_ns)
    if _went_back(ended, told, witness):
        written_ns = 0 if witness is None else witness.written_ns
        before_ns = max(1, min(since_ns or written_ns, written_ns - _WRITTEN_BACK_NS))
        return Left([], everything, WENT_BACK, before_ns)
    if told is None or not trusted:
        if ended.clean:
            return Left([], [], UNCLEAN)
        return Left([], everything, UNCLEAN, since_ns)
    header, slots = told
    if ended.clean and stood:
        return Left(slots, [], UNCLEAN, 0, header)
    reason = RESTARTED if ended.clean else UNCLEAN
    try:
        return Left(slots, doubts(tree, slots), reason, since_ns, header)
    except OSError as error:
        _log.warning("the source cannot be looked at: %s", error.strerror)
        return Left(slots, everything, reason, since_ns, header)


def _stood(header: ActivityHeader, tree: BackingTree) -> bool:
    """Whether what that log tells of is in memory or on disk: nothing was cut off since."""
    mount = system_calls.mount_id(tree.root)
    return header.boot == activity_log.boot_id() and header.mount == mount != 0


def _since_ns(ended: Ended, told: tuple[ActivityHeader, list[Slot]] | None) -> int:
    """From when on content may be lost after a power cut; by the clock of the source."""
    if told is not None:
        return max(1, told[0].swept_ns)
    return max(1, ended.last_ns - _WRITTEN_BACK_NS)


def _went_back(
    ended: Ended,
    told: tuple[ActivityHeader, list[Slot]] | None,
    witness: Witness | None,
) -> bool:
    """Whether the source was changed through a later state of this journal, or has lost more than
    a power cut can take."""
    seen = 0  # none, or of a journal that was here before this one
    if witness is not None and witness.journal == ended.journal:
        seen = witness.generation
    if told is None:
        return seen > 0
    return not told[0].witnessed <= seen <= told[0].generation


def noted(directory: VolumeDirectory, root: ObjectId) -> Noted | None:
    """What the mirrorfs before this one marked as changed without a record. UnusableError."""
    data = directory.read_marks()
    if data is None:
        return None
    found = decode(data)
    if found is not None:
        return found
    _log.warning("the marks cannot be read: everything is compared")
    return Noted(time.time_ns(), "its marks could not be read", (Mark(root, True, b""),))


def records(tree: BackingTree, left: Left) -> Iterator[Captured]:
    """Records of what a `reconcile` does not look at: directories themselves, files by id."""
    for doubt in left.doubts:
        try:
            descriptor = tree.reopen(doubt.object)
        except OSError as error:
            if error.errno == errno.ESTALE:
                continue
            raise
        try:
            now = tree.attributes(descriptor)
        finally:
            tree.close_descriptor(descriptor)
        subject = Subject(doubt.object, now.st_mode, now.st_nlink, now.st_ctime_ns, dirty=False)
        found = [capture.attributes(subject, None, doubt.path)]
        if doubt.is_object:
            size, mtime_ns = now.st_size, now.st_mtime_ns
            found.append(capture.written(subject, None, doubt.path, size, mtime_ns, None))
        yield from filter(None, found)


def begin_log(
    journal: str,
    writer: JournalWriter,
    tree: BackingTree,
    root: Node,
    left: Left,
    ahead_ns: Callable[[], int],
    is_degraded: Callable[[], bool],
    bear_witness: Callable[[bytes, int], None],
) -> ActivityLog | None:
    """The activity log of a mount that begins; None if the disk does not take it."""

    def make_durable() -> bool:
        """In another thread."""
        if is_degraded():
            return False
        try:
            writer.sync()
            system_calls.sync_file_system(tree.root_directory)
        except (JournalWriteError, OSError) as error:
            _log.warning("sync: %s", error)
            return False
        return not is_degraded()

    def witness(generation: int) -> bool:
        """In another thread."""
        try:
            bear_witness(writer.header.journal, generation)
        except OSError:  # then less is known of what the journal had
            return False
        return True

    before = writer.header.incarnations
    header = ActivityHeader(
        journal=writer.header.journal,
        tag=writer.header.tag,
        previous=before[-1].tag if before else 0,
        boot=activity_log.boot_id(),
        mount=system_calls.mount_id(tree.root),
        swept_ns=left.header.swept_ns if left.header is not None else 0,
        witnessed=left.header.witnessed if left.header is not None else 0,
        generation=max([left.generation, *(each.generation for each in before)]),
    )
    activity = Activity(root)
    # Where no name of a file is known, each further start would have the sites look everywhere.
    durable = any(slot.is_object for slot in left.slots) and make_durable()
    for slot in left.slots:
        if not (slot.is_object and durable):
            activity.adopt(slot)
    try:
        fd = os.open(journal, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return ActivityLog(
                fd,
                header,
                activity,
                make_durable,
                ahead_ns(),
                witness,
                lambda: writer.durable_head,
            )
        finally:
            os.close(fd)
    except OSError as error:
        _log.warning("no activity log: %s: after an unclean end all is compared", error.strerror)
        return None


def told(journal: str) -> ActivityHeader | None:
    """What the activity log of that journal says of itself; None if there is none."""
    try:
        with open(f"{journal}/{FILE_NAME}", "rb") as file:
            found = decode_activity_header(file.read(HEADER_BYTES))
    except OSError:
        return None
    return None if found is None else found[0]


def _read(
    journal: str, ended: Ended, witness: Witness | None
) -> tuple[ActivityHeader, list[Slot]] | None:
    """The log of the mount before, if it is that one's.

    Where the source bears witness that there was no later one, a start that was cut off before
    its log was made does not matter.
    """
    fd = os.open(journal, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        told = activity_log.read(fd)
    except OSError as error:
        _log.warning("the activity log cannot be read: %s", error.strerror)
        return None
    finally:
        os.close(fd)
    if told is None or not ended.tags or told[0].journal != ended.journal:
        return None
    if witness is not None and witness.journal == told[0].journal:
        return told if told[0].tag in ended.tags else None
    return told if ended.tags[-1] in (told[0].tag, told[0].previous) else None
