"""The parts of a mount while it is there: serving, upkeep, control socket, the end by a signal.

Decides which of them run; what each does is theirs.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import resource
import signal
import time
import uuid
from collections.abc import Callable
from importlib import metadata

import msgspec
import pyfuse3
import trio

from mirrorfs import control, mount_calls, mountinfo, request_loop
from mirrorfs.activity_log import ActivityLog
from mirrorfs.backing_tree import BackingTree
from mirrorfs.config import Volume, node_name
from mirrorfs.degraded import EnduringJournal
from mirrorfs.fuse_mount import remove_beneath, restrictions
from mirrorfs.guard import Guard
from mirrorfs.holders import Holder
from mirrorfs.journal.control_client import Status
from mirrorfs.journal.record import Body, Kind, ObjectId, SequenceNumber
from mirrorfs.journal.retention import Limits
from mirrorfs.journal.segment import Header
from mirrorfs.operations import EngineOptions, Operations
from mirrorfs.restarts import Life
from mirrorfs.site_reports import read_reports
from mirrorfs.through import ThroughOptions
from mirrorfs.upkeep import Upkeep, UpkeepOptions
from mirrorfs.virtual import JournalFacts
from mirrorfs.volume import RESERVED

_log = logging.getLogger(__name__)

_TASKS_MAX = 99
_RELEASED_SECONDS = 2.0
_TASKS_WAITING_MAX = 4096


def version() -> str:
    """This distribution's version."""
    return metadata.version("mirrorfs")


def host() -> str:
    """This node's id in journals."""
    return node_name()


class Session:
    """The parts that live while the mount does.

    Attributes:
        activity: the activity log, if there is one.
        holders: processes that held the source when it was mounted over.
        device: st_dev of the mount.
    """

    def __init__(
        self,
        volume: Volume,
        tree: BackingTree,
        journal: EnduringJournal,
        guard: Guard | None,
        life: Life,
    ) -> None:
        self.activity: ActivityLog | None = None
        self.holders: list[Holder] = []
        self.device = 0
        self._volume = volume
        self._life = life
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
            through=ThroughOptions(
                sites=volume.write_through,
                timeout=volume.write_through_timeout,
                fallback=volume.fallback,
                fsync=volume.write_through_fsync == "on",
                possible=volume.writers == "one",
            ),
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
            await nursery.start(control.serve, self._volume.journal_directory, self)
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
            waits = self._volume.journal_full == "block" or self._volume.writers == "one"
            tasks = _TASKS_WAITING_MAX if waits else _TASKS_MAX
            await pyfuse3.main(max_tasks=tasks)
            nursery.cancel_scope.cancel()

    async def _end_on_signal(self) -> None:
        """SIGTERM, SIGINT: unmount, and go on for those who still use it. Again: end at once."""
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                patience = _RELEASED_SECONDS if self.operations.through.abandon() else 0.0
                await trio.to_thread.run_sync(self._unmount, patience, abandon_on_cancel=True)
                break
            async for _ in signals:
                _log.warning("told twice to end: those who still use the mount get errors")
                pyfuse3.terminate()
                self._journal.abandon()
                return

    def _unmount(self, patience: float) -> None:
        """In a thread: the kernel may have requests for us before it lets go. For so many seconds
        somebody may still use it who was answered just now."""
        entry = mountinfo.mounted_at(self._mountpoint)
        if entry is None or entry.type != f"fuse.{self._volume.subtype}":
            return
        try:
            try:
                mount_calls.unmount_soon(entry.path, patience)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                _log.warning("%s is in use: detached, ends with its last user", self._mountpoint)
                mount_calls.unmount(entry.path, mount_calls.MNT_DETACH)
            remove_beneath(entry.path, self._volume.subtype)
        except OSError as error:
            _log.error("cannot unmount: %s", error.strerror)

    def _daemon(self) -> bytes:
        """Value of the virtual attribute by which `mirrorfs umount` finds this process."""
        journal = self._volume.journal_directory.encode(errors="backslashreplace").decode()
        told = {
            "pid": os.getpid(),
            "supervisor": self._supervisor(),
            "host": host(),
            "version": version(),
            "journal": journal,
            "options": msgspec.to_builtins(self._volume),
            "restrictions": self._restrictions,
        }
        return json.dumps(told).encode()

    def _supervisor(self) -> int:
        """Process id of the one that would start the engine again; 0 if there is none."""
        return self._life.supervisor if os.getppid() == self._life.supervisor else 0

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
        """A new descriptor of the source's root."""
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
        """Append a control record."""
        return self._journal.append(kind, body)

    def status(self) -> Status:
        """How things are."""
        through = self.operations.through
        reports = read_reports(self._volume.journal_directory) if through.used else []
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
            device=self.device,
            restart=self._volume.restart,
            supervisor=self._supervisor(),
            restarts=self._life.restarts,
            restarted_ns=self._life.last_ns,
            restart_reason=self._life.reason,
            holders=tuple(str(holder) for holder in self.holders if holder.lives),
            write_through=self._volume.write_through,
            write_through_directories=through.directories,
            through=through.status(site for site, _ in reports),
        )

    def release(self) -> None:
        """Who waits for a site has an answer without it."""
        self.operations.through.release()

    async def follow(self, site: str, connection: trio.socket.SocketType) -> None:
        """Jobs may wait for that site."""
        await self.operations.through.follow(site, connection)

    def remounted(self, kernel_options: tuple[str, ...]) -> None:
        """What the kernel does for the mount from now on."""
        self.operations.kernel_options = frozenset(kernel_options)
