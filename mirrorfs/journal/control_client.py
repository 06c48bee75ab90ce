"""Ask the mirrorfs that writes a journal: the messages of its control socket, and a client.

One request and one answer a message, over a SOCK_SEQPACKET socket `JOURNAL/control` (mode 0600).
The root descriptor comes with its answer (SCM_RIGHTS). Knows nothing of how mirrorfs answers.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator
from types import TracebackType
from typing import Final, TypeAlias

import msgspec

from mirrorfs.journal.record import SequenceNumber
from mirrorfs.journal.segment import Header

CONTROL_NAME: Final = "control"
MESSAGE_BYTES_MAX: Final = 256 << 10

_SOCKET_PATH_BYTES_MAX = 107
_TIMEVAL = struct.Struct("@ll")


class RootRequest(msgspec.Struct, frozen=True, tag="root"):
    """Which tree is it, and a descriptor of its root, below the mount."""


class CheckpointRequest(msgspec.Struct, frozen=True, tag="checkpoint"):
    """Append a checkpoint of this name."""

    name: str


class ReconcileRequest(msgspec.Struct, frozen=True, tag="reconcile"):
    """Append `reconcile` of a directory, given by its path relative to the root."""

    path: bytes
    whole: bool
    reason: str


class StatusRequest(msgspec.Struct, frozen=True, tag="status"):
    """How does mirrorfs fare."""


class RemountRequest(msgspec.Struct, frozen=True, tag="remount"):
    """These of the kernel's options are in force from now on."""

    kernel_options: tuple[str, ...]


class ReleaseRequest(msgspec.Struct, frozen=True, tag="release"):
    """It is to be unmounted: jobs that wait for sites have their answers now, without them. The
    answer is the status of before."""


class FollowRequest(msgspec.Struct, frozen=True, tag="follow"):
    """From now on this connection is about what jobs wait for at that site: see `awaiting`."""

    site: str


Request: TypeAlias = (
    RootRequest
    | CheckpointRequest
    | ReconcileRequest
    | StatusRequest
    | RemountRequest
    | ReleaseRequest
    | FollowRequest
)


class RootAnswer(msgspec.Struct, frozen=True, tag="root"):
    """Header of the segment being written; the descriptor (O_RDONLY|O_DIRECTORY) comes along."""

    header: Header


class Appended(msgspec.Struct, frozen=True, tag="appended"):
    """The record stands in the journal under this sequence."""

    sequence: SequenceNumber


class ThroughStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How write-through to a site fares.

    Attributes:
        known: a replicator has been there for it, now or before. followed: one is there now.
        waiting: so many jobs wait for it.
        down: why nobody waits for it; None while it follows. down_since_ns: since when.
        passed: so many answers were given without it since the mount began.
        undone: so many objects the site cannot have for the time being; undone_reason: of one.
    """

    site: str
    known: bool
    followed: bool
    waiting: int
    down: str | None
    down_since_ns: int
    passed: int
    undone: int
    undone_reason: str


class Status(msgspec.Struct, frozen=True, tag="status"):
    """What mirrorfs says of itself.

    Attributes:
        degraded: why records cannot be made; None while they can.
        degraded_since_ns: since when, nanoseconds since 1970.
        marks: so many directories are marked as changed without a record; `everything`: the tree.
        journal_full: what becomes of changes meanwhile: "degrade", "block" or "readonly".
        room_bytes: left on the journal's disk beside the reserve; None: not known.
        room_seconds: for how long, at the rate of late; None: it does not get less.
        nodes, open_files: what the kernel holds at the moment.
        journal: its directory. volume: UUID of the volume. node: this host's id in journals.
        started_ns: when the mount began. writers: "one" or "many".
        kernel_options: "ro", "noatime" and the like, as far as they are in force.
        guard: "on", "off". foreign: directories that the guard found changed behind the mount.
        lost: how often the guard had to have the whole tree compared.
        device: st_dev of the mount.
        restart: "on", "off". supervisor: process that starts the engine again; 0: none is there.
        restarts: how often it did; restarted_ns: when last; restart_reason: why.
        holders: processes that go on to use the source past the mount over it.
        write_through: the sites that are waited for; write_through_directories: so many
            directories were seen to name sites of their own; through: all of these sites.
    """

    pid: int
    host: str
    version: str
    mountpoint: bytes
    source: bytes
    head: SequenceNumber
    durable_head: SequenceNumber
    degraded: str | None
    nodes: int
    open_files: int
    degraded_since_ns: int = 0
    marks: int = 0
    everything: bool = False
    journal_full: str = "degrade"
    room_bytes: int | None = None
    room_seconds: float | None = None
    journal: str = ""
    volume: str = ""
    node: str = ""
    started_ns: int = 0
    writers: str = "one"
    kernel_options: tuple[str, ...] = ()
    guard: str = "off"
    foreign: int = 0
    lost: int = 0
    device: int = 0
    restart: str = "on"
    supervisor: int = 0
    restarts: int = 0
    restarted_ns: int = 0
    restart_reason: str = ""
    holders: tuple[str, ...] = ()
    write_through: tuple[str, ...] = ()
    write_through_directories: int = 0
    through: tuple[ThroughStatus, ...] = ()


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """It was not done, and why."""

    reason: str


Answer: TypeAlias = RootAnswer | Appended | Status | Refused


class ControlError(Exception):
    """mirrorfs was asked and refused, or answered what nobody understands."""


class NotRunningError(Exception):
    """No mirrorfs writes this journal at the moment."""


@contextlib.contextmanager
def socket_address(directory: str) -> Iterator[str]:
    """The control socket's address, short enough for a socket however deep the journal lies."""
    path = os.path.join(directory, CONTROL_NAME)
    if len(os.fsencode(path)) <= _SOCKET_PATH_BYTES_MAX:
        yield path
        return
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{CONTROL_NAME}"
    finally:
        os.close(fd)


