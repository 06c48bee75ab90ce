"""Waiting for requests: nobody is forgotten, and nobody waits for ever behind requests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pyfuse3
import pytest
import trio

from mirrorfs import request_loop


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    for descriptor in (reading, writing):
        os.close(descriptor)


@pytest.fixture(params=[True, False], ids=["patient", "not patient"])
def loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What pyfuse3 takes for trio."""
    monkeypatch.setattr(pyfuse3, "trio", trio)
    request_loop.install(patient=request.param)
    found: Any = vars(pyfuse3)["trio"]
    return found


async def test_workers_share_a_descriptor_as_those_of_pyfuse3_do(
    loop: Any, pipe: tuple[int, int]
) -> None:
    reading, writing = pipe
    lock = loop.Lock()
    served: list[bytes] = []

    async def worker() -> None:
        while len(served) < 500:
            async with lock:
                await loop.lowlevel.wait_readable(reading)
            byte = os.read(reading, 1)
            if byte[0] % 3 == 0:  # a request that waits for something
                await trio.lowlevel.checkpoint()
            served.append(byte)

    async def jobs() -> None:
        for number in range(505):
            os.write(writing, bytes((number % 256,)))
            if number % 7 == 0:
                await trio.lowlevel.checkpoint()

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(worker)
            nursery.start_soon(jobs)
    expected = [bytes((number % 256,)) for number in range(len(served))]
    assert sorted(served) == sorted(expected)


async def test_other_tasks_have_their_turn_while_requests_keep_coming(
    loop: Any, pipe: tuple[int, int]
) -> None:
    reading, writing = pipe
    os.write(writing, b"always readable")
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        for _ in range(1000):
            await loop.lowlevel.wait_readable(reading)
        assert turns >= 10
        nursery.cancel_scope.cancel()


async def test_a_wait_ends_when_the_loop_is_cancelled(loop: Any, pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    with trio.CancelScope() as scope:
        scope.cancel()
        await loop.lowlevel.wait_readable(reading)
    assert scope.cancelled_caught
    os.write(writing, b"x")
    await loop.lowlevel.wait_readable(reading)


async def test_the_rest_is_trio(loop: Any) -> None:
    assert loop.open_nursery is trio.open_nursery
    assert loop.ClosedResourceError is trio.ClosedResourceError
    assert loop.lowlevel.notify_closing is trio.lowlevel.notify_closing
