"""The connection to mirrorfs when nobody is at its other end."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
from collections.abc import Hashable
from pathlib import Path
from typing import cast

import pytest

from mirrorfs.journal.awaiting import Durable, from_replicator
from mirrorfs.journal.control_client import CONTROL_NAME
from replicator.engine import Engine
from replicator.following import Follower
from replicator.promises import Kept
from replicator.stores.base import UnsyncedError


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


class Opened:
    """Something that was opened to be synced."""

    def __init__(self, *, fails: bool = False) -> None:
        self.fails = fails
        self.closed = self.synced = False

    def begin(self) -> None: ...

    def finish(self, seen: set[Hashable]) -> None:
        if self.fails:
            raise UnsyncedError.of("the disk", errno.EIO)
        self.synced = True

    def close(self) -> None:
        self.closed = True


def test_after_a_sync_that_failed_nothing_opened_before_counts() -> None:
    """The kernel tells an error once: to sync the same again would be answered with success."""
    woken = threading.Event()
    follower = Follower("/nowhere", "site", woken.set)
    first, second = Opened(fails=True), Opened()
    follower._ready = [(None, Kept([1], first))]
    syncing = threading.Thread(target=follower._sync, daemon=True)
    syncing.start()
    assert woken.wait(60)
    with follower._more:  # looked at before it was known
        follower._ready.append((None, Kept([2], second)))
    engine = cast(Engine, None)
    with pytest.raises(UnsyncedError):
        follower.keep(engine)
    assert follower._ready == []
    follower.close()
    with follower._more:
        follower._more.notify()
    syncing.join(60)
    assert (first.closed, second.closed, second.synced) == (True, True, False)


def test_who_did_not_ask_is_told_nothing() -> None:
    """What was asked by a mirrorfs that has ended is not told to the next one."""
    follower = Follower("/nowhere", "site", lambda: None)
    with contextlib.ExitStack() as stack:
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
        (old, _), (new, mirrorfs) = pairs
        for pair in pairs:
            for each in pair:
                stack.enter_context(each)
        follower._socket = new
        done = Opened()
        follower._make_durable([(old, Kept([1], done)), (new, Kept([2], Opened()))])
        assert done.synced
        mirrorfs.setblocking(False)
        assert from_replicator.decode(mirrorfs.recv(1000)) == [Durable((2,))]
        with pytest.raises(BlockingIOError):
            mirrorfs.recv(1000)
