"""Which servers are asked: discovery, silence, probes. Time is the test's, the client a script."""

from __future__ import annotations

import errno
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import cast

import pytest
import trio
import trio.testing

from xrootdfs.breaker import State
from xrootdfs.errors import CallError, Origin
from xrootdfs.names import Redirector
from xrootdfs.topology import Topology
from xrootdfs.values import Server
from xrootdfs.xrd import Client

A, B, C = (Server(f"{name}:1094") for name in "abc")
ONE, OTHER = (Redirector("root", f"{name}:1094", b"/") for name in ("one", "other"))
REFUSED = CallError(errno.EHOSTUNREACH, "refused", Origin.UNREACHABLE)


class Script:
    """A client of redirectors that say what they are told to, and of servers that may be silent."""

    def __init__(self) -> None:
        self.watch: Callable[[str, CallError | None], None] = lambda _address, _error: None
        self.knows: dict[Redirector, list[Server]] = {}
        self.silent: set[str] = set()
        self.pings: list[tuple[str, float]] = []
        self.discoveries = 0

    async def discover(self, redirector: Redirector) -> list[Server]:
        await trio.lowlevel.checkpoint()
        self.discoveries += 1
        if redirector not in self.knows:
            raise REFUSED
        return self.knows[redirector]

    async def ping(self, address: str) -> None:
        await trio.lowlevel.checkpoint()
        self.pings.append((address, trio.current_time()))
        self.watch(address, REFUSED if address in self.silent else None)
        if address in self.silent:
            raise REFUSED


@asynccontextmanager
async def running(script: Script, *redirectors: Redirector) -> AsyncIterator[Topology]:
    topology = Topology(cast(Client, script), redirectors or [ONE])
    await topology.discover()
    async with trio.open_nursery() as nursery:
        await nursery.start(topology.run)
        yield topology
        nursery.cancel_scope.cancel()


@pytest.fixture
def script() -> Script:
    script = Script()
    script.knows[ONE] = [B, A]
    return script


async def test_servers_are_discovered(
    script: Script, autojump_clock: trio.testing.MockClock
) -> None:
    async with running(script) as topology:
        assert topology.servers == topology.asked == (A, B)
        assert topology.lost() == {}
        assert all(member.listed for member in topology.members)


async def test_several_redirectors_are_one_federation(
    script: Script, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    script.knows[OTHER] = [C, Server("a:1094", b"/x")]
    async with running(script, ONE, OTHER) as topology:
        assert topology.servers == (A, Server("a:1094", b"/x"), B, C)
        topology.watch("a:1094", REFUSED)
        topology.watch("a:1094", REFUSED)
        assert topology.asked == (B, C)


async def test_a_redirector_that_does_not_answer_at_first_is_an_error(
    script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    topology = Topology(cast(Client, script), [ONE, OTHER])
    with pytest.raises(CallError) as caught:
        await topology.discover()
    assert caught.value.silent
    assert topology.redirector_errors == {OTHER: "refused"}
    assert topology.servers == (A, B)


async def test_a_redirector_that_knows_nobody_is_an_error(
    script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    script.knows[ONE] = []
    with pytest.raises(CallError) as caught:
        await Topology(cast(Client, script), [ONE]).discover()
    assert caught.value.errno == errno.ENXIO


async def test_one_silence_makes_suspect_and_is_looked_into_at_once(
    script: Script, autojump_clock: trio.testing.MockClock
) -> None:
    async with running(script) as topology:
        topology.watch(A.address, REFUSED)
        assert topology.state(A) is State.SUSPECT
        assert topology.asked == (A, B)
        await trio.testing.wait_all_tasks_blocked()
        assert topology.state(A) is State.UP
        assert [address for address, _ in script.pings] == [A.address]


async def test_a_dead_server_is_not_asked_until_a_ping_is_answered(
    script: Script, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with running(script) as topology:
        lost_at = trio.current_time()
        script.silent.add(A.address)
        topology.watch(A.address, REFUSED)
        await trio.testing.wait_all_tasks_blocked()
        assert topology.state(A) is State.DOWN
        assert topology.asked == (B,)
        assert topology.lost() == {A: lost_at}
        await trio.sleep(7.0)
        moments = [at - lost_at for _, at in script.pings]
        assert moments == [0.0, 2.0, 4.0, 6.0]
        script.silent.clear()
        await trio.sleep(2.0)
        assert set(topology.asked) == {A, B}
        assert topology.lost() == {}
        assert len(script.pings) == 5
    said = [record.getMessage() for record in caplog.records]
    assert "server a:1094 is down: refused" in said
    assert "server a:1094 answers again" in said


async def test_silence_has_the_redirectors_asked_again(
    script: Script, autojump_clock: trio.testing.MockClock
) -> None:
    async with running(script) as topology:
        script.knows[ONE] = [B, C]
        topology.watch(A.address, REFUSED)
        await trio.sleep(1.0)
        assert topology.servers == (A, B, C)
        assert [member.listed for member in topology.members] == [False, True, True]
        asked = script.discoveries
        for _ in range(10):
            topology.watch(A.address, REFUSED)
            await trio.sleep(0.1)
        assert script.discoveries == asked  # but not all the time


async def test_redirectors_are_asked_every_minute(
    script: Script, autojump_clock: trio.testing.MockClock
) -> None:
    async with running(script) as topology:
        script.knows[ONE] = [A, B, C]
        await trio.sleep(61.0)
        assert topology.servers == (A, B, C)


async def test_a_silent_redirector_takes_no_server_away(
    script: Script, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(script) as topology:
        del script.knows[ONE]
        await trio.sleep(200.0)
        assert topology.asked == (A, B)
        assert topology.redirector_errors == {ONE: "refused"}
        script.knows[ONE] = [A, B]
        await trio.sleep(70.0)
        assert topology.redirector_errors == {}
    warnings = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(warnings) == 1


async def test_who_was_silent_before_it_runs_is_probed_then(
    script: Script, autojump_clock: trio.testing.MockClock
) -> None:
    topology = Topology(cast(Client, script), [ONE])
    await topology.discover()
    topology.watch(A.address, REFUSED)
    async with trio.open_nursery() as nursery:
        await nursery.start(topology.run)
        await trio.testing.wait_all_tasks_blocked()
        assert topology.state(A) is State.UP
        nursery.cancel_scope.cancel()


async def test_calls_to_strangers_are_nothing(script: Script) -> None:
    Topology(cast(Client, script), [ONE]).watch("redirector:1094", REFUSED)
