"""Calls to servers, one coroutine each. The only module that imports the binding.

Importing it starts the client library, which reads its XRD_* settings then and starts threads at
the first request: set them, and leave the terminal, before. Uses the binding's inner module, which
gives plain dicts and lists at half the cost; it is not a documented interface, so nothing of it
leaves this file. Knows no policy: whom to ask, what silence means, is decided above.
"""

from __future__ import annotations

import enum
import errno
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import trio
from pyxrootd import client as binding

from xrootdfs.answers import space_of, stat_of
from xrootdfs.bridge import Bridge, Callback, Status, Submit
from xrootdfs.errors import CallError, Origin, error_of
from xrootdfs.names import Redirector, check_path, join, normal_address
from xrootdfs.values import Server, Space, Stat

Watch: TypeAlias = Callable[[str, CallError | None], None]
"""Told the outcome of every call: address, and the error if the server stayed silent."""

METADATA_SECONDS: Final = 5.0
DATA_SECONDS: Final = 15.0
PING_SECONDS: Final = 2.0
WRITE_BYTES_MAX: Final = 8 << 20

_LIST_PLAIN, _LIST_WITH_STAT = 0, 1
_INVALID_RESPONSE = 303
_QUERY_CHECKSUM, _QUERY_SPACE, _QUERY_CONFIG = 3, 5, 7
_MAKE_PATH = 1
_OURS = "mirrorfs."
_RETRY_SECONDS = 0.1
_NO_RECOVERY = "?xrdcl.recover-reads=false&xrdcl.recover-writes=false"
"""For the library only. It would open the name again, which may be another file by then. (Not by
`set_property`, which takes a reference to True from the interpreter until there is none left.)"""


class _Open(enum.IntFlag):
    """Flags of an open request.

    FORCE: without it a server refuses to open for writing what anybody reads, and for reading what
    anybody writes, which jobs do not expect. It refuses by the name: to make a file, too, while a
    removed one of that name is open. But of two that make a file with FORCE both may succeed.
    """

    FORCE = 0x4
    NEW = 0x8
    READ = 0x10
    UPDATE = 0x20
    MAKE_PATH = 0x100
    POSC = 0x1000


