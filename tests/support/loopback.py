"""Listening sockets on loopback whose ports stay ours while their server is stopped."""

from __future__ import annotations

import random
import socket
from typing import Final

HOST: Final = "127.0.0.1"
# Below the kernel's own range: no outgoing connection can take one of them.
_PORTS: Final = range(20000, 32000)
_taken: set[int] = set()


def listen(port: int | None = None, host: str = HOST) -> socket.socket:
    """A listening socket, at that port or at one this process has not had yet.

    Raises:
        OSError: that port is taken.
    """
    if port is not None:
        return _listen(port, host)
    for candidate in random.sample(_PORTS, 500):
        if candidate in _taken:
            continue
        try:
            made = _listen(candidate, host)
        except OSError:
            continue
        _taken.add(candidate)
        return made
    raise OSError(f"no free port in {_PORTS}")


def _listen(port: int, host: str) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
        made.listen(255)
    except OSError:
        made.close()
        raise
    return made


def port_of(listening: socket.socket) -> int:
    """Its port."""
    port: int = listening.getsockname()[1]
    return port
