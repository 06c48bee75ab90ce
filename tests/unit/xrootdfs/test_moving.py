"""No name is made below a directory that is being renamed, and nobody waits for ever."""

from __future__ import annotations

import trio

from xrootdfs.inodes import InodeTable
from xrootdfs.moving import Moving


async def test_making_waits_for_a_move_above_it(nursery: trio.Nursery) -> None:
    table, moving, done = InodeTable(), Moving(), []
    a = table.meet(table.root, b"a", is_directory=True)
    b = table.meet(a, b"b", is_directory=True)
    c = table.meet(table.root, b"c", is_directory=True)

    async def make() -> None:
        async with moving.making(b):
            done.append(table.path(b))

    async with moving.moving(a):
        nursery.start_soon(make)
        async with moving.making(c), moving.making(table.root):
            pass  # they are elsewhere
        await trio.testing.wait_all_tasks_blocked()
        assert done == []
        table.move(table.root, b"a", c, b"moved")
    await trio.testing.wait_all_tasks_blocked()
    assert done == [b"c/moved/b"]


async def test_a_move_waits_for_making_below_it(nursery: trio.Nursery) -> None:
    table, moving, moved = InodeTable(), Moving(), trio.Event()
    a = table.meet(table.root, b"a", is_directory=True)
    b = table.meet(a, b"b", is_directory=True)

    async def move() -> None:
        async with moving.moving(a):
            moved.set()

    async with moving.making(b):
        async with moving.making(b):
            nursery.start_soon(move)
            await trio.testing.wait_all_tasks_blocked()
        await trio.testing.wait_all_tasks_blocked()
        assert not moved.is_set()
    await moved.wait()
