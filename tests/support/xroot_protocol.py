"""A very small client of the xroot protocol: enough to see who answers and who is known.

It needs no binding, so that what is tested is not what tests look with.
"""

from __future__ import annotations

import os
import socket
import struct

from tests.support.loopback import HOST

_LOGIN = 3007
_PING = 3011
_LOCATE = 3027
_REFRESH = 0x80
_TIMEOUT_SECONDS = 2.0


def ping(port: int, host: str = HOST) -> None:
    """Let a server answer.

    Raises:
        OSError: it does not.
    """
    _request(host, port, _PING)


def known_servers(port: int) -> set[str]:
    """The servers that a redirector knows, as 127.0.0.1:1095; one may lack its port.

    Raises:
        OSError: the redirector does not answer.
    """
    status, body = _request(HOST, port, _LOCATE, struct.pack("!H", _REFRESH), b"*")
    if status != 0:
        return set()
    # Two letters say what each is and what it offers; IPv4 addresses come as [::127.0.0.1].
    words = body.rstrip(b"\0").decode().split()
    return {word[2:].replace("[::", "").replace("]", "") for word in words}


def _request(
    host: str, port: int, number: int, parameters: bytes = b"", data: bytes = b""
) -> tuple[int, bytes]:
    """One request in an anonymous session of its own: status and body of the answer."""
    with socket.create_connection((host, port), timeout=_TIMEOUT_SECONDS) as connection:
        connection.sendall(struct.pack("!5i", 0, 0, 0, 4, 2012))
        _answer(connection)
        login = (b"\0\1", _LOGIN, os.getpid(), b"tests\0\0\0", 0, 0, 4, 0, 0)
        connection.sendall(struct.pack("!2sHi8sBBBBi", *login))
        _answer(connection)
        head = struct.pack("!2sH16si", b"\0\2", number, parameters, len(data))
        connection.sendall(head + data)
        return _answer(connection)


def _answer(connection: socket.socket) -> tuple[int, bytes]:
    status, length = struct.unpack("!HI", _receive(connection, 8)[2:])
    return status, _receive(connection, length)


def _receive(connection: socket.socket, count: int) -> bytes:
    received = b""
    while len(received) < count:
        part = connection.recv(count - len(received))
        if not part:
            raise ConnectionError("connection closed")
        received += part
    return received
