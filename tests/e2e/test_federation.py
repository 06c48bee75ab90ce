"""The federation that other tests stand on: it is what it says, and nothing of it stays behind."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import xroot_protocol
from tests.support.federation import Federation
from tests.support.federation import federation as federation
from tests.support.federation_node import FederationError
from tests.support.loopback import HOST

pytestmark = pytest.mark.xrootd

ROOT = Path(__file__).resolve().parents[2]
_ASK_AT_MOST_SECONDS = 60


def _xrdfs(url: str, *words: str) -> subprocess.CompletedProcess[str]:
    """The official command-line client."""
    return subprocess.run(
        ["xrdfs", url, *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_ASK_AT_MOST_SECONDS,
    )


def _children(pid: int) -> set[int]:
    """The processes that this process has started and that still run."""
    found = set()
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = (directory / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == pid:
                found.add(int(directory.name))
    return found


def test_official_client_sees_what_is_placed_on_any_server(federation: Federation) -> None:
    federation.put("/placed/one", b"first", 0)
    federation.put("/placed/both", b"second", 1, 2)
    assert _xrdfs(federation.url, "cat", "/placed/one").stdout == "first"
    assert _xrdfs(federation.url, "cat", "/placed/both").stdout == "second"
    assert federation.holders("/placed/both") == federation.servers[1:]
    located = _xrdfs(federation.url, "locate", "/placed/both").stdout
    assert len(located.splitlines()) == 2


def test_what_the_client_writes_is_on_the_server_s_disk(
    federation: Federation, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"content")
    server = federation.servers[1]
    subprocess.run(
        ["xrdcp", "--silent", tmp_path / "file", f"{server.url}//written/file"], check=True
    )
    assert (server.data_dir / "written/file").read_bytes() == b"content"
    assert federation.holders("/written/file") == [server]
    assert "/written/file" in server.files()


def test_checksums_are_computed(federation: Federation) -> None:
    federation.put("/sums/file", b"123456789", 2)
    server = federation.servers[2]
    for name, expected in (("adler32", "091e01de"), ("crc32c", "e3069283")):
        said = _xrdfs(server.url, "query", "checksum", f"/sums/file?cks.type={name}")
        assert said.stdout.split() == [name, expected]


def test_daemons_listen_on_loopback_and_are_not_root(federation: Federation) -> None:
    for node in federation.nodes:
        for daemon in ("xrootd", "cmsd"):
            assert node.running(daemon)
    children = _children(os.getpid())
    owners = {Path(f"/proc/{pid}").stat().st_uid for pid in children if _program(pid) != "python"}
    assert 0 not in owners


def _program(pid: int) -> str:
    name = Path(f"/proc/{pid}/comm").read_text().strip()
    return "python" if name.startswith("python") else name


@pytest.fixture(scope="module")
def proxied() -> Iterator[Federation]:
    """One whose networks can be made bad."""
    with Federation(2, proxied=True) as made:
        yield made


def test_faults_of_the_network_need_proxies(federation: Federation) -> None:
    with pytest.raises(FederationError):
        federation.servers[0].stall()
    with pytest.raises(FederationError):
        federation.servers[0].reset_connections()


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_server_that_ended_refuses_and_returns(proxied: Federation, how: str) -> None:
    server = proxied.servers[1]
    getattr(server, how)()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((HOST, server.port))
    xroot_protocol.ping(proxied.servers[0].port)
    proxied.wait_gone(server)
    server.start()
    proxied.wait_ready()
    assert server.address in xroot_protocol.known_servers(proxied.redirector.port)


def test_stalled_server_is_silent_until_it_is_let_go(proxied: Federation) -> None:
    server = proxied.servers[0]
    server.stall()
    try:
        with pytest.raises(TimeoutError):
            xroot_protocol.ping(server.port)
    finally:
        server.unstall()
    xroot_protocol.ping(server.port)


def test_paused_server_is_silent_until_it_resumes(proxied: Federation) -> None:
    server = proxied.servers[0]
    server.pause()
    try:
        with pytest.raises(TimeoutError):
            xroot_protocol.ping(server.port)
    finally:
        server.resume()
    xroot_protocol.ping(server.port)


def test_reset_cuts_connections_that_are_open(proxied: Federation) -> None:
    server = proxied.servers[0]
    with socket.create_connection((HOST, server.port), timeout=_ASK_AT_MOST_SECONDS) as connection:
        connection.sendall(b"\0" * 12 + b"\0\0\0\4\0\0\7\334")
        assert len(connection.recv(16, socket.MSG_WAITALL)) == 16
        server.reset_connections()
        with pytest.raises(ConnectionResetError):
            connection.recv(1)


def test_late_answers_are_late_and_whole(proxied: Federation) -> None:
    server = proxied.servers[0]
    proxied.put("/late/file", b"x" * 100_000, 0)
    server.set_delay(0.2)
    server.set_rate(1e6)
    try:
        assert _xrdfs(server.url, "cat", "/late/file").stdout == "x" * 100_000
    finally:
        server.set_delay(0)
        server.set_rate(0)


def test_two_clusters_below_a_meta_manager_are_one() -> None:
    with Federation(1, clusters=2) as both:
        both.put("/left", b"left", 0)
        both.put("/right", b"right", 1)
        assert _xrdfs(both.url, "cat", "/left").stdout == "left"
        assert _xrdfs(both.url, "cat", "/right").stdout == "right"
        assert [len(cluster.servers) for cluster in both.clusters] == [1, 1]


def test_ended_by_itself_is_told() -> None:
    before = _children(os.getpid())
    broken = Federation(1, extra={"srv1": ["xrd.port nonsense"]})
    with pytest.raises(FederationError, match=r"of srv1 ended with"):
        broken.start()
    assert _children(os.getpid()) == before


def test_nothing_stays_even_if_the_owner_is_killed() -> None:
    program = (
        "from tests.support.federation import Federation\n"
        "with Federation(2, proxied=True) as made:\n"
        "    print(made.servers[0].data_dir, flush=True)\n"
        "    input()\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdin is not None
    assert owner.stdout is not None
    with owner.stdin, owner.stdout:
        directory = Path(owner.stdout.readline().strip())
        assert directory.is_dir()
        pidfds = [os.pidfd_open(pid) for pid in _children(owner.pid)]
        assert len(pidfds) == 3 * 2 + 2 + 1
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    for pidfd in pidfds:
        ended, _, _ = select.select([pidfd], [], [], _ASK_AT_MOST_SECONDS)
        assert ended
        os.close(pidfd)
    assert not directory.exists()
