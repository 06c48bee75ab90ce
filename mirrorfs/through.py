"""Write-through: jobs have their answers when the sites that the operator named have the change.

Knows which sites those are for a directory, who waits for which record, and which sites are not
waited for because they do not follow. Speaks with the replicators of the sites (journal.awaiting).
Makes no records and answers no requests. Used by the thread that serves requests alone.
"""

from __future__ import annotations

import errno
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Literal, NamedTuple

import msgspec
import trio

from mirrorfs.config import OFF, read_sites
from mirrorfs.inodes import InodeTable, Node
from mirrorfs.journal.awaiting import (
    MESSAGES_MAX,
    Awaited,
    CatchUp,
    CaughtUp,
    Durable,
    Resting,
    ToReplicator,
    Undone,
    encode,
    from_replicator,
)
from mirrorfs.journal.control_client import MESSAGE_BYTES_MAX, ThroughStatus
from mirrorfs.journal.record import Change, SequenceNumber, Tag

_log = logging.getLogger(__name__)

THROUGH_XATTR: Final = b"trusted.mirrorfs.write-through"
"""Of a directory: the sites that are waited for in it and below, or "off"; not shown in lists."""

_KILLED_SECONDS: Final = 0.5
"""How often it is looked whether a job that waits has been killed."""
_WAITING_MAX: Final = 2048
"""More jobs do not wait at once: requests have to go on."""
_UNDONE_MAX: Final = 1000
_NEWS_MAX: Final = 1000
_NEAR: Final = 2000
"""A site that has so many records still to read does not follow: each job would wait in vain."""


class ThroughOptions(NamedTuple):
    """What the operator chose.

    Attributes:
        sites: those waited for where no directory says otherwise.
        timeout: seconds to wait at most.
        fallback: what is answered when a site does not have it: success, or EIO.
        fsync: fsync(2) waits, too.
        possible: directories may say so, too (not with several writers).
    """

    sites: tuple[str, ...] = ()
    timeout: float = 5.0
    fallback: Literal["async", "error"] = "async"
    fsync: bool = False
    possible: bool = True


NO_THROUGH: Final = ThroughOptions(possible=False)


class _Wait:
    """A job that waits. `left`: for these sites and records. `failed`: not all will have it."""

    __slots__ = ("done", "failed", "left")

    def __init__(self) -> None:
        self.left: set[tuple[str, int]] = set()
        self.done = trio.Event()
        self.failed = False

    def end(self, site: str, sequence: int, *, failed: bool) -> None:
        self.left.discard((site, sequence))
        self.failed = self.failed or failed
        if not self.left:
            self.done.set()


