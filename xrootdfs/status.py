"""What can be asked about a mount, as the values of virtual attributes.

`user.xrootd.…` of any path says where it is; of the root also how the mount fares. None of them is
listed, so that copying a tree does not copy them. docs/man/xrootdfs.1 names them all; the JSON of
`user.xrootd.status` is what `xrootdfs status --json` shows.
"""

from __future__ import annotations

import errno
import json
import os
import time
from importlib import metadata
from typing import Any, Final

import msgspec
import trio

from xrootdfs.breaker import State
from xrootdfs.config import Mount
from xrootdfs.errors import CallError, Origin
from xrootdfs.federation import Federation
from xrootdfs.topology import Member
from xrootdfs.values import ROOT, Found, Server

PREFIX: Final = b"user.xrootd."
"""How the names of the virtual attributes begin; nobody may set them."""

_BYTES_MAX: Final = 60_000
_CHECKSUM: Final = "checksum"


def version() -> str:
    """This distribution's version."""
    return metadata.version("mirrorfs")


class Attributes:
    """The virtual attributes of one mount."""

    def __init__(self, mount: Mount, federation: Federation) -> None:
        self._mount = mount
        self._federation = federation
        self._since = time.time_ns() // 1_000_000_000

    async def value(self, path: bytes, name: bytes) -> bytes:
        """Value of the attribute `name` (whole). CallError; ENODATA if there is no such one."""
        word = name.removeprefix(PREFIX).decode(errors="replace")
        if path == ROOT and word == "status":
            return self.status()
        if path == ROOT and word == "daemon":
            return self._daemon()
        if word in ("url", "server", "locations", "partial"):
            return await self._place(path, word)
        if word == _CHECKSUM or word.startswith(f"{_CHECKSUM}."):
            return await self._checksum(path, word.partition(".")[2])
        raise CallError(errno.ENODATA, f"{word}: no such attribute", Origin.LOCAL)

    def status(self) -> bytes:
        """How the mount fares, as JSON; the servers that are up are left out if they are many."""
        told = self._status(self._federation.topology.members)
        data = json.dumps(told).encode()
        if len(data) > _BYTES_MAX:
            silent = [
                m for m in self._federation.topology.members if m.health.state is not State.UP
            ]
            data = json.dumps(self._status(tuple(silent[:100]))).encode()
        return data

    def _status(self, members: tuple[Member, ...]) -> dict[str, Any]:
        topology = self._federation.topology
        degraded = self._federation.degraded
        now = trio.current_time()
        lost = topology.lost()
        passed_over = [s for s, at in lost.items() if degraded.passed_over(at, now)]
        return {
            "state": self._state(bool(passed_over)),
            "version": version(),
            "pid": os.getpid(),
            "since": self._since,
            "mountpoint": _printable(self._mount.mountpoint),
            "urls": [_printable(url) for url in self._mount.urls],
            "redirectors": [
                {
                    "url": str(redirector),
                    "answers": redirector not in topology.redirector_errors,
                    "reason": topology.redirector_errors.get(redirector, ""),
                }
                for redirector in self._mount.redirectors
            ],
            "servers": {
                state.value: sum(1 for m in topology.members if m.health.state is state)
                for state in State
            },
            "server": [_member(member, member.server in passed_over, now) for member in members],
            "missing_when_degraded": self._mount.missing_when_degraded,
            "in_flight": self._federation.client.bridge.in_flight,
            "names_known": len(self._federation.memory),
        }

    def _state(self, partial: bool) -> str:
        topology = self._federation.topology
        if not topology.asked:
            return "down"
        if partial:
            return "partial"
        healthy = all(member.health.state is State.UP for member in topology.members)
        return "ok" if healthy and not topology.redirector_errors else "degraded"

    def _daemon(self) -> bytes:
        """By this `umount` and `remount` know us."""
        told = {
            "pid": os.getpid(),
            "version": version(),
            "options": msgspec.to_builtins(self._mount),
        }
        return json.dumps(told).encode()

    async def _place(self, path: bytes, word: str) -> bytes:
        if word == "partial":
            listing = await self._federation.list(path)
            silent = (*listing.silent, *listing.passed_over)
            return "\n".join(str(server) for server in silent).encode()
        found = await self._found(path)
        if word == "server":
            return found.current[0].address.encode()
        if word == "url":
            return url_of(found.current[0], path)
        return b"\n".join(locations(path, found))

    async def _found(self, path: bytes) -> Found:
        """Where it is; on all servers if they can tell."""
        try:
            return await self._federation.find_everywhere(path)
        except CallError as error:
            if not error.silent:
                raise
            return await self._federation.find(path)

    async def _checksum(self, path: bytes, algorithm: str) -> bytes:
        found = await self._federation.find(path)
        if found.is_directory:
            raise CallError(errno.ENODATA, "a directory has no checksum", Origin.LOCAL)
        client = self._federation.client
        name, value = await client.checksum(found.current[0], path, algorithm or None)
        return f"{name}:{value}".encode()


def url_of(server: Server, path: bytes) -> bytes:
    """URL of a path at one server."""
    return b"root://" + server.address.encode() + b"/" + server.path(path)


def locations(path: bytes, found: Found) -> list[bytes]:
    """URLs of all copies, the one that is served first; each with what is odd about it."""
    lines = [url_of(server, path) for server in found.current]
    rest = [server for server in found.holders if server not in found.current]
    lines += [url_of(server, path) + b" differing" for server in rest]
    return lines + [url_of(server, path) + b" contrary" for server in found.contrary]


def _member(member: Member, passed_over: bool, now: float) -> dict[str, Any]:
    return {
        "address": member.server.address,
        "prefix": member.server.prefix.decode(errors="backslashreplace"),
        "state": member.health.state.value,
        "seconds": round(now - member.health.since, 1),
        "reason": member.health.reason,
        "listed": member.listed,
        "passed_over": passed_over,
        "calls": member.calls,
        "silences": member.silences,
    }


def _printable(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()
