"""Commands with which an operator acts: held steps, pauses, comparisons, checkpoints, waiting.

Arguments in, text and exit codes out; the answers come from elsewhere.
"""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Sequence
from typing import Final

import click
import msgspec

from mirrorfs.journal.control_client import ControlClient, NotRunningError
from mirrorfs.journal.reader import JournalReader
from mirrorfs.journal.record import Checkpoint, SequenceNumber
from replicator import orders, waiting
from replicator.arguments import of_volume, site_names, split_volume, with_journal, with_sites
from replicator.config import RunSettings, UsageError, parse_site_name
from replicator.cursor import read_reports
from replicator.explaining import names_of, source_object
from replicator.orders import Order
from replicator.scanning import about_object, about_path, checkpoint_of, checkpoints, last_of
from replicator.site_state import HeldStep, SiteReport, StateError
from replicator.standing import standing, why_silent
from replicator.status import held_status
from replicator.waiting import Goal
from replicator.wording import count, escaped, moment

_ANSWER_SECONDS: Final = 5.0
_NAME_RULE: Final = "1 to 255 printable signs, no slash, not 'now', not a number"


class NothingToDoError(Exception):
    """What was asked for is not there."""

    exit_code = 66


# held steps --------------------------------------------------------------------------------------


@click.command()
@with_journal
@click.option("--json", "as_json", is_flag=True, help="One JSON object a step.")
@click.argument("arguments", metavar="[VOLUME.toml] [SITE]", nargs=-1)
def failed(journal: str | None, as_json: bool, arguments: tuple[str, ...]) -> int:
    """Show the steps that failed, and those that wait for a writer.

    Exit code 0: none failed; 1: some did.
    """
    settings, words = split_volume(arguments, journal, 0, 1, "a site")
    some = False
    for name, step in _held(settings, site_names(settings, words)):
        some = some or not step.waiting
        told = held_status(step)
        if as_json:
            value = {"site": name, "waiting": step.waiting, **msgspec.to_builtins(told)}
            click.echo(msgspec.json.encode(value).decode())
            continue
        what = "waits for a writer" if step.waiting else f"failed {count(step.tries, 'time')}"
        click.echo(f"{name}  {step.id}  {told.path or '?'}")
        click.echo(f"    {what} since {told.since}: {step.error}")
        click.echo(f"    {step.kind}, record {step.sequence:,}; tried again {told.next_try}")
    return int(some)


def _held(settings: RunSettings, names: Sequence[str]) -> list[tuple[str, HeldStep]]:
    reports = read_reports(settings.journal)
    found = []
    for name in names:
        report = reports.get(name)
        if isinstance(report, StateError):
            raise NothingToDoError(f"site {name}: its report {report}")
        if report is not None:
            found += [(name, step) for step in report.state.held]
    return found


@click.command()
@with_journal
@with_sites("The site. Repeatable. Else: all that are known.", metavar="NAME")
@click.option("--all", "everything", is_flag=True, help="All that are held.")
@click.argument("arguments", metavar="[VOLUME.toml] [PATH|ID]...", nargs=-1)
def retry(
    journal: str | None, sites: tuple[str, ...], everything: bool, arguments: tuple[str, ...]
) -> None:
    """Try held steps again now: those of a PATH, with an ID ('replicator failed'
    shows them), or all.

    Without a replicator that runs, the next one does it.
    """
    settings, words = split_volume(arguments, journal, 0, None, "paths or ids, or --all")
    if everything == bool(words):
        raise UsageError("arguments: paths or ids, or --all")
    _order(settings, site_names(settings, sites), words, skip=False, reason="")


@click.command()
@with_journal
@with_sites("The site. Repeatable. Else: all that are known.", metavar="NAME")
@click.option("--reason", metavar="TEXT", help="Why; needed, and shown for ever.")
@click.argument("arguments", metavar="[VOLUME.toml] PATH|ID...", nargs=-1)
def skip(
    journal: str | None, sites: tuple[str, ...], reason: str | None, arguments: tuple[str, ...]
) -> None:
    """Pass over held steps for good: the site may differ from the source there.

    It is recorded at the site and shown in 'replicator status' for ever. What
    changes there later is replicated as ever.
    """
    if not reason or not reason.isprintable():
        raise UsageError("option '--reason': missing: printable text is needed")
    settings, words = split_volume(arguments, journal, 1, None, "paths or ids")
    _order(settings, site_names(settings, sites), words, skip=True, reason=reason)


