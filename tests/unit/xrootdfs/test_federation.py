"""What the tree says while servers come and go, or are late, between a question and its answers."""

from __future__ import annotations

import errno
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import cast

import pytest
import trio
import trio.testing

from xrootdfs.errors import CallError, Origin
from xrootdfs.federation import Federation
from xrootdfs.names import Redirector
from xrootdfs.topology import Topology
from xrootdfs.values import Found, Kind, Server, Stat
from xrootdfs.xrd import Client

A, B = Server("a:1094"), Server("b:1094")
SILENT = CallError(errno.EHOSTUNREACH, "refused", Origin.UNREACHABLE)
MISSING = CallError(errno.ENOENT, "no such file", Origin.ANSWERED)
FILE = Stat(Kind.FILE, 1, 0o644, 0, 0, 0)


class TwoServers:
    """A client of A, which answers, and B, which is down; `meanwhile` happens before A answers."""

    def __init__(self) -> None:
        self.watch: Callable[[str, CallError | None], None] = lambda address, error: None
        self.meanwhile: Callable[[], None] = lambda: None
        self.held_by_a: set[bytes] = set()
        self.metadata_seconds = 5.0

    def stat_soon(self, *_: object) -> None:
        """There is no room: `stat` is to be called."""

    async def discover(self, _redirector: Redirector) -> list[Server]:
        return [A, B]

    async def stat(self, server: Server, path: bytes) -> Stat:
        assert server == A, "who is down is not asked"
        await trio.lowlevel.checkpoint()
        self.meanwhile()
        if path in self.held_by_a:
            return FILE
        raise MISSING

    async def list_directory(self, server: Server, _path: bytes) -> dict[bytes, Stat]:
        assert server == A, "who is down is not asked"
        await trio.lowlevel.checkpoint()
        self.meanwhile()
        return dict.fromkeys(self.held_by_a, FILE)


@pytest.fixture
def client() -> TwoServers:
    return TwoServers()


@pytest.fixture
async def federation(
    client: TwoServers, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Federation]:
    monkeypatch.setattr(logging.getLogger("xrootdfs.topology"), "disabled", True)
    topology = Topology(cast(Client, client), [Redirector("root", "r:1094", b"/")])
    await topology.discover()
    for _ in range(2):
        topology.watch(B.address, SILENT)
    client.meanwhile = lambda: topology.watch(B.address, None)
    async with trio.open_nursery() as nursery:
        yield Federation(cast(Client, client), topology, nursery)
        nursery.cancel_scope.cancel()


async def test_server_that_returns_while_others_are_asked_still_leaves_doubt(
    federation: Federation,
) -> None:
    with pytest.raises(CallError) as failed:
        await federation.find(b"/name")
    assert failed.value.errno == errno.EIO


async def test_also_for_changes(federation: Federation, client: TwoServers) -> None:
    client.held_by_a.add(b"/name")
    with pytest.raises(CallError) as failed:
        await federation.find_everywhere(b"/name")
    assert failed.value.errno == errno.EIO


async def test_also_in_listings(federation: Federation, client: TwoServers) -> None:
    client.held_by_a.add(b"name")
    listing = await federation.list(b"/directory")
    assert list(listing.entries) == [b"name"]
    assert listing.silent == (B,)


class LateServers(TwoServers):
    """A client of A, which answers at once, and B, which answers when it is let to."""

    def __init__(self) -> None:
        super().__init__()
        self.let = trio.Event()
        self.a_says: Stat | CallError = FILE
        self.b_says: Stat | CallError = MISSING
        self.asked: list[Server] = []

    async def stat(self, server: Server, path: bytes) -> Stat:
        self.asked.append(server)
        await trio.lowlevel.checkpoint()
        if server == B:
            await self.let.wait()
        said = self.a_says if server == A else self.b_says
        if isinstance(said, CallError):
            raise said
        return said


@pytest.fixture
def late() -> LateServers:
    return LateServers()


@pytest.fixture
async def slow(late: LateServers) -> AsyncIterator[Federation]:
    topology = Topology(cast(Client, late), [Redirector("root", "r:1094", b"/")])
    await topology.discover()
    async with trio.open_nursery() as nursery:
        yield Federation(cast(Client, late), topology, nursery)
        late.let.set()


async def test_who_answers_late_is_heard_all_the_same(slow: Federation, late: LateServers) -> None:
    assert (await slow.find(b"name")).holders == (A,)
    late.let.set()
    await trio.testing.wait_all_tasks_blocked()
    assert (await slow.find_everywhere(b"name")).holders == (A,)
    assert late.asked == [A, B] or late.asked == [B, A]


async def test_a_newer_copy_that_is_told_of_late_counts(
    slow: Federation, late: LateServers, caplog: pytest.LogCaptureFixture
) -> None:
    late.b_says = replace(FILE, mtime=1, size=7)
    assert (await slow.find(b"name")).stat.size == FILE.size
    late.let.set()
    await trio.testing.wait_all_tasks_blocked()
    found = await slow.find(b"name")
    assert (found.stat.size, found.holders) == (7, (B, A))


async def test_what_was_changed_meanwhile_is_not_learned_from_late_answers(
    slow: Federation, late: LateServers
) -> None:
    await slow.find(b"name")
    slow.changed(b"name")
    late.let.set()
    await trio.testing.wait_all_tasks_blocked()
    await slow.find_everywhere(b"name")
    assert len(late.asked) == 4


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO])
async def test_a_server_that_cannot_tell_leaves_doubt(
    slow: Federation, late: LateServers, code: int
) -> None:
    late.b_says = CallError(code, "its disk", Origin.ANSWERED)
    late.let.set()
    assert (await slow.find(b"name")).holders == (A,)
    await trio.testing.wait_all_tasks_blocked()
    with pytest.raises(CallError) as failed:
        await slow.find_everywhere(b"name")
    assert failed.value.errno == code


async def test_absence_is_news_for_a_moment(
    slow: Federation, late: LateServers, autojump_clock: trio.testing.MockClock
) -> None:
    late.let.set()
    late.a_says = MISSING
    assert not slow.absent_just_now(b"name")
    with pytest.raises(CallError):
        await slow.find(b"name")
    assert slow.absent_just_now(b"name")
    await trio.sleep(0.1)
    assert not slow.absent_just_now(b"name")
    late.a_says = FILE
    await slow.find(b"name", fresh=True)
    assert not slow.absent_just_now(b"name")


async def test_copies_that_differ_are_told_of_once(
    federation: Federation, client: TwoServers, caplog: pytest.LogCaptureFixture
) -> None:
    found = Found(FILE, (A, B), (A,))
    for _ in range(2):
        federation._report(b"twice", found)
    federation._report(b"equal", Found(FILE, (A, B), (A, B)))
    said = [r.getMessage() for r in caplog.records if r.name == "xrootdfs.federation"]
    assert said == ["twice: copies differ; that of a:1094 is served, not those of b:1094"]
