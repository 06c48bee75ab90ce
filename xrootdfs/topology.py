"""Which data servers there are, and which of them answer.

Redirectors are asked for them at the start, every minute, and after a server fell silent. A server
once known stays known: what it holds does not stop existing because it is down. Silent servers are
pinged until they answer. Knows nothing of paths.
"""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from xrootdfs import breaker
from xrootdfs.breaker import Health, State
from xrootdfs.errors import CallError, Origin
from xrootdfs.names import Redirector
from xrootdfs.values import Server
from xrootdfs.xrd import Client

_log = logging.getLogger(__name__)

REFRESH_SECONDS: Final = 60.0
PROBE_SECONDS: Final = 2.0
_AGAIN_SECONDS: Final = 5.0  # between two questions to redirectors after silences
_FIRST_REFRESH_SECONDS: Final = 2.0  # doubled each time: servers may just be starting, as we are


@dataclass(slots=True)
class Member:
    """One data server, while the mount lives.

    Attributes:
        listed: a redirector named it when last asked.
        calls, silences: counts.
    """

    server: Server
    health: Health
    listed: bool = True
    calls: int = 0
    silences: int = 0


class Topology:
    """The servers of a mount. `run` keeps it true; `watch` is told of every call's outcome."""

    def __init__(
        self,
        client: Client,
        redirectors: Sequence[Redirector],
        *,
        refresh_seconds: float = REFRESH_SECONDS,
        probe_seconds: float = PROBE_SECONDS,
    ) -> None:
        self._client = client
        self._redirectors = tuple(redirectors)
        self._refresh_seconds = refresh_seconds
        self._probe_seconds = probe_seconds
        self._members: dict[Server, Member] = {}
        self._by_address: dict[str, list[Member]] = {}
        self._asked: tuple[Server, ...] = ()
        self._stale = trio.Event()
        self._probed: set[str] = set()
        self._nursery: trio.Nursery | None = None
        self.redirector_errors: dict[Redirector, str] = {}
        client.watch = self.watch

    @property
    def members(self) -> tuple[Member, ...]:
        """All servers known, sorted."""
        return tuple(self._members[server] for server in sorted(self._members))

    @property
    def servers(self) -> tuple[Server, ...]:
        """All servers known, sorted."""
        return tuple(sorted(self._members))

    @property
    def asked(self) -> tuple[Server, ...]:
        """Those that are up or suspect: whom to ask."""
        return self._asked

    def lost(self) -> dict[Server, float]:
        """Those that are down, with the moment each fell silent (trio's clock)."""
        return {
            member.server: member.health.lost_at or 0.0
            for member in self._members.values()
            if member.health.state is State.DOWN
        }

    def state(self, server: Server) -> State:
        """Of a known server."""
        return self._members[server].health.state

    async def discover(self) -> None:
        """Ask all redirectors at once. CallError, of the first that failed; others are heard."""
        answers: dict[Redirector, list[Server] | CallError] = {}

        async def ask(redirector: Redirector) -> None:
            try:
                found = await self._client.discover(redirector)
            except CallError as error:
                answers[redirector] = error
                return
            answers[redirector] = found or CallError(
                errno.ENXIO, "knows no data server", Origin.ANSWERED
            )

        async with trio.open_nursery() as nursery:
            for redirector in self._redirectors:
                nursery.start_soon(ask, redirector)
        self._learn(answers)
        for redirector in self._redirectors:
            answer = answers[redirector]
            if isinstance(answer, CallError):
                raise answer

    def watch(self, address: str, error: CallError | None) -> None:
        """A call to that address was answered, or met with silence."""
        now = trio.current_time()
        for member in self._by_address.get(address, ()):
            member.calls += 1
            member.silences += error is not None
            before = member.health
            reason = error.reason if error else ""
            member.health = breaker.told(before, error is None, now, reason)
            if member.health.state is not before.state:
                self._moved(member, before)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Refresh and probe until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for member in self.members:
                if member.health.state is not State.UP:
                    self._begin_probing(member.server.address)
            task_status.started()
            pause = min(_FIRST_REFRESH_SECONDS, self._refresh_seconds)
            while True:
                with trio.move_on_after(pause):
                    await self._stale.wait()
                pause = min(2 * pause, self._refresh_seconds)
                self._stale = trio.Event()
                with contextlib.suppress(CallError):
                    await self.discover()
                await trio.sleep(_AGAIN_SECONDS)

    # What was learned

    def _learn(self, answers: Mapping[Redirector, list[Server] | CallError]) -> None:
        listed: set[Server] = set()
        for redirector, answer in answers.items():
            if isinstance(answer, CallError):
                if redirector not in self.redirector_errors:
                    _log.warning("redirector %s: %s", redirector, answer.reason)
                self.redirector_errors[redirector] = answer.reason
                continue
            if self.redirector_errors.pop(redirector, None) is not None:
                _log.info("redirector %s answers again", redirector)
            listed.update(answer)
        for server in sorted(listed - self._members.keys()):
            member = Member(server, Health(State.UP, trio.current_time()))
            self._members[server] = member
            self._by_address.setdefault(server.address, []).append(member)
            _log.info("data server %s", server)
        for server, member in self._members.items():
            member.listed = server in listed
        self._choose()

    def _moved(self, member: Member, before: Health) -> None:
        state = member.health.state
        if state is State.DOWN:
            _log.warning("server %s is down: %s", member.server, member.health.reason)
        elif before.state is State.DOWN:
            _log.info("server %s answers again", member.server)
        self._choose()
        if state is State.SUSPECT:
            self._begin_probing(member.server.address)
            self._stale.set()

    def _choose(self) -> None:
        self._asked = tuple(
            server
            for server in sorted(self._members)
            if self._members[server].health.state is not State.DOWN
        )

    # Silent servers

    def _begin_probing(self, address: str) -> None:
        if self._nursery is not None and address not in self._probed:
            self._probed.add(address)
            self._nursery.start_soon(self._probe, address)

    async def _probe(self, address: str) -> None:
        """Ping a server until it answers; `watch` hears of each."""
        try:
            while any(m.health.state is not State.UP for m in self._by_address[address]):
                again_at = trio.current_time() + self._probe_seconds
                with contextlib.suppress(CallError):
                    await self._client.ping(address)
                    continue
                await trio.sleep_until(again_at)
        finally:
            self._probed.discard(address)
