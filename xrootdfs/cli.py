"""The command `xrootdfs`: arguments in, text and exit codes out.

The only place that prints and exits. Every refusal is one line on standard error; what the codes
mean stands in xrootdfs(1).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Any, Final, NoReturn

import click

from xrootdfs import mounted
from xrootdfs.config import read_mount, read_options
from xrootdfs.errors import NotPermittedError, UnusableError, XrootdfsError
from xrootdfs.mounted import find_status
from xrootdfs.names import parse_url
from xrootdfs.remount import remount
from xrootdfs.report import status_lines
from xrootdfs.unmount import remove_dead, unmount

EXIT_USAGE: Final = 64
STATUS_OK, STATUS_WARNING, STATUS_CRITICAL = 0, 1, 2

_STATUS_CODES: Final = {"ok": STATUS_OK, "down": STATUS_CRITICAL}
_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 80}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command and exit."""
    sys.stdout.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    sys.stderr.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    try:
        code = cli.main(arguments, prog_name="xrootdfs", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        sys.exit(EXIT_USAGE)
    except click.ClickException as error:
        _fail(error.format_message(), EXIT_USAGE)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except XrootdfsError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:
        kind = NotPermittedError if isinstance(error, PermissionError) else UnusableError
        _fail(f"{error.filename or 'error'}: {error.strerror}", kind.exit_code)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> NoReturn:
    print(f"xrootdfs: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


def _print_version(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        print(f"xrootdfs {metadata.version('mirrorfs')}")
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
    """Mount XRootD federations as one ordinary directory tree."""


@cli.command(short_help="Mount a federation.")
@click.argument("urls", metavar="URL[,URL...]")
@click.argument("mountpoint")
@click.option("-o", "options", multiple=True, metavar="OPT[,OPT...]", help="See above.")
@click.option("-f", "--foreground", is_flag=True, help="Stay, and log to the terminal.")
@click.option("-s", "--sloppy", is_flag=True, help="Pass over options that are not known.")
def mount(
    urls: str, mountpoint: str, options: tuple[str, ...], foreground: bool, sloppy: bool
) -> None:
    """Mount what all data servers behind URL have below its prefix, as one tree,
    at MOUNTPOINT. URL is root://HOST:PORT//PREFIX: a redirector's, or a meta
    manager's; several are joined.

    Returns when the mount answers, or says in one line why it does not.

    \b
    Options (-o):
      missing-when-degraded=error|absent
                             names that only a lost server may have: an error
                             (EIO), or absent after server-grace (error)
      server-grace=SEC       how long they are an error in any case (60)
      attr-timeout=SEC       how long attributes and names count (10)
      negative-timeout=SEC   how long absences count (5)
      listing-timeout=SEC    how long listings count (10)
      metadata-deadline=SEC  for one call about names (5)
      data-deadline=SEC      for one call about content (15)
      operation-deadline=SEC for all that one system call needs (30)
      refresh=SEC            ask redirectors for data servers that often (60)
      placement=name|directory|space
                             where new files go: spread by path, by directory,
                             or to the server with most room (name)
      directories=all|one    make directories on all servers, or on one (all)
      emulate=on|off         keep owners, times, symlinks in attributes at the
                             servers (on)
      uid=N,gid=N            whose the files are that have no owner kept (yours)
      log=FILE               log there instead of to syslog
      fsname=NAME            what findmnt and df call the source (its URL)
      subtype=TYPE           shown as the type: fuse.TYPE (xrootdfs)
      allow_other            let others use it too (always so for root)
      ro,nosuid,nodev,noexec as in mount(8)
      remount                change these for a mount that is there
    """
    wanted = read_options(options, sloppy=sloppy)
    if "remount" in wanted:
        remount(mountpoint, wanted)
        return
    asked = read_mount(urls, mountpoint, wanted)
    from xrootdfs.mount import mount as mount_federation  # here: others need not load it

    mount_federation(asked, foreground=foreground)


@cli.command(short_help="Unmount, once all that was written is at the servers.")
@click.argument("mountpoint")
@click.option("-l", "--lazy", is_flag=True, help="Detach it even if it is in use.")
@click.option("--dead", is_flag=True, help="Only remove it if it is dead, left by a crash.")
def umount(mountpoint: str, lazy: bool, dead: bool) -> None:
    """Unmount MOUNTPOINT and wait until all that was written is at the servers.

    A mount in use is refused, unless -l is given; then xrootdfs goes on until
    the last user has gone. A dead mount, left by a crash, is removed.
    """
    said = remove_dead(mountpoint) if dead else unmount(mountpoint, lazy=lazy)
    if said:
        print(said)


@cli.command(short_help="Say which data servers have a file.")
@click.argument("places", metavar="FILE...", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a file.")
def locate(places: tuple[str, ...], as_json: bool) -> int:
    """Say which data servers have each FILE: a path on a mount, or root://HOST//PATH.

    One URL a line, the copy that is served first. A copy of another size is
    marked "differing", one of another kind "contrary".

    Exit code 0: all were found; 66: some were not.
    """
    code = 0
    for place in places:
        try:
            lines = _locations(place)
        except XrootdfsError as error:
            print(f"xrootdfs: {error}", file=sys.stderr)
            code = UnusableError.exit_code
            continue
        if as_json:
            print(json.dumps({"file": place, "locations": lines}))
        else:
            print("\n".join(lines))
    return code


def _locations(place: str) -> list[str]:
    """Lines about one file. UnusableError."""
    try:
        if "://" in place:
            from xrootdfs.mount import connect

            connect()
            from xrootdfs.locating import locate as locate_url  # here: it loads the client library

            data = b"\n".join(locate_url(parse_url(place)))
        else:
            data = mounted.ask(place, "user.xrootd.locations")
    except OSError as error:
        if error.errno in mounted.NO_ATTRIBUTE and "://" not in place:
            raise UnusableError(f"{place}: not on an xrootdfs mount") from None
        raise UnusableError(f"{place}: {os.strerror(error.errno or 0)}") from None
    return os.fsdecode(data).splitlines()


@cli.command(short_help="Say how mounts and their data servers fare.")
@click.argument("mountpoints", metavar="[MOUNTPOINT...]", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="As one JSON object a mount.")
def status(mountpoints: tuple[str, ...], as_json: bool) -> int:
    """Say how the mounts at these MOUNTPOINTs fare, or all xrootdfs mounts.

    Exit code 0: all servers answer; 1: some do not, their files give errors;
    2: a mount is dead, does not answer, or has no server, or there is none.
    """
    codes = []
    for mountpoint in mountpoints or mounted.all_mounted():
        told, reason = _status(mountpoint)
        if as_json:
            print(
                json.dumps({"running": True, **told} if told else _not_running(mountpoint, reason))
            )
        elif told is not None:
            print("\n".join(status_lines(told)))
        else:
            print(f"{mountpoint}: {reason}")
        codes.append(
            STATUS_CRITICAL if told is None else _STATUS_CODES.get(told["state"], STATUS_WARNING)
        )
    if not codes:
        print("no xrootdfs mount on this host", file=sys.stderr)
    return max(codes, default=STATUS_CRITICAL)


def _status(mountpoint: str) -> tuple[dict[str, Any] | None, str]:
    try:
        told = find_status(mountpoint)
    except UnusableError as error:
        return None, str(error).removeprefix(f"{mountpoint}: ")
    return told, f"a dead mount: run 'xrootdfs umount {mountpoint}'"


def _not_running(mountpoint: str, reason: str) -> dict[str, Any]:
    return {"running": False, "mountpoint": mountpoint, "reason": reason}
