"""Every call to a server, on a real federation: what it does, and what its errors are."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from tests.support import federation as support
from tests.support.federation import Federation
from xrootdfs.bridge import Bridge
from xrootdfs.errors import CallError, Origin
from xrootdfs.names import Redirector, normal_address, parse_url
from xrootdfs.values import Kind, Server, Stat
from xrootdfs.xrd import Client

pytestmark = pytest.mark.xrootd
federation = support.federation


@pytest.fixture
async def client() -> Client:
    return Client(Bridge())


@pytest.fixture
def server(federation: Federation) -> Server:
    return Server(federation.servers[0].address)


@asynccontextmanager
async def refused(expected: int) -> AsyncIterator[None]:
    """A server answers with that errno."""
    with pytest.raises(CallError) as caught:
        yield
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[expected]
    assert caught.value.origin is Origin.ANSWERED


async def outcome(call: Awaitable[Any]) -> CallError | None:
    try:
        await call
    except CallError as error:
        return error
    return None


async def test_a_files_life(client: Client, server: Server, federation: Federation) -> None:
    file = await client.open(server, b"life/of/file", create=0o640)
    await file.write(0, b"hello")
    await file.write(5, b" world")
    await file.sync()
    assert await file.read(0, 100) == b"hello world"
    assert await file.read(6, 2) == b"wo"
    assert await file.read(11, 10) == b""
    await file.truncate(5)
    assert (await file.stat()).size == 5
    await file.close()
    assert (federation.servers[0].data_dir / "life/of/file").read_bytes() == b"hello"

    stat = await client.stat(server, b"life/of/file")
    assert (stat.kind, stat.size, stat.mode, stat.pending) == (Kind.FILE, 5, 0o640, False)
    assert stat.owner
    assert (await client.stat(server, b"life/of")).kind is Kind.DIRECTORY

    async with refused(errno.EEXIST):
        await client.open(server, b"life/of/file", create=0o644)
    await client.rename(server, b"life/of/file", b"life/moved")
    await client.truncate(server, b"life/moved", 3)
    await client.chmod(server, b"life/moved", 0o600)
    assert (await client.stat(server, b"life/moved")).mode == 0o600
    reading = await client.open(server, b"life/moved")
    assert await reading.vector_read([(0, 1), (1, 2)]) == [b"h", b"el"]
    await reading.close()
    await client.unlink(server, b"life/moved")
    async with refused(errno.ENOENT):
        await client.stat(server, b"life/moved")


async def test_a_new_file_that_is_not_closed_goes(
    client: Client, server: Server, federation: Federation
) -> None:
    file = await client.open(server, b"pending", create=0o644, keep_on_close=True)
    assert (await client.stat(server, b"pending")).pending
    await file.close()
    assert not (await client.stat(server, b"pending")).pending
    await client.unlink(server, b"pending")


async def test_directories(client: Client, server: Server) -> None:
    async with refused(errno.ENOENT):
        await client.mkdir(server, b"dirs/a/b", 0o755)
    await client.mkdir(server, b"dirs/a/b", 0o750, parents=True)
    await client.mkdir(server, b"dirs/c", 0o755)
    listed = await client.list_directory(server, b"dirs")
    assert {name: stat.kind for name, stat in listed.items()} == {
        b"a": Kind.DIRECTORY,
        b"c": Kind.DIRECTORY,
    }
    assert listed[b"c"].mode == 0o755
    async with refused(errno.ENOTEMPTY):
        await client.rmdir(server, b"dirs/a")
    await client.rename(server, b"dirs/a", b"dirs/d")
    await client.rmdir(server, b"dirs/d/b")
    for name in (b"dirs/d", b"dirs/c", b"dirs"):
        await client.rmdir(server, name)
    async with refused(errno.ENOENT):
        await client.list_directory(server, b"dirs")


async def test_errors(client: Client, server: Server, federation: Federation) -> None:
    federation.servers[0].put("errors/file", b"x")
    await client.mkdir(server, b"errors/directory", 0o755)
    async with refused(errno.ENOTDIR):
        await client.stat(server, b"errors/file/below")
    async with refused(errno.ENOTDIR):
        await client.list_directory(server, b"errors/file")
    async with refused(errno.EISDIR):
        await client.open(server, b"errors", write=True)
    async with refused(errno.ENOENT):
        await client.open(server, b"errors/none")
    async with refused(errno.ENOENT):
        await client.open(server, b"errors/none", write=True)
    async with refused(errno.ENOENT):
        await client.unlink(server, b"errors/none")
    async with refused(errno.ENOENT):
        await client.rename(server, b"errors/none", b"errors/other")
    async with refused(errno.EISDIR):
        await client.rename(server, b"errors/file", b"errors/directory")
    async with refused(errno.EINVAL):
        await client.rename(server, b"errors", b"errors/below")
    async with refused(errno.ENOENT):
        await client.truncate(server, b"errors/none", 1)
    async with refused(errno.ENOENT):
        await client.chmod(server, b"errors/none", 0o644)
    async with refused(errno.EEXIST):
        await client.mkdir(server, b"errors/file", 0o755)


async def test_names_that_cannot_be_are_refused_before_anything_is_made(
    client: Client, server: Server, federation: Federation
) -> None:
    before = federation.servers[0].files()
    for name, expected in (
        (b"a?b", errno.EINVAL),
        (b"a\nb", errno.EINVAL),
        (b"\xe9", errno.EILSEQ),
    ):
        for call in (
            client.open(server, name, create=0o644),
            client.mkdir(server, name, 0o755),
            client.rename(server, b"x", name),
            client.stat(server, name),
            client.list_directory(server, name),
            client.set_xattrs(server, name, {"a": "b"}),
        ):
            error = await outcome(call)
            assert error is not None
            assert (error.errno, error.origin) == (expected, Origin.LOCAL)
    assert federation.servers[0].files() == before


@pytest.mark.parametrize(
    "name",
    ["a b", "é", "日本", "%41", "a%3Fb", "a#b", "a&b=c;d", "a@b:c", '"', "'", "a\\b", "a\tb"],
)
async def test_other_names_are_what_they_are(
    client: Client, server: Server, federation: Federation, name: str
) -> None:
    path = b"odd/" + name.encode()
    file = await client.open(server, path, create=0o644)
    await file.close()
    assert os.listdir(federation.servers[0].data_dir / "odd") == [name]
    assert list(await client.list_directory(server, b"odd")) == [name.encode()]
    await client.rename(server, path, path + b"2")
    await client.unlink(server, path + b"2")


async def test_a_listing_with_a_name_that_is_not_utf8_is_an_error_at_once(
    client: Client, server: Server, federation: Federation
) -> None:
    heard: list[CallError | None] = []
    client.watch = lambda _address, error: heard.append(error)
    federation.servers[0].put("latin/good", b"")
    directory = os.fsencode(federation.servers[0].data_dir / "latin")
    bad = os.path.join(directory, b"\xe9")
    os.close(os.open(bad, os.O_CREAT))
    try:
        error = await outcome(client.list_directory(server, b"latin"))
    finally:
        os.unlink(bad)
    assert error is not None
    assert (error.errno, error.origin) == (errno.EILSEQ, Origin.LOCAL)
    assert heard == []  # it is not the server's fault
    assert list(await client.list_directory(server, b"latin")) == [b"good"]


async def test_attributes(client: Client, server: Server, federation: Federation) -> None:
    federation.servers[0].put("attributes", b"")
    await client.set_xattrs(server, b"attributes", {"a": "1", "empty": "", "é": "ü"})
    assert await client.xattrs(server, b"attributes") == {"a": "1", "empty": "", "é": "ü"}
    assert await client.get_xattrs(server, b"attributes", ["a", "none"]) == {"a": "1"}
    assert await client.get_xattrs(server, b"attributes", ["mirrorfs.mode"]) == {}
    await client.remove_xattrs(server, b"attributes", ["a"])
    async with refused(errno.ENODATA):
        await client.remove_xattrs(server, b"attributes", ["a"])
    for call in (
        client.set_xattrs(server, b"none", {"a": "1"}),
        client.get_xattrs(server, b"none", ["a"]),
        client.get_xattrs(server, b"none", ["mirrorfs.mode"]),
        client.xattrs(server, b"none"),
    ):
        async with refused(errno.ENOENT):
            await call


@pytest.mark.parametrize(("value", "expected"), [("a\0b", errno.EINVAL), ("\udcff", errno.EILSEQ)])
async def test_attributes_that_the_binding_cannot_carry(
    client: Client, server: Server, federation: Federation, value: str, expected: int
) -> None:
    federation.servers[0].put("carried", b"")
    for call in (
        client.set_xattrs(server, b"carried", {"a": value}),
        client.set_xattrs(server, b"carried", {value: "a"}),
        client.get_xattrs(server, b"carried", [value]),
        client.remove_xattrs(server, b"carried", [value]),
    ):
        error = await outcome(call)
        assert error is not None
        assert error.errno == expected
    assert await client.xattrs(server, b"carried") == {}


async def test_what_a_server_says_of_itself(
    client: Client, server: Server, federation: Federation
) -> None:
    federation.servers[0].put("sum", b"hello")
    await client.ping(server.address)
    space = await client.space(server)
    assert 0 < space.free <= space.total
    assert await client.checksum(server, b"sum") == ("adler32", "062c0215")
    assert await client.checksum(server, b"sum", "crc32c") == ("crc32c", "9a71bb4c")
    told = await client.configuration(server.address, ["role", "nonsense"])
    assert told == {"role": "server"}
    async with refused(errno.ENOENT):
        await client.checksum(server, b"none")


async def test_data_servers_are_discovered(client: Client, federation: Federation) -> None:
    found = await client.discover(parse_url(federation.url))
    assert {s.address for s in found} == {s.address for s in federation.servers}
    below = await client.discover(parse_url(federation.url + "//x/y"))
    assert {s.prefix for s in below} == {b"/x/y"}
    alone = await client.discover(parse_url(f"root://{federation.servers[1].address}//"))
    assert [s.address for s in alone] == [normal_address(federation.servers[1].address)]


async def test_nobody_there(client: Client) -> None:
    nobody = Server("127.0.0.1:1")
    heard: list[CallError | None] = []
    client.watch = lambda _address, error: heard.append(error)
    for _ in range(2):  # the second is refused by the library, without a callback
        error = await outcome(client.stat(nobody, b"x"))
        assert error is not None
        assert error.silent
        assert error.errno == errno.EHOSTUNREACH
    assert len([each for each in heard if each is not None]) == 2
    error = await outcome(client.open(nobody, b"x"))
    assert error is not None
    assert error.silent
    error = await outcome(client.discover(Redirector("root", "127.0.0.1:1", b"/")))
    assert error is not None
    assert error.silent


async def test_a_server_that_hangs_is_left_at_the_deadline_and_its_files_are_closed(
    federation: Federation,
) -> None:
    client = Client(Bridge(), metadata_seconds=1.0, data_seconds=1.0)
    hanging = federation.servers[2]
    server = Server(hanging.address)
    hanging.put("hangs", b"x")
    file = await client.open(server, b"hangs")
    hanging.pause("xrootd")
    try:
        for call in (
            client.stat(server, b"hangs"),
            client.list_directory(server, b""),
            client.open(server, b"hangs"),
            file.read(0, 1),
            client.ping(server.address, 0.5),
        ):
            began = trio.current_time()
            error = await outcome(call)
            assert error is not None
            assert (error.errno, error.origin) == (errno.ETIMEDOUT, Origin.LATE)
            assert trio.current_time() - began < 5.0
    finally:
        hanging.resume("xrootd")
    with trio.fail_after(30.0):
        while client.bridge.in_flight:  # what was late is answered, and dropped
            await trio.lowlevel.checkpoint()
    assert await file.read(0, 1) == b"x"
    await file.close()


async def test_asking_without_waiting(federation: Federation) -> None:
    client = Client(Bridge(per_server_max=1), metadata_seconds=1.0)
    server = Server(federation.servers[0].address)
    federation.servers[0].put("soon", b"x")
    heard: list[CallError | None] = []
    client.watch = lambda _address, error: heard.append(error)
    answers: list[Stat | CallError] = []
    come = trio.Event()

    def take(answer: Stat | CallError) -> None:
        answers.append(answer)
        come.set()

    assert client.stat_soon(server, b"soon", take) is not None
    assert client.stat_soon(server, b"soon", take) is None  # too much in flight
    await come.wait()
    assert isinstance(answers[0], Stat)
    come = trio.Event()
    assert client.stat_soon(server, b"none", take) is not None
    await come.wait()
    assert isinstance(answers[1], CallError)
    assert answers[1].missing
    assert heard == [None, None]
    give_up = client.stat_soon(server, b"soon", take)
    assert give_up is not None
    give_up()
    assert isinstance(answers[2], CallError)
    assert answers[2].origin is Origin.LATE
    assert heard[2] is answers[2]
    with pytest.raises(CallError):
        client.stat_soon(server, b"a?b", take)
    client.stat_soon(Server("127.0.0.1:1"), b"x", take)
    with trio.fail_after(30.0):
        while len(answers) < 4:
            await trio.lowlevel.checkpoint()
    assert isinstance(answers[3], CallError)
    assert answers[3].silent
