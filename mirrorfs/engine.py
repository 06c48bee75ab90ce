"""What all requests share: the engine's state, its life cycle, and how a request is answered.

`answer`, `answer_later` and `change` are the border where errors become errnos. Nothing gets past
them, so that no request ends the daemon; and no change gets past `change` without a record.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import inspect
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FUSEError

from mirrorfs.backing_tree import BackingTree
from mirrorfs.callers import Jobs, is_killed, prepare_thread
from mirrorfs.capture import RESERVED
from mirrorfs.errors import errno_of
from mirrorfs.inodes import Node
from mirrorfs.journal.record import SETTLED, Kind
from mirrorfs.listing import Listing
from mirrorfs.objects import Objects
from mirrorfs.recorder import Journal, Recorder, Told, UnreliableError
from mirrorfs.through import NO_THROUGH, THROUGH_XATTR, Through, ThroughOptions
from mirrorfs.virtual import JournalFacts, VirtualAttributes

log = logging.getLogger(__name__)

_SYNCS_NAMES = frozenset({"sync", "dirsync"})
_CLOSE_WAITS = frozenset({"create", "_open_empty"})
"""Requests that do not wait for sites: the close that will follow does."""

_P = ParamSpec("_P")
_R = TypeVar("_R")
_E = TypeVar("_E", bound="Engine")


@dataclass(frozen=True)
class EngineOptions:
    """What an operator chooses, and what the engine asks of its surroundings.

    Attributes:
        attr_timeout, entry_timeout, negative_timeout: for how long the kernel may keep attributes,
            names and the absence of names, in seconds.
        io: where read and write system calls run: "inline", or in "threads" (network file systems).
        journal_open_files: interval in seconds at which changed open files get a record.
        job_variables: environment variables that hold a batch job's id, the first one set counts.
        descriptors_max: open descriptors to stay below.
        shared: other nodes change the source, too: what they closed shows at open.
        kernel_options: of those in force, noatime, nodiratime, sync and dirsync are ours to keep
            at the source.
        inode_cache: above so many objects the kernel is asked to forget the oldest files.
        status: the value of DAEMON_XATTR.
        facts: of the journal, for virtual attributes; without it there are none.
        through: what waits for sites.
    """

    attr_timeout: float = 3600.0
    entry_timeout: float = 3600.0
    negative_timeout: float = 3600.0
    io: Literal["inline", "threads"] = "inline"
    journal_open_files: float = 30.0
    job_variables: tuple[str, ...] = (
        "SLURM_JOB_ID",
        "PBS_JOBID",
        "LSB_JOBID",
        "JOB_ID",
        "OAR_JOB_ID",
    )
    shared: bool = False
    kernel_options: frozenset[str] = frozenset()
    descriptors_max: int = 800
    inode_cache: int = 1_000_000
    status: Callable[[], bytes] = bytes
    facts: Callable[[], JournalFacts] | None = None
    through: ThroughOptions = NO_THROUGH


def answer(
    handler: Callable[Concatenate[_E, _P], _R],
) -> Callable[Concatenate[_E, _P], Coroutine[Any, Any, _R]]:
    """A handler without awaits as pyfuse3 wants it: errors are errnos, nothing ends the daemon."""

    @functools.wraps(handler)
    async def handle(self: _E, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return handler(self, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - no request may end the daemon
            raise self.failure(handler.__name__, error) from None

    return handle


def answer_later(
    handler: Callable[Concatenate[_E, _P], Awaitable[_R]],
) -> Callable[Concatenate[_E, _P], Coroutine[Any, Any, _R]]:
    """The same for a handler that may wait for another thread."""

    @functools.wraps(handler)
    async def handle(self: _E, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return await handler(self, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - no request may end the daemon
            raise self.failure(handler.__name__, error) from None

    return handle


def change(
    handler: Callable[Concatenate[_E, _P], _R],
) -> Callable[Concatenate[_E, _P], Coroutine[Any, Any, _R]]:
    """`answer` for a handler that changes the source and records it.

    What the handler will touch are the inodes among its arguments, of which the last is the
    context. Before a change the activity log must tell of it: the handler is called again if it
    finds that this has to be waited for (UnreliableError). While records cannot be made, the
    journal is asked first. If it fails while the recorder is owed a record, the journal is told
    that one is missing. With write-through the answer waits for the sites.
    """
    _, *names = inspect.signature(handler).parameters
    inodes = [at for at, name in enumerate(names) if "inode" in name]

    @functools.wraps(handler)
    async def handle(self: _E, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        context: Any = args[-1]
        try:
            if self.recorder.degraded:
                await self.recorder.admitted(self._known(args, inodes), context.pid)
            if self.through.refuses and THROUGH_XATTR not in args:  # that can be changed always
                self.through.admit(self._known(args, inodes), recorded=not self.recorder.degraded)
            while True:
                try:
                    known = self._known(args, inodes)
                    if self.recorder.relies(known):
                        self.recorder.told.clear()
                        result = handler(self, *args, **kwargs)
                        break
                except UnreliableError:
                    pass  # nothing has been changed yet
                await self.recorder.become_reliable()
        except Exception as error:  # noqa: BLE001 - no request may end the daemon
            self.recorder.failed(handler.__name__, error, self._known(args, inodes))
            raise self.failure(handler.__name__, error) from None
        names = self.through.sites(*known)
        if names and handler.__name__ not in _CLOSE_WAITS:
            # no await since it returned: what is told now are its records
            records = [(each.sequence, each.change) for each in self.recorder.told if _ends(each)]
            if records or self.recorder.degraded:
                await self.through.wait(names, records, lambda: is_killed(context.pid), made=True)
        return result

    return handle


def _ends(told: Told) -> bool:
    """Whether sites can have it now. What is open and changed they get when it is closed."""
    return bool(told.flags & SETTLED) or told.kind in (Kind.UNLINK, Kind.RMDIR)


class Engine(pyfuse3.Operations):
    """One source tree being served, by the thread that makes this (trio's)."""

    supports_dot_lookup = False
    enable_acl = True
    enable_writeback_cache = False

    def __init__(self, tree: BackingTree, journal: Journal, options: EngineOptions) -> None:
        prepare_thread()
        self._tree = tree
        self._options = options
        self._objects = Objects(tree, options.descriptors_max, shared=options.shared)
        self.recorder = Recorder(tree, self._objects, journal)
        facts = options.facts
        self._virtual = facts and VirtualAttributes(self._objects, self.recorder, facts)
        table = self._objects.table
        self.through = Through(options.through, self._named_sites, journal.newest, table)
        self._jobs = Jobs(options.job_variables, options.descriptors_max // 32)
        self._listings: dict[int, Listing] = {}
        self._threads = options.io == "threads"
        self.kernel_options = options.kernel_options
        # The kernel notices a change of size or mtime by itself, if it asks; not a quick one.
        self._keeps_pages = options.attr_timeout > 0 and not options.shared
        self._stale_attributes: list[int] = []
        self._stale_content: list[int] = []
        self._stale_names: list[tuple[int, bytes]] = []
        self._shed_above = options.inode_cache
        self._background = trio.Event()
        self._logged: set[tuple[str, type[BaseException]]] = set()

    # -- life cycle ------------------------------------------------------------------------------

    @property
    def root(self) -> Node:
        """The source's root."""
        return self._objects.table.root

    @property
    def nodes(self) -> int:
        """How many objects the kernel holds."""
        return len(self._objects.table.nodes)

    @property
    def open_files(self) -> int:
        """How many file handles are open."""
        return len(self._objects.files)

    async def poll_open_files(self) -> None:
        """Record changed files that stay open, for ever; and what requests leave for later."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._work_in_background)
            while True:
                await trio.sleep(self._options.journal_open_files)
                self.record_open_files()

    def record_open_files(self) -> None:
        """A `write` record of every open file that has an unrecorded change."""
        for node in list(self.recorder.dirty):
            try:
                self.recorder.content(node)
            except Exception as error:  # noqa: BLE001 - the journal has been told
                log.error("inode %d: cannot be looked at: %s", node.number, error)

    def finish(self) -> None:
        """After the last request: record what is still unrecorded, close everything."""
        self.record_open_files()
        for descriptor in self._listings:
            self._tree.close_descriptor(descriptor)
        self._listings.clear()
        self._objects.close()
        self._jobs.close()

    async def _work_in_background(self) -> None:
        while True:
            await self._background.wait()
            self._background = trio.Event()
            numbers, self._stale_attributes = self._stale_attributes, []
            content, self._stale_content = self._stale_content, []
            stale, self._stale_names = self._stale_names, []
            descriptors, self._objects.slow_to_close = self._objects.slow_to_close, []
            names = self._surplus_names() + stale
            await trio.to_thread.run_sync(
                self._do_slow_things, numbers, content, descriptors, names
            )

    def stale(
        self, directory: os.stat_result, name: bytes, found: os.stat_result | None, *, named: bool
    ) -> None:
        """That place was changed behind the mount; `found` stands there now. `named`: the name
        itself came, went or is another object's: then what stood there is looked at, too."""
        table = self._objects.table
        above = table.nodes.get(table.number_of(directory.st_ino))
        if found is not None:
            number = table.number_of(found.st_ino)
            if number in table.nodes:
                (self._stale_attributes if named else self._stale_content).append(number)
        if above is not None and named:
            known = above.children.get(name)
            if known is not None:
                self._stale_attributes.append(known.number)
            self._stale_names.append((above.number, name))
        self._background.set()

    def _surplus_names(self) -> list[tuple[int, bytes]]:
        """What the kernel should forget, a tenth of the cache at a time; nothing below its limit.

        Where most of it is in use, the next attempt waits until there is more.
        """
        limit, known = self._options.inode_cache, self.nodes
        if known <= limit:
            self._shed_above = limit
            return []
        wanted = known - limit + limit // 10
        self._shed_above = known + limit // 10
        return self._objects.oldest_names(wanted)

    def _shed_again(self) -> None:
        """The kernel has forgotten something: the next surplus is counted from here."""
        limit = self._options.inode_cache
        self._shed_above = min(self._shed_above, max(limit, self.nodes + limit // 10))

    def _do_slow_things(
        self,
        numbers: list[int],
        content: list[int],
        descriptors: list[int],
        names: list[tuple[int, bytes]],
    ) -> None:
        """In another thread: what must not happen inside a request, or may take long."""
        for directory, name in names:
            with contextlib.suppress(OSError):  # the kernel has forgotten it meanwhile
                pyfuse3.invalidate_entry(directory, name)
        for number in numbers:
            with contextlib.suppress(OSError):
                pyfuse3.invalidate_inode(number, attr_only=True)
        for number in content:
            with contextlib.suppress(OSError):
                pyfuse3.invalidate_inode(number, attr_only=False)
        for descriptor in descriptors:
            self._tree.close_descriptor(descriptor)

    def failure(self, request: str, error: Exception) -> FUSEError:
        """The answer to a request that failed; one by our fault is logged, once."""
        if isinstance(error, FUSEError):
            return error
        if isinstance(error, OSError):
            return FUSEError(errno_of(error))
        seen = (request, type(error))
        if seen not in self._logged:
            self._logged.add(seen)
            log.error("%s: internal error, answered EIO", request, exc_info=error)
        return FUSEError(errno.EIO)

    def _at_source(self, flags: int) -> int:
        """Flags to open a file of the source with: the mount's options hold there, too."""
        if "noatime" in self.kernel_options:
            flags |= os.O_NOATIME
        if "sync" in self.kernel_options and flags & os.O_ACCMODE != os.O_RDONLY:
            flags |= os.O_SYNC
        return flags

    def _changed_names(self, *directories: Node) -> None:
        """Names in them have changed: with `sync` or `dirsync` durably so before the answer."""
        self._outdated(*directories)
        if not self.kernel_options.isdisjoint(_SYNCS_NAMES):
            for directory in directories:
                self._tree.sync_directory(self._objects.descriptor(directory))

    def _outdated(self, *nodes: Node) -> None:
        """What the kernel was told of these is not so any more. It notices that by itself, but for
        answers that whoever asked has not looked at yet: it would keep these for good."""
        for node in nodes:
            if node.told:
                node.told = False
                with contextlib.suppress(OSError):  # it has forgotten the object
                    pyfuse3.invalidate_inode(node.number, attr_only=True)

    # -- answers ---------------------------------------------------------------------------------

    def _attributes(self, node: Node, source: os.stat_result) -> EntryAttributes:
        node.told = True
        entry = EntryAttributes()
        entry.st_ino = node.number
        entry.generation = node.generation
        entry.entry_timeout = self._options.entry_timeout
        entry.attr_timeout = self._options.attr_timeout
        entry.st_mode = source.st_mode
        entry.st_nlink = source.st_nlink
        entry.st_uid = source.st_uid
        entry.st_gid = source.st_gid
        entry.st_rdev = source.st_rdev
        entry.st_size = source.st_size
        entry.st_blksize = source.st_blksize
        entry.st_blocks = source.st_blocks
        entry.st_atime_ns = source.st_atime_ns
        entry.st_mtime_ns = source.st_mtime_ns
        entry.st_ctime_ns = source.st_ctime_ns
        return entry

    def _entry(self, node: Node, source: os.stat_result) -> EntryAttributes:
        """An answer by which the kernel holds one more reference to the node."""
        self._count_lookup(node)
        return self._attributes(node, source)

    def _count_lookup(self, node: Node) -> None:
        node.lookups += 1
        if len(self._objects.table.nodes) > self._shed_above:
            self._background.set()

    def _known(self, args: Sequence[Any], inodes: Sequence[int]) -> list[Node]:
        """The nodes of these arguments; those that are none any more can neither be changed."""
        nodes = self._objects.table.nodes
        return [nodes[args[at]] for at in inodes if args[at] in nodes]

    def _directory_for(self, number: int, name: bytes, error: int) -> Node:
        """The directory a name is used in; the reserved name answers `error`."""
        directory = self._objects.node(number)
        if name == RESERVED and directory is self._objects.table.root:
            raise FUSEError(error)
        return directory

    def _named_sites(self, directory: Node) -> bytes | None:
        """The sites that a directory itself names for write-through; None if it does not."""
        try:
            return self._tree.xattr(self._objects.descriptor(directory), THROUGH_XATTR)
        except OSError as error:
            if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
                return None
            raise

    async def _written_through(self, node: Node, pid: int) -> None:
        """Until the sites have the last record of its content; those of that process wait. If
        they do not get it, the next who closes it waits: it may tell of what that one wrote."""
        due = node.due
        if due is None and not self.recorder.degraded:
            return
        names, kept = self.through.sites(node), True
        if names:
            records = [] if due is None else [due]
            kept = await self.through.wait(names, records, lambda: is_killed(pid), made=False)
        if kept and node.due is due:
            node.due = None

    def _hold(self, node: Node) -> None:
        """Have the descriptor and the id of an object at hand."""
        self._objects.descriptor(node)
        self._objects.identity(node)

    def _hold_over_removal(self, node: Node) -> None:
        """Keep an object whose name will be removed: the kernel may go on using it, and its inode
        number must not go to another object meanwhile."""
        if node.handles:
            self._objects.room()
        self._hold(node)
