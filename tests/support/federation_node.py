"""One node of a test federation: its xrootd and its cmsd, started, ended, killed, held up.

A data server may have a fault proxy before it. Nodes know nothing of each other: `federation` does.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from socket import socket
from typing import Final, Literal

from tests.support.fault_proxy import FaultProxy
from tests.support.federation_config import Place, Role, Settings, configuration
from tests.support.guard import Guard
from tests.support.loopback import HOST, listen, port_of

Daemon = Literal["xrootd", "cmsd"]
BOTH: Final[tuple[Daemon, ...]] = ("cmsd", "xrootd")

_LAUNCHER = Path(__file__).with_name("launcher.py")
_PATIENCE_SECONDS = 5.0
_ACCEPTS = "00010000"


class FederationError(Exception):
    """A federation cannot be started, or does not become what it should be."""


@dataclass(frozen=True, slots=True)
class Means:
    """What all nodes of one federation share.

    Attributes:
        uid, gid: whom the daemons run as, since they refuse to be root; -1 for who we are.
    """

    base: Path
    settings: Settings
    guard: Guard
    uid: int
    gid: int

    def give(self, path: Path) -> None:
        """Let it belong to whom the daemons run as."""
        if self.uid >= 0:
            os.chown(path, self.uid, self.gid)


def executable(daemon: Daemon) -> str:
    """Where it is installed.

    Raises:
        FederationError: nowhere.
    """
    found = shutil.which(daemon, path=f"{os.environ.get('PATH', '')}:/usr/bin:/usr/sbin")
    if found is None:
        raise FederationError(f"{daemon} is not installed")
    return found


class Node:
    """A redirector, a meta manager, or (Server) a data server."""

    def __init__(
        self,
        means: Means,
        name: str,
        role: Role,
        manager: int | None = None,
        meta: int | None = None,
    ) -> None:
        """Take ports; nothing runs yet. manager, meta: the cmsd ports of those above."""
        self.name = name
        self._means = means
        self._processes: dict[Daemon, subprocess.Popen[bytes]] = {}
        self._sockets: dict[Daemon, socket] = {"xrootd": listen()}
        if role != "server":
            self._sockets["cmsd"] = listen()
        self.port = port_of(self._sockets["xrootd"])
        self.cms_port = port_of(self._sockets["cmsd"]) if "cmsd" in self._sockets else None
        if role == "meta manager":
            meta = self.cms_port
        elif role == "manager":
            manager = self.cms_port
        managers = [] if manager is None else [manager]
        self._place = Place(
            name=name,
            role=role,
            base=means.base / name,
            port=self.port,
            cms_port=self.cms_port,
            managers=managers,
            meta=meta,
        )
        for directory in (self._place.base, self._place.admin):
            directory.mkdir()
            means.give(directory)

    @property
    def address(self) -> str:
        """HOST:PORT for clients."""
        return f"{HOST}:{self.port}"

    @property
    def url(self) -> str:
        """root://HOST:PORT"""
        return f"root://{self.address}"

    def start(self, *which: Daemon) -> None:
        """Start what does not run (both, unless told which)."""
        for daemon in which or BOTH:
            if not self.running(daemon):
                self._start(daemon)

    def stop(self, *which: Daemon) -> None:
        """End them in an orderly way."""
        self._end(which or BOTH, signal.SIGTERM)

    def kill(self, *which: Daemon) -> None:
        """kill -9: the server vanishes; connections to it are refused."""
        self._end(which or BOTH, signal.SIGKILL)

    def pause(self, *which: Daemon) -> None:
        """They do nothing until `resume`; connections stay open, and new ones are accepted."""
        self._signal(which or BOTH, signal.SIGSTOP)

    def resume(self, *which: Daemon) -> None:
        """They go on."""
        self._signal(which or BOTH, signal.SIGCONT)

    def running(self, daemon: Daemon) -> bool:
        """Whether it has been started and has not ended."""
        process = self._processes.get(daemon)
        return process is not None and process.poll() is None

    def log(self, daemon: Daemon) -> str:
        """All that it has said."""
        path = self._log(daemon)
        return path.read_text(errors="replace") if path.exists() else ""

    def check(self) -> None:
        """A daemon that ended by itself is an error."""
        for daemon, process in self._processes.items():
            if process.poll() is not None:
                said = self.log(daemon)[-3000:]
                what = f"{daemon} of {self.name} ended with {process.returncode}"
                raise FederationError(f"{what}:\n{said}")

    def close(self) -> None:
        """End everything; it cannot be started again."""
        self.kill()
        for held in self._sockets.values():
            held.close()
        self._sockets.clear()

    def __repr__(self) -> str:
        return f"<{self.name} {self.address}>"

    def _log(self, daemon: Daemon) -> Path:
        return self._place.base / f"{daemon}.log"

    def _listen(self, daemon: Daemon) -> socket | None:
        """The socket that it takes over; held since the port was chosen, or made again."""
        port = self.port if daemon == "xrootd" else self.cms_port
        if port is None:
            return None
        return self._sockets.pop(daemon, None) or listen(port)

    def _start(self, daemon: Daemon) -> None:
        """cmsd before xrootd: one that does not find it tries again only after ten seconds."""
        file = self._place.base / "xrootd.cfg"
        if not file.exists():  # the other daemon may be reading it, and reads it several times
            file.write_text(configuration(self._place, self._means.settings))
        if daemon == "cmsd":
            for left in self._place.admin.glob(".olb/olbd.*"):
                left.unlink()
        elif self._place.role == "server" and self.running("cmsd"):
            self._await_cmsd()
        program = [
            *(executable(daemon), "-c", file, "-I", "v4"),
            # Without a pid file of its own it writes one in /tmp, the same for all users.
            *("-s", self._place.admin / f"{daemon}.pid-file"),
        ]
        with self._log(daemon).open("ab") as log, contextlib.ExitStack() as stack:
            held = self._listen(daemon)
            passed = -1 if held is None else stack.enter_context(held).fileno()
            words = (passed, self._means.uid, self._means.gid, *program)
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", _LAUNCHER, *map(str, words)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._place.base,
                start_new_session=True,
                pass_fds=[] if passed < 0 else [passed],
                env={"PATH": os.defpath, "LC_ALL": "C", "HOME": str(self._place.base)},
            )
        self._processes[daemon] = process
        self._means.guard.add(process.pid)

    def _await_cmsd(self) -> None:
        name = str(self._place.admin / ".olb" / "olbd.admin")
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < deadline and self.running("cmsd"):
            for line in Path("/proc/net/unix").read_text().splitlines():
                words = line.split()
                if words[-1] == name and words[3] == _ACCEPTS:
                    return
            time.sleep(0.01)

    def _signal(self, which: Sequence[Daemon], number: signal.Signals) -> None:
        for daemon in which:
            if self.running(daemon):
                self._processes[daemon].send_signal(number)

    def _end(self, which: Sequence[Daemon], number: signal.Signals) -> None:
        ending = [self._processes.pop(daemon) for daemon in which if daemon in self._processes]
        for process in ending:
            process.send_signal(signal.SIGCONT)
            process.send_signal(number)
        for process in ending:
            try:
                process.wait(_PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            self._means.guard.forget(process.pid)


class Server(Node):
    """A data server. Its faults (delay, rate, stall, reset) need a federation that is proxied."""

    def __init__(self, means: Means, number: int, manager: int | None, meta: int | None) -> None:
        """The number counts over the whole federation, from 0."""
        super().__init__(means, f"srv{number + 1}", "server", manager, meta)
        self.number = number
        self._proxy: FaultProxy | None = None
        self._network: dict[str, float | bool] = {}
        # Behind its proxy it listens at the same port of an address of its own, and is known to
        # its redirector, and to clients, by the proxy's.
        self._host_behind = f"127.0.1.{number + 1}"
        self.data_dir.mkdir()
        means.give(self.data_dir)

    @property
    def data_dir(self) -> Path:
        """Its files, each under its logical name."""
        return self._place.data

    def files(self) -> list[str]:
        """Logical names of the files it holds."""
        found = (path for path in self.data_dir.rglob("*") if path.is_file())
        return sorted(f"/{path.relative_to(self.data_dir)}" for path in found)

    def holds(self, name: str) -> bool:
        """Whether it has this logical name."""
        return os.path.lexists(self.data_dir / name.lstrip("/"))

    def put(self, name: str, data: bytes, mode: int = 0o644) -> None:
        """Place a file there behind the federation's back."""
        path = self.data_dir / name.lstrip("/")
        self.make_directory(os.path.dirname(name))
        path.write_bytes(data)
        path.chmod(mode)
        self._means.give(path)

    def make_directory(self, name: str) -> None:
        """Make a directory there, and those above it, behind the federation's back."""
        path = self.data_dir / name.strip("/")
        fresh = [made for made in (path, *path.parents) if not made.exists()]
        path.mkdir(parents=True, exist_ok=True)
        for made in fresh:
            self._means.give(made)

    def set_delay(self, seconds: float) -> None:
        """Every answer comes so much later."""
        self._order(delay=seconds)

    def set_rate(self, bytes_per_second: float) -> None:
        """So much a second at most on each connection, from the server; 0 for no limit."""
        self._order(rate=bytes_per_second)

    def stall(self) -> None:
        """Connections stay open, new ones are accepted, and no byte moves."""
        self._order(stalled=True)

    def unstall(self) -> None:
        """Bytes move again, those that waited first."""
        self._order(stalled=False)

    def reset_connections(self) -> None:
        """Every open connection of a client ends with a TCP reset."""
        if self._proxy is None:
            raise FederationError("faults of the network need a federation that is proxied")
        self._proxy.order(reset=True)

    def _order(self, **order: float | bool) -> None:
        if not self._means.settings.proxied:
            raise FederationError("faults of the network need a federation that is proxied")
        self._network |= order
        if self._proxy is not None:
            self._proxy.order(**order)

    def _listen(self, daemon: Daemon) -> socket | None:
        if daemon == "cmsd" or not self._means.settings.proxied:
            return super()._listen(daemon)
        if self._proxy is None:
            front = super()._listen(daemon)
            assert front is not None
            log = self._place.base / "proxy.log"
            self._proxy = FaultProxy(front, self._host_behind, self.port, log)
            self._means.guard.add(self._proxy.pid)
            self._proxy.order(**self._network)
        return listen(self.port, self._host_behind)

    def _end(self, which: Sequence[Daemon], number: signal.Signals) -> None:
        if "xrootd" in which and self._proxy is not None:
            self._proxy.end()
            self._means.guard.forget(self._proxy.pid)
            self._proxy = None
        super()._end(which, number)
