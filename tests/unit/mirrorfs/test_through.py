"""Waiting for sites, with a replicator that says what it is told to, and a clock of its own."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

from mirrorfs.inodes import InodeTable
from mirrorfs.journal.awaiting import (
    Awaited,
    CatchUp,
    CaughtUp,
    Durable,
    FromReplicator,
    Resting,
    ToReplicator,
    Undone,
    encode,
    to_replicator,
)
from mirrorfs.journal.control_client import MESSAGE_BYTES_MAX, ThroughStatus
from mirrorfs.journal.record import Change, ObjectId, Place, SequenceNumber, Tag, handle_id
from mirrorfs.through import Through, ThroughOptions

TIMEOUT = 5.0


class Replicator:
    """One that was told something, and answers."""

    def __init__(self, connection: trio.socket.SocketType) -> None:
        self._connection = connection
        self._told: list[ToReplicator] = []

    async def hears(self) -> ToReplicator:
        """The next it is told."""
        while not self._told:
            self._told = to_replicator.decode(await self._connection.recv(MESSAGE_BYTES_MAX))
        return self._told.pop(0)

    async def says(self, *messages: FromReplicator) -> None:
        """And it has been heard."""
        await self._connection.send(encode(list(messages)))
        await trio.testing.wait_all_tasks_blocked()


class Bench:
    """Write-through to one site, jobs, and the journal's head."""

    def __init__(self) -> None:
        self.head = 0
        self.through = Through(
            ThroughOptions(("site",), TIMEOUT),
            lambda _: None,
            lambda: (Tag(1), SequenceNumber(self.head)),
            InodeTable(2),
        )

    async def close(self, about: int = 0) -> tuple[float, bool]:
        """A job closes a file: how long that takes, and whether the site has it then."""
        self.head += 1
        began = trio.current_time()
        record = (self.head, change(about or self.head))
        kept = await self.through.wait(["site"], [record], lambda: False, made=False)
        return trio.current_time() - began, kept

    @property
    def status(self) -> ThroughStatus:
        """Of the site."""
        (found,) = self.through.status([])
        return found

    @contextlib.asynccontextmanager
    async def follow(self) -> AsyncIterator[Replicator]:
        """A replicator is there."""
        ours, theirs = trio.socket.socketpair(trio.socket.AF_UNIX, trio.socket.SOCK_SEQPACKET)
        with ours, theirs:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.through.follow, "site", ours)
                await trio.testing.wait_all_tasks_blocked()
                yield Replicator(theirs)
                nursery.cancel_scope.cancel()


def change(number: int) -> Change:
    """A change of that object, in the root."""
    identity = handle_id(1, 1, number.to_bytes(4, "little"))
    root = ObjectId(handle_id(1, 1, b"root"))
    return Change(identity, (Place(root, b"%d" % number),), None, 0o100644, 1, ctime_ns=number)


def run(test: object) -> None:
    """With a clock that goes on whenever everything waits."""
    trio.run(test, clock=trio.testing.MockClock(autojump_threshold=0.01))  # type: ignore[arg-type]


