"""What the mount before this one may have left unsaid, and the activity log of the new one.

Puts the entries it left, how it ended and what stands in the source together into what must be
compared. The journal and the source are only read; what follows is appended by the caller.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from mirrorfs import activity_log, capture, system_calls
from mirrorfs.activity import Activity, Slot
from mirrorfs.activity_log import ActivityLog, Header
from mirrorfs.aftermath import Doubt, doubts
from mirrorfs.backing_tree import BackingTree
from mirrorfs.capture import Captured, Subject
from mirrorfs.inodes import Node
from mirrorfs.journal.record import ObjectId
from mirrorfs.journal.recovery import Opened
from mirrorfs.journal.segment import Incarnation
from mirrorfs.journal.writer import JournalWriteError, JournalWriter
from mirrorfs.marks import Mark, Noted, decode
from mirrorfs.volume import VolumeDirectory

_log = logging.getLogger(__name__)

UNCLEAN = "mirrorfs stopped without unmounting"
RESTARTED = "the host was started again: the last changes may not have reached the disk"
OTHERS = "other nodes may have changed the source"


class Ended(NamedTuple):
    """How a journal ended.

    Attributes:
        journal: its UUID.
        tag: the last incarnation with a record; None if there is none.
        clean: it ended with `unmount`.
    """

    journal: bytes
    tag: int | None
    clean: bool


def last_tag(incarnations: Iterable[Incarnation]) -> int | None:
    """Of these, oldest first, the last one with a record."""
    return next((i.tag for i in reversed(list(incarnations)) if i.last >= i.first), None)


@dataclass(frozen=True, slots=True)
class Left:
    """What the mount before left.

    Attributes:
        slots: entries of its activity log, to be taken over.
        doubts: what must be compared.
        reason: why.
    """

    slots: list[Slot]
    doubts: list[Doubt]
    reason: str

    @property
    def marks(self) -> list[Mark]:
        """Directories to reconcile."""
        return [Mark(d.object, d.whole, d.path) for d in self.doubts if not d.is_object]


def look_back(
    journal: str, opened: Opened, tree: BackingTree, *, trusted: bool, others: bool
) -> Left:
    """What a mount that begins must have compared: see `foresee`."""
    header = opened.writer.header
    ended = Ended(header.journal, last_tag(header.incarnations), opened.clean)
    return foresee(journal, ended, tree, trusted=trusted, others=others)


def foresee(journal: str, ended: Ended, tree: BackingTree, *, trusted: bool, others: bool) -> Left:
    """What must be compared. Changes nothing.

    `trusted`: the log that was left tells of everything. `others`: somebody else has changed the
    source since.
    """
    everything = [Doubt(tree.root_id, b"", whole=True)]
    if others:
        return Left([], everything, OTHERS)
    told = read_log(journal, ended) if trusted else None
    if told is None:
        return Left([], [] if ended.clean else everything, UNCLEAN)
    header, slots = told
    if ended.clean and header.boot == activity_log.boot_id():
        return Left(slots, [], UNCLEAN)
    reason = RESTARTED if ended.clean else UNCLEAN
    try:
        return Left(slots, doubts(tree, slots), reason)
    except OSError as error:
        _log.warning("the source cannot be looked at: %s", error.strerror)
        return Left(slots, everything, reason)


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


def announce(journal: str, tag: int) -> None:
    """Before the first record of an incarnation: it has changed nothing yet, and what the mount
    before it left still tells of everything."""
    fd = os.open(journal, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(FileNotFoundError):
            activity_log.announce(fd, tag)
    except OSError as error:
        _log.warning("activity: cannot be written: %s", error.strerror)
    finally:
        os.close(fd)


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

    before = writer.header.incarnations
    header = Header(
        journal=writer.header.journal,
        tag=writer.header.tag,
        previous=before[-1].tag if before else 0,
        boot=activity_log.boot_id(),
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
            return ActivityLog(fd, header, activity, make_durable, ahead_ns())
        finally:
            os.close(fd)
    except OSError as error:
        _log.warning("no activity log: %s: after an unclean end all is compared", error.strerror)
        return None


def read_log(journal: str, ended: Ended) -> tuple[Header, list[Slot]] | None:
    """The log of the mount before, if it is that one's."""
    fd = os.open(journal, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        told = activity_log.read(fd)
        if told is None:
            return None
        tags = (told[0].tag, told[0].previous, activity_log.announced(fd))
    except OSError as error:
        _log.warning("the activity log cannot be read: %s", error.strerror)
        return None
    finally:
        os.close(fd)
    if ended.tag is None or told[0].journal != ended.journal or ended.tag not in tags:
        return None
    return told
