"""The reports that replicators keep beside a journal, as far as they concern its writer.

Reads them; the words in them are the replicator's.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

import msgspec

from mirrorfs.findings import Finding, ok, problem, warning

_SITES: Final = "sites"
_FRESH_SECONDS: Final = 60.0


class Held(msgspec.Struct, kw_only=True):
    """A step that a site could not do, or that waits for a writer."""

    kind: str = ""
    directory: bytes = b""
    name: bytes = b""
    object: bytes = b""
    whole: bool = False
    waiting: bool = False


class State(msgspec.Struct, kw_only=True):
    """Of one site: every record up to `working` was worked on; what failed is in `held`.
    `comparing`: directories are being compared, because of records after `clean`."""

    journal: str
    tag: str
    working: int
    clean: int
    held: list[Held] = []
    comparing: list[msgspec.Raw] = []


class Report(msgspec.Struct, kw_only=True):
    """What a site's replicator, that process of that host, last said, at `updated_ns`."""

    state: State
    host: str = ""
    pid: int = 0
    phase: str = ""
    reason: str = ""
    updated_ns: int = 0


def read_reports(directory: str) -> list[tuple[str, Report | None]]:
    """The reports beside a journal, by site; None if one cannot be read."""
    found: list[tuple[str, Report | None]] = []
    try:
        names = sorted(os.listdir(os.path.join(directory, _SITES)))
    except OSError:
        return found
    for name in names:
        site, extension = os.path.splitext(name)
        if extension != ".json":
            continue
        try:
            with open(os.path.join(directory, _SITES, name), "rb") as file:
                found.append((site, msgspec.json.decode(file.read(), type=Report)))
        except (OSError, msgspec.DecodeError):
            found.append((site, None))
    return found


def site_findings(directory: str, now_ns: int) -> Iterator[Finding]:
    """How the sites fare."""
    look = "see 'replicator status'"
    for site, report in read_reports(directory):
        name = f"site {site}"
        if report is None:
            yield warning(name, "its report cannot be read", look)
            continue
        state = report.state
        failed = sum(not step.waiting for step in state.held)
        told = f"{report.phase}, clean up to record {max(state.clean, 0)}"
        age = (now_ns - report.updated_ns) / 1e9
        if report.phase == "halted":
            yield problem(name, f"halted: {report.reason}", look)
        elif failed:
            yield warning(name, f"{told}, {failed} steps failed", look)
        elif report.phase == "backing off":
            yield warning(name, f"{told}: {report.reason}", look)
        elif age > _FRESH_SECONDS or report.phase == "stopped":
            yield warning(name, f"{told}; no replicator is at work", "start the replicator")
        else:
            yield ok(name, told)
