"""What the XRootD binding costs the interpreter: nothing that a long life would not stand.

Before Python 3.12 a program ends when the last reference to None, True, a small number or the empty
string is given up, and a compiled module can give up references that it does not have.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Awaitable, Callable
from typing import Final

import pytest

from tests.support.federation import Federation
from tests.support.federation import federation as federation
from xrootdfs import mount

mount.connect()

from xrootdfs.bridge import Bridge  # noqa: E402 - the library reads its settings when it is loaded
from xrootdfs.errors import CallError  # noqa: E402
from xrootdfs.values import Server  # noqa: E402
from xrootdfs.xrd import Client  # noqa: E402

pytestmark = pytest.mark.xrootd

_TIMES = 100
_STRAY = 50
"""What other parts of the interpreter may hold at one time and not at another."""


_CONSTANTS: Final = (None, True, False, (), "", b"", *range(-5, 257), *map(chr, range(256)))


def _references() -> list[int]:
    gc.collect()
    return [sys.getrefcount(constant) for constant in _CONSTANTS]


def _calls(client: Client, server: Server) -> dict[str, Callable[[], Awaitable[object]]]:
    async def files() -> None:
        file = await client.open(server, b"d/f", write=True)
        await file.stat(fresh=False)
        await file.stat()
        await file.write(0, b"content")
        await file.read(0, 10)
        await file.vector_read([(0, 2), (3, 2)])
        await file.truncate(7)
        await file.sync()
        await file.close()

    async def new_files() -> None:
        await (await client.open(server, b"d/new", create=0o644)).close()
        await client.unlink(server, b"d/new")

    async def failures() -> None:
        for call in (
            client.stat(server, b"d/nothing"),
            client.open(server, b"d/nothing"),
            client.get_xattrs(server, b"d/nothing", ["a"]),
            client.list_directory(server, b"d/nothing"),
        ):
            with pytest.raises(CallError):
                await call

    async def names() -> None:
        await client.mkdir(server, b"d/e", 0o755)
        await client.rename(server, b"d/e", b"d/r")
        await client.chmod(server, b"d/r", 0o700)
        await client.list_directory(server, b"d")
        await client.rmdir(server, b"d/r")
        await client.truncate(server, b"d/f", 7)

    async def attributes() -> None:
        await client.set_xattrs(server, b"d/f", {"a": "1", "b": "2"})
        await client.get_xattrs(server, b"d/f", ["a", "c"])
        await client.xattrs(server, b"d/f")
        await client.remove_xattrs(server, b"d/f", ["a", "b"])

    async def servers() -> None:
        await client.ping(server.address)
        await client.space(server)
        await client.checksum(server, b"d/f")
        await client.configuration(server.address, ["role", "version"])

    return {
        "files": files,
        "new files": new_files,
        "failures": failures,
        "names": names,
        "attributes": attributes,
        "servers": servers,
    }


async def test_no_call_takes_references_that_are_not_its_own(federation: Federation) -> None:
    federation.put("/d/f", b"content", 0)
    client, server = Client(Bridge()), Server(federation.servers[0].address)
    for name, call in _calls(client, server).items():
        await call()
        before = _references()
        for _ in range(_TIMES):
            await call()
        after = _references()
        taken = {
            constant: was - now
            for constant, was, now in zip(_CONSTANTS, before, after, strict=True)
            if was - now >= _STRAY
        }
        assert taken == {}, name
