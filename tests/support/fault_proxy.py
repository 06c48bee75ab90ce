"""A TCP proxy before a data server that makes its network bad: late, slow, silent, cut.

`FaultProxy` starts one and commands it. Run as a program this module is the proxy, in a process of
its own so that the tests' own load does not disturb it: only the standard library.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

_CHUNK_BYTES: Final = 1 << 18
_STREAM_BYTES: Final = 1 << 20
_QUEUE_CHUNKS: Final = 4096


class FaultProxy:
    """A running proxy: whoever connects to `front` speaks to host:port behind it."""

    def __init__(self, front: socket.socket, host: str, port: int, log: Path) -> None:
        """Start it; it takes `front` over, which is closed here."""
        with front, log.open("ab") as stream:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__, str(front.fileno()), host, str(port)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                pass_fds=[front.fileno()],
                start_new_session=True,
                text=True,
            )
        self.pid = self._process.pid

    def order(self, **order: float | bool) -> None:
        """Change what it does, and return when that holds: delay (seconds), rate (bytes/s, 0 for
        no limit), stalled, reset."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        if self._process.stdout.readline() != "done\n":
            raise RuntimeError("the proxy has ended")

    def end(self) -> None:
        """No more proxy; connections through it are cut."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()


class _Proxy:
    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._delay_seconds = 0.0
        self._rate = 0.0
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._clients: set[asyncio.StreamWriter] = set()

    def obey(self, order: dict[str, Any]) -> None:
        self._delay_seconds = order.get("delay", self._delay_seconds)
        self._rate = order.get("rate", self._rate)
        if "stalled" in order:
            (self._flowing.clear if order["stalled"] else self._flowing.set)()
        if order.get("reset"):
            for client in list(self._clients):
                _socket(client).setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
                client.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of a client."""
        try:
            behind = await asyncio.open_connection(self._host, self._port, limit=_STREAM_BYTES)
        except OSError:
            writer.transport.abort()
            return
        for end in (writer, behind[1]):
            _socket(end).setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._clients.add(writer)
        ways = [
            asyncio.ensure_future(self._up(reader, behind[1])),
            asyncio.ensure_future(self._down(behind[0], writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            self._clients.discard(writer)
            for end in (writer, behind[1]):
                end.transport.abort()

    async def _up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK_BYTES):
            await self._flowing.wait()
            writer.write(data)
            await writer.drain()

    async def _down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Server to client, each piece late by the delay, which does not limit the rate."""
        clock = asyncio.get_running_loop().time
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_QUEUE_CHUNKS)

        async def feed() -> None:
            with contextlib.suppress(OSError):
                while data := await reader.read(_CHUNK_BYTES):
                    await queue.put((clock() + self._delay_seconds, data))
            await queue.put((0.0, b""))

        feeding = asyncio.ensure_future(feed())
        try:
            while True:
                due, data = await queue.get()
                if not data:
                    return
                if (late := due - clock()) > 0:
                    await asyncio.sleep(late)
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()
                if self._rate:
                    await asyncio.sleep(len(data) / self._rate)
        finally:
            feeding.cancel()


def _socket(writer: asyncio.StreamWriter) -> socket.socket:
    found: socket.socket = writer.get_extra_info("socket")
    return found


async def _run(front: socket.socket, host: str, port: int) -> None:
    proxy = _Proxy(host, port)
    server = await asyncio.start_server(proxy.serve, sock=front, limit=_STREAM_BYTES)
    orders = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(orders), sys.stdin
    )
    while line := await orders.readline():
        proxy.obey(json.loads(line))
        sys.stdout.write("done\n")
        sys.stdout.flush()
    server.close()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_run(socket.socket(fileno=int(sys.argv[1])), sys.argv[2], int(sys.argv[3])))