class Client:
    """All data servers and redirectors, as one client of them sees them."""

    def __init__(
        self,
        bridge: Bridge,
        *,
        metadata_seconds: float = METADATA_SECONDS,
        data_seconds: float = DATA_SECONDS,
    ) -> None:
        self.bridge = bridge
        self.metadata_seconds = metadata_seconds
        self.data_seconds = data_seconds
        self.watch: Watch = _nobody
        self._file_systems: dict[str, Any] = {}

    # Names

    async def stat(self, server: Server, path: bytes) -> Stat:
        """What is there. CallError, here and below; ENOENT, ENOTDIR if nothing is."""
        text = _text(server, path)
        return stat_of(await self._call(server, "stat", {"path": text}))

    def stat_soon(
        self, server: Server, path: bytes, take: Callable[[Stat | CallError], None]
    ) -> Callable[[], None] | None:
        """The same without a task of one's own: `take` is given the answer, in trio's thread.

        What is returned ends the wait now: `take` is told that the server is late. None, and
        nothing is asked, if too much is in flight.
        """
        address = server.address
        submit = _submission(self._file_system(address).stat, {"path": _text(server, path)})

        def answered(status: Status, response: Any) -> None:
            if status["ok"]:
                self.watch(address, None)
                take(stat_of(response))
                return
            error = error_of(status)
            if error.origin is not Origin.LOCAL:
                self.watch(address, error if error.silent else None)
            take(error)

        drop = self.bridge.post(address, submit, self.metadata_seconds, answered)
        if drop is None:
            return None

        def give_up() -> None:
            drop()
            reason = f"{address}: no answer in {self.metadata_seconds:g} s"
            error = CallError(errno.ETIMEDOUT, reason, Origin.LATE)
            self.watch(address, error)
            take(error)

        return give_up

    async def list_directory(self, server: Server, path: bytes) -> dict[bytes, Stat]:
        """Names in a directory, with what each is. EILSEQ if one of them is not UTF-8."""
        text = _text(server, path)
        directory = self._file_system(server.address)

        def work(seconds: int) -> tuple[Status, Any]:
            status, listed = directory.dirlist(path=text, flags=_LIST_WITH_STAT, timeout=seconds)
            if status["code"] == _INVALID_RESPONSE:  # a newline in a name
                status, listed = directory.dirlist(path=text, flags=_LIST_PLAIN, timeout=seconds)
            return status, listed

        listed = await self._watched(server.address, self._in_thread(server, work))
        entries = {
            entry["name"].encode(): entry["statinfo"] and stat_of(entry["statinfo"])
            for entry in listed["dirlist"]
        }
        if None in entries.values():
            return await self._complete(server, path, entries)
        return entries

    async def _complete(
        self, server: Server, path: bytes, entries: Mapping[bytes, Stat | None]
    ) -> dict[bytes, Stat]:
        """A server that cannot tell about one name (a dead symlink) tells about none of them."""
        complete: dict[bytes, Stat] = {}
        errors: list[CallError] = []

        async def look(name: bytes) -> None:
            try:
                complete[name] = await self.stat(server, join(path, name))
            except CallError as error:
                if not error.missing:
                    errors.append(error)

        async with trio.open_nursery() as nursery:
            for name, stat in entries.items():
                if stat is None:
                    nursery.start_soon(look, name)
                else:
                    complete[name] = stat
        if errors:
            raise errors[0]
        return complete

    async def mkdir(self, server: Server, path: bytes, mode: int, *, parents: bool = False) -> None:
        """Make a directory. A directory that is there already is no error to the server."""
        flags = _MAKE_PATH if parents else 0
        await self._change(server, "mkdir", path, flags=flags, mode=mode & 0o777)

    async def rmdir(self, server: Server, path: bytes) -> None:
        """Remove an empty directory."""
        await self._change(server, "rmdir", path)

    async def unlink(self, server: Server, path: bytes) -> None:
        """Remove a file. An empty directory is removed as well: look before."""
        await self._change(server, "rm", path)

    async def rename(self, server: Server, old: bytes, new: bytes) -> None:
        """Rename at one server, over what is there; makes the directories above `new`."""
        arguments = {"source": _text(server, old), "dest": _text(server, new)}
        await self._call(server, "mv", arguments)

    async def truncate(self, server: Server, path: bytes, size: int) -> None:
        """Set a file's size."""
        await self._change(server, "truncate", path, size=size)

    async def chmod(self, server: Server, path: bytes, mode: int) -> None:
        """Set permission bits."""
        await self._change(server, "chmod", path, mode=mode & 0o777)

    # Attributes the protocol lacks are kept in extended attributes; both are UTF-8 without NUL

    async def xattrs(self, server: Server, path: bytes) -> dict[str, str]:
        """All extended attributes. EILSEQ if one of them is not UTF-8."""
        text = _text(server, path)
        file_system = self._file_system(server.address)

        def work(seconds: int) -> tuple[Status, Any]:
            answer: tuple[Status, Any] = file_system.list_xattr(path=text, timeout=seconds)
            return answer

        listed = await self._watched(server.address, self._in_thread(server, work))
        return {name: value for name, value, status in listed if status["ok"]}

    async def get_xattrs(self, server: Server, path: bytes, names: Sequence[str]) -> dict[str, str]:
        """Those of the named ones that exist."""
        _check_texts("".join(names))
        text = _text(server, path)
        file_system = self._file_system(server.address)
        if all(name.startswith(_OURS) for name in names):  # ASCII, by docs/xattrs.md
            arguments = {"path": text, "attrs": list(names)}
            items = await self._call(server, "get_xattr", arguments)
            return {name: value for name, value, status in items if _done(status, errno.ENODATA)}

        def work(seconds: int) -> tuple[Status, Any]:
            answer: tuple[Status, Any] = file_system.get_xattr(
                path=text, attrs=list(names), timeout=seconds
            )
            return answer

        items = await self._watched(server.address, self._in_thread(server, work))
        return {name: value for name, value, status in items if _done(status, errno.ENODATA)}

    async def set_xattrs(self, server: Server, path: bytes, values: Mapping[str, str]) -> None:
        """Set several. EINVAL for what the binding cannot carry."""
        _check_texts("".join(name + value for name, value in values.items()))
        arguments = {"path": _text(server, path), "attrs": list(values.items())}
        for _, status in await self._call(server, "set_xattr", arguments):
            _done(status)

    async def remove_xattrs(self, server: Server, path: bytes, names: Sequence[str]) -> None:
        """Remove several. ENODATA if one does not exist."""
        _check_texts("".join(names))
        arguments = {"path": _text(server, path), "attrs": list(names)}
        for _, status in await self._call(server, "del_xattr", arguments):
            _done(status)

    # Files

    async def open(
        self,
        server: Server,
        path: bytes,
        *,
        write: bool = False,
        create: int | None = None,
        keep_on_close: bool = False,
        force: bool = True,
    ) -> File:
        """Open a file for reading, or for both.

        `create`: permission bits of a file to be made; EEXIST if there is one; directories above
        it are made. `keep_on_close`: the new file goes if we die before closing it. `force`: do not
        mind who has the name open (else EBUSY); without it only one of several makes the file.
        """
        text = _text(server, path)
        flags = _Open.FORCE if force else _Open(0)
        if create is not None:
            flags |= _Open.NEW | _Open.UPDATE | _Open.MAKE_PATH
            if keep_on_close:
                flags |= _Open.POSC
        else:
            flags |= _Open.UPDATE if write else _Open.READ
        handle = binding.File()
        arguments = {
            "url": f"root://{server.address}/{text}{_NO_RECOVERY}",
            "flags": int(flags),
            "mode": (create or 0) & 0o777,
        }

        def late(status: Status, _: object) -> None:
            if status["ok"]:
                handle.close(callback=_nothing)  # nobody waits for it any more

        await self._call_handle(server.address, handle.open, arguments, self.metadata_seconds, late)
        return File(self, server, path, handle)

    # Servers

    async def ping(self, address: str, seconds: float = PING_SECONDS) -> None:
        """Does it answer?"""
        file_system = self._file_system(address)
        submit = _submission(file_system.ping, {})
        await self._watched(address, self.bridge.call(address, submit, seconds, urgent=True))

    async def discover(self, redirector: Redirector) -> list[Server]:
        """The data servers that a redirector knows, below all its managers.

        In a thread: the address of the redirector may have to be looked up. A data server named in
        place of a redirector tells itself.
        """
        url = f"{redirector.scheme}://{redirector.address}"

        def work(seconds: int) -> tuple[Status, Any]:
            answer: tuple[Status, Any] = binding.FileSystem(url).deeplocate(
                path="*", flags=0, timeout=seconds
            )
            return answer

        located = await self.bridge.call_in_thread(redirector.address, work, self.metadata_seconds)
        addresses = {normal_address(item["address"]) for item in located if item["is_server"]}
        return sorted(Server(address, redirector.prefix) for address in addresses if address)

    async def space(self, server: Server) -> Space:
        """Room for files."""
        path = _text(server, b"")
        data = await self._call(server, "query", {"querycode": _QUERY_SPACE, "arg": path})
        return space_of(data)

    async def checksum(
        self, server: Server, path: bytes, algorithm: str | None = None
    ) -> tuple[str, str]:
        """Name and hexadecimal value of a file's checksum; the server may have to read it all."""
        text = _text(server, path) + (f"?cks.type={algorithm}" if algorithm else "")
        file_system = self._file_system(server.address)
        arguments = {"querycode": _QUERY_CHECKSUM, "arg": text}
        data = await self._call_handle(
            server.address, file_system.query, arguments, self.data_seconds
        )
        words = data.rstrip(b"\0\n").decode(errors="replace").split()
        if len(words) != 2:
            raise CallError(errno.ENODATA, f"no checksum: {data!r}", Origin.ANSWERED)
        return words[0], words[1]

    async def configuration(self, address: str, keys: Sequence[str]) -> dict[str, str]:
        """Values of a server's configuration (`role`, `sitename`, `version`); those it knows."""
        file_system = self._file_system(address)
        arguments = {"querycode": _QUERY_CONFIG, "arg": " ".join(keys)}
        data = await self._call_handle(address, file_system.query, arguments, self.metadata_seconds)
        lines = data.rstrip(b"\0").decode(errors="replace").splitlines()
        told = dict(zip(keys, lines, strict=False))
        return {key: value for key, value in told.items() if value != key}  # the key: not known

    # How

    def _file_system(self, address: str) -> Any:
        known = self._file_systems.get(address)
        if known is None:
            known = self._file_systems[address] = binding.FileSystem(f"root://{address}")
        return known

    async def _change(self, server: Server, method: str, path: bytes, **arguments: Any) -> None:
        await self._call(server, method, {"path": _text(server, path), **arguments})

    async def _call(self, server: Server, method: str, arguments: dict[str, Any]) -> Any:
        function = getattr(self._file_system(server.address), method)
        return await self._call_handle(server.address, function, arguments, self.metadata_seconds)

    async def _call_handle(
        self,
        address: str,
        function: Callable[..., Status],
        arguments: dict[str, Any],
        seconds: float,
        late: Callable[[Status, Any], None] | None = None,
    ) -> Any:
        """One call; asked again within its deadline while the server says that it has no time."""

        submit = _submission(function, arguments)
        end = trio.current_time() + seconds
        while True:
            left = end - trio.current_time()
            try:
                return await self._watched(address, self.bridge.call(address, submit, left, late))
            except CallError as error:
                if error.silent or error.errno != errno.EAGAIN or left < 2 * _RETRY_SECONDS:
                    raise
                await trio.sleep(_RETRY_SECONDS)

    async def _in_thread(self, server: Server, work: Callable[[int], tuple[Status, Any]]) -> Any:
        return await self.bridge.call_in_thread(server.address, work, self.metadata_seconds)

    async def _watched(self, address: str, call: Awaitable[Any]) -> Any:
        try:
            response = await call
        except CallError as error:
            if error.origin is not Origin.LOCAL:
                self.watch(address, error if error.silent else None)
            raise
        self.watch(address, None)
        return response


