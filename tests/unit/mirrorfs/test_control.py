"""The control socket: server and client, without a mount."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest
import trio
import trio.testing

from mirrorfs import control
from mirrorfs.journal.control_client import (
    Appended,
    ControlClient,
    ControlError,
    NotRunningError,
    Status,
)
from mirrorfs.journal.record import (
    Body,
    Checkpoint,
    Kind,
    ObjectId,
    Reconcile,
    SequenceNumber,
    Tag,
)
from mirrorfs.journal.segment import Header, Incarnation
from tests.support.records import ROOT, header

T = TypeVar("T")

STATUS = Status(1, "n", "v", b"/m", b"/s", SequenceNumber(2), SequenceNumber(1), None, 3, 4)


class SampleVolume:
    """A volume that keeps what is appended; `full`: its journal cannot be written."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.appended: list[tuple[Kind, Body]] = []
        self.full = False
        self.followed: list[str] = []
        self.kernel_options: tuple[str, ...] = ()
        self.failure: Exception | None = None

    async def follow(self, site: str, connection: trio.socket.SocketType) -> None:
        self.followed.append(site)

    def header(self) -> Header:
        return header()

    def open_root(self) -> int:
        return os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)

    def release(self) -> None:
        """Nobody waits here."""

    def remounted(self, kernel_options: tuple[str, ...]) -> None:
        self.kernel_options = kernel_options

    def directory_id(self, path: bytes) -> ObjectId:
        if path == b"missing":
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return ROOT

    def append(self, kind: Kind, body: Body) -> SequenceNumber | None:
        if self.full:
            return None
        self.appended.append((kind, body))
        return SequenceNumber(len(self.appended))

    def status(self) -> Status:
        if self.failure is not None:
            raise self.failure
        return STATUS


@pytest.fixture
def volume(tmp_path: Path) -> SampleVolume:
    return SampleVolume(tmp_path)


async def asked(directory: Path, volume: SampleVolume, ask: Callable[[ControlClient], T]) -> T:
    """The answer a client in another thread gets from a server that lives as long."""

    def client() -> T:
        with ControlClient(str(directory)) as made:
            return ask(made)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(control.serve, str(directory), volume)
        await trio.testing.wait_all_tasks_blocked()
        result = await trio.to_thread.run_sync(client)
        nursery.cancel_scope.cancel()
    return result


async def test_answers(tmp_path: Path, volume: SampleVolume) -> None:
    def ask(client: ControlClient) -> tuple[Status, int, int]:
        return (
            client.status(),
            client.checkpoint("c"),
            client.reconcile(b"a/b", whole=True, reason="r"),
        )

    assert await asked(tmp_path, volume, ask) == (STATUS, 1, 2)
    assert volume.appended == [
        (Kind.CHECKPOINT, Checkpoint("c")),
        (Kind.RECONCILE, Reconcile(ROOT, True, b"a/b", "r")),
    ]


async def test_everybody_gets_a_root_of_his_own(tmp_path: Path, volume: SampleVolume) -> None:
    """One open directory for two readers would have one offset for both."""

    def ask(client: ControlClient) -> list[tuple[Header, int]]:
        return [client.root(), client.root()]

    (told, one), (_, two) = await asked(tmp_path, volume, ask)
    try:
        assert told == header()
        assert os.path.samestat(os.fstat(one), os.fstat(two))
        os.lseek(one, 1, os.SEEK_SET)
        assert os.lseek(two, 0, os.SEEK_CUR) == 0
        assert not os.get_inheritable(one)
    finally:
        os.close(one)
        os.close(two)


async def test_refusals(
    tmp_path: Path, volume: SampleVolume, caplog: pytest.LogCaptureFixture
) -> None:
    def ask(client: ControlClient) -> int:
        with pytest.raises(ControlError, match="missing: No such file"):
            client.reconcile(b"missing", whole=True, reason="")
        volume.full = True
        with pytest.raises(ControlError, match="cannot be written at the moment"):
            client.checkpoint("c")
        volume.full = False
        volume.failure = RuntimeError("spoiled")
        with pytest.raises(ControlError, match="internal error: spoiled"):
            client.status()
        with pytest.raises(ControlError, match="a request not known here"):
            client._append(Appended(SequenceNumber(1)))  # type: ignore[arg-type]
        return client.checkpoint("goes on")

    assert await asked(tmp_path, volume, ask) == 1
    assert "spoiled" in caplog.text
    caplog.clear()


async def test_a_dead_socket_is_replaced_and_a_new_one_removed(
    tmp_path: Path, volume: SampleVolume
) -> None:
    dead = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    dead.bind(str(tmp_path / "control"))
    dead.close()
    with pytest.raises(NotRunningError):
        ControlClient(str(tmp_path))
    umask = os.umask(0)
    try:
        modes = await asked(
            tmp_path, volume, lambda _: (tmp_path / "control").stat().st_mode & 0o777
        )
    finally:
        os.umask(umask)
    assert modes == 0o600
    assert not (tmp_path / "control").exists()


async def test_a_client_that_only_comes_and_goes(tmp_path: Path, volume: SampleVolume) -> None:
    def ask(client: ControlClient) -> Status:
        for _ in range(20):
            ControlClient(str(tmp_path)).close()
        return client.status()

    assert await asked(tmp_path, volume, ask) == STATUS


def _answering(directory: Path) -> socket.socket:
    """A server that does nothing by itself."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server.bind(str(directory / "control"))
    server.listen(1)
    return server


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (msgspec.msgpack.encode(Appended(SequenceNumber(3))), "an unexpected answer: Appended"),
        (b"\xc1", "an answer not known here"),
        (b"", "ended while it was asked"),
    ],
)
def test_answers_nobody_understands(tmp_path: Path, answer: bytes, says: str) -> None:
    with _answering(tmp_path) as server, ControlClient(str(tmp_path)) as client:
        connection, _ = server.accept()
        if answer:
            connection.send(answer)
        else:
            connection.shutdown(socket.SHUT_WR)
        with pytest.raises((ControlError, NotRunningError), match=says):
            client.status()
        if answer and answer != b"\xc1":
            connection.send(answer)
            with pytest.raises(ControlError, match=says):
                client.root()
        connection.close()


@pytest.mark.parametrize("where", ["missing", "file/below"])
def test_nobody_there(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotRunningError, match="no mirrorfs writes this journal now"):
        ControlClient(str(tmp_path / where))


def test_a_header_with_all_incarnations_fits_a_message() -> None:
    from mirrorfs.journal.control_client import MESSAGE_BYTES_MAX, RootAnswer

    big = (1 << 64) - 1
    most = tuple(
        Incarnation(Tag(big), SequenceNumber(big), SequenceNumber(big)) for _ in range(1024)
    )
    assert len(msgspec.msgpack.encode(RootAnswer(header(1, 1, most)))) < MESSAGE_BYTES_MAX


def test_a_server_that_does_not_answer(tmp_path: Path) -> None:
    with _answering(tmp_path), ControlClient(str(tmp_path), 0.01) as client:
        with pytest.raises(TimeoutError, match="does not answer"):
            client.status()
        more = ControlClient(str(tmp_path), 0.01)
        with pytest.raises(TimeoutError, match="does not answer"):
            ControlClient(str(tmp_path), 0.01)
        more.close()