def _order(
    settings: RunSettings, names: Sequence[str], words: Sequence[str], *, skip: bool, reason: str
) -> None:
    held = _held(settings, names)
    if words:
        held = [(name, step) for name, step in held if _meant(settings.journal, step, words)]
        if not held:
            raise NothingToDoError(f"{', '.join(words)}: no such step is held")
    if not held:
        click.echo("no step is held")
    given = []
    for name in dict.fromkeys(name for name, _ in held):
        steps = tuple(step.id for site, step in held if site == name)
        order = Order(steps=steps, skip=skip, reason=reason, by=os.getuid(), time_ns=time.time_ns())
        given.append((name, orders.give(settings.journal, name, order)))
    for name, path in given:
        click.echo(f"{name}: {_answer(settings.journal, name, path)}")


def _answer(journal: str, name: str, path: str) -> str:
    """What came of an order, or who will carry it out."""
    report = read_reports(journal).get(name)
    silent: str | None = "not heard of"
    if isinstance(report, SiteReport):
        silent = why_silent(report, time.time_ns())
    answer = orders.answer_to(path, 0.0 if silent else _ANSWER_SECONDS)
    if answer is not None:
        return answer
    if silent:
        return f"ordered; its replicator is {silent}: it will be done when one runs"
    return "ordered; it will be done when the site can be worked with"


def _meant(journal: str, step: HeldStep, words: Sequence[str]) -> bool:
    if step.id in words:
        return True
    if step.path is None:
        return False
    with JournalReader(journal) as reader:
        return any(b"/".join(names_of(os.fsencode(word), reader)) == step.path for word in words)


# sites -------------------------------------------------------------------------------------------


@click.command()
@with_journal
@click.option("--reason", metavar="TEXT", default="", help="Why; status shows it.")
@click.argument("arguments", metavar="[VOLUME.toml] SITE", nargs=-1)
def pause(journal: str | None, reason: str, arguments: tuple[str, ...]) -> None:
    """Let go of a site until 'replicator resume': nothing is done there.

    The replicator saves its cursor and closes the site within a second or two,
    so that its file system can be unmounted. It holds across restarts.
    """
    if reason and not reason.isprintable():
        raise UsageError("option '--reason': printable text is allowed")
    settings, (name,) = split_volume(arguments, journal, 1, 1, "a site")
    (name,) = site_names(settings, [name])
    paused = orders.pause(settings.journal, name, reason)
    click.echo(f"{name}: {'paused' if paused else 'was paused already'}")


@click.command()
@with_journal
@click.argument("arguments", metavar="[VOLUME.toml] SITE", nargs=-1)
def resume(journal: str | None, arguments: tuple[str, ...]) -> None:
    """Let a site that was paused go on."""
    settings, (name,) = split_volume(arguments, journal, 1, 1, "a site")
    (name,) = site_names(settings, [name])
    resumed = orders.resume(settings.journal, name)
    click.echo(f"{name}: {'goes on' if resumed else 'was not paused'}")


# records -----------------------------------------------------------------------------------------


@click.command()
@with_journal
@click.argument("arguments", metavar="[VOLUME.toml] PATH...", nargs=-1)
def touch(journal: str | None, arguments: tuple[str, ...]) -> None:
    """Have PATHs compared with all sites, and made equal: for what was changed
    behind mirrorfs, or at a site.

    A directory is compared to its whole depth; of anything else, the directory
    that holds it is compared. mirrorfs must run: it is a record of the journal.
    """
    settings, words = split_volume(arguments, journal, 1, None, "paths")
    with JournalReader(settings.journal) as reader:
        wanted = [(word, names_of(os.fsencode(word), reader)) for word in words]
        found = [(word, *_directory(reader, names, word)) for word, names in wanted]
    with _mirrorfs(settings.journal) as client:
        for word, path, whole in found:
            sequence = client.reconcile(path, whole=whole, reason=f"touched by user {os.getuid()}")
            depth = "with all below it" if whole else "its entries"
            click.echo(f"{word}: record {sequence}: /{escaped(path)} is compared, {depth}")


def _directory(reader: JournalReader, names: tuple[bytes, ...], word: str) -> tuple[bytes, bool]:
    """The directory to compare for a path, and whether to its whole depth."""
    _, mode = source_object(reader, names)
    if mode is not None and stat.S_ISDIR(mode):
        return b"/".join(names), True
    if not names:
        raise NothingToDoError(f"{word}: not in the source")
    return b"/".join(names[:-1]), False


def _mirrorfs(journal: str) -> ControlClient:
    try:
        return ControlClient(journal)
    except NotRunningError as error:
        raise NothingToDoError(str(error)) from None