class File:
    """An open file at one server. Close it, and wait for that, before dropping it."""

    def __init__(self, client: Client, server: Server, path: bytes, handle: Any) -> None:
        self.server = server
        self.path = path
        self._client = client
        self._handle = handle

    async def read(self, offset: int, size: int) -> bytes:
        """Bytes of a range; fewer only at the end of the file."""
        data: bytes = await self._call(self._handle.read, {"offset": offset, "size": size})
        return data

    async def vector_read(self, chunks: Sequence[tuple[int, int]]) -> list[bytes]:
        """Several ranges, each (offset, size), all within the file."""
        answer = await self._call(self._handle.vector_read, {"chunks": list(chunks)})
        return [chunk["buffer"] for chunk in answer["chunks"]]

    async def write(self, offset: int, data: bytes) -> None:
        """Write a range, whole. The server has it then, its disk perhaps not."""
        await self._call(self._handle.write, {"buffer": data, "offset": offset})

    async def sync(self) -> None:
        """Return when what was written is on the server's disk."""
        await self._call(self._handle.sync, {})

    async def truncate(self, size: int) -> None:
        """Set the size."""
        await self._call(self._handle.truncate, {"size": size})

    async def stat(self, *, fresh: bool = True) -> Stat:
        """As the server sees it now, by the handle; or as it was when it was opened, which costs
        no request and knows neither mode nor owner."""
        return stat_of(await self._call(self._handle.stat, {"force": fresh}))

    async def close(self) -> None:
        """Close; an error may mean that what was written is not kept."""
        await self._call(self._handle.close, {})

    async def _call(self, function: Callable[..., Status], arguments: dict[str, Any]) -> Any:
        client = self._client
        return await client._call_handle(
            self.server.address, function, arguments, client.data_seconds
        )


def _submission(function: Callable[..., Status], arguments: Mapping[str, Any]) -> Submit:
    def submit(callback: Callback, timeout: int) -> Status:
        return function(**arguments, callback=callback, timeout=timeout)

    return submit


def _text(server: Server, path: bytes) -> str:
    check_path(path)
    text: str = server.path(path).decode()
    return text


def _check_texts(text: str) -> None:
    """The binding ends the process at a lone surrogate, and cuts what follows a NUL."""
    if "\0" in text:
        raise CallError(errno.EINVAL, "NUL cannot be in an attribute", Origin.LOCAL)
    try:
        text.encode()
    except UnicodeEncodeError:
        reason = "an attribute that is not UTF-8 cannot be in a federation"
        raise CallError(errno.EILSEQ, reason, Origin.LOCAL) from None


def _done(status: Status, but: int = 0) -> bool:
    """Was that item of a request done? CallError if not, except for one errno."""
    if status["ok"]:
        return True
    error = error_of(status)
    if error.errno != but:
        raise error
    return False


def _nobody(_address: str, _error: CallError | None) -> None:
    """Watches nothing."""


def _nothing(*_: object) -> None:
    """A callback that nobody waits for."""
