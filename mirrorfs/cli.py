"""The command `mirrorfs`: arguments in, text and exit codes out.

The only place that prints and exits. Every refusal is one line on standard error; what the codes
mean stands in mirrorfs(1).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Final, NoReturn

import click

from mirrorfs import findings, mountinfo, report
from mirrorfs.config import read_options, read_volume
from mirrorfs.errors import (
    CorruptJournalError,
    MirrorfsError,
    NotPermittedError,
    UnusableError,
    UsageError,
)
from mirrorfs.journal.control_client import ControlClient, ControlError, NotRunningError
from mirrorfs.journal.reader import JournalReader, NoJournalError, RecordsGoneError
from mirrorfs.journal.record import Kind, Record, SequenceNumber
from mirrorfs.journal.segment import CorruptionError
from mirrorfs.mounted import find_daemon, is_ours
from mirrorfs.remount import remount
from mirrorfs.unmount import remove_dead, unmount

EXIT_USAGE: Final = 64
STATUS_OK, STATUS_WARNING, STATUS_CRITICAL = 0, 1, 2

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 80}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command and exit."""
    sys.stdout.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    sys.stderr.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    try:
        code = cli.main(arguments, prog_name="mirrorfs", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        sys.exit(EXIT_USAGE)
    except click.ClickException as error:
        _fail(error.format_message(), EXIT_USAGE)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except MirrorfsError as error:
        _fail(str(error), error.exit_code)
    except (NoJournalError, RecordsGoneError) as error:
        _fail(str(error), UnusableError.exit_code)
    except CorruptionError as error:
        _fail(str(error), CorruptJournalError.exit_code)
    except OSError as error:
        kind = NotPermittedError if isinstance(error, PermissionError) else UnusableError
        _fail(f"{error.filename or 'error'}: {error.strerror}", kind.exit_code)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> NoReturn:
    print(f"mirrorfs: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


def _print_version(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        print(f"mirrorfs {metadata.version('mirrorfs')}")
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
    """Journal every change of a directory tree, below a mount that jobs use as if
    it were the tree itself.
    """


@cli.command(short_help="Mount a source, and journal every change made through it.")
@click.argument("source", required=False)
@click.argument("mountpoint", required=False)
@click.option("-o", "options", multiple=True, metavar="OPT[,OPT...]", help="See above.")
@click.option("-f", "--foreground", is_flag=True, help="Stay, and log to the terminal.")
@click.option("-s", "--sloppy", is_flag=True, help="Pass over options that are not known.")
def mount(
    source: str | None,
    mountpoint: str | None,
    options: tuple[str, ...],
    foreground: bool,
    sloppy: bool,
) -> None:
    """Mount SOURCE at MOUNTPOINT (which may be SOURCE itself) and journal every
    change made through it.

    Returns when the mount answers, or says in one line why it does not.

    \b
    Options (-o):
      journal=DIR               the journal: needed, outside SOURCE
      volume=FILE               take source, mountpoint, journal and the rest
                                from the [volume] table of FILE (TOML)
      journal-sync=group|always answer a job at once, or after its record is
                                on the disk (default: group, at most 20 ms)
      journal-open-files=SEC    record files that stay open and change (30)
      journal-segment-bytes=N   size at which a segment is sealed (67108864)
      attr-timeout=SEC          how long the kernel keeps attributes (3600)
      inode-cache=N             objects to know at a time (1000000)
      io=inline|threads         threads: for a source on a network (inline)
      job-variables=A:B         environment variables that hold a job id
      writers=one|many          many: several nodes mount SOURCE, each with a
                                journal in DIR/NODE; needs locks=local (one)
      node=NAME                 this node's name in journals (the host's)
      locks=local               locks hold between the users of this mount
      guard=on|off              on: record what is changed behind the mount (off)
      fsname=NAME               what findmnt and df call the source (its path)
      subtype=TYPE              shown as the type: fuse.TYPE (mirrorfs)
      ro,nosuid,nodev,noexec,noatime,nodiratime,sync,dirsync
                                as in mount(8); the last four at SOURCE, too
      remount                   change these for a mount that is there
    """
    if (source is None) != (mountpoint is None):
        raise UsageError("MOUNTPOINT: missing: SOURCE and MOUNTPOINT, or -o volume=FILE")
    wanted = read_options(options, sloppy=sloppy)
    if "remount" in wanted:
        where = mountpoint or read_volume(None, None, {"volume": wanted.get("volume")}).mountpoint
        remount(where or "", wanted)
        return
    volume = read_volume(source, mountpoint, wanted)
    from mirrorfs.mount import mount as mount_volume  # here: it loads the engine, others need not

    mount_volume(volume, foreground=foreground)


@cli.command()
@click.argument("mountpoint")
@click.option("-l", "--lazy", is_flag=True, help="Detach it even if it is in use.")
@click.option("--dead", is_flag=True, help="Only remove it if it is dead, left by a crash.")
def umount(mountpoint: str, lazy: bool, dead: bool) -> None:
    """Unmount MOUNTPOINT and wait until its journal is complete. A volume file
    stands for its mountpoint.

    A mount in use is refused, unless -l is given; then mirrorfs goes on until
    the last user has gone. A dead mount, left by a crash, is removed.
    """
    subtype = "mirrorfs"
    if os.path.isfile(mountpoint):
        volume = read_volume(None, None, {"volume": mountpoint})
        mountpoint, subtype = volume.mountpoint or volume.source, volume.subtype
    if dead:
        said = remove_dead(mountpoint, subtype=subtype)
    else:
        said = unmount(mountpoint, lazy=lazy, subtype=subtype)
    if said:
        print(said)


@cli.command(short_help="Say how a mount, or the writer of a journal, fares.")
@click.argument("directory", metavar="DIR")
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
def status(directory: str, as_json: bool) -> int:
    """Say how the mirrorfs of DIR fares: a journal directory, a mountpoint, or a
    volume file.

    Exit code 0: it runs; 1: it runs degraded, changes go without records;
    2: it does not run.
    """
    journal = _journal_of(directory)
    try:
        with ControlClient(journal) as client:
            told = client.status()
    except (NotRunningError, ControlError, TimeoutError) as error:
        with JournalReader(journal) as reader:
            head = reader.head()
            last = _last_record(reader, head)
        clean = last is not None and last.kind is Kind.UNMOUNT
        if as_json:
            value = {"running": False, "reason": str(error), "head": head, "clean": clean}
            print(json.dumps(value))
        else:
            ended = "cleanly" if clean else "without unmounting: the next mount compares the tree"
            print(f"not running: {error}\n  journal     {head} records, ended {ended}")
        return STATUS_CRITICAL
    if as_json:
        print(json.dumps({"running": True, **report.status_value(told)}))
    else:
        print("\n".join(report.status_lines(told)))
    return STATUS_OK if told.degraded is None else STATUS_WARNING


@cli.command(short_help="Look for what stands in the way of a mount, or will.")
@click.argument("named", metavar="[WHAT]", required=False)
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
def doctor(named: str | None, as_json: bool) -> int:
    """Look for what stands in the way of a mount, or will: at the host, and at a
    source, a mountpoint or a volume file. One line a check, with what to do.

    Exit code 0: all is well; 1: a warning; 2: a problem.
    """
    from mirrorfs.doctor import examine  # here: others need not load it

    found = examine(named)
    print(json.dumps(findings.value(found)) if as_json else "\n".join(findings.lines(found)))
    return findings.exit_code(found)


def _journal_of(named: str) -> str:
    """The journal directory meant: that one, or that of a volume file or of what is mounted."""
    if os.path.isfile(named):
        return read_volume(None, None, {"volume": named}).journal_directory
    entry = mountinfo.mounted_at(named)
    if entry is None or not is_ours(entry):
        return named
    daemon = find_daemon(named)
    if daemon is None:
        raise UnusableError(f"{named}: a dead mount: run 'mirrorfs umount {named}' first")
    return str(daemon["journal"])


def _last_record(reader: JournalReader, head: SequenceNumber) -> Record | None:
    if head < reader.position:
        return None
    reader.seek(head)
    return reader.poll(1)[0]


@cli.group()
def journal() -> None:
    """Look into a journal. Never changes it; works beside a running mirrorfs."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `journal cat | head` ends quietly


@journal.command("ls")
@click.argument("directory", metavar="DIR")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a segment.")
def journal_ls(directory: str, as_json: bool) -> None:
    """List the segments of the journal in DIR."""
    with JournalReader(directory) as reader:
        head = reader.head()
        segments = reader.segments()
        for segment, following in zip(segments, [*segments[1:], None], strict=True):
            last = head if following is None else following.first - 1
            size = os.stat(os.path.join(directory, segment.name)).st_size
            state = "active" if following is None else "sealed"
            if as_json:
                value = {
                    "name": segment.name,
                    "tag": f"{segment.tag:016x}",
                    "first": segment.first,
                    "last": last,
                    "bytes": size,
                    "state": state,
                }
                print(json.dumps(value))
            else:
                span = f"{segment.first}-{last}" if last >= segment.first else "no records"
                print(f"{segment.name}  {span:>21}  {size:>11} bytes  {state}")


@journal.command("cat")
@click.argument("directory", metavar="DIR")
@click.option("--from", "start", type=click.IntRange(1), help="Begin with this record.")
@click.option("-n", "count", type=click.IntRange(1), help="Stop after so many records.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a record.")
def journal_cat(directory: str, start: int | None, count: int | None, as_json: bool) -> None:
    r"""Print the records of the journal in DIR, one a line.

    Bytes of names that are not printable UTF-8 appear as \xNN, a backslash too.
    """
    with JournalReader(directory) as reader:
        left = count
        for batch in reader.read(None if start is None else SequenceNumber(start)):
            for record in batch[:left]:
                if as_json:
                    print(json.dumps(report.record_value(record)))
                else:
                    print(report.record_line(record))
            if left is not None:
                left -= len(batch)
                if left <= 0:
                    return


@journal.command("verify")
@click.argument("directory", metavar="DIR")
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
def journal_verify(directory: str, as_json: bool) -> None:
    """Read the whole journal in DIR and check every record.

    Exit code 0: it is whole (a torn tail, as a crash leaves it, is named and is
    no fault: the next mount repairs it); 74: it is corrupt.
    """
    with JournalReader(directory) as reader:
        first = reader.position
        records = sum(len(batch) for batch in reader.read())
        segments = len(reader.segments())
        torn = reader.unread_bytes()
    if as_json:
        value = {"first": first, "records": records, "segments": segments, "torn_bytes": torn}
        print(json.dumps(value))
        return
    print(f"{directory}: {records} records from {first} in {segments} segments, whole")
    if torn:
        print(f"{directory}: {torn} bytes after the last record: cut short, or being written")
