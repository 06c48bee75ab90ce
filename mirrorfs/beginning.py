"""What comes before a mount: its journal, the first records in it, the activity log.

Decides nothing about what is recorded; the order of things is `mount`'s.
"""

from __future__ import annotations

import errno
import logging
import os
import uuid

from mirrorfs import checks, covered, lookback
from mirrorfs.activity_log import ActivityLog
from mirrorfs.backing_tree import BackingTree
from mirrorfs.config import Volume
from mirrorfs.degraded import EnduringJournal
from mirrorfs.errors import (
    CannotWriteError,
    CorruptJournalError,
    RefusedError,
    UnusableError,
)
from mirrorfs.inodes import Node
from mirrorfs.journal.reader import JournalReader, NoJournalError
from mirrorfs.journal.record import Mount, ObjectId
from mirrorfs.journal.recovery import (
    JournalBusyError,
    JournalRefusedError,
    Opened,
    described,
    open_journal,
)
from mirrorfs.journal.segment import CorruptionError, Header, SourceIdentity
from mirrorfs.journal.writer import JournalWriteError, WriterOptions
from mirrorfs.lookback import Left
from mirrorfs.reserve import Reserve
from mirrorfs.session import host, version
from mirrorfs.volume import RESERVED, VolumeDirectory

_log = logging.getLogger(__name__)


def known_header(directory: str) -> Header | None:
    """Header of the newest segment, if there is a journal already."""
    try:
        with JournalReader(directory) as reader:
            return reader.header
    except NoJournalError:
        return None
    except CorruptionError as error:
        raise CorruptJournalError(f"journal: {error}") from None
    except OSError as error:
        raise UnusableError(f"journal: {directory}: {error.strerror}") from None


def open_tree(volume: Volume, epoch: int) -> BackingTree:
    """The source, also beneath dead mounts over it. UnusableError."""
    dead = covered.dead_at(volume.mountpoint or volume.source, volume.subtype)
    root = checks.open_source(volume, len(dead))
    try:
        return BackingTree.open(os.fsencode(volume.source), epoch, root)
    finally:
        os.close(root)


def volume_directory(volume: Volume, tree: BackingTree, known: Header | None) -> VolumeDirectory:
    """`.mirrorfs` of the source, unless the journal says that it must be there already."""
    if known is not None:
        try:
            os.stat(RESERVED, dir_fd=tree.root)
        except FileNotFoundError:
            raise _another_volume(volume, known, tree) from None
    node = volume.node if volume.writers == "many" else ""
    return VolumeDirectory(tree.root, volume.source, node)


def _another_volume(volume: Volume, known: Header, tree: BackingTree) -> RefusedError:
    """Mostly a disk that is not mounted."""
    found = tree.known_identity()
    what = f"expected {described(known.source)}, found {described(found)}"
    if _identifying(found) == _identifying(known.source):
        what = "use a new journal, or put that file back"
    return RefusedError(
        f"journal: {volume.journal}: of volume {uuid.UUID(bytes=known.volume)}, but {volume.source}"
        f" has no {RESERVED}/volume: is its file system mounted? {what}"
    )


def _identifying(source: SourceIdentity) -> tuple[bytes, int, ObjectId]:
    return source.fs_uuid, source.fsid, source.root


def open_volume_journal(
    volume: Volume, tree: BackingTree, directory: VolumeDirectory, known: Header | None
) -> Opened:
    """Open the journal to append to it, made if there is none. MirrorfsError."""
    identifier = directory.uuid()
    if identifier is None and known is not None:
        raise _another_volume(volume, known, tree)
    identity = tree.identity()
    options = WriterOptions(
        sync=volume.journal_sync,
        segment_bytes_max=volume.journal_segment_bytes,
        segment_seconds_max=volume.journal_segment_age,
    )
    identifier = identifier or directory.make_uuid()
    reserve = Reserve(volume.journal_directory, volume.journal_reserve)
    told = lookback.told(volume.journal_directory)
    try:
        while True:
            try:
                opened = open_journal(
                    volume.journal_directory, identifier, identity, volume.node, options, told
                )
                break
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not reserve.give():
                    raise
    except (JournalBusyError, JournalRefusedError) as error:
        raise RefusedError(f"journal: {error}") from None
    except CorruptionError as error:
        raise CorruptJournalError(f"journal: {error}") from None
    except OSError as error:
        raise CannotWriteError(f"journal: {volume.journal}: {error.strerror}") from None
    return opened


def enduring(
    volume: Volume, tree: BackingTree, directory: VolumeDirectory, opened: Opened
) -> EnduringJournal:
    """The journal as the engine sees it."""
    return EnduringJournal(
        opened.writer,
        directory,
        opened.writer.header.source.root,
        directory=volume.journal_directory,
        ways=tree.way,
        reserve_bytes=volume.journal_reserve,
        when_full=volume.journal_full,
    )


def begin_journal(
    volume: Volume,
    journal: EnduringJournal,
    opened: Opened,
    directory: VolumeDirectory,
    tree: BackingTree,
    *,
    mountpoint: bytes,
) -> Left:
    """The first records, durable before anything can change through the mount."""
    root = opened.writer.header.source.root
    noted = lookback.noted(directory, root)
    others = opened.writer.head > 0 and directory.changed_by_others()
    clean = opened.clean and noted is None and not others
    if opened.torn is not None:
        _log.warning("a torn tail was cut off the journal; a copy is %s", opened.torn)
    record = Mount(host(), os.getpid(), version(), mountpoint, clean)
    try:
        witness = directory.witness()
    except OSError as error:
        raise CannotWriteError(f"{volume.source}/{RESERVED}: {error.strerror}") from None
    left = lookback.look_back(
        volume.journal_directory,
        opened,
        tree,
        trusted=directory.trusts_activity(),
        others=others,
        witness=witness,
    )
    try:
        also = lookback.records(tree, left)
        journal.begin(record, left.marks, left.reason, noted, left.since_ns, also)
        directory.note_writers()
    except (JournalWriteError, OSError) as error:
        raise CannotWriteError(f"journal: {volume.journal}: {error}") from None
    try:
        directory.prepare_marks()
    except OSError as error:
        _log.warning("no space can be kept in the source for marks: %s", error.strerror)
    return left


def begin_activity_log(
    volume: Volume,
    journal: EnduringJournal,
    directory: VolumeDirectory,
    tree: BackingTree,
    root: Node,
    left: Left,
) -> ActivityLog | None:
    """From here on it is kept which directories are being changed."""
    log = lookback.begin_log(
        volume.journal_directory,
        journal.writer,
        tree,
        root,
        left,
        directory.ahead_ns,
        lambda: journal.degraded is not None,
        directory.bear_witness,
    )
    try:
        if log is None:
            directory.distrust_activity()
            return None
        directory.trust_activity()
    except OSError as error:
        raise CannotWriteError(f"{volume.source}/{RESERVED}: {error.strerror}") from None
    return log
