"""Tell a service manager that the mount answers: the protocol of sd_notify(3).

Does nothing where no service manager listens, and never fails.
"""

from __future__ import annotations

import contextlib
import os
import socket


def ready() -> None:
    """READY=1, and our process id, to the socket that NOTIFY_SOCKET names."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    if address[0] == "@":
        address = "\0" + address[1:]
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as stream,
    ):
        stream.sendto(f"READY=1\nMAINPID={os.getpid()}\n".encode(), os.fsencode(address))
