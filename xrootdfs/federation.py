"""The servers as one tree: find a name, list a directory, know who holds what.

Asks the servers in parallel and lets `namespace` decide what their answers and their silences mean.
Every error is a CallError with the errno for the job. Changes nothing on any server; whoever does
tells it (`created`, `changed`, `removed`, `renamed`), before the job has its answer.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import Final, TypeVar

import trio

from xrootdfs import namespace
from xrootdfs.breaker import State
from xrootdfs.errors import CallError, Origin
from xrootdfs.memory import Lifetimes, Memory, Moment
from xrootdfs.names import join
from xrootdfs.namespace import Degraded, Excluded
from xrootdfs.topology import Topology
from xrootdfs.values import Found, Listing, Server, Space, Stat
from xrootdfs.xrd import Client

_log = logging.getLogger(__name__)

T = TypeVar("T")

REPLICA_SECONDS: Final = 0.005
"""How long the other servers are waited for after one said that it has a name."""
JUST_NOW_SECONDS: Final = 0.05
"""An answer no older than this is as good as one to a question asked now."""
SPACE_SECONDS: Final = 10.0
_REPORTED_MAX: Final = 1000


class _Asking:
    """A stat of one path at several servers, as the answers come."""

    def __init__(self, servers: Iterable[Server]) -> None:
        self.answers: dict[Server, Stat | CallError] = {}
        self.pending = set(servers)
        self.give_up: dict[Server, Callable[[], None]] = {}
        self.found = trio.Event()
        self.finished = trio.Event()
        if not self.pending:
            self.finished.set()
            self.found.set()

    def take(self, server: Server, answer: Stat | CallError) -> None:
        """The answer of one of them."""
        self.give_up.pop(server, None)
        self.answers[server] = answer
        self.pending.discard(server)
        if isinstance(answer, Stat):
            self.found.set()
        if not self.pending:
            self.found.set()
            self.finished.set()

    async def wait(self, event: trio.Event, seconds: float) -> None:
        """Until then; who has not answered after so long does not."""
        with trio.move_on_after(seconds):
            await event.wait()
            return
        for give_up in list(self.give_up.values()):
            give_up()
        await event.wait()  # for those who are asked otherwise, and have a deadline of their own


class Federation:
    """What the mount knows and finds out. `nursery` lives as long as the mount."""

    def __init__(
        self,
        client: Client,
        topology: Topology,
        nursery: trio.Nursery,
        *,
        degraded: Degraded | None = None,
        lifetimes: Lifetimes | None = None,
    ) -> None:
        self.client = client
        self.topology = topology
        self.degraded = degraded or Degraded()
        self.memory = Memory(lifetimes)
        self._nursery = nursery
        self._reported: set[bytes] = set()
        self._space: tuple[float, Space] | None = None
        self.spaces: Mapping[Server, Space] = {}  # each server's, when last asked

    # Asked

    async def find(self, path: bytes, *, fresh: bool = False) -> Found:
        """What is at a path: from what is known, or from the first servers that have it.

        `fresh`: ask, whatever is known. Raises ENOENT only when nobody can have it; EIO or
        ETIMEDOUT when a server that might have it is silent; what a server answered otherwise.
        """
        now = trio.current_time()
        if not fresh:
            found = self.memory.found(path, now)
            if found is not None:
                return found
            if self.memory.absent(path, now):
                raise _nothing()
        asked, lost = self.topology.asked, self.topology.lost()
        known = self.memory.holders(path, now)
        holders = tuple(server for server in known if server in asked)
        answers: dict[Server, Stat | CallError] = {}
        moment = self.memory.moment()
        if holders and (not fresh or self.memory.whole(path, now)):
            asking = await self._ask_until_found(path, holders)
            answers = asking.answers
            found = namespace.merge_stats(answers)
            if found is not None and len(found.holders) == len(answers):
                whole = self.memory.whole(path, now) and len(answers) == len(known)
                self.memory.learn(path, found, trio.current_time(), moment, whole=whole)
                return found
        # A server that was asked already, and stayed silent, is not waited for a second time.
        asking = await self._ask_until_found(path, tuple(s for s in asked if s not in answers))
        answers |= asking.answers
        found = self._conclude(path, answers, asking.pending, lost, moment, strict=False)
        learned_at = self.memory.learned_at(path)
        if asking.pending and learned_at is not None:

            async def hear_out() -> None:
                """Whoever changes it next need not ask again who else has it."""
                await asking.wait(asking.finished, 2 * self.client.metadata_seconds)
                if self.memory.learned_at(path) == learned_at:  # nobody has asked meanwhile
                    with contextlib.suppress(CallError):
                        heard = answers | asking.answers
                        self._conclude(path, heard, (), lost, moment, strict=False, at=learned_at)

            self._nursery.start_soon(hear_out)
        return found

    async def find_everywhere(self, path: bytes) -> Found:
        """The same, but every server is heard: for changes, which concern all copies.

        Raises EIO also for what was found while a silent server might hold another copy.
        """
        now = trio.current_time()
        found = self.memory.found(path, now)
        if found is not None and self.memory.whole(path, now):
            return found
        moment = self.memory.moment()
        lost = self.topology.lost()
        asking = self._ask_stats(path, self.topology.asked)
        await asking.wait(asking.finished, self.client.metadata_seconds)
        return self._conclude(path, asking.answers, asking.pending, lost, moment, strict=True)

    async def exists(self, path: bytes) -> bool:
        """Is there anything? As `find_everywhere`; raises what leaves that in doubt."""
        try:
            await self.find_everywhere(path)
        except CallError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        return True

    def absent_just_now(self, path: bytes) -> bool:
        """Have the servers just said that nobody has it? The kernel asks before it creates."""
        now = trio.current_time()
        learned_at = self.memory.learned_at(path)
        return (
            learned_at is not None
            and now - learned_at <= JUST_NOW_SECONDS
            and self.memory.absent(path, now)
        )

    async def list(self, path: bytes, *, fresh: bool = False) -> Listing:
        """A directory, merged, with what every server says of the entries.

        An incomplete one (`Listing.silent`) is no error here: give its entries, then EIO.
        Raises ENOENT, ENOTDIR, EIO as `find`.
        """
        if not fresh:
            known = self.memory.listing(path, trio.current_time())
            if known is not None:
                return known
        moment = self.memory.moment()
        lost = self.topology.lost()
        answers = await self.ask(
            self.topology.asked, lambda server: self.client.list_directory(server, path)
        )
        now = trio.current_time()
        silent = namespace.silence(answers, lost, now)
        listing = namespace.merge_listings(answers, silent, self.degraded, self._excluded(path))
        for name, found in listing.entries.items():
            if found.differing:
                self._report(join(path, name), found)
        if listing.complete:
            self.memory.learn_listing(path, listing, now, moment)
        return listing

    async def ask(
        self, servers: Iterable[Server], call: Callable[[Server], Awaitable[T]]
    ) -> dict[Server, T | CallError]:
        """Call for each server at once; wait for all, each within its deadline."""
        answers: dict[Server, T | CallError] = {}

        async def one(server: Server) -> None:
            try:
                answers[server] = await call(server)
            except CallError as error:
                answers[server] = error

        asked = list(servers)
        if len(asked) == 1:
            await one(asked[0])
            return answers
        async with trio.open_nursery() as nursery:
            for server in asked:
                nursery.start_soon(one, server)
        return answers

    async def space(self) -> Space:
        """Room on all servers that answer, summed; known for ten seconds."""
        now = trio.current_time()
        if self._space is None or now - self._space[0] >= SPACE_SECONDS:
            answers = await self.ask(self.topology.asked, self.client.space)
            told = {s: answer for s, answer in answers.items() if isinstance(answer, Space)}
            if not told:
                raise CallError(errno.EIO, "no server tells its space", Origin.UNREACHABLE)
            self.spaces = told
            total, free = sum(t.total for t in told.values()), sum(t.free for t in told.values())
            self._space = (now, Space(total, free))
        return self._space[1]

    def takers(self) -> tuple[Server, ...]:
        """Servers that can be given something new now: those that are up, or else suspect."""
        asked = self.topology.asked
        up = tuple(s for s in asked if self.topology.state(s) is State.UP)
        return up or asked

    # What was changed through this mount

    def created(self, path: bytes, server: Server, stat: Stat) -> None:
        """A name that nobody had. A new directory is known to be empty."""
        self.memory.created(path, server, stat, trio.current_time())

    def placed(self, path: bytes, server: Server) -> None:
        """One more server has it now."""
        self.memory.placed(path, server)

    def changed(self, path: bytes) -> None:
        """Its size, times or attributes: they are asked for again; its holders stay known."""
        self.memory.changed(path)

    def removed(self, path: bytes) -> None:
        """The name is gone everywhere, with all that was below it."""
        self.memory.removed(path, trio.current_time())

    def renamed(self, old: bytes, new: bytes) -> None:
        """The name, and all below it, is elsewhere; what was at `new` is gone."""
        self.memory.renamed(old, new, trio.current_time())

    def forget(self, path: bytes) -> None:
        """After an error, or in doubt: know nothing of the path, and of the names beside it."""
        self.memory.forget(path)

    # Within

    async def _ask_until_found(self, path: bytes, servers: tuple[Server, ...]) -> _Asking:
        """Until one has it, and the others had a moment to say so too; or until all answered."""
        asking = self._ask_stats(path, servers)
        await asking.wait(asking.found, self.client.metadata_seconds)
        if asking.pending:
            with trio.move_on_after(REPLICA_SECONDS):
                await asking.finished.wait()
        return asking

    def _ask_stats(self, path: bytes, servers: tuple[Server, ...]) -> _Asking:
        """Ask. The answers come whether or not the request still waits for them."""
        asking = _Asking(servers)

        async def one(server: Server) -> None:
            try:
                asking.take(server, await self.client.stat(server, path))
            except CallError as error:
                asking.take(server, error)
            except Exception as error:  # noqa: BLE001 - one request must not end the mount
                _log.error("stat at %s: %r", server, error, exc_info=True)
                asking.take(server, CallError(errno.EIO, repr(error), Origin.LOCAL))

        def take(server: Server, answer: Stat | CallError) -> None:
            if isinstance(answer, CallError) and not answer.silent and answer.errno == errno.EAGAIN:
                self._nursery.start_soon(
                    one, server
                )  # it has no time: ask again, within a deadline
            else:
                asking.take(server, answer)

        for server in servers:
            give_up = self.client.stat_soon(server, path, functools.partial(take, server))
            if give_up is None:
                self._nursery.start_soon(one, server)
            elif server in asking.pending:
                asking.give_up[server] = give_up
        return asking

    def _conclude(
        self,
        path: bytes,
        answers: Mapping[Server, Stat | CallError],
        pending: Collection[Server],
        lost: Mapping[Server, float],
        moment: Moment,
        *,
        strict: bool,
        at: float | None = None,
    ) -> Found:
        """What the answers mean, which count from now on, or from `at`. `pending` were not waited
        for; `lost` were down when the others were asked, and have not been heard even if they are
        back now. `strict`: doubt is an error.
        """
        now = trio.current_time() if at is None else at
        silent = namespace.silence(answers, lost, now)
        found = namespace.merge_stats(answers)
        excluded = self._excluded(path)
        if found is None:
            error = namespace.absence(answers, silent, self.degraded, excluded)
            if error.errno == errno.ENOENT:
                whole = not silent.passed_over(self.degraded)
                self.memory.learn_absent(path, now, moment, whole=whole)
            raise error
        failure = _failure(answers)
        if strict:
            doubt = failure or silent.doubt(self.degraded, excluded)
            if doubt is not None:
                raise doubt
        self._report(path, found)
        whole = not pending and failure is None and silent.harmless(excluded)
        self.memory.learn(path, found, now, moment, whole=whole)
        return found

    def _report(self, path: bytes, found: Found) -> None:
        """Say once that copies differ: a lost server may have come back with what was made anew."""
        if found.differing and path not in self._reported and len(self._reported) < _REPORTED_MAX:
            self._reported.add(path)
            others = {*found.holders, *found.contrary} - {found.holders[0]}
            _log.warning(
                "%s: copies differ; that of %s is served, not those of %s",
                path.decode(errors="backslashreplace"),
                found.holders[0],
                ", ".join(sorted(map(str, others - set(found.current)))),
            )

    def _excluded(self, path: bytes) -> Excluded:
        return lambda server, lost_at: self.memory.excludes(path, server, lost_at)


def _failure(answers: Mapping[Server, Stat | CallError]) -> CallError | None:
    """An answer that tells neither that the name is there nor that it is not."""
    for server in sorted(answers):
        answer = answers[server]
        if isinstance(answer, CallError) and not answer.silent and not answer.missing:
            return answer
    return None


def _nothing() -> CallError:
    return CallError(errno.ENOENT, "no server has it", Origin.ANSWERED)