class _Site:
    """One site that is waited for, or would be.

    Attributes:
        followed: a replicator of it is connected. ever: one was, since the mount began.
        down: why nobody waits for it; since_ns: since when.
        caught_up: it is waited for again when it has worked on this record.
        passed: so many answers were given without it; passed_before: before it went down.
        undone: objects that cannot be made so there: why, where, and the record.
        news: what its replicator is still to be told. told: that there is some.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.waits: dict[int, tuple[Awaited, list[_Wait]]] = {}
        self.followed: object | None = None
        self.ever = False
        self.down: str | None = None
        self.since_ns = 0
        self.caught_up = 0
        self.passed = self.passed_before = 0
        self.undone: dict[bytes, tuple[str, int]] = {}
        self.news: deque[ToReplicator] = deque()
        self.told = trio.Event()

    def tell(self, message: ToReplicator) -> None:
        if self.followed is not None:
            self.news.append(message)
            self.told.set()

    def expect(self, awaited: Awaited, wait: _Wait) -> None:
        known = self.waits.get(awaited.sequence)
        if known is None:
            known = self.waits[awaited.sequence] = (awaited, [])
            self.tell(awaited)
        known[1].append(wait)
        wait.left.add((self.name, awaited.sequence))

    def forget(self, sequence: int, wait: _Wait) -> None:
        known = self.waits.get(sequence)
        if known is not None and wait in known[1]:
            known[1].remove(wait)
            if not known[1]:
                del self.waits[sequence]
                if len(self.news) > 2 * len(self.waits) + _NEWS_MAX:  # a replicator that hangs
                    self.news = deque(filter(self.concerns, self.news))

    def concerns(self, message: ToReplicator) -> bool:
        """Whether somebody still wants to have that told."""
        return isinstance(message, CatchUp) or message.sequence in self.waits

    def end(self, sequence: int, *, failed: bool) -> Awaited | None:
        """All who wait for that record have their answers."""
        known = self.waits.pop(sequence, None)
        if known is None:
            return None
        for wait in known[1]:
            wait.end(self.name, sequence, failed=failed)
        return known[0]

    @property
    def waiting(self) -> int:
        """How many jobs wait."""
        return len({id(wait) for _, waits in self.waits.values() for wait in waits})


class Through:
    """The write-through of one mount.

    Attributes:
        options: what the operator chose.
        refuses: some changes may be refused: they are to be admitted.
    """

    def __init__(
        self,
        options: ThroughOptions,
        read: Callable[[Node], bytes | None],
        head: Callable[[], tuple[Tag, SequenceNumber]],
        table: InodeTable,
    ) -> None:
        """`read`: the value of THROUGH_XATTR of a directory. `head`: the journal's, and its
        incarnation. `table`: the directories."""
        self.options = options
        self.refuses = options.fallback == "error"
        self._table = table
        self._read = read
        self._head = head
        self._sites: dict[str, _Site] = {name: _Site(name) for name in options.sites}
        self._named = set(options.sites)
        self._waiting = 0
        self._directories = 0
        self._abandoned = False

    # which sites ---------------------------------------------------------------------------------

    def sites(self, *nodes: Node) -> tuple[str, ...]:
        """The sites to wait for after a change of these."""
        if len(nodes) == 1:
            directory = nodes[0] if nodes[0].directory else nodes[0].parent
            if directory is not None and not nodes[0].aliases:
                return self._of(directory)
        found: dict[str, None] = {}
        for node in nodes:
            above = [node] if node.directory else [directory for directory, _ in node.names()]
            if not above:
                found.update(dict.fromkeys(self.options.sites))
            for each in above:
                found.update(dict.fromkeys(self._of(each)))
        return tuple(found)

    def _of(self, node: Node) -> tuple[str, ...]:
        """Of the nearest directory upwards that says so; else the mount's. It is known until
        something above may have changed."""
        known = node.inherited
        if known is not None and known[0] == self._table.moves:
            return known[1]
        directory: Node | None = node
        found = self.options.sites
        while directory is not None:
            own = directory.through
            if own is None:
                own = directory.through = self._look(directory)
            if own:
                found = () if own == (OFF,) else own
                break
            if directory is self._table.root:
                break
            directory = directory.parent
        if directory is not None:  # else it is not known where it is
            node.inherited = self._table.moves, found
        return found

    def _look(self, directory: Node) -> tuple[str, ...]:
        if not self.options.possible:
            return ()
        try:
            value = self._read(directory)
            if value is None:
                return ()
            found = read_sites(value.decode())
        except (OSError, ValueError) as error:
            _log.warning("write-through of inode %d is not read: %s", directory.number, error)
            return ()
        self.named(found)
        return found

    def named(self, sites: Iterable[str]) -> None:
        """A directory names these."""
        self._table.moves += 1
        self._directories += 1
        self._named.update(sites)
        self._named.discard(OFF)

    def _site(self, name: str) -> _Site:
        return self._sites.setdefault(name, _Site(name))

    # waiting -------------------------------------------------------------------------------------

    def admit(self, nodes: Sequence[Node], *, recorded: bool) -> None:
        """Before a change of these: OSError if it is known that its sites would not have it, and
        the operator chose that it is refused then. `recorded`: the journal takes records."""
        if self.refuses:
            names = self.sites(*nodes)
            if names and (not recorded or any(self._site(name).down for name in names)):
                raise OSError(errno.EIO, "a site does not follow")

    async def wait(
        self,
        names: Iterable[str],
        records: Iterable[tuple[int, Change]],
        killed: Callable[[], bool],
        *,
        made: bool,
    ) -> bool:
        """Until these sites have what these records tell of, or it is known that they will not:
        whether they do.

        `made`: the change cannot be refused any more. Otherwise OSError EIO, if a site does not
        have it and the operator chose so. No records: they could not be made.
        """
        wait, records = _Wait(), list(records)
        tag, _ = self._head()
        for name in names:
            site = self._site(name)
            if site.down is not None or self._abandoned or self._waiting >= _WAITING_MAX:
                site.passed += 1
                wait.failed = True
                continue
            wait.failed = wait.failed or not records
            for sequence, change in records:
                if site.undone.get(bytes(change.object), ("", 0))[1] == sequence:
                    site.passed += 1  # that was told before
                    wait.failed = True
                else:
                    site.expect(_awaited(tag, sequence, change), wait)
        if wait.left:
            await self._wait(wait, killed)
        if wait.failed and not made and self.options.fallback == "error":
            raise OSError(errno.EIO, "a site does not have it")
        return not wait.failed

    async def _wait(self, wait: _Wait, killed: Callable[[], bool]) -> None:
        deadline = trio.current_time() + self.options.timeout
        self._waiting += 1
        try:
            while not wait.done.is_set() and trio.current_time() < deadline:
                with trio.move_on_at(min(deadline, trio.current_time() + _KILLED_SECONDS)):
                    await wait.done.wait()
                if not wait.done.is_set() and killed():
                    break
            late = trio.current_time() >= deadline
        finally:
            self._waiting -= 1
            left, wait.left = wait.left, set()
            for name, sequence in left:
                self._site(name).forget(sequence, wait)
        wait.failed = wait.failed or bool(left)
        for name, sequence in left if late else ():
            site = self._site(name)
            why = "" if site.followed is not None else ", and no replicator of it is there"
            reason = f"record {sequence} was not there in {self.options.timeout:g} s{why}"
            self._degrade(site, reason)
            site.passed += 1

    def abandon(self) -> int:
        """The mount ends: nobody waits any longer. How many did."""
        self._abandoned = True
        return self.release()

    def release(self) -> int:
        """Who waits now has an answer without the sites. How many did."""
        waited = self._waiting
        for site in self._sites.values():
            site.passed += site.waiting
            for sequence in list(site.waits):
                site.end(sequence, failed=True)
        if waited:
            _log.warning("write-through: to be unmounted: %d jobs do not wait any longer", waited)
        return waited

    def _degrade(self, site: _Site, reason: str) -> None:
        """Nobody waits for it until it has caught up with what there is now."""
        if site.down is not None:
            return
        tag, head = self._head()
        site.passed_before = site.passed
        site.down, site.since_ns, site.caught_up = reason, time.time_ns(), head
        does = "get errors" if self.options.fallback == "error" else "do not wait for it"
        _log.warning("write-through: site %s: %s: jobs %s now", site.name, reason, does)
        site.tell(CatchUp(tag, head))
        for sequence in list(site.waits):
            site.passed += len(site.waits[sequence][1])
            site.end(sequence, failed=True)

    # replicators ---------------------------------------------------------------------------------

    async def follow(self, name: str, connection: trio.socket.SocketType) -> None:
        """Speak with the replicator of a site until it goes."""
        site = self._site(name)
        me = site.followed = object()
        site.ever = True
        tag, head = self._head()
        site.news = deque(awaited for awaited, _ in site.waits.values())
        if site.down is not None:
            site.caught_up = head
            site.news.append(CatchUp(tag, head))
        site.told.set()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_tell, site, me, connection)
                while data := await connection.recv(MESSAGE_BYTES_MAX):
                    if site.followed is not me:
                        break  # another one has come since
                    for message in from_replicator.decode(data):
                        self._heard(site, message)
                nursery.cancel_scope.cancel()
        except* (OSError, msgspec.DecodeError) as group:
            _log.warning("write-through: site %s: %s", name, group.exceptions[0])
        finally:
            if site.followed is me:
                site.followed = None

    def _heard(self, site: _Site, message: Durable | Undone | CaughtUp | Resting) -> None:
        match message:
            case Durable(sequences):
                for sequence in sequences:
                    self._durable(site, sequence)
            case Undone(sequence, reason):
                awaited = site.end(sequence, failed=True)
                if awaited is not None:
                    site.passed += 1
                    self._undone(site, awaited, reason)
            case CaughtUp(sequence, read):
                if site.down is not None and sequence >= site.caught_up:
                    self._caught_up(site, read)
            case Resting(reason):
                self._degrade(site, reason)

    def _caught_up(self, site: _Site, read: int) -> None:
        """It has what there was when it was asked for. What has come since it can only hurry with
        if it has read that."""
        tag, head = self._head()
        if head - read > _NEAR:
            site.caught_up = head
            site.tell(CatchUp(tag, head))
            return
        seconds = (time.time_ns() - site.since_ns) / 1e9
        told = "write-through: site %s follows again, after %.1f s and %d answers without it"
        _log.warning(told, site.name, seconds, site.passed - site.passed_before)
        site.down = None

    def _durable(self, site: _Site, sequence: int) -> None:
        awaited = site.end(sequence, failed=False)
        done = {each for each, (_, at) in site.undone.items() if at == sequence}
        if awaited is not None:
            done.update(site.undone.keys() & set(awaited.objects))
        for each in done:
            del site.undone[each]

    def _undone(self, site: _Site, awaited: Awaited, reason: str) -> None:
        about = awaited.objects[0]
        if about not in site.undone:
            told = "write-through: site %s: record %d: %s: jobs do not wait for this object now"
            _log.warning(told, site.name, awaited.sequence, reason)
        site.undone[about] = (reason, awaited.sequence)
        while len(site.undone) > _UNDONE_MAX:
            del site.undone[next(iter(site.undone))]

    # telling -------------------------------------------------------------------------------------

    @property
    def used(self) -> bool:
        """Whether some site is waited for."""
        return bool(self._named)

    @property
    def directories(self) -> int:
        """How many directories were seen to name sites of their own."""
        return self._directories

    def status(self, reported: Iterable[str]) -> tuple[ThroughStatus, ...]:
        """How it stands with each site. `reported`: those of which there was a replicator ever."""
        known = set(reported)
        return tuple(
            ThroughStatus(
                site=site.name,
                known=site.ever or site.name in known,
                followed=site.followed is not None,
                waiting=site.waiting,
                down=site.down,
                down_since_ns=site.since_ns if site.down is not None else 0,
                passed=site.passed,
                undone=len(site.undone),
                undone_reason=next((why for why, _ in site.undone.values()), ""),
            )
            for site in map(self._site, sorted(self._named))
        )


def _awaited(tag: Tag, sequence: int, change: Change) -> Awaited:
    objects = (change.object,) if change.other is None else (change.object, change.other)
    places = tuple((bytes(place.directory), place.name) for place in change.places)
    return Awaited(tag, sequence, tuple(map(bytes, objects)), places)


async def _tell(site: _Site, me: object, connection: trio.socket.SocketType) -> None:
    """Send what there is, and what comes; what nobody waits for any more is left out."""
    while site.followed is me:
        await site.told.wait()
        site.told = trio.Event()
        while site.news and site.followed is me:
            messages: list[ToReplicator] = []
            while site.news and len(messages) < MESSAGES_MAX:
                message = site.news.popleft()
                if site.concerns(message):
                    messages.append(message)
            if messages:
                await connection.send(encode(messages))
