"""Wiring and life cycle of one mount: recovery, writer, engine, control socket, unmount.

Decides the order of things, and nothing about operations or records. The order: look at everything
that can be refused; open the source before the mount covers it; make the journal say that a mount
begins (and, after an unclean stop, what must be compared), durably; only then mount.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import resource
import uuid
from collections.abc import Callable
from typing import Final

import msgspec
import pyfuse3
import trio

from mirrorfs import background, checks, lookback, notify, predecessor
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
from mirrorfs.fuse_mount import put_mount
from mirrorfs.guard import Guard
from mirrorfs.inodes import Node
from mirrorfs.journal.reader import JournalReader, NoJournalError
from mirrorfs.journal.record import Kind, Mount
from mirrorfs.journal.recovery import (
    JournalBusyError,
    JournalRefusedError,
    Opened,
    open_journal,
)
from mirrorfs.journal.segment import CorruptionError, Header
from mirrorfs.journal.writer import JournalWriteError, WriterOptions
from mirrorfs.lookback import Left
from mirrorfs.reserve import Reserve
from mirrorfs.session import Session, host, version
from mirrorfs.volume import RESERVED, VolumeDirectory

_log = logging.getLogger(__name__)

LOG_NAME: Final = "mirrorfs.log"


def mount(volume: Volume, *, foreground: bool) -> None:
    """Mount a volume.

    In the background: returns when the mount answers. In the foreground: returns after it was
    unmounted. Raises MirrorfsError.
    """
    checks.check_permissions()
    checks.check_places(volume)
    if foreground:
        _serve(volume, notify.ready, background.log_to_terminal)
        return

    def work(ready: Callable[[], None]) -> None:
        _serve(
            volume,
            ready,
            lambda: background.log_to(os.path.join(volume.journal_directory, LOG_NAME)),
        )

    background.start(work)
    mountpoint = volume.mountpoint or volume.source
    try:
        os.statvfs(mountpoint)
    except OSError as error:
        raise UnusableError(f"mountpoint: {mountpoint}: {error.strerror}, once mounted") from None


def recover(volume: Volume) -> None:
    """Do what a mount does first, without mounting: the journal says what must be compared, and
    ends cleanly. MirrorfsError.
    """
    checks.check_permissions()
    checks.check_places(msgspec.structs.replace(volume, mountpoint=volume.source))
    with contextlib.ExitStack() as stack:
        known = _known_header(volume.journal_directory)
        tree = BackingTree.open(os.fsencode(volume.source), known.epoch if known else 1)
        stack.callback(tree.close)
        directory = _volume_directory(volume, tree, known)
        stack.callback(directory.close)
        predecessor.lock(directory, volume.journal_directory)
        opened = _open_journal(volume, tree, directory, known)
        background.log_to(os.path.join(volume.journal_directory, LOG_NAME))
        journal = _enduring(volume, tree, directory, opened)
        # Not ended before all is said: a recovery that is cut off must not look like a clean end.
        left = _begin(volume, journal, opened, directory, tree, mountpoint=b"")
        root = Node(pyfuse3.ROOT_INODE, directory=True)
        root.identity = tree.root_id
        log = _begin_log(volume, journal, directory, tree, root, left)
        if log is not None:
            log.close()
        journal.close(host())
        if journal.degraded is not None:
            raise CannotWriteError(f"journal: {volume.journal}: {journal.degraded}")
        _log.info("recovered, not mounted; the last record is %d", journal.writer.head)


def _serve(volume: Volume, ready: Callable[[], None], start_log: Callable[[], None]) -> None:
    """The mount's whole life in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.umask(0o077)
    with contextlib.ExitStack() as stack:
        known = _known_header(volume.journal_directory)
        tree = BackingTree.open(os.fsencode(volume.source), known.epoch if known else 1)
        stack.callback(tree.close)
        directory = _volume_directory(volume, tree, known)
        stack.callback(directory.close)
        predecessor.lock(directory, volume.journal_directory)
        opened = _open_journal(volume, tree, directory, known)
        start_log()
        journal = _enduring(volume, tree, directory, opened)
        guard = None
        if volume.guard == "on":
            guard = Guard(tree, lambda body: journal.append(Kind.RECONCILE, body))
            stack.callback(guard.close)
        mountpoint = os.fsencode(volume.mountpoint or volume.source)
        left = _begin(volume, journal, opened, directory, tree, mountpoint=mountpoint)
        try:
            served = Session(volume, tree, journal, guard)
            log = _begin_log(volume, journal, directory, tree, served.operations.root, left)
            if log is not None:
                stack.callback(log.close)
                log.on_sweep = served.operations.recorder.touch_dirty
                served.operations.recorder.activity = log
                served.activity = log
            os.umask(0)
            put_mount(volume, served.operations, tree.statistics().f_flag)
        except BaseException:
            journal.close(host())
            raise
        trio.run(served.run, ready, strict_exception_groups=True)
        served.operations.finish()
        if guard is not None:
            guard.drain()
        journal.close(host())
        pyfuse3.close(unmount=False)
        _log.info("unmounted; the last record is %d", journal.writer.head)


# Before the mount


def _known_header(directory: str) -> Header | None:
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


def _volume_directory(volume: Volume, tree: BackingTree, known: Header | None) -> VolumeDirectory:
    """`.mirrorfs` of the source, unless the journal says that it must be there already."""
    if known is not None:
        try:
            os.stat(RESERVED, dir_fd=tree.root)
        except FileNotFoundError:
            raise _another_volume(volume, known) from None
    node = volume.node if volume.writers == "many" else ""
    return VolumeDirectory(tree.root, volume.source, node)


def _another_volume(volume: Volume, known: Header) -> RefusedError:
    return RefusedError(
        f"journal: {volume.journal}: of volume {uuid.UUID(bytes=known.volume)}, but {volume.source}"
        f" has no {RESERVED}/volume: use a new journal, or put that file back"
    )


def _open_journal(
    volume: Volume, tree: BackingTree, directory: VolumeDirectory, known: Header | None
) -> Opened:
    identifier = directory.uuid()
    if identifier is None and known is not None:
        raise _another_volume(volume, known)
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


def _enduring(
    volume: Volume, tree: BackingTree, directory: VolumeDirectory, opened: Opened
) -> EnduringJournal:
    return EnduringJournal(
        opened.writer,
        directory,
        opened.writer.header.source.root,
        directory=volume.journal_directory,
        ways=tree.way,
        reserve_bytes=volume.journal_reserve,
        when_full=volume.journal_full,
    )


def _begin(
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
        journal.begin(record, left.marks, left.reason, noted, left.since_ns)
        for captured in lookback.records(tree, left):
            journal.append(*captured)
        directory.note_writers()
    except (JournalWriteError, OSError) as error:
        raise CannotWriteError(f"journal: {volume.journal}: {error}") from None
    try:
        directory.prepare_marks()
    except OSError as error:
        _log.warning("no space can be kept in the source for marks: %s", error.strerror)
    return left


def _begin_log(
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
