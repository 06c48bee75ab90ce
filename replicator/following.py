"""The connection by which a site's replicator hears what jobs wait for, and answers.

A thread listens, so that nothing is late; another one syncs what is done and answers, while steps
go on: what becomes ready meanwhile shares the next sync. Decides nothing about steps.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec

from mirrorfs.journal.awaiting import (
    Awaited,
    CatchUp,
    CaughtUp,
    Durable,
    FromReplicator,
    Resting,
    Undone,
    encode,
    to_replicator,
)
from mirrorfs.journal.control_client import MESSAGE_BYTES_MAX, FollowRequest, socket_address
from replicator.engine import Engine
from replicator.promises import Kept, close
from replicator.stores.base import StoreError

_log = logging.getLogger(__name__)

_AGAIN_SECONDS: Final = 0.25
"""How often it is looked whether there is a mirrorfs."""
_UNDONE_MAX: Final = 64
"""So many of those that cannot be done are looked at again."""
_READY_MAX: Final = 4
"""While the disk has more to sync than that, nothing is added."""
_WAITING_MAX: Final = 10_000
"""Of more records nobody is told: the jobs have their answers long since."""


class Follower:
    """What jobs wait for at one site. `take` and `keep` are called between steps."""

    def __init__(self, journal: str, site: str, wake: Callable[[], None]) -> None:
        """`wake` is called from a thread when there is something to `take`."""
        self._journal = journal
        self._site = site
        self._wake = wake
        self._lock = threading.Lock()
        self._heard: list[Awaited | CatchUp] = []
        self._anew = False
        self._waiting: dict[int, Awaited] = {}
        self._undone: deque[int] = deque()
        self._catch_up: CatchUp | None = None
        self._promised: Engine | None = None
        self._socket: socket.socket | None = None
        self._resting = ""
        self._ended = threading.Event()
        self._ready: list[tuple[socket.socket | None, Kept]] = []
        self._more = threading.Condition()
        self._failure: StoreError | None = None
        self._threads = [
            threading.Thread(target=work, daemon=True) for work in (self._listen, self._sync)
        ]

    def start(self) -> None:
        """Begin to listen; the second time nothing happens. Not before the site is open, or rests:
        jobs would wait for one that may not answer."""
        for thread in self._threads:
            if thread.ident is None:
                thread.start()

    def close(self) -> None:
        """End it; who waits is not answered any more."""
        self._ended.set()
        with self._lock:
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)
        with self._more:
            self._more.notify()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    # between steps -------------------------------------------------------------------------------

    def keep(self, engine: Engine) -> None:
        """Tell the engine what is new, and who waits what became of it. UnsyncedError: what was
        done could not be synced."""
        if self._failure is not None:
            self._fail()
        promises = engine.promises
        with self._lock:
            asked = self._socket
            heard, self._heard = self._heard, []
            anew, self._anew = self._anew, False
        if anew:
            self._waiting.clear()
            self._catch_up = None
        for message in heard:
            if isinstance(message, CatchUp):
                self._catch_up = message
            else:
                self._waiting[message.sequence] = message
        while len(self._waiting) > _WAITING_MAX:
            del self._waiting[next(iter(self._waiting))]
        if self._waiting or engine.state.promised:
            self._promise(engine)
        if anew or heard or len(promises) != len(self._waiting):
            promises.replace(self._waiting.values())
        if self._waiting and len(self._ready) < _READY_MAX:
            self._answer(engine, asked)
        catch_up, plan = self._catch_up, engine.plan
        known = catch_up is not None and plan.known_tag == catch_up.incarnation
        if catch_up is not None and known and plan.working() >= catch_up.sequence:
            self._catch_up = None
            self._send([CaughtUp(catch_up.sequence, plan.known)])

    def _promise(self, engine: Engine) -> None:
        """Have the site keep what jobs are told, also after the next start. StoreError."""
        if engine is self._promised:
            return
        if not engine.state.promised:
            engine.state.promised = True
            try:
                engine.save()
            except BaseException:
                engine.state.promised = False
                raise
        engine.store.keep_order()
        self._promised = engine

    def _fail(self) -> None:
        """Something could not be synced. The kernel tells that once: so nothing else that was
        opened meanwhile is made durable, either."""
        with self._more:
            ready, self._ready = self._ready, []
            failure, self._failure = self._failure, None
        for _, kept in ready:
            close(kept)
        assert failure is not None
        raise failure

    def _answer(self, engine: Engine, asked: socket.socket | None) -> None:
        """`asked`: by whom; whoever follows asks anew."""
        kept = engine.promises.look()
        for sequence in kept.done:
            del self._waiting[sequence]
        for sequence, reason in kept.undone:
            self._undone.append(sequence)
            self._send([Undone(sequence, reason)])
        while len(self._undone) > _UNDONE_MAX:
            self._waiting.pop(self._undone.popleft(), None)
        if kept.done:
            with self._more:
                self._ready.append((asked, kept))
                self._more.notify()

    def rest(self, reason: str) -> None:
        """The site is paused or halted, for that reason; "": it is not any more."""
        if reason != self._resting:
            self._resting = reason
            if reason:
                self._send([Resting(reason)])

    # the threads ---------------------------------------------------------------------------------

    def _listen(self) -> None:
        while not self._ended.is_set():
            with contextlib.suppress(OSError, msgspec.DecodeError):
                self._converse()
            self._ended.wait(_AGAIN_SECONDS)

    def _converse(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as made:
            made.setblocking(False)  # if mirrorfs hangs, there may be no room for one more
            with socket_address(self._journal) as address:
                made.connect(address)
            made.setblocking(True)
            made.send(msgspec.msgpack.encode(FollowRequest(self._site)))
            with self._lock:
                self._socket = made
                self._heard.clear()
                self._anew = True
            try:
                if self._resting:
                    self._send([Resting(self._resting)])
                while not self._ended.is_set() and (data := made.recv(MESSAGE_BYTES_MAX)):
                    messages = to_replicator.decode(data)
                    with self._lock:
                        self._heard += messages
                    self._wake()
            finally:
                with self._lock:
                    self._socket = None

    def _send(self, messages: list[FromReplicator], asked: socket.socket | None = None) -> None:
        """If mirrorfs is there, and hears; if it does not, it is told when it asks anew. `asked`:
        nobody else is told."""
        with self._lock:
            if self._socket is None or (asked is not None and asked is not self._socket):
                return
            try:
                self._socket.send(encode(messages), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except OSError as error:
                _log.debug("%s: mirrorfs was not told: %s", self._site, error)
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)

    def _sync(self) -> None:
        while True:
            with self._more:
                while not self._ready and not self._ended.is_set():
                    self._more.wait()
                ready, self._ready = self._ready, []
            if not ready:
                return
            try:
                if self._failure is None:
                    self._make_durable(ready)
            except StoreError as error:
                self._failure = error
                self._wake()
            finally:
                for _, kept in ready:
                    close(kept)
                if self._waiting:
                    self._wake()

    def _make_durable(self, ready: list[tuple[socket.socket | None, Kept]]) -> None:
        """Those that are ready share what the disk does."""
        for _, kept in ready:
            if kept.syncing is not None:
                kept.syncing.begin()
        seen: set[object] = set()
        for asked, kept in ready:
            if kept.syncing is not None:
                kept.syncing.finish(seen)
            if asked is not None:
                self._send([Durable(tuple(kept.done))], asked)
