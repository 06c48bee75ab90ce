"""Commands that answer an operator's questions: explain, lag, top, log.

Arguments in, text and exit codes out; the answers come from elsewhere.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import pwd
import time
from collections.abc import Callable
from typing import Final

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mirrorfs.journal.finding import parse_moment
from mirrorfs.journal.reader import JournalReader
from mirrorfs.journal.record import Change
from mirrorfs.journal.wording import record_line, record_value
from replicator import lag_report
from replicator.arguments import (
    known_sites,
    of_volume,
    since,
    site_names,
    split_volume,
    with_journal,
    with_sites,
)
from replicator.config import UsageError, load_volume
from replicator.explain_report import rows
from replicator.explaining import explain
from replicator.history import history
from replicator.lag_reading import Asked, read_lag
from replicator.scanning import shares
from replicator.scanning import since as records_since
from replicator.wording import escaped, printable, size

_DEFAULT_SINCE: Final = {"hour": "24h", "day": "7d"}
_WELL: Final = ("there", "absent", "excluded", "filtered")
_TOP_SORTS: Final = ("job", "user", "directory")


@click.command("explain")
@with_journal
@with_sites("The site. Repeatable. Else: all that are known.", metavar="NAME")
@click.option("--json", "as_json", is_flag=True, help="As one JSON object; see the manual.")
@click.argument("arguments", metavar="[VOLUME.toml] PATH", nargs=-1)
def explain_command(
    journal: str | None, sites: tuple[str, ...], as_json: bool, arguments: tuple[str, ...]
) -> int:
    """Say how it is with one PATH: who changed it last, what each site has, and
    why it is not there yet.

    The PATH is one in the source or at the mount point, or as reports show it.
    Without daemons it tells what the files tell.

    Exit code 0: all sites have it; 1: one does not.
    """
    settings, (path,) = split_volume(arguments, journal, 1, 1, "a path")
    told = explain(
        settings.journal, known_sites(settings, sites), os.fsencode(path), time.time_ns()
    )
    if as_json:
        click.echo(msgspec.json.encode(told).decode())
    else:
        _print_rows(list(rows(told, _users())))
    return int(any(site.verdict not in _WELL for site in told.sites))


def _users() -> dict[int, str]:
    return {each.pw_uid: each.pw_name for each in pwd.getpwall()}


def _print_rows(lines: list[tuple[str, str]]) -> None:
    """Labels and texts; those that begin a part stand alone, others fold beside their label."""
    console = Console(highlight=False, markup=False, emoji=False)
    with console.capture() as captured:
        for label, text in lines:
            if not label.startswith("  "):
                heading = Text(label, style="bold", overflow="fold")
                heading.append(f"  {text}" if text else "", style="not bold")
                console.print(heading)
                continue
            grid = Table.grid(padding=(0, 2))
            grid.add_column(no_wrap=True, min_width=8)
            grid.add_column(overflow="fold")
            grid.add_row(Text(label, style="dim"), Text(text))
            console.print(grid)
    for line in captured.get().splitlines():
        click.echo(line.rstrip() if not console.is_terminal else line)


@click.command("lag")
@of_volume
@with_sites("The site. Repeatable. Else: all that are known.", metavar="NAME")
@click.option("--slice", "slice_name", type=click.Choice(["hour", "day"]), default="hour")
@click.option("--since", "begin", metavar="AGO", help="90s, 15m, 3h, 7d. [24h; for days 7d]")
@click.option("--over", "limits", type=float, multiple=True, help="Count over so many seconds.")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Leave out: '/tmp/*'.")
@click.option("--json", "as_json", is_flag=True, help="As one JSON object; see the manual.")
@click.option("--csv", "as_csv", is_flag=True, help="As comma-separated values.")
def lag(
    volume: str | None,
    journal: str | None,
    sites: tuple[str, ...],
    slice_name: str,
    begin: str | None,
    limits: tuple[float, ...],
    exclude: tuple[str, ...],
    as_json: bool,
    as_csv: bool,
) -> None:
    """Say how long files took to be at the sites, for each hour or day (UTC).

    From the record of a change to the moment the file was whole at the site,
    both on the clock of the journaling host. What the journal says was to come
    and did not is missing, and counts among those over a limit when it is so
    old. --over is repeatable (300 and 600 unless given), --exclude too: it
    takes patterns of the shell for whole paths, from the source's root.
    """
    if as_json and as_csv:
        raise UsageError("options '--json', '--csv': one of them")
    if not all(math.isfinite(limit) and limit >= 0 for limit in limits):
        raise UsageError("option '--over': seconds from 0 on are allowed")
    settings = load_volume(volume, journal)
    over = limits or (300.0, 600.0)
    asked = Asked(slice_name, since(begin, _DEFAULT_SINCE[slice_name]), over, exclude)
    report = read_lag(settings.journal, site_names(settings, sites), asked, time.time_ns())
    if as_json:
        click.echo(msgspec.json.encode(report).decode())
    elif as_csv:
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows(lag_report.csv_rows(report, over))
        click.echo(out.getvalue(), nl=False)
    else:
        for line in lag_report.table(report, over):
            click.echo(line)


@click.command("top")
@of_volume
@click.option("--by", "sort", type=click.Choice(_TOP_SORTS), default="job")
@click.option("--since", "begin", metavar="AGO", help="90s, 15m, 3h, 7d. [1h]")
@click.option("--depth", type=click.IntRange(1), default=2, help="Of directories. [2]")
@click.option("--count", "most", type=click.IntRange(1), default=20, help="So many. [20]")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def top(
    volume: str | None,
    journal: str | None,
    sort: str,
    begin: str | None,
    depth: int,
    most: int,
    as_json: bool,
) -> None:
    """Say who makes the work: batch jobs, users or directories, by bytes written.

    Jobs and users are those of the records of written content, which alone say
    who it was; directories those of all records.
    """
    settings = load_volume(volume, journal)
    users = _users()
    with JournalReader(settings.journal) as reader:
        found = shares(records_since(reader, since(begin, "1h")), _key(sort, depth, users))
    ranked = sorted(found.items(), key=lambda each: (-each[1].bytes, -each[1].records, each[0]))
    if not as_json:
        click.echo(f"{'bytes':>10}{'files':>10}{'records':>10}  {sort}")
    for name, share in ranked[:most]:
        if as_json:
            value = {
                sort: name,
                "bytes": share.bytes,
                "files": len(share.files),
                "records": share.records,
            }
            click.echo(msgspec.json.encode(value).decode())
        else:
            click.echo(f"{size(share.bytes):>10}{len(share.files):>10}{share.records:>10}  {name}")


def _key(sort: str, depth: int, users: dict[int, str]) -> Callable[[Change], str | None]:
    def by_job(change: Change) -> str | None:
        who = change.who
        return None if who is None else printable(who.job) or "(no job)"

    def by_user(change: Change) -> str | None:
        who = change.who
        return None if who is None else users.get(who.uid, str(who.uid))

    def by_directory(change: Change) -> str | None:
        if change.path is None:
            return "?"
        return "/" + escaped(b"/".join(change.path.split(b"/")[:-1][:depth]))

    return {"job": by_job, "user": by_user, "directory": by_directory}[sort]


@click.command("log")
@with_journal
@click.option("--since", "begin", metavar="TIME", help="Not before this time.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a record.")
@click.argument("arguments", metavar="[VOLUME.toml] PATH", nargs=-1)
def log_command(
    journal: str | None, begin: str | None, as_json: bool, arguments: tuple[str, ...]
) -> None:
    """Show all records about PATH, and about the object that is there (or was
    there last), wherever it was before: the newest last, with who wrote.

    PATH is one in the source or its mount, as the shell has it, or one from the
    source's root on. A TIME is 2026-11-22, 2026-11-22T05:00 (UTC), or so long ago:
    90s, 15m, 3h, 7d.
    """
    settings, (path,) = split_volume(arguments, journal, 1, 1, "a path")
    since_ns = None if begin is None else parse_moment(begin, time.time_ns())
    if begin is not None and since_ns is None:
        allowed = "2026-11-22, 2026-11-22T05:00, or 90s, 15m, 3h, 7d ago is allowed"
        raise UsageError(f"option '--since': {begin}: {allowed}")
    with JournalReader(settings.journal) as reader:
        start = None if since_ns is None else reader.since(since_ns)
        found = 0
        for record in history(reader, os.fsencode(path), start):
            if since_ns is None or record.time_ns >= since_ns:
                found += 1
                click.echo(json.dumps(record_value(record)) if as_json else record_line(record))
    if not found:
        click.echo(f"replicator: {path}: the journal has no records about it", err=True)


COMMANDS: Final[tuple[click.Command, ...]] = (explain_command, lag, top, log_command)
