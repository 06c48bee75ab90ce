"""Wiring and life cycle of one mount: recovery, writer, engine, control socket, unmount.

Decides the order of things, and nothing about operations or records. The order: look at everything
that can be refused; open the source before the mount covers it; make the journal say that a mount
begins (and, after an unclean stop, that the tree must be compared), durably; only then mount.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import resource
import time
import uuid
from collections.abc import Callable

import msgspec
import pyfuse3
import trio

from mirrorfs import (
    background,
    checks,
    covered,
    fuse_mount,
    lookback,
    mount_calls,
    mountinfo,
    notify,
    predecessor,
)
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
from mirrorfs.guard import Guard
from mirrorfs.holders import Holder, words
from mirrorfs.journal.reader import JournalReader, NoJournalError
from mirrorfs.journal.record import Kind, Mount, ObjectId
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
from mirrorfs.marks import Mark, Noted, decode
from mirrorfs.operations import Operations
from mirrorfs.reserve import Reserve
from mirrorfs.restarts import Life
from mirrorfs.session import Session, host, version
from mirrorfs.supervisor import Supervisor
from mirrorfs.volume import RESERVED, VolumeDirectory

_log = logging.getLogger(__name__)


def mount(volume: Volume, *, foreground: bool, force: bool = False) -> None:
    """Mount a volume.

    In the background: returns when the mount answers. In the foreground: returns after it was
    unmounted. `force`: over the source even if others hold it. Raises MirrorfsError.
    """
    checks.check_permissions()
    checks.check_places(volume)
    if foreground:
        os.chdir("/")
        with contextlib.closing(_Ground(volume, background.log_to_terminal, force)) as ground:
            ground.hold(notify.ready, leave_streams=False)
        return
    command = os.getpid()

    def work(ready: Callable[[], None]) -> None:
        def begin_log() -> None:
            background.log_to(os.path.join(volume.journal_directory, background.LOG_NAME))

        with contextlib.closing(_Ground(volume, begin_log, force, command)) as ground:
            ground.hold(ready, leave_streams=True)

    background.start(work)
    mountpoint = volume.mountpoint or volume.source
    try:
        os.statvfs(mountpoint)
    except OSError as error:
        raise UnusableError(f"mountpoint: {mountpoint}: {error.strerror}, once mounted") from None


class _Ground:
    """What a mount stands on, whichever engine serves it: the source's tree and the lock on it.

    Attributes:
        tree: opened before the mount covers it.
        directory: `.mirrorfs` of the source, locked.
        holders: processes that use the source past a mount over it.
        begin_log: lets the log go where it shall.
    """

    def __init__(
        self, volume: Volume, begin_log: Callable[[], None], force: bool, command: int = 0
    ) -> None:
        """`command`: the process that waits for the mount."""
        self.volume = volume
        self.begin_log = begin_log
        self._path = os.path.realpath(volume.mountpoint or volume.source)
        self._device = -1
        self.holders: list[Holder] = []
        known = _known_header(volume.journal_directory)
        dead = len(covered.dead_at(self._path, volume.subtype))
        root = checks.open_source(volume, dead)
        try:
            epoch = known.epoch if known else 1
            self.tree = BackingTree.open(os.fsencode(volume.source), epoch, root)
        finally:
            os.close(root)
        self.directory = _volume_directory(volume, self.tree, known)
        predecessor.lock(self.directory, volume.journal_directory)
        ours = {os.getpid(), command}  # the shell that called us is not exempt
        self.holders = checks.check_holders(volume, self.tree.device, ours, force or dead > 0)

    def close(self) -> None:
        """Let the source go."""
        self.tree.close()

    def hold(self, ready: Callable[[], None], *, leave_streams: bool) -> None:
        """Until it is unmounted: the engine, and with `restart=on` one after the other."""
        if self.volume.restart == "off":
            self.serve(self.connect(), Life(), ready)
            return

        def is_up() -> None:
            self.note_device()
            ready()

        Supervisor(self, leave_streams=leave_streams).run(is_up)

    # See supervisor.Mount

    def serve(self, connection: int, life: Life, ready: Callable[[], None]) -> None:
        """The engine."""
        _serve(self, connection, life, ready)

    def connect(self) -> int:
        try:
            return fuse_mount.open_device()
        except OSError as error:
            raise UnusableError(f"/dev/fuse: {error.strerror}") from None

    def renew(self) -> int | None:
        switches = self._switches()
        connection = fuse_mount.open_device()
        try:
            if not fuse_mount.take_over(
                self.volume, self._path, self._device, connection, switches
            ):
                os.close(connection)
                return None
        except BaseException:
            os.close(connection)
            raise
        self.note_device()
        return connection

    def remove(self) -> None:
        fuse_mount.detach(self._path, self._device)

    def release(self) -> None:
        self.directory.close()

    def kept(self) -> list[int]:
        return [self.tree.root, self.tree.root_directory, self.directory.descriptor]

    def note_device(self) -> int:
        """st_dev of the mount that is there now."""
        found = mountinfo.stacked_at(self._path)
        self._device = found[0].device if found else -1
        return self._device

    def _switches(self) -> frozenset[str]:
        """What the kernel does for the mount that is there: a remount may have changed it."""
        found = [each for each in mountinfo.mounts() if each.device == self._device]
        if not found:
            return frozenset()
        switches = found[0].words & mount_calls.FLAGS.keys()
        untold = {"nodiratime"} & set(self.volume.kernel_options)
        kept = tuple(sorted(switches | untold))
        self.volume = msgspec.structs.replace(self.volume, kernel_options=kept)
        return switches


def _serve(ground: _Ground, connection: int, life: Life, ready: Callable[[], None]) -> None:
    """The engine's whole life in this process."""
    volume, directory, tree = ground.volume, ground.directory, ground.tree
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.umask(0o077)
    with contextlib.ExitStack() as stack:
        stack.callback(directory.close)
        known = _known_header(volume.journal_directory)
        identity, opened = _open_journal(volume, tree, directory, known)
        ground.begin_log()
        if ground.holders and not life.restarts:
            held = words(ground.holders)
            _log.warning("the source is in use past the mount, without records: %s", held)
        journal = EnduringJournal(
            opened.writer,
            directory,
            identity.root,
            directory=volume.journal_directory,
            ways=tree.way,
            reserve_bytes=volume.journal_reserve,
            when_full=volume.journal_full,
        )
        guard = None
        if volume.guard == "on":
            guard = Guard(tree, lambda body: journal.append(Kind.RECONCILE, body))
            stack.callback(guard.close)
        left = _begin(volume, journal, opened, directory, tree)
        try:
            served = Session(volume, tree, journal, guard, life)
            log = _begin_log(volume, journal, directory, tree, served.operations, left)
            if log is not None:
                stack.callback(log.close)
                served.activity = log
            os.umask(0)
            if not life.restarts:  # else it is there already
                switches = fuse_mount.words(volume, tree.statistics().f_flag)
                fuse_mount.put_mount(volume, connection, switches)
            served.holders, served.device = ground.holders, ground.note_device()
            fuse_mount.serve_on(connection, served.operations)
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


