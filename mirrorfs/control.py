"""The control socket: mirrorfs answers the replicator and the operator's commands.

Serves; what the answers are is asked of a `Volume`. Runs on the engine's trio thread, so a record
appended here stands in order with all others. It never touches the mirrored files itself.
"""

from __future__ import annotations

import array
import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from typing import Protocol

import msgspec
import trio

from mirrorfs.journal.control_client import (
    CONTROL_NAME,
    MESSAGE_BYTES_MAX,
    Answer,
    Appended,
    CheckpointRequest,
    FollowRequest,
    ReconcileRequest,
    Refused,
    ReleaseRequest,
    RemountRequest,
    Request,
    RootAnswer,
    RootRequest,
    Status,
    socket_address,
)
from mirrorfs.journal.record import Body, Checkpoint, Kind, ObjectId, Reconcile, SequenceNumber
from mirrorfs.journal.segment import Header

_log = logging.getLogger(__name__)

_BACKLOG = 16
_ACCEPT_AGAIN_SECONDS = 1.0
_decoder = msgspec.msgpack.Decoder(Request)


class Volume(Protocol):
    """What the socket tells about and acts on."""

    def header(self) -> Header:
        """Of the segment being written."""

    def open_root(self) -> int:
        """A new descriptor of the source's root, O_RDONLY|O_DIRECTORY, for the caller to close.

        Never the same one twice: whoever gets it lists the directory with an offset of its own.
        """

    def directory_id(self, path: bytes) -> ObjectId:
        """Id of the directory at `path` below the root. OSError."""

    def append(self, kind: Kind, body: Body) -> SequenceNumber | None:
        """Append a record; None while the journal cannot be written."""

    def status(self) -> Status:
        """How things are."""

    def remounted(self, kernel_options: tuple[str, ...]) -> None:
        """These of the kernel's options are in force now."""

    def release(self) -> None:
        """Nobody waits any longer for what sites do not have yet."""

    async def follow(self, site: str, connection: trio.socket.SocketType) -> None:
        """Speak with the replicator of a site until it goes (journal.awaiting)."""


async def serve(
    directory: str,
    volume: Volume,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer on `directory`/control until cancelled. The caller holds the journal's lock.

    It is started once it can be asked.
    """
    with _listening(directory) as listener:
        task_status.started()
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    connection, _ = await listener.accept()
                except OSError as error:  # out of descriptors, say: the client may try again
                    _log.error("control: %s", error.strerror)
                    await trio.sleep(_ACCEPT_AGAIN_SECONDS)
                    continue
                nursery.start_soon(_converse, connection, volume)


@contextlib.contextmanager
def _listening(directory: str) -> Iterator[trio.socket.SocketType]:
    """The listening socket, in place of one that a dead mirrorfs left."""
    path = os.path.join(directory, CONTROL_NAME)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    with trio.socket.from_stdlib_socket(listener) as answering:
        umask = os.umask(0o177)  # no await before it is put back: the engine works with 0
        try:
            with socket_address(directory) as address:
                listener.bind(address)
        finally:
            os.umask(umask)
        listener.listen(_BACKLOG)
        try:
            yield answering
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


async def _converse(connection: trio.socket.SocketType, volume: Volume) -> None:
    """Answer one client until it goes."""
    with connection, contextlib.suppress(OSError):
        while data := await connection.recv(MESSAGE_BYTES_MAX):
            try:
                request = _decoder.decode(data)
                if isinstance(request, FollowRequest):
                    await volume.follow(request.site, connection)
                    return
                answer = _answer(request, volume)
            except msgspec.DecodeError as error:
                answer = Refused(f"a request not known here: {error}")
            except Exception as error:  # noqa: BLE001 - a client must not end the mount
                _log.error("control: %s", error, exc_info=True)
                answer = Refused(f"internal error: {error}")
            message = [msgspec.msgpack.encode(answer)]
            if not isinstance(answer, RootAnswer):
                await connection.sendmsg(message)
                continue
            root = volume.open_root()
            try:
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [root]))
                await connection.sendmsg(message, [rights])
            finally:
                os.close(root)


def _answer(request: Request, volume: Volume) -> Answer:
    match request:
        case RootRequest():
            return RootAnswer(volume.header())
        case CheckpointRequest(name):
            return _appended(volume.append(Kind.CHECKPOINT, Checkpoint(name)))
        case ReconcileRequest(path, whole, reason):
            try:
                directory = volume.directory_id(path)
            except OSError as error:
                return Refused(f"{os.fsdecode(path)}: {error.strerror}")
            body = Reconcile(directory, whole, path, reason)
            return _appended(volume.append(Kind.RECONCILE, body))
        case ReleaseRequest():
            told = volume.status()
            volume.release()
            return told
        case RemountRequest(kernel_options):
            volume.remounted(kernel_options)
            return volume.status()
        case _:
            return volume.status()


def _appended(sequence: SequenceNumber | None) -> Answer:
    if sequence is None:
        return Refused("the journal cannot be written at the moment")
    return Appended(sequence)
