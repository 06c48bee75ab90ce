"""Wiring and life cycle of one mount: recovery, writer, engine, control socket, unmount.

Decides the order of things, and nothing about operations or records. The order: look at everything
that can be refused; open the source before the mount covers it; make the journal say that a mount
begins (and, after an unclean stop, what must be compared), durably; only then mount.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
from collections.abc import Callable

import msgspec
import pyfuse3
import trio

from mirrorfs import (
    background,
    checks,
    covered,
    fuse_mount,
    mount_calls,
    mountinfo,
    notify,
    predecessor,
)
from mirrorfs.beginning import (
    begin_activity_log,
    begin_journal,
    enduring,
    known_header,
    open_tree,
    open_volume_journal,
    volume_directory,
)
from mirrorfs.config import Volume
from mirrorfs.errors import CannotWriteError, UnusableError
from mirrorfs.guard import Guard
from mirrorfs.holders import Holder, words
from mirrorfs.inodes import Node
from mirrorfs.journal.record import Kind
from mirrorfs.restarts import Life
from mirrorfs.session import Session, host
from mirrorfs.supervisor import Supervisor

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


def recover(volume: Volume) -> None:
    """Do what a mount does first, without mounting: the journal says what must be compared, and
    ends cleanly. MirrorfsError.
    """
    checks.check_permissions()
    checks.check_places(msgspec.structs.replace(volume, mountpoint=volume.source))
    with contextlib.ExitStack() as stack:
        known = known_header(volume.journal_directory)
        tree = open_tree(volume, known.epoch if known else 1)
        stack.callback(tree.close)
        directory = volume_directory(volume, tree, known)
        stack.callback(directory.close)
        predecessor.lock(directory, volume.journal_directory)
        opened = open_volume_journal(volume, tree, directory, known)
        background.log_to(os.path.join(volume.journal_directory, background.LOG_NAME))
        journal = enduring(volume, tree, directory, opened)
        # Not ended before all is said: a recovery that is cut off must not look like a clean end.
        left = begin_journal(volume, journal, opened, directory, tree, mountpoint=b"")
        root = Node(pyfuse3.ROOT_INODE, directory=True)
        root.identity = tree.root_id
        log = begin_activity_log(volume, journal, directory, tree, root, left)
        journal.close(host())
        if log is not None:
            log.close()
        if journal.degraded is not None:
            raise CannotWriteError(f"journal: {volume.journal}: {journal.degraded}")
        _log.info("recovered, not mounted; the last record is %d", journal.writer.head)


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
        known = known_header(volume.journal_directory)
        dead = covered.dead_at(self._path, volume.subtype)
        self.tree = open_tree(volume, known.epoch if known else 1)
        self.directory = volume_directory(volume, self.tree, known)
        predecessor.lock(self.directory, volume.journal_directory)
        ours = {os.getpid(), command}  # the shell that called us is not exempt
        self.holders = checks.check_holders(volume, self.tree.device, ours, force or bool(dead))

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
        known = known_header(volume.journal_directory)
        opened = open_volume_journal(volume, tree, directory, known)
        ground.begin_log()
        if ground.holders and not life.restarts:
            held = words(ground.holders)
            _log.warning("the source is in use past the mount, without records: %s", held)
        journal = enduring(volume, tree, directory, opened)
        guard = None
        if volume.guard == "on":
            guard = Guard(tree, lambda body: journal.append(Kind.RECONCILE, body))
            stack.callback(guard.close)
        mountpoint = os.fsencode(volume.mountpoint or volume.source)
        left = begin_journal(volume, journal, opened, directory, tree, mountpoint=mountpoint)
        try:
            served = Session(volume, tree, journal, guard, life)
            log = begin_activity_log(volume, journal, directory, tree, served.operations.root, left)
            if log is not None:
                stack.callback(log.close)
                log.on_sweep = served.operations.recorder.touch_dirty
                served.operations.recorder.activity = log
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