def _open_journal(
    volume: Volume, tree: BackingTree, directory: VolumeDirectory, known: Header | None
) -> tuple[SourceIdentity, Opened]:
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
    try:
        while True:
            try:
                opened = open_journal(
                    volume.journal_directory, identifier, identity, volume.node, options
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
    return identity, opened


def _begin(
    volume: Volume,
    journal: EnduringJournal,
    opened: Opened,
    directory: VolumeDirectory,
    tree: BackingTree,
) -> Left:
    """The first records, durable before anything can change through the mount."""
    root = opened.writer.header.source.root
    noted = _noted(directory, root)
    others = opened.writer.head > 0 and directory.changed_by_others()
    clean = opened.clean and noted is None and not others
    mountpoint = os.fsencode(volume.mountpoint or volume.source)
    if opened.torn is not None:
        _log.warning("a torn tail was cut off the journal; a copy is %s", opened.torn)
    record = Mount(host(), os.getpid(), version(), mountpoint, clean)
    left = lookback.look_back(
        volume.journal_directory,
        opened,
        tree,
        trusted=directory.trusts_activity(),
        others=others,
    )
    try:
        journal.begin(record, left.marks, left.reason, noted)
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
    operations: Operations,
    left: Left,
) -> ActivityLog | None:
    """From here on it is kept which directories are being changed."""
    log = lookback.begin_log(
        volume.journal_directory,
        journal.writer,
        tree,
        operations.root,
        left,
        directory.ahead_ns,
        lambda: journal.degraded is not None,
    )
    try:
        if log is None:
            directory.distrust_activity()
            return None
        directory.trust_activity()
    except OSError as error:
        raise CannotWriteError(f"{volume.source}/{RESERVED}: {error.strerror}") from None
    log.on_sweep = operations.recorder.touch_dirty
    operations.recorder.activity = log
    return log


def _noted(directory: VolumeDirectory, root: ObjectId) -> Noted | None:
    """What the mirrorfs before this one marked as changed without a record."""
    data = directory.read_marks()
    if data is None:
        return None
    noted = decode(data)
    if noted is not None:
        return noted
    _log.warning("the marks cannot be read: everything is compared")
    return Noted(time.time_ns(), "its marks could not be read", (Mark(root, True, b""),))
