"""The connection to mirrorfs when nobody is at its other end."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from pathlib import Path

from mirrorfs.journal.control_client import CONTROL_NAME
from replicator.following import Follower


def test_it_ends_though_mirrorfs_hangs_and_no_more_connections_fit(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        listener.bind(os.fspath(tmp_path / CONTROL_NAME))
        listener.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                client = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
                client.setblocking(False)
                client.connect(os.fspath(tmp_path / CONTROL_NAME))
        follower = Follower(os.fspath(tmp_path), "site", lambda: None)
        follower.start()
        ended = threading.Thread(target=follower.close, daemon=True)
        ended.start()
        ended.join(30)
        assert not ended.is_alive()
