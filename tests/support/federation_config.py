"""Configuration files of a test federation's daemons: values in, lines out, no I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from tests.support.loopback import HOST

Role = Literal["meta manager", "manager", "server"]

# cms.delay, whole seconds and never below 1 (but `hold`: milliseconds). With the defaults of
# a real site, in parentheses, a test would wait most of its time.
#   startup   grace before a redirector serves anybody (90)
#   lookup    what a client is told to wait while servers are asked (5)
#   qdl       how long servers have to say that they hold a file; since only these answer, a missing
#             or new name costs this once (5)
#   hold      how long a request is held in the hope of a fast answer (178)
#   suspend   wait while all servers are suspended (90)
#   service   wait while too few servers are there (180)
#   full      wait while no server has space (300)
#   overload  wait while all are overloaded (60)
#   drop      until a lost server leaves the configuration (600)
#   delnode   until a lost server is deleted (960)
#   servers   how many must be there before any is offered (80 %)
FAST_DELAYS: Final[Mapping[str, int]] = {
    "startup": 1,
    "lookup": 1,
    "qdl": 1,
    "hold": 178,
    "suspend": 1,
    "service": 1,
    "full": 2,
    "overload": 2,
    "drop": 5,
    "delnode": 3,
    "servers": 1,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What may differ between federations.

    Attributes:
        proxied: a fault proxy stands before every data server.
        persist: files that vanish if their writer does: on request, always, never.
        checksums: algorithms that data servers can compute.
        delays: changes to FAST_DELAYS.
        extra: further lines for "manager", for "server", or for the node of that name.
        trace: log everything.
        keep: leave the directory behind at the end.
    """

    proxied: bool = False
    persist: Literal["manual", "auto", "off"] = "manual"
    checksums: str = "adler32 crc32c"
    delays: Mapping[str, int] = field(default_factory=dict)
    extra: Mapping[str, Sequence[str]] = field(default_factory=dict)
    trace: bool = False
    keep: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Who a node is, and where it stands.

    Attributes:
        port: of its xrootd.
        cms_port: of its cmsd, where other nodes log in; data servers need none.
        managers: cmsd ports of the redirectors above it; its own for a redirector.
        meta: cmsd port of the meta manager, if there is one.
    """

    name: str
    role: Role
    base: Path
    port: int
    cms_port: int | None
    managers: Sequence[int]
    meta: int | None

    @property
    def admin(self) -> Path:
        """Where its sockets and pid files are."""
        return self.base / "adm"

    @property
    def data(self) -> Path:
        """Where a data server's files are, each under its logical name."""
        return self.base / "data"


def configuration(place: Place, settings: Settings) -> str:
    """The file for xrootd and cmsd of one node."""
    lines = _common(place, settings)
    if place.role == "server":
        lines += _server(place, settings) + list(settings.extra.get("server", ()))
    else:
        lines += _manager(settings) + list(settings.extra.get("manager", ()))
    return "\n".join([*lines, *settings.extra.get(place.name, ())]) + "\n"


def _common(place: Place, settings: Settings) -> list[str]:
    lines = [
        f"all.role {place.role}",
        "all.export /",
        f"all.adminpath {place.admin}",
        f"all.pidpath {place.admin}",
        f"all.sitename {place.name}",
        "xrd.network nodnr norpipa keepalive",
        "xrd.timeout hail 30 idle 1h kill 3 read 10",
        "xrd.sched mint 4 maxt 256 avlt 4",
        f"xrd.port {place.port} if exec xrootd",
        # The cmsd of a data server opens a port of its own on all addresses: nobody may use it.
        f"xrd.allow host {HOST}",
        "xrd.allow host localhost",
        # A redirector needs this one too: without it the query is refused before it is passed on.
        f"xrootd.chksum chkcgi max 4 {settings.checksums}",
        "cms.conwait 1",
        "cms.fxhold noloc 60 8h",
    ]
    if place.cms_port is not None:
        lines.append(f"xrd.port {place.cms_port} if exec cmsd")
    if place.meta is not None:
        lines.append(f"all.manager meta {HOST}:{place.meta}")
    lines += [f"all.manager {HOST}:{port}" for port in place.managers]
    if settings.trace:
        lines += [f"{part}.trace all" for part in ("all", "xrd", "ofs", "oss", "cms", "xrootd")]
    return lines


def _manager(settings: Settings) -> list[str]:
    delays = {**FAST_DELAYS, **settings.delays}
    return [
        "cms.delay " + " ".join(f"{name} {value}" for name, value in delays.items()),
        "cms.sched cpu 0 io 0 mem 0 pag 0 runq 0 space 0 maxload 100 refreset 60",
        "cms.ping 2 log 60 usage 60",
    ]


def _server(place: Place, settings: Settings) -> list[str]:
    return [
        f"oss.localroot {place.data}",
        f"ofs.persist {settings.persist} hold 1s logdir {place.admin}",
        "cms.space linger 0 recalc 5 min 1% 16m 1% 32m",
        "cms.perf int 60s",
    ]
