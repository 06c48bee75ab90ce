"""The status of a mount as people read it.

Pure: the values of `user.xrootd.status` in, lines out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

_STATES: Final = {
    "ok": "ok: all servers answer",
    "degraded": "degraded: what only silent servers have gives errors",
    "partial": "partial: what only lost servers have is left out",
    "down": "down: no server answers",
}
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def status_lines(told: Mapping[str, Any]) -> Iterator[str]:
    """The screen of `xrootdfs status`."""
    counts = told["servers"]
    yield f"{told['mountpoint']}  {', '.join(told['urls'])}"
    yield f"  state     {_STATES.get(told['state'], told['state'])}"
    yield f"  by        process {told['pid']}, version {told['version']}"
    yield f"  servers   {counts['up']} up, {counts['suspect']} suspect, {counts['down']} down"
    for redirector in told["redirectors"]:
        if not redirector["answers"]:
            yield f"  silent    {redirector['url']}: {redirector['reason']}"
    for server in told["server"]:
        yield f"    {_server(server)}"


def _server(server: Mapping[str, Any]) -> str:
    state = server["state"]
    words = [f"{server['address']:<28} {state}"]
    if state != "up":
        words.append(f"for {age(server['seconds'])}: {server['reason']}")
    if server["passed_over"]:
        words.append("(left out)")
    if not server["listed"]:
        words.append("(no redirector names it)")
    return " ".join(words)


def age(seconds: float) -> str:
    """A span of time in its two largest units."""
    whole = int(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE} s"
    if whole < _DAY:
        return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE} min"
    return f"{whole // _DAY} d {whole % _DAY // _HOUR} h"