class ControlClient:
    """A connection to the mirrorfs of one journal. Not thread-safe."""

    def __init__(self, directory: str, timeout_seconds: float = 10.0) -> None:
        """Connect. NotRunningError, or OSError (no permission, say)."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        # In the kernel: with a time-out of Python's own, connect fails while the server is busy.
        timeout = _TIMEVAL.pack(int(timeout_seconds), int(timeout_seconds % 1 * 1_000_000))
        for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
            self._socket.setsockopt(socket.SOL_SOCKET, option, timeout)
        try:
            with socket_address(directory) as address:
                self._socket.connect(address)
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
            self._socket.close()
            raise NotRunningError(f"{directory}: no mirrorfs writes this journal now") from None
        except BlockingIOError:
            self._socket.close()
            raise TimeoutError(errno.ETIMEDOUT, f"{directory}: mirrorfs does not answer") from None
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        self._socket.close()

    def root(self) -> tuple[Header, int]:
        """Header of the segment being written, and the source's root; the caller closes it.

        Raises ControlError, NotRunningError, OSError (TimeoutError after the time-out), as all
        the methods do.
        """
        answer, descriptors = self._ask(RootRequest())
        if isinstance(answer, RootAnswer) and len(descriptors) == 1:
            return answer.header, descriptors[0]
        for fd in descriptors:
            os.close(fd)
        raise _unexpected(answer)

    def checkpoint(self, name: str) -> SequenceNumber:
        """Append a checkpoint; its sequence."""
        return self._append(CheckpointRequest(name))

    def reconcile(self, path: bytes, *, whole: bool, reason: str) -> SequenceNumber:
        """Append `reconcile` of the directory at `path` (relative to the root); its sequence."""
        return self._append(ReconcileRequest(path, whole, reason))

    def status(self) -> Status:
        """How mirrorfs fares."""
        answer, _ = self._ask(StatusRequest())
        if isinstance(answer, Status):
            return answer
        raise _unexpected(answer)

    def release(self) -> bool:
        """Have jobs that wait for sites answered without them; whether there were some."""
        answer, _ = self._ask(ReleaseRequest())
        if isinstance(answer, Status):
            return any(site.waiting for site in answer.through)
        raise _unexpected(answer)

    def remounted(self, kernel_options: tuple[str, ...]) -> None:
        """Tell it which of the kernel's options are in force."""
        answer, _ = self._ask(RemountRequest(kernel_options))
        if not isinstance(answer, Status):
            raise _unexpected(answer)

    def _append(self, request: Request) -> SequenceNumber:
        answer, _ = self._ask(request)
        if isinstance(answer, Appended):
            return answer.sequence
        raise _unexpected(answer)

    def _ask(self, request: Request) -> tuple[Answer, list[int]]:
        descriptors = array.array("i")
        try:
            self._socket.send(msgspec.msgpack.encode(request))
            data, ancillary, _, _ = self._socket.recvmsg(
                MESSAGE_BYTES_MAX, socket.CMSG_SPACE(descriptors.itemsize), socket.MSG_CMSG_CLOEXEC
            )
        except (BrokenPipeError, ConnectionError):
            data, ancillary = b"", []
        except BlockingIOError:
            raise TimeoutError(errno.ETIMEDOUT, "mirrorfs does not answer") from None
        if not data:
            raise NotRunningError("mirrorfs ended while it was asked")
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                whole = len(content) - len(content) % descriptors.itemsize
                descriptors.frombytes(content[:whole])
        try:
            return msgspec.msgpack.decode(data, type=Answer), list(descriptors)
        except msgspec.DecodeError as error:
            for fd in descriptors:
                os.close(fd)
            raise ControlError(f"mirrorfs gave an answer not known here: {error}") from None


def _unexpected(answer: Answer) -> ControlError:
    if isinstance(answer, Refused):
        return ControlError(answer.reason)
    return ControlError(f"mirrorfs gave an unexpected answer: {type(answer).__name__}")
