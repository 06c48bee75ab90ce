"""Arguments that several commands have in common: the volume, its sites, paths, spans of time.

Knows click, and prints nothing.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import click

from replicator.config import (
    RunSettings,
    SiteSettings,
    UsageError,
    load_volume,
    parse_site_name,
)
from replicator.cursor import read_reports
from replicator.site_state import SiteReport

Command = TypeVar("Command", bound=Callable[..., Any])

_SPAN: Final = re.compile(r"([0-9]{1,9})([smhd])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def of_volume(command: Command) -> Command:
    """The arguments that name a volume."""
    command = click.argument("volume", metavar="[VOLUME.toml]", required=False)(command)
    return with_journal(command)


def with_journal(command: Command) -> Command:
    """The option that names a journal."""
    return click.option("--journal", metavar="DIR", help="The directory of the journal.")(command)


def with_sites(text: str, metavar: str = "NAME=URL") -> Callable[[Command], Command]:
    """The option that names sites."""
    return click.option("--site", "sites", multiple=True, metavar=metavar, help=text)


def load_chosen(volume: str | None, journal: str | None, texts: Sequence[str]) -> RunSettings:
    """The settings with only the sites named: NAME=URL, or NAME of one that is known."""
    settings = load_volume(volume, journal)
    known = {**reported(settings.journal), **{site.name: site for site in settings.sites}}
    chosen: list[SiteSettings] = []
    for text in texts:
        if "=" in text:
            chosen += load_volume(None, settings.journal, [text]).sites
            continue
        name = parse_site_name(text)
        if name not in known:
            among = f" of {', '.join(sorted(known))}" if known else ""
            raise UsageError(f"option '--site': {name}: not known: NAME=URL, or one{among}")
        chosen.append(known[name])
    return RunSettings(settings.journal, tuple(chosen))


def reported(journal: str) -> dict[str, SiteSettings]:
    """The sites a replicator has reported on."""
    found: dict[str, SiteSettings] = {}
    for name, report in read_reports(journal).items():
        if isinstance(report, SiteReport):
            found[name] = load_volume(None, journal, [f"{name}={report.url}"]).sites[0]
    return found


def split_volume(
    arguments: Sequence[str], journal: str | None, least: int, most: int | None, what: str
) -> tuple[RunSettings, list[str]]:
    """The volume, and the arguments that follow it; `what`: these in words.

    The volume file comes first, if there is no --journal or one argument is too many without it.
    """
    rest = list(arguments)
    file = None
    if rest and (journal is None or (most is not None and len(rest) == most + 1)):
        file = rest.pop(0)
    if len(rest) < least or (most is not None and len(rest) > most):
        raise UsageError(f"arguments: [VOLUME.toml] and {what}")
    return load_volume(file, journal), rest


def site_names(settings: RunSettings, texts: Sequence[str]) -> list[str]:
    """The sites named; without any, all that are known. UsageError if one is not."""
    known = {*(site.name for site in settings.sites), *read_reports(settings.journal)}
    for text in texts:
        if parse_site_name(text) not in known:
            among = f"; known: {', '.join(sorted(known))}" if known else ""
            raise UsageError(f"option '--site': {text}: not known{among}")
    names = list(dict.fromkeys(texts)) or sorted(known)
    if not names:
        raise UsageError("option '--site': missing: no site is known yet")
    return names


def known_sites(settings: RunSettings, texts: Sequence[str]) -> list[SiteSettings]:
    """The same with all that is known of them."""
    known = {**reported(settings.journal), **{site.name: site for site in settings.sites}}
    empty = {name: SiteSettings(name, "", "") for name in site_names(settings, texts)}
    return [known.get(name, empty[name]) for name in empty]


def since(text: str | None, default: str) -> int:
    """A moment, given as so long ago: nanoseconds since 1970. UsageError."""
    found = _SPAN.fullmatch(text or default)
    if found is None:
        raise UsageError(f"option '--since': {text}: a time ago is allowed: 90s, 15m, 3h, 7d")
    seconds = int(found[1]) * _SECONDS[found[2]]
    return max(0, time.time_ns() - seconds * 1_000_000_000)
