"""The command `replicator`: arguments in, text and exit codes out.

The only place that prints and exits. Every refusal is one line on standard error; what the codes
mean stands in replicator(1).
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from importlib import metadata
from typing import Final, NoReturn

import click
from rich.console import Console
from rich.live import Live

from mirrorfs.journal.control_client import ControlError
from mirrorfs.journal.reader import NoJournalError, RecordsGoneError
from mirrorfs.journal.segment import CorruptionError
from replicator import operating, reporting
from replicator.arguments import load_chosen, of_volume, reported, with_sites
from replicator.background import Surroundings, notify, start
from replicator.config import (
    RunSettings,
    UsageError,
    load,
    load_volume,
    parse_site_name,
)
from replicator.status import StatusReader
from replicator.status_report import VolumeReport, encode_status
from replicator.status_text import nagios as nagios_line
from replicator.status_text import render
from replicator.stores.base import SiteMissingError, SiteRefusedError
from replicator.verify import Finding, SiteResult, verify
from replicator.view import SourceError, SourceRefusedError
from replicator.wording import count

EXIT_USAGE, EXIT_UNUSABLE, EXIT_REFUSED = 64, 66, 69
EXIT_INTERNAL, EXIT_CORRUPT, EXIT_NOT_PERMITTED = 70, 74, 77

_EXIT_CODES: Final[tuple[tuple[type[Exception], int], ...]] = (
    (NoJournalError, EXIT_UNUSABLE),
    (RecordsGoneError, EXIT_UNUSABLE),
    (CorruptionError, EXIT_CORRUPT),
    (SiteMissingError, EXIT_UNUSABLE),
    (SiteRefusedError, EXIT_REFUSED),
    (SourceRefusedError, EXIT_UNUSABLE),
    (SourceError, EXIT_UNUSABLE),
    (ControlError, EXIT_UNUSABLE),
    (PermissionError, EXIT_NOT_PERMITTED),
    (OSError, EXIT_UNUSABLE),
)
LOG_NAME: Final = "replicator.log"
_CONTEXT: Final = {"help_option_names": ["-h", "--help"], "max_content_width": 80}
_REFRESH_SECONDS: Final = 1.0
_LOG_SECONDS: Final = 60.0


class NotPermittedError(Exception):
    """A permission of ours is missing."""

    exit_code = EXIT_NOT_PERMITTED


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command and exit."""
    sys.stdout.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    sys.stderr.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    try:
        code = cli.main(arguments, prog_name="replicator", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        sys.exit(EXIT_USAGE)
    except click.ClickException as error:
        _fail(error.format_message(), EXIT_USAGE)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(0)
    except Exception as error:  # noqa: BLE001 - the last resort, with its traceback
        _fail(_text(error), _exit_code(error))
    sys.exit(code if isinstance(code, int) else 0)


def _exit_code(error: Exception) -> int:
    """What it ends the command with; what should never happen leaves its traceback."""
    code = getattr(error, "exit_code", None)
    if isinstance(code, int):
        return code
    for kind, known in _EXIT_CODES:
        if isinstance(error, kind):
            return known
    traceback.print_exception(error)
    return EXIT_INTERNAL


def _text(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'error'}: {error.strerror}"
    return str(error)


def _fail(message: str, code: int) -> NoReturn:
    print(f"replicator: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


def _print_version(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        print(f"replicator {metadata.version('mirrorfs')}")
        context.exit()


@click.group(context_settings=_CONTEXT)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Show the version and exit.",
)
def cli() -> None:
    """Follow the journal of a volume and make every site equal to its source.

    A volume is named by its TOML file, or by the directory of its journal.
    """


@cli.command()
@of_volume
@with_sites("A site, beside those in the file. Repeatable.")
@click.option("--background", is_flag=True, help="Return when sites are open.")
@click.option("--log", metavar="FILE", help="Where it logs to in the background.")
@click.option("--pid-file", metavar="FILE", help="Keep its process id there, and a lock.")
def run(
    volume: str | None,
    journal: str | None,
    sites: tuple[str, ...],
    background: bool,
    log: str | None,
    pid_file: str | None,
) -> int:
    """Make the sites equal and keep them so, until SIGTERM or SIGINT.

    At the first signal what is in the journal is still applied, a second one
    ends it at once; the next start goes on from there. It stays in the
    foreground and logs to standard error; with --background it returns when all
    sites are open, or says why none is, and logs to JOURNAL/replicator.log. A
    site that cannot be opened does not hold up the others: see 'status'.

    A site is a directory: URL is file:///DIRECTORY or its absolute path. A new
    one must be empty and gets a copy of the source first; for others see
    'replicator attach'.
    """
    settings = load(volume, journal, sites)
    if not background and (log or pid_file):
        option = "--log" if log else "--pid-file"
        raise UsageError(f"option '{option}': only with --background")
    from replicator import daemon  # here: it loads the engine, others need not

    if not background:
        return daemon.run(settings, notify)
    if log is None and not os.path.isdir(settings.journal):
        raise NoJournalError(f"{settings.journal}: no journal there")
    log = os.path.abspath(log or os.path.join(settings.journal, LOG_NAME))
    start(Surroundings(log, pid_file), lambda ready: daemon.run(settings, ready))
    return 0


@cli.command()
@of_volume
@with_sites("The site; NAME alone if the file has it.")
@click.option("--adopt", is_flag=True, help="Take a directory that is not empty.")
@click.option("--take-over", is_flag=True, help="One of another volume, or emptied, too.")
def attach(
    volume: str | None, journal: str | None, sites: tuple[str, ...], adopt: bool, take_over: bool
) -> None:
    """Prepare a site directory for its first 'replicator run'.

    With --adopt a directory that is not empty is taken: what is equal there
    stays, what differs is replaced, and what is surplus or replaced is moved to
    .mirrorfs/kept at the site. With --take-over so is a site of another volume,
    and one that was replicated to before and has been emptied since.
    """
    if len(sites) != 1:
        raise UsageError("option '--site': one is needed: --site NAME=URL")
    settings = load_chosen(volume, journal, sites)
    site = settings.sites[0]
    from replicator import daemon  # here: it loads the engine, others need not

    print(f"{site.name}: {daemon.attach(settings, site, adopt=adopt, take_over=take_over)}")


@cli.command()
@of_volume
@with_sites("The site.", metavar="NAME")
@click.option("--forget", is_flag=True, help="Keep nothing for it: it does not come back.")
def detach(volume: str | None, journal: str | None, sites: tuple[str, ...], forget: bool) -> None:
    """Say that a site is away, and may stay away for long.

    The journal keeps all records for an attached site, however far it is
    behind; for a detached one only for some time and up to some size (the mount
    options journal-detached-keep and journal-detached-bytes). 'replicator run'
    and 'replicator attach' attach it again. If records it needs are gone then,
    it gets an initial copy.
    """
    if len(sites) != 1:
        raise UsageError("option '--site': one is needed: --site NAME")
    name = parse_site_name(sites[0])
    settings = load_volume(volume, journal)
    from replicator import daemon  # here: it loads the engine, others need not

    print(f"{name}: {daemon.detach(settings.journal, name, forget=forget)}")


@cli.command()
@of_volume
@click.option("--json", "as_json", is_flag=True, help="As one JSON object; see the manual.")
@click.option("--nagios", is_flag=True, help="As one line for monitoring plugins.")
@click.option("--watch", is_flag=True, help="Show it again each second, until Ctrl-C.")
def status(
    volume: str | None, journal: str | None, as_json: bool, nagios: bool, watch: bool
) -> int:
    """Say how the volume and its sites fare.

    It reads the journal and the reports beside it, and works without any
    daemon; what is old is called so.

    Exit code 0: all is well; 1: a warning: a site is far behind, steps failed,
    a site is paused or backs off, a replicator or mirrorfs does not run, an
    initial copy is not complete; 2: critical: a site is very far behind, a site
    is halted, something is corrupt. How far is far: the keys warn_lag,
    critical_lag, warn_failed and critical_failed of the volume file.
    """
    if as_json + nagios + watch > 1:
        raise UsageError("options '--json', '--nagios', '--watch': one of them")
    with StatusReader(load_volume(volume, journal)) as reader:
        if watch:
            return _watch(reader)
        report = reader.read()
    if as_json:
        print(encode_status(report).decode())
    elif nagios:
        print(nagios_line(report))
    else:
        _print_status(report)
    return report.severity


@cli.command("verify")
@of_volume
@with_sites("A site; NAME alone if it is known. Repeatable. Else: all that are known.")
@click.option("--full", is_flag=True, help="Compare everything: the only way for now, needed.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def verify_command(
    volume: str | None, journal: str | None, sites: tuple[str, ...], full: bool, as_json: bool
) -> int:
    """Compare the source with its sites, exactly.

    Content, type, mode, owner, times of modification, links, devices, extended
    attributes and ACLs. It may run beside jobs and replicator: a place that is
    just being changed is looked at again when the site had time to follow, and
    counted as 'in flight' if it did not.

    Exit code 0: no difference; 1: there are differences.
    """
    if not full:
        raise UsageError("option '--full': missing: it is the only comparison of this version")
    if sites:
        settings = load_chosen(volume, journal, sites)
    else:
        settings = load_volume(volume, journal)
        known = settings.sites or tuple(reported(settings.journal).values())
        settings = RunSettings(settings.journal, known)
    if not settings.sites:
        raise UsageError("option '--site': missing: no site has ever been replicated to")
    if os.geteuid() != 0:
        raise NotPermittedError("verify: not permitted: only root can read everything")
    shower = _Shower(as_json)
    with shower:
        results = verify(settings.journal, list(settings.sites), shower.found, shower.progress)
    return _conclude(results, as_json)


for _command in (*operating.COMMANDS, *reporting.COMMANDS):
    cli.add_command(_command)


# showing -----------------------------------------------------------------------------------------


def _console(*, stderr: bool = False) -> Console:
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)


def _print_status(report: VolumeReport) -> None:
    console = _console()
    if console.is_terminal:
        console.print(render(report))
        return
    with console.capture() as captured:
        console.print(render(report))
    print("\n".join(line.rstrip() for line in captured.get().splitlines()), flush=True)


def _watch(reader: StatusReader) -> int:
    """Until Ctrl-C; in place on a terminal, else one after the other."""
    console = _console()
    try:
        with Live(console=console, auto_refresh=False) as live:
            while True:
                if console.is_terminal:
                    live.update(render(reader.read()), refresh=True)
                else:
                    _print_status(reader.read())
                time.sleep(_REFRESH_SECONDS)
    except KeyboardInterrupt:
        return 0


class _Shower:
    """Prints what a verification finds, and on a terminal how far it is."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._console = _console(stderr=True)
        self._live = self._console.is_terminal and not as_json
        self._began = self._shown = time.monotonic()

    def __enter__(self) -> _Shower:
        return self

    def __exit__(self, *_: object) -> None:
        self._clear()

    def found(self, finding: Finding) -> None:
        """A place that differs."""
        self._clear()
        if self._as_json:
            value = {
                "site": finding.site,
                "path": finding.path,
                "difference": finding.difference,
                "in_flight": finding.in_flight,
            }
            print(json.dumps(value))
        else:
            flight = " (in flight)" if finding.in_flight else ""
            print(f"{finding.site}: {finding.path}: {finding.difference}{flight}")

    def progress(self, site: str, entries: int) -> None:
        """So many entries of the source were compared with that site."""
        now = time.monotonic()
        if now - self._shown < (_REFRESH_SECONDS if self._live else _LOG_SECONDS):
            return
        self._shown = now
        rate = entries / max(now - self._began, 0.001)
        text = f"{site}: {count(entries, 'place')} compared, {rate:,.0f} a second"
        if self._live:
            text = text[: self._console.width - 1]
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
        elif not self._as_json:
            print(text, file=sys.stderr)

    def _clear(self) -> None:
        if self._live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _conclude(results: Sequence[SiteResult], as_json: bool) -> int:
    differences = sum(result.differences for result in results)
    in_flight = sum(result.in_flight for result in results)
    entries = max(result.entries for result in results)
    if as_json:
        value = {
            "sites": len(results),
            "entries": entries,
            "differences": differences,
            "in_flight": in_flight,
        }
        print(json.dumps(value))
    else:
        for result in results:
            if result.in_flight:
                print(f"{result.site}: {count(result.in_flight, 'place')} in flight, not counted")
        sites = "1 site" if len(results) == 1 else f"{len(results)} sites"
        print(f"{sites}, {entries} entries, {differences} differences")  # programs read it
    return 1 if differences else 0
