"""The command `mirrorfs`: arguments in, text and exit codes out.

The only place that prints and exits. Every refusal is one line on standard error; what the codes
mean stands in mirrorfs(1).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from typing import Final, NoReturn

import click

from mirrorfs import background, export, findings, mountinfo, report
from mirrorfs.config import read_options, read_volume
from mirrorfs.errors import (
    CorruptJournalError,
    MirrorfsError,
    NotPermittedError,
    RefusedError,
    UnusableError,
    UsageError,
)
from mirrorfs.journal.control_client import ControlClient, ControlError, NotRunningError
from mirrorfs.journal.finding import PathPattern, Search, parse_moment
from mirrorfs.journal.paths import inside
from mirrorfs.journal.reader import JournalReader, NoJournalError, RecordsGoneError
from mirrorfs.journal.record import Kind, Record, SequenceNumber
from mirrorfs.journal.retention import Holder, RetentionError
from mirrorfs.journal.segment import ARCHIVE, COMPRESSED, CorruptionError
from mirrorfs.journal.site_files import read_retention
from mirrorfs.journal.wording import record_line, record_value
from mirrorfs.mounted import find_daemon, is_ours
from mirrorfs.remount import remount
from mirrorfs.unmount import remove_dead, unmount

EXIT_USAGE: Final = 64
STATUS_OK, STATUS_WARNING, STATUS_CRITICAL = 0, 1, 2

_KIND = click.Choice([kind.label for kind in Kind])
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
      journal-full=degrade|block|readonly
                                while the journal's disk is full or failing,
                                changes go on and are found later by comparing
                                what they touched, or wait, or fail with EROFS
                                (default: degrade)
      journal-reserve=N         kept free there for records (16M, at most a
                                sixteenth of the disk)
      journal-segment-bytes=N   size at which a segment is sealed (64M)
      journal-segment-age=SEC   age at which it is sealed (1h)
      journal-compression=zstd|none
                                of sealed segments (zstd)
      journal-keep=SEC          keep records for so long, even if every site has
                                passed them (7d)
      journal-detached-keep=SEC, journal-detached-bytes=N
                                for how long, and how much, is kept for a
                                detached site (30d, 64G)
      write-through=SITE[:SITE] close, rename and the like wait for these sites
      write-through-timeout=SEC, write-through-fsync=on|off
                                so long (5); fsync waits, too (off)
      fallback=async|error      if one is not there then: success, or EIO (async)
      attr-timeout=SEC          how long the kernel keeps attributes (3600)
      inode-cache=N             objects to know at a time (1000000)
      io=inline|threads         threads: for a source on a network (inline)
      job-variables=A:B         environment variables that hold a job id
      writers=one|many          many: several nodes mount SOURCE, each with a
                                journal in DIR/NODE; needs locks=local (one)
      node=NAME                 this node's name in journals (the host's)
      locks=local               locks hold between the users of this mount
      guard=on|off              on: record what is changed behind the mount (off)
      restart=on|off            on: an engine that dies is started again (on)
      force                     mount over SOURCE even if others use it
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
    force = wanted.pop("force", False)
    volume = read_volume(source, mountpoint, wanted)
    from mirrorfs.mount import mount as mount_volume  # here: it loads the engine, others need not

    mount_volume(volume, foreground=foreground, force=force)


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

    Exit code 0: it runs; 1: it runs degraded, no records can be made, or its
    engine died within the last hour or would not be started again, or others
    use the source past the mount; 2: it does not run.
    """
    journal = _journal_of(directory)
    try:
        with ControlClient(journal) as client:
            told = client.status()
    except (NotRunningError, ControlError, TimeoutError) as error:
        with JournalReader(journal) as reader:
            head = reader.head()
            last = _last_record(reader, head)
            kept = _kept(reader)
        clean = last is not None and last.kind is Kind.UNMOUNT
        said = background.last_line(os.path.join(journal, background.LOG_NAME))
        if as_json:
            value = {"running": False, "reason": str(error), "head": head, "clean": clean}
            value["last_log"] = said
            print(json.dumps({**value, "kept": report.kept_value(kept)}))
        else:
            ended = "cleanly" if clean else f"without unmounting: mirrorfs recover -n {directory}"
            print(f"not running: {error}\n  journal     {head} records, ended {ended}")
            print("\n".join(report.kept_lines(kept)))
            if said and not clean:
                print(f"  last log    {said}")
        return STATUS_CRITICAL
    running = None
    with (
        contextlib.suppress(NoJournalError, CorruptionError, OSError),
        JournalReader(journal) as reader,
    ):
        running = _kept(reader)
    if as_json:
        value = {"running": True, **report.status_value(told)}
        print(json.dumps({**value, "kept": running and report.kept_value(running)}))
    else:
        kept_lines = [] if running is None else report.kept_lines(running)
        print("\n".join([*report.status_lines(told), *kept_lines]))
    return STATUS_WARNING if report.needs_attention(told, time.time_ns()) else STATUS_OK


def _kept(reader: JournalReader) -> report.Kept:
    try:
        holders = read_retention(reader.path).holders
    except RetentionError as error:
        holders = (Holder("", str(error)),)
    return report.Kept(reader.first(), len(reader.segments()), reader.disk_bytes(), holders)


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


