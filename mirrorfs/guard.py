"""The guard: changes made to the source behind the mount become `reconcile` records.

fanotify(7) tells of every change to the source's file system with the process that made it. What
this process did was done for a job, and has its record; the rest is foreign. Of a foreign change
the directory is recorded, and the kernel is told to look again. It never changes the source. Lives
on the thread that serves requests, so that its records stand in order with all others.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

import trio

from mirrorfs import foreign, system_calls
from mirrorfs.backing_tree import BackingTree, magic_path
from mirrorfs.capture import RESERVED
from mirrorfs.errors import MirrorfsError, NotPermittedError, UnusableError
from mirrorfs.journal.record import ObjectId, Reconcile

_log = logging.getLogger(__name__)

INTERVAL_SECONDS: Final = 1.0
"""A directory that is changed all the time gets a record so often."""

_READ_BYTES: Final = 256 << 10
_READS_IN_A_ROW: Final = 16
_DIRECTORIES_MAX: Final = 100_000
_REASON: Final = "changed behind the mount"
_OVERFLOW: Final = "changed behind the mount: more at once than could be told"


class Stale(Protocol):
    """Whoever keeps attributes and names of the source."""

    def stale(
        self, directory: os.stat_result, name: bytes, found: os.stat_result | None, *, named: bool
    ) -> None:
        """What is known of that place is old; `found` stands there now. `named`: the name, too."""


class _Place(NamedTuple):
    """A directory, its handle, and where it is."""

    descriptor: int
    identity: ObjectId
    path: bytes | None


class Guard:
    """Watches one source; close it.

    Attributes:
        directories: how many records it made of directories.
        overflows: how often it lost count, and had the whole tree compared.
    """

    def __init__(
        self, tree: BackingTree, append: Callable[[Reconcile], object], keeper: Stale | None = None
    ) -> None:
        """Begin to watch. UnusableError, NotPermittedError."""
        self._tree = tree
        self._append = append
        self.keeper = keeper
        self.directories = 0
        self.overflows = 0
        self._pid = os.getpid()
        self._changed: dict[tuple[int, bytes], set[bytes]] = {}
        self._outside: set[tuple[int, bytes]] = set()
        self._lost = False
        self._fd = watch(tree.root_directory, os.fsdecode(tree.path))

    def close(self) -> None:
        """Watch no longer."""
        os.close(self._fd)

    def drain(self) -> None:
        """Record what happened until now."""
        while self._read():
            pass
        self.flush()

    async def run(self) -> None:
        """Watch until cancelled."""
        due = trio.current_time()
        while True:
            waiting = self._lost or bool(self._changed)
            with trio.move_on_at(due) if waiting else trio.CancelScope():
                await trio.lowlevel.wait_readable(self._fd)
            try:
                for _ in range(_READS_IN_A_ROW):
                    if not self._read():
                        break
                if trio.current_time() >= due and (self._lost or self._changed):
                    self.flush()
                    due = trio.current_time() + INTERVAL_SECONDS
            except Exception as error:  # noqa: BLE001 - nothing here may end the mount
                _log.error("guard: %s", error, exc_info=True)
                self._lost = True
                due = trio.current_time() + INTERVAL_SECONDS
                await trio.sleep(INTERVAL_SECONDS)

    def flush(self) -> None:
        """Make the records of what was read."""
        changed, self._changed = self._changed, {}
        self._outside.clear()
        if self._lost:
            self._lost = False
            self.overflows += 1
            _log.warning("guard: more changes behind the mount than could be told: all is compared")
            self._append(Reconcile(self._tree.root_id, True, b"", _OVERFLOW))
            return
        for handle, arrived in changed.items():
            place = self._inside(handle)
            if place is None:  # it is gone: what it was in has changed, too
                continue
            try:
                self.directories += 1
                self._append(Reconcile(place.identity, False, place.path, _REASON))
                for name in arrived:
                    self._append_below(place, name)
            finally:
                os.close(place.descriptor)

    def _append_below(self, place: _Place, name: bytes) -> None:
        """A directory came with all that is in it, of which there was no word."""
        try:
            if not stat.S_ISDIR(self._tree.attributes_at(place.descriptor, name).st_mode):
                return
            identity = self._tree.object_id(place.descriptor, name)
        except FileNotFoundError:  # it went on: that is told, too
            return
        path = None if place.path is None else b"/".join(filter(None, (place.path, name)))
        self._append(Reconcile(identity, True, path, _REASON))

    def _read(self) -> bool:
        """Take in one buffer of events; False if there are none."""
        try:
            data = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return False
        touched: dict[tuple[int, bytes], dict[bytes, int]] = {}
        for event in foreign.events(data):
            if event.mask & foreign.OVERFLOW or (event.handle is None and event.pid != self._pid):
                self._lost = True
            elif event.pid != self._pid and event.handle not in self._outside:
                assert event.handle is not None
                names = touched.setdefault(event.handle, {})
                names[event.name] = names.get(event.name, 0) | event.mask
        for handle, names in touched.items():
            self._take(handle, names)
        if len(self._changed) > _DIRECTORIES_MAX:
            self._changed.clear()
            self._lost = True
        return True

    def _take(self, handle: tuple[int, bytes], names: dict[bytes, int]) -> None:
        place = self._inside(handle)
        if place is None:
            self._outside.add(handle)
            return
        try:
            if place.identity == self._tree.root_id:
                names.pop(RESERVED, None)
            if not names:
                return
            arrived = self._changed.setdefault(handle, set())
            for name, mask in names.items():
                if mask & foreign.MOVED_TO and mask & foreign.ON_DIRECTORY:
                    arrived.add(name)
                if self.keeper is not None:
                    self._tell(self.keeper, place, name, named=bool(mask & foreign.NAMES))
        finally:
            os.close(place.descriptor)

    def _tell(self, keeper: Stale, place: _Place, name: bytes, *, named: bool) -> None:
        found = None
        try:
            found = self._tree.attributes_at(place.descriptor, name)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                raise
        keeper.stale(self._tree.attributes(place.descriptor), name, found, named=named)

    def _inside(self, handle: tuple[int, bytes]) -> _Place | None:
        """That directory, opened, if it is in the source and still there; not what is reserved."""
        identity = self._tree.id_of(*handle)
        try:
            descriptor = self._tree.reopen(identity)
        except OSError as error:
            if error.errno == errno.ESTALE:
                return None
            raise
        try:
            inside, path = self._path(descriptor)
            if inside:
                return _Place(descriptor, identity, path)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None

    def _path(self, descriptor: int) -> tuple[bool, bytes | None]:
        """Whether it is in the source, and its path relative to the root, for people.

        As the kernel names it: to walk up by ".." would lead into a mount over the root, and wait
        for ourselves. Where that cannot be told, it is: at the worst something equal is compared.
        """
        try:
            root = os.readlink(magic_path(self._tree.root_directory)).rstrip(b"/")
            path = os.readlink(magic_path(descriptor))
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            return True, None
        if path == root:
            return True, b""
        if not path.startswith(root + b"/"):
            return False, None
        path = path[len(root) + 1 :]
        return path.partition(b"/")[0] != RESERVED, path


def watch(directory: int, source: str) -> int:
    """A descriptor that tells what happens on the file system of an open directory.

    NotPermittedError, UnusableError.
    """
    try:
        descriptor = system_calls.fanotify_group()
    except OSError as error:
        raise _refusal(error, source) from None
    try:
        system_calls.fanotify_watch(descriptor, directory, foreign.WATCHED)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.EPERM, errno.ENOMEM, errno.ENOSPC):
            raise _refusal(error, source) from None
        raise UnusableError(
            f"guard: {source}: changes of its file system cannot be told"
            f" (fanotify_mark: {error.strerror}): guard=off is allowed"
        ) from None
    return descriptor


def _refusal(error: OSError, source: str) -> MirrorfsError:
    if error.errno == errno.EPERM:
        return NotPermittedError(
            f"guard: {source}: fanotify is not permitted here: CAP_SYS_ADMIN outside of containers"
            " is needed: guard=off is allowed"
        )
    if error.errno in (errno.ENOSYS, errno.EINVAL):
        reason = "this kernel's fanotify tells no names: Linux 5.9 or newer is needed"
    else:
        reason = f"fanotify: {error.strerror}"
    return UnusableError(f"guard: {source}: {reason}: guard=off is allowed")