@click.command()
@with_journal
@click.argument("arguments", metavar="[VOLUME.toml] NAME", nargs=-1)
def checkpoint(journal: str | None, arguments: tuple[str, ...]) -> None:
    """Give the present end of the journal a NAME, for 'replicator wait'.

    mirrorfs must run. A name may be given again: the newest counts.
    """
    settings, (name,) = split_volume(arguments, journal, 1, 1, "a name")
    if not _is_checkpoint(name) or not 1 <= len(name.encode()) <= 255:
        raise UsageError(f"argument '{name}': {_NAME_RULE}")
    with _mirrorfs(settings.journal) as client:
        click.echo(f"{name}: record {client.checkpoint(name)}")


def _is_checkpoint(text: str) -> bool:
    return "/" not in text and text != "now" and not text.isdigit() and text.isprintable()


@click.command("checkpoints")
@of_volume
@click.option("--count", "most", type=click.IntRange(1), default=20, help="So many. [20]")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a checkpoint.")
def checkpoints_command(volume: str | None, journal: str | None, most: int, as_json: bool) -> None:
    """Show the newest checkpoints, and which sites have reached them."""
    settings, _ = split_volume([volume] if volume else [], journal, 0, 0, "nothing else")
    with JournalReader(settings.journal) as reader:
        reports = read_reports(settings.journal)
        clean = {
            name: standing(reader, report.state).clean
            for name, report in reports.items()
            if isinstance(report, SiteReport)
        }
        found = checkpoints(reader, most)
    for record in found:
        assert isinstance(record.body, Checkpoint)
        at = [name for name in clean if clean[name] >= record.sequence]
        if as_json:
            value = {
                "name": record.body.name,
                "sequence": record.sequence,
                "time": moment(record.time_ns),
                "reached": at,
            }
            click.echo(msgspec.json.encode(value).decode())
        else:
            where = f"reached by {', '.join(at)}" if at else "not reached"
            click.echo(
                f"{moment(record.time_ns)}  {record.sequence:>12,}  {record.body.name}  {where}"
            )


# waiting -----------------------------------------------------------------------------------------


@click.command("wait")
@with_journal
@with_sites("The site. Repeatable: all of them.", metavar="NAME")
@click.option("--timeout", type=click.FloatRange(0), metavar="SEC", help="Give up after this.")
@click.argument("arguments", metavar="[VOLUME.toml] now|CHECKPOINT|PATH|SEQUENCE", nargs=-1)
def wait(
    journal: str | None, sites: tuple[str, ...], timeout: float | None, arguments: tuple[str, ...]
) -> int:
    """Wait until a site has everything up to now, up to a checkpoint or a
    record, or all that was done to a PATH (which has a slash in it).

    "Up to now" is every change made before the command was started: for the
    end of batch scripts.

    Exit code 0: the site has it; 1: not within the time; 2: it cannot get there
    without an operator: steps failed or were skipped, the site is halted.
    """
    if not 1 <= len(arguments) <= 2:
        raise UsageError("arguments: [VOLUME.toml] and now, a checkpoint, a path or a sequence")
    settings, words = split_volume(arguments, journal, 1, 1, "what to wait for")
    names = [parse_site_name(site.partition("=")[0]) for site in sites]
    names = names or [site.name for site in settings.sites]
    if not names:
        raise UsageError("option '--site': missing: --site NAME")
    goal = _goal(settings.journal, words[0])
    answers = waiting.wait(settings.journal, names, goal, timeout)
    for answer in answers:
        if answer.outcome is not waiting.Outcome.REACHED:
            click.echo(f"replicator: site {answer.site}: {answer.reason}", file=sys.stderr)
    return max(answer.outcome or 0 for answer in answers)


def _goal(journal: str, target: str) -> Goal:
    if target == "now":
        return Goal()
    if target.isascii() and target.isdigit():
        return Goal(SequenceNumber(int(target)))
    with JournalReader(journal) as reader:
        if "/" in target:
            names = names_of(os.fsencode(target), reader)
            identity, _ = source_object(reader, names)
            path = b"/".join(names)
            wanted = {"path": about_path(path)}
            if identity is not None:
                wanted["object"] = about_object(identity)
            found = last_of(reader, wanted).values()
            last = max((record.sequence for record in found), default=SequenceNumber(0))
            return Goal(last, SequenceNumber(max(0, last - 1)), path, identity or b"")
        named = checkpoint_of(reader, target)
    if named is None:
        raise NothingToDoError(f"{target}: the journal has no checkpoint of that name")
    record, before = named
    return Goal(record.sequence, before)


COMMANDS: Final[tuple[click.Command, ...]] = (
    *(failed, retry, skip, pause, resume),
    *(touch, checkpoint, checkpoints_command, wait),
)
