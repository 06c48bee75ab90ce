"""A real XRootD federation on loopback for tests and benchmarks: a redirector and data servers.

    with Federation(servers=3) as federation:
        federation.url                                # root://127.0.0.1:20123
        federation.servers[1].data_dir / "a"          # what that data server holds
        federation.servers[1].stop()                  # .start() again; also .kill(), .pause()
        federation.wait_ready()
    with Federation(servers=2, clusters=2) as federation:        # below a meta manager
        federation.clusters[0].redirector.kill()
    with Federation(proxied=True) as federation:      # bad networks
        federation.servers[1].stall()

The daemons listen on loopback only, at sockets made here and handed over; they run as an ordinary
user; and a guard process ends them and removes their files even if this process is killed. As
a program: `python -m tests.support.federation [--servers N] [--clusters N] [--proxied] COMMAND...`
runs a command beside a federation, with FEDERATION_URL and FEDERATION_DATA in its environment.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import pytest

from tests.support import xroot_protocol
from tests.support.federation_config import Settings
from tests.support.federation_node import (
    FederationError,
    Means,
    Node,
    Server,
    executable,
)
from tests.support.guard import Guard
from tests.support.loopback import HOST

_USER: Final = "daemon"
_PATIENCE_SECONDS: Final = 60.0
_CURE_SECONDS: Final = 3.0
_FORGETS_SECONDS: Final = 15.0
_LOOK_AGAIN_SECONDS: Final = 0.05


@dataclass(slots=True)
class Cluster:
    """A redirector and its data servers."""

    redirector: Node
    servers: list[Server] = field(default_factory=list)

    def missing(self) -> Server | None:
        """A server that should be known to the redirector and is not.

        Raises:
            OSError: the redirector does not answer.
        """
        if not (self.redirector.running("xrootd") and self.redirector.running("cmsd")):
            return None
        known = xroot_protocol.known_servers(self.redirector.port)
        for server in self.servers:
            complete = server.running("xrootd") and server.running("cmsd")
            if complete and server.address not in known:
                return server
        return None

    def await_forgotten(self) -> None:
        """Until the redirector knows no server without its port, or for so long: whoever waits for
        a federation finds that it is not whole.

        Raises:
            OSError: it does not answer.
        """
        deadline = time.monotonic() + _FORGETS_SECONDS
        while HOST in xroot_protocol.known_servers(self.redirector.port):
            if time.monotonic() > deadline:
                return
            time.sleep(_LOOK_AGAIN_SECONDS)


class Federation:
    """A federation, started by `with` or `start`; `stop` leaves nothing of it."""

    def __init__(self, servers: int = 3, clusters: int = 1, **settings: Any) -> None:
        """servers: in each cluster. clusters: more than one stand below a meta manager. The rest
        is for Settings."""
        self.settings = Settings(**settings)
        self.meta: Node | None = None
        self.clusters: list[Cluster] = []
        self._counts = (servers, clusters)
        self._guard: Guard | None = None
        self._base: Path | None = None

    # ---- what there is

    @property
    def servers(self) -> list[Server]:
        """All data servers."""
        return [server for cluster in self.clusters for server in cluster.servers]

    @property
    def redirector(self) -> Node:
        """Where clients begin: the one redirector, or the meta manager."""
        return self.meta or self.clusters[0].redirector

    @property
    def nodes(self) -> list[Node]:
        """Everything that has daemons, those that others log in to first."""
        above: list[Node] = [] if self.meta is None else [self.meta]
        return [*above, *(cluster.redirector for cluster in self.clusters), *self.servers]

    @property
    def url(self) -> str:
        """root://HOST:PORT of the redirector; names follow as //NAME."""
        return self.redirector.url

    def holders(self, name: str) -> list[Server]:
        """The data servers that hold this name, seen on their disks."""
        return [server for server in self.servers if server.holds(name)]

    def put(self, name: str, data: bytes = b"", *numbers: int, mode: int = 0o644) -> None:
        """Place a file on the data servers of these numbers (the first) behind its back. A
        redirector that was asked for the name before denies it for another minute."""
        for number in numbers or (0,):
            self.servers[number].put(name, data, mode)

    # ---- life cycle

    def start(self) -> Federation:
        """Start all of it and wait until it is ready."""
        try:
            self._make()
            for node in self.nodes:
                node.start("cmsd")
            for node in self.nodes:
                node.start("xrootd")
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End everything and remove it."""
        for node in self.nodes if self.clusters else []:
            node.close()
        if self._guard is not None:
            self._guard.close()
        if self._base is not None and not self.settings.keep:
            shutil.rmtree(self._base, ignore_errors=True)
        self.meta, self.clusters, self._guard, self._base = None, [], None, None

    def __enter__(self) -> Federation:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _make(self) -> None:
        for daemon in ("xrootd", "cmsd"):
            executable(daemon)
        self._guard = Guard()
        # Not in a test's private directory: another user must reach it, and the names of unix
        # sockets are short.
        self._base = Path(tempfile.mkdtemp(prefix="federation-", dir="/tmp"))
        self._base.chmod(0o755)
        if not self.settings.keep:
            self._guard.remove_at_end(self._base)
        uid = gid = -1
        if os.geteuid() == 0:
            user = pwd.getpwnam(_USER)
            uid, gid = user.pw_uid, user.pw_gid
        means = Means(self._base, self.settings, self._guard, uid, gid)
        means.give(self._base)
        servers, clusters = self._counts
        if clusters > 1:
            self.meta = Node(means, "meta", "meta manager")
        meta = None if self.meta is None else self.meta.cms_port
        for at in range(clusters):
            redirector = Node(means, f"red{at + 1}", "manager", meta=meta)
            cluster = Cluster(redirector)
            self.clusters.append(cluster)
            for number in range(at * servers, (at + 1) * servers):
                cluster.servers.append(Server(means, number, redirector.cms_port, None))

    # ---- waiting

    def wait_ready(self) -> None:
        """Until every server that runs answers, and every redirector that runs knows its own.

        Raises:
            FederationError: a daemon ended, or it takes too long.
        """
        deadline = time.monotonic() + _PATIENCE_SECONDS
        patience = _CURE_SECONDS
        cure = time.monotonic() + patience
        while (lacks := self._lacks()) is not None:
            if time.monotonic() > deadline:
                raise FederationError(f"not ready: {lacks}\n{self._logs()}")
            if time.monotonic() > cure:
                self._cure()
                patience *= 2
                cure = time.monotonic() + patience
            time.sleep(_LOOK_AGAIN_SECONDS)

    def wait_gone(self, server: Server) -> None:
        """Until its redirector no longer offers it.

        Raises:
            FederationError: it takes too long.
        """
        cluster = next(cluster for cluster in self.clusters if server in cluster.servers)
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while server.address in xroot_protocol.known_servers(cluster.redirector.port):
            if time.monotonic() > deadline:
                raise FederationError(f"{cluster.redirector} still offers {server}")
            time.sleep(_LOOK_AGAIN_SECONDS)

    def _lacks(self) -> str | None:
        """What is not ready yet, in words."""
        for node in self.nodes:
            node.check()
        try:
            for server in self.servers:
                if server.running("xrootd"):
                    xroot_protocol.ping(server.port)
            for cluster in self.clusters:
                if (missing := cluster.missing()) is not None:
                    return f"{cluster.redirector} does not know {missing}"
            if self.meta is not None and self.meta.running("xrootd"):
                known = xroot_protocol.known_servers(self.meta.port)
                for cluster in self.clusters:
                    running = cluster.redirector.running("xrootd")
                    if running and cluster.redirector.address not in known:
                        return f"the meta manager does not know {cluster.redirector}"
        except OSError as error:
            return f"no answer: {error}"
        return None

    def _cure(self) -> None:
        """Let a server that is missing log in anew: when several log in at the same moment, cmsd
        5.5 at times rejects one, which tries again only after ten seconds; and at times it knows
        one that has come back without its port, until it has forgotten it."""
        for cluster in self.clusters:
            with contextlib.suppress(OSError):
                if (missing := cluster.missing()) is not None:
                    missing.stop()
                    try:
                        cluster.await_forgotten()
                    finally:
                        missing.start()

    def _logs(self) -> str:
        parts = []
        for node in self.nodes:
            parts += [f"--- {node.name} xrootd", node.log("xrootd")[-600:]]
            parts += [f"--- {node.name} cmsd", node.log("cmsd")[-600:]]
        return "\n".join(parts)


@pytest.fixture(scope="module")
def federation() -> Iterator[Federation]:
    """A redirector and three data servers for all tests of a module, which must leave it whole."""
    with Federation() as made:
        yield made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command beside a federation; its exit code."""
    parser = argparse.ArgumentParser(description="Run a command beside an XRootD federation.")
    parser.add_argument("--servers", type=int, default=3, help="data servers in each cluster")
    parser.add_argument("--clusters", type=int, default=1, help="more than one: a meta manager")
    parser.add_argument("--proxied", action="store_true", help="fault proxies before data servers")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    given = parser.parse_args(arguments)
    command = given.command[1:] if given.command[:1] == ["--"] else given.command
    if not command:
        parser.error("which command?")
    with Federation(given.servers, given.clusters, proxied=given.proxied) as federation:
        data = ":".join(str(server.data_dir) for server in federation.servers)
        environment = {"FEDERATION_URL": federation.url, "FEDERATION_DATA": data}
        return subprocess.call(command, env={**os.environ, **environment})


if __name__ == "__main__":
    sys.exit(main())
