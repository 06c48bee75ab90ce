"""Wiring and life cycle of one mount: recovery, writer, engine, control socket, unmount.

Decides the order of things, and nothing about operations or records. The order: look at everything
that can be refused; open the source before the mount covers it; make the journal say that a mount
begins (and, after an unclean stop, that the tree must be compared), durably; only then mount.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import logging
import os
import resource
import signal
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Final

import msgspec
import pyfuse3
import trio

from mirrorfs import (
    background,
    checks,
    control,
    lookback,
    mountinfo,
    notify,
    predecessor,
    request_loop,
)
from mirrorfs.activity_log import ActivityLog
from mirrorfs.backing_tree import BackingTree
from mirrorfs.config import Volume, node_name
from mirrorfs.degraded import EnduringJournal
from mirrorfs.errors import (
    CannotWriteError,
    CorruptJournalError,
    RefusedError,
    UnusableError,
)
from mirrorfs.guard import Guard
from mirrorfs.journal.control_client import Status
from mirrorfs.journal.reader import JournalReader, NoJournalError
from mirrorfs.journal.record import Body, Kind, Mount, ObjectId, SequenceNumber
from mirrorfs.journal.recovery import (
    JournalBusyError,
    JournalRefusedError,
    Opened,
    open_journal,
)
from mirrorfs.journal.retention import Limits
from mirrorfs.journal.segment import CorruptionError, Header, SourceIdentity
from mirrorfs.journal.writer import JournalWriteError, WriterOptions
from mirrorfs.lookback import Left
from mirrorfs.marks import Mark, Noted, decode
from mirrorfs.operations import EngineOptions, Operations
from mirrorfs.reserve import Reserve
from mirrorfs.upkeep import Upkeep, UpkeepOptions
from mirrorfs.virtual import JournalFacts
from mirrorfs.volume import RESERVED, VolumeDirectory

_log = logging.getLogger(__name__)

LOG_NAME: Final = "mirrorfs.log"
_MNT_DETACH = 2
_TASKS_MAX = 99
_TASKS_WAITING_MAX = 4096

_RESTRICTIONS: Final = (
    (os.ST_NOSUID, "nosuid", "suid"),
    (os.ST_NODEV, "nodev", "dev"),
    (os.ST_NOEXEC, "noexec", "exec"),
    (os.ST_RDONLY, "ro", "rw"),
)

_libc = ctypes.CDLL(None, use_errno=True)


def version() -> str:
    """This distribution's version."""
    return metadata.version("mirrorfs")


def host() -> str:
    """This node's id in journals."""
    return node_name()


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
        identity, opened = _open_journal(volume, tree, directory, known)
        start_log()
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
            served = _Served(volume, tree, journal, guard)
            log = _begin_log(volume, journal, directory, tree, served.operations, left)
            if log is not None:
                stack.callback(log.close)
                served.activity = log
            os.umask(0)
            _mount_fuse(volume, served.operations, tree.statistics().f_flag)
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
) -> tuple[SourceIdentity, Opened]:
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


def _mount_fuse(volume: Volume, operations: Operations, source_flags: int) -> None:
    """Put the mount there; what libfuse says on standard error becomes the one line.

    It allows no more than the mount the source is on (`source_flags`, of statvfs).
    """
    name = (volume.fsname or volume.source).replace("\\", "\\\\").replace(",", "\\,")
    options = {"default_permissions", "allow_other", f"fsname={name}", f"subtype={volume.subtype}"}
    options.update(volume.kernel_options, restrictions(source_flags))
    options.discard("nodiratime")  # libfuse does not know it; it is for the source anyway
    options.update(
        opposite for _, restriction, opposite in _RESTRICTIONS if restriction not in options
    )
    mountpoint = volume.mountpoint or volume.source
    with _captured_stderr() as said:
        try:
            pyfuse3.init(operations, mountpoint, options)
        except RuntimeError as error:
            reason = " ".join(said().split()) or str(error)
            raise UnusableError(f"mountpoint: {mountpoint}: cannot mount: {reason}") from None


def restrictions(source_flags: int) -> list[str]:
    """What the mount must not allow, since the one below it does not: of `f_flag` of statvfs."""
    return [restriction for flag, restriction, _ in _RESTRICTIONS if source_flags & flag]


@contextlib.contextmanager
def _captured_stderr() -> Iterator[Callable[[], str]]:
    """Descriptor 2 goes to a file for a while; the value reads what stands in it."""
    with tempfile.TemporaryFile() as stream:
        saved = os.dup(2)
        os.dup2(stream.fileno(), 2)

        def said() -> str:
            return os.pread(stream.fileno(), 4096, 0).decode(errors="replace")

        try:
            yield said
        finally:
            os.dup2(saved, 2)
            os.close(saved)


# While it is mounted