@cli.command(short_help="Have compared what an unclean end left in doubt.")
@click.argument("named", metavar="WHAT")
@click.option("-n", "--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
def recover(named: str, dry_run: bool, as_json: bool) -> int:
    """Do what a mount does first after an unclean end, without mounting: repair the
    journal, and say in it which directories of the sites must be compared. WHAT is
    a volume file or a journal directory.

    Needed only if the volume stays unmounted: every mount begins so.

    Exit code of --dry-run: 0: there is nothing to compare, or it is mounted; 1:
    there is something. It changes nothing.
    """
    from mirrorfs import prospect  # here: others need not load it

    volume = prospect.named(named if os.path.isfile(named) else _journal_of(named))
    found = prospect.look(volume)
    if not dry_run and found.mountpoint is not None:
        raise RefusedError(prospect.lines(found)[0])
    print(json.dumps(prospect.value(found)) if as_json else "\n".join(prospect.lines(found)))
    if dry_run:
        return 0 if found.nothing else 1
    if found.clean and found.nothing:
        return 0
    from mirrorfs.mount import recover as recover_volume  # here: it loads the engine

    recover_volume(volume)
    if not as_json:
        print("This stands in the journal now, which has ended cleanly: the sites follow it.")
    return 0


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
            flags = reader.flags(segment)
            state = "active" if following is None else "sealed"
            state = "archive" if flags & ARCHIVE else state
            compressed = bool(flags & COMPRESSED)
            if as_json:
                value = {
                    "name": segment.name,
                    "tag": f"{segment.tag:016x}",
                    "first": segment.first,
                    "last": last,
                    "bytes": size,
                    "state": state,
                    "compressed": compressed,
                }
                print(json.dumps(value))
            else:
                span = f"{segment.first}-{last}" if last >= segment.first else "no records"
                zipped = ", compressed" if compressed else ""
                print(f"{segment.name}  {span:>21}  {size:>11} bytes  {state}{zipped}")


@journal.command("cat")
@click.argument("directory", metavar="DIR")
@click.option("--from", "start", type=click.IntRange(1), help="Begin with this record.")
@click.option("-n", "count", type=click.IntRange(1), help="Stop after so many records.")
@click.option("--path", metavar="PATH", help="A path and all below it, or a pattern.")
@click.option("--job", metavar="ID", help="Written by this batch job.")
@click.option("--uid", type=click.IntRange(0), help="Written by this user.")
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    type=_KIND,
    metavar="KIND",
    help="As create, write, rename... Repeatable.",
)
@click.option("--since", metavar="TIME", help="Not before this time.")
@click.option("--until", metavar="TIME", help="Not after this time.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a record.")
def journal_cat(
    directory: str,
    start: int | None,
    count: int | None,
    path: str | None,
    job: str | None,
    uid: int | None,
    kinds: tuple[str, ...],
    since: str | None,
    until: str | None,
    as_json: bool,
) -> None:
    r"""Print the records of the journal in DIR, one a line: all of them, or those
    for which everything given holds.

    Bytes of names that are not printable UTF-8 appear as \xNN, a backslash too.
    A PATH is one in the source or its mount, as the shell has it, or one from the
    source's root on; in a pattern * and ? stay within a name, ** does not. A TIME
    is 2026-11-22, 2026-11-22T05:00 (UTC), or so long ago: 90s, 15m, 3h, 7d. Who
    wrote is known of records of kind 'write'.
    """
    with JournalReader(directory) as reader:
        search = Search(
            path=None if path is None else _pattern(path, reader),
            job=job,
            uid=uid,
            kinds=frozenset(Kind[kind.upper()] for kind in kinds),
            since_ns=_moment("--since", since),
            until_ns=_moment("--until", until),
        )
        begin = None if start is None else SequenceNumber(start)
        if begin is None and search.since_ns is not None and search.path is None:
            begin = reader.since(search.since_ns)
        left = sys.maxsize if count is None else count
        for batch in reader.select(search.wanted, begin):
            found = [record for record in batch if search.matches(record)]
            for record in found[:left]:
                print(json.dumps(record_value(record)) if as_json else record_line(record))
            left -= len(found)
            if left <= 0:
                return


def _pattern(path: str, reader: JournalReader) -> PathPattern:
    return PathPattern(inside(os.fsencode(path), reader))


def _moment(option: str, text: str | None) -> int | None:
    if text is None:
        return None
    at = parse_moment(text, time.time_ns())
    if at is None:
        allowed = "2026-11-22, 2026-11-22T05:00, or 90s, 15m, 3h, 7d ago is allowed"
        raise UsageError(f"option '{option}': {text}: {allowed}")
    return at


@journal.command("export")
@click.argument("directory", metavar="DIR")
@click.argument("destination", metavar="ARCHIVE|-")
@click.option("--since", metavar="TIME|N", help="From this time or record on, else from the first.")
@click.option("--until", metavar="TIME|N", help="Up to it, else up to the last.")
def journal_export(directory: str, destination: str, since: str | None, until: str | None) -> None:
    """Copy records of the journal in DIR into a new directory ARCHIVE, or as a
    tar archive to standard output.

    The archive is itself a journal, for 'mirrorfs journal ls|cat|verify';
    nothing is ever appended to it. Its records are the journal's, byte for byte,
    compressed.
    """
    with JournalReader(directory) as reader:
        span = export.span_of(reader, _bound("--since", since), _bound("--until", until))
        if destination == "-":
            export.to_stream(reader, span, sys.stdout.buffer)
            return
        size = export.to_directory(reader, span, destination)
    print(f"{destination}: records {span.first} to {span.last}, {size} bytes")


def _bound(option: str, text: str | None) -> export.Bound | None:
    if text is not None and text.isascii() and text.isdigit():
        return SequenceNumber(int(text))
    at = _moment(option, text)
    return None if at is None else export.Moment(at)


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