def test_while_a_site_is_far_behind_one_job_waits_in_vain_and_not_each(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def play() -> None:
        bench = Bench()
        async with bench.follow() as replicator:
            bench.head = 500_000  # it has read 100,000
            took = []

            async def job() -> None:
                took.append(await bench.close())

            async with trio.open_nursery() as jobs:
                for _ in range(50):  # side by side: all wait for the same time-out
                    jobs.start_soon(job)
            assert [round(seconds, 3) for seconds, _ in took] == [TIMEOUT] * 50
            took = [await bench.close() for _ in range(200)]
            assert took == [(0.0, False)] * 200
            assert "was not there in 5 s" in (bench.status.down or "")
            assert bench.status.passed == 250
            heard = [await replicator.hears() for _ in range(51)]
            assert heard[-1] == CatchUp(1, 500_050)
            # it has what it was asked for, but others have come meanwhile, which it has not read
            bench.head = 800_000
            await replicator.says(CaughtUp(500_050, 600_000))
            assert (await bench.close()) == (0.0, False)
            assert (await replicator.hears()) == CatchUp(1, 800_000)
            bench.head += 1500
            await replicator.says(CaughtUp(800_000, 801_000))
            assert bench.status.down is None

            async def answer() -> None:
                told = await replicator.hears()
                assert isinstance(told, Awaited)
                await trio.sleep(1)
                await replicator.says(Durable((told.sequence,)))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(answer)
                seconds, kept = await bench.close()
            assert (round(seconds, 3), kept) == (1.0, True)

    with caplog.at_level(logging.WARNING):
        run(play)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2, told  # once that it is down, once that it follows again
    assert "jobs do not wait for it now" in told[0]
    assert "follows again" in told[1]


def test_a_replicator_that_hears_nothing_costs_no_memory() -> None:
    """It was stopped: its buffer is full, and jobs that are killed come and go."""

    async def play() -> None:
        bench = Bench()
        bench.through.options = bench.through.options._replace(timeout=3600.0)
        async with bench.follow() as replicator:
            for _ in range(20_000):
                bench.head += 1
                record = (bench.head, change(bench.head))
                with trio.CancelScope() as scope:
                    scope.cancel()  # as the mount's end does
                    await bench.through.wait(["site"], [record], lambda: True, made=True)
            site = bench.through._sites["site"]
            assert len(site.waits) == 0
            assert len(site.news) < 1100
            # it goes on: what nobody waits for any more it does not hear of
            async with trio.open_nursery() as nursery:
                nursery.start_soon(bench.close)
                while (told := await replicator.hears()) and told.sequence != bench.head:
                    pass
                await replicator.says(Durable((bench.head,)))
            assert bench.status.passed == 0

    run(play)


def test_what_a_replicator_says_that_another_one_has_followed_is_not_heard(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def play() -> None:
        bench = Bench()
        async with bench.follow() as old, bench.follow() as new:
            await old.says(Resting("halted: it was"))
            assert bench.status.down is None
            await new.says(Resting("paused"))
            assert bench.status.down == "paused"

    run(play)
    assert len(caplog.records) == 1


def test_a_record_that_cannot_be_done_is_not_waited_for_twice(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Another one closes the file that it told of; and that site is not down because of it."""

    async def play() -> None:
        bench = Bench()
        async with bench.follow() as replicator:

            async def answer() -> None:
                told = await replicator.hears()
                assert isinstance(told, Awaited)
                await replicator.says(Undone(told.sequence, "no"))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(answer)
                assert (await bench.close(7))[1] is False
            again = [(bench.head, change(7))]
            assert await bench.through.wait(["site"], again, lambda: False, made=True) is False
            assert (bench.status.passed, bench.status.undone, bench.status.down) == (2, 1, None)
            await replicator.says(Durable((bench.head,)))
            assert bench.status.undone == 0

    run(play)
    assert len(caplog.records) == 1


def test_who_is_released_has_an_answer_and_the_next_one_waits(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def play() -> None:
        bench = Bench()
        async with bench.follow() as replicator:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(bench.close)
                await replicator.hears()
                assert bench.through.release() == 1
            assert (bench.status.passed, bench.status.waiting) == (1, 0)
            assert (await bench.close())[0] == pytest.approx(TIMEOUT)
            assert bench.through.abandon() == 0

    run(play)
    assert len(caplog.records) == 2


def test_which_sites_a_directory_inherits_is_known_until_something_above_changes() -> None:
    table, says = InodeTable(2), dict[int, bytes]()
    through = Through(
        ThroughOptions(("all",)),
        lambda node: says.get(node.number),
        lambda: (Tag(1), SequenceNumber(0)),
        table,
    )
    names = ("a", "b", "c", "d")
    nodes = {name: table.add(at, directory=True) for at, name in enumerate(names, 10)}
    above = table.root
    for name in names[:3]:  # a/b/c, and d
        table.bind(above, name.encode(), nodes[name])
        above = nodes[name]
    table.bind(table.root, b"d", nodes["d"])
    file, lost = table.add(20, directory=False), table.add(21, directory=True)
    table.bind(nodes["c"], b"f", file)
    says[lost.number] = b"off"
    assert through.sites(file) == through.sites(nodes["d"]) == ("all",)
    nodes["a"].through = ("one",)  # as setxattr does
    through.named(("one",))
    assert through.sites(file) == through.sites(nodes["c"]) == ("one",)
    assert through.sites(file, nodes["d"]) == ("one", "all")
    table.move(nodes["a"], b"b", nodes["d"], b"e")
    assert through.sites(file) == ("all",)
    table.exchange(table.root, b"a", nodes["d"], b"e")
    assert through.sites(nodes["c"]) == ("all",)
    table.bind(nodes["a"], b"again", nodes["b"])  # found there: moved behind the mount
    assert through.sites(file) == ("one",)
    assert through.sites(lost) == ()
    table.bind(table.root, b"l", lost)
    table.bind(lost, b"m", nodes["b"])
    assert through.sites(file) == ()