class _Served:
    """The parts that live while the mount does."""

    def __init__(
        self, volume: Volume, tree: BackingTree, journal: EnduringJournal, guard: Guard | None
    ) -> None:
        self.activity: ActivityLog | None = None
        self._volume = volume
        self._started_ns = time.time_ns()
        self._begun = journal.writer.head
        self._tree = tree
        self._journal = journal
        self._mountpoint = volume.mountpoint or volume.source
        self._restrictions = restrictions(tree.statistics().f_flag)
        options = EngineOptions(
            attr_timeout=volume.attr_timeout,
            entry_timeout=volume.attr_timeout,
            negative_timeout=volume.attr_timeout if volume.writers == "one" else 0.0,
            shared=volume.writers == "many",
            kernel_options=frozenset((*volume.kernel_options, *self._restrictions)),
            io=volume.io,
            journal_open_files=volume.journal_open_files,
            job_variables=volume.job_variables,
            descriptors_max=resource.getrlimit(resource.RLIMIT_NOFILE)[0] * 4 // 5,
            inode_cache=volume.inode_cache,
            status=self._daemon,
            facts=self._facts,
        )
        self.operations = Operations(tree, journal, options)
        limits = Limits(
            keep_seconds=volume.journal_keep,
            detached_keep_seconds=volume.journal_detached_keep,
            detached_bytes=volume.journal_detached_bytes,
        )
        upkeep = UpkeepOptions(volume.journal_compression, limits)
        self._upkeep = Upkeep(volume.journal_directory, journal.writer, upkeep)
        self._guard = guard
        if guard is not None:
            guard.keeper = self.operations

    async def run(self, ready: Callable[[], None]) -> None:
        """Serve until it is unmounted."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(control.serve, self._volume.journal_directory, self)
            nursery.start_soon(self._journal.keep_trying)
            nursery.start_soon(self._upkeep.serve)
            if self.activity is not None:
                nursery.start_soon(self.activity.run)
            nursery.start_soon(self.operations.poll_open_files)
            nursery.start_soon(self._end_on_signal)
            if self._guard is not None:
                nursery.start_soon(self._guard.run)
            _log.info("%s mounted over %s", self._volume.source, self._mountpoint)
            ready()
            request_loop.install(patient=self._volume.io == "inline")
            tasks = _TASKS_WAITING_MAX if self._volume.journal_full == "block" else _TASKS_MAX
            await pyfuse3.main(max_tasks=tasks)
            nursery.cancel_scope.cancel()

    async def _end_on_signal(self) -> None:
        """SIGTERM, SIGINT: unmount, and go on for those who still use it. Again: end at once."""
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                await trio.to_thread.run_sync(self._unmount, abandon_on_cancel=True)
                break
            async for _ in signals:
                _log.warning("told twice to end: those who still use the mount get errors")
                pyfuse3.terminate()
                self._journal.abandon()
                return

    def _unmount(self) -> None:
        """In a thread: the kernel may have requests for us before it lets go."""
        path = os.fsencode(self._mountpoint)
        entry = mountinfo.mounted_at(self._mountpoint)
        if entry is None or entry.type != f"fuse.{self._volume.subtype}":
            return
        if _libc.umount2(path, 0) == 0:
            return
        if ctypes.get_errno() == errno.EBUSY:
            _log.warning("%s is in use: detached, ends with its last user", self._mountpoint)
            _libc.umount2(path, _MNT_DETACH)
        else:
            _log.error("cannot unmount: %s", os.strerror(ctypes.get_errno()))

    def _daemon(self) -> bytes:
        """Value of the virtual attribute by which `mirrorfs umount` finds this process."""
        journal = self._volume.journal_directory.encode(errors="backslashreplace").decode()
        told = {
            "pid": os.getpid(),
            "host": host(),
            "version": version(),
            "journal": journal,
            "options": msgspec.to_builtins(self._volume),
            "restrictions": self._restrictions,
        }
        return json.dumps(told).encode()

    def _facts(self) -> JournalFacts:
        return JournalFacts(
            directory=self._volume.journal_directory,
            header=self._journal.writer.header,
            begun=self._begun,
            reconciled=self._journal.reconciled,
            degraded=self._journal.degraded is not None,
        )

    # What the control socket asks for

    def header(self) -> Header:
        """See control.Volume, here and below."""
        return self._journal.writer.header

    def open_root(self) -> int:
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._tree.root)

    def directory_id(self, path: bytes) -> ObjectId:
        """Walks by single names, never through a symlink or upwards."""
        names = [name for name in path.split(b"/") if name]
        if b".." in names or b"." in names or names[:1] == [RESERVED.encode()]:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        at = os.dup(self._tree.root)
        try:
            for name in names:
                below = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY, dir_fd=at)
                os.close(at)
                at = below
            return self._tree.object_id(at)
        finally:
            os.close(at)

    def append(self, kind: Kind, body: Body) -> SequenceNumber | None:
        return self._journal.append(kind, body)

    def status(self) -> Status:
        return Status(
            pid=os.getpid(),
            host=host(),
            version=version(),
            mountpoint=os.fsencode(self._mountpoint),
            source=self._tree.path,
            head=self._journal.writer.head,
            durable_head=self._journal.writer.durable_head,
            degraded=self._journal.degraded,
            degraded_since_ns=self._journal.since_ns,
            marks=self._journal.marks,
            everything=self._journal.everything,
            journal_full=self._volume.journal_full,
            room_bytes=self._journal.room.bytes,
            room_seconds=self._journal.room.seconds,
            nodes=self.operations.nodes,
            open_files=self.operations.open_files,
            journal=self._volume.journal_directory,
            volume=str(uuid.UUID(bytes=self._journal.writer.header.volume)),
            node=self._volume.node,
            started_ns=self._started_ns,
            writers=self._volume.writers,
            kernel_options=tuple(sorted(self.operations.kernel_options)),
            guard=self._volume.guard,
            foreign=self._guard.directories if self._guard else 0,
            lost=self._guard.overflows if self._guard else 0,
        )

    def remounted(self, kernel_options: tuple[str, ...]) -> None:
        self.operations.kernel_options = frozenset(kernel_options)
