"""Why a path is, or is not yet, at a site: from the journal, the source, the sites and the reports.

Reads only, works without any daemon as far as files tell, and says what it could not look at.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from mirrorfs.journal.control_client import ControlError
from mirrorfs.journal.paths import inside
from mirrorfs.journal.reader import JournalReader
from mirrorfs.journal.record import Change, ObjectId, Record, SequenceNumber
from replicator.applied import last_applied
from replicator.comparing import TYPES, Tree
from replicator.config import SiteSettings
from replicator.cursor import read_reports
from replicator.explain_report import Explanation, RecordTold, SiteTold, Version
from replicator.opening import open_journaled_source
from replicator.orders import read_pause
from replicator.patterns import Wanted
from replicator.pending import Pending
from replicator.planner import ObjectItem, PlaceItem, Plan
from replicator.scanning import about_object, about_path, between, last_of
from replicator.site_state import HeldStep, Phase, SiteReport, StateError
from replicator.source import Source
from replicator.standing import standing, why_silent
from replicator.stores.attributes import read_mark
from replicator.stores.base import RESERVED, Mark, MarkFlag
from replicator.view import SourceError, SourceObject, SourceRefusedError
from replicator.wording import count, escaped, moment, size, span
from replicator.xattrs import path_of

_PLAN_MAX: Final = 500_000
_ESCAPED: Final = re.compile(rb"\\x([0-9a-f]{2})")


@dataclass(frozen=True, slots=True)
class _Asked:
    """The path: its names, and the ids of the source's objects on the way, as far as they are."""

    names: tuple[bytes, ...]
    ids: tuple[ObjectId, ...] = ()
    version: Version | None = None
    looked: bool = False
    record: Record | None = None
    object_record: Record | None = None

    @property
    def path(self) -> bytes:
        return b"/".join(self.names)

    @property
    def object(self) -> ObjectId | None:
        return self.ids[len(self.names)] if len(self.ids) > len(self.names) else None

    @property
    def newest(self) -> int:
        """Sequence of the last record about it."""
        return max((each.sequence for each in (self.record, self.object_record) if each), default=0)


def names_of(path: bytes, reader: JournalReader) -> tuple[bytes, ...]:
    r"""The names of a path as people give it: in the source or the mount, or from the root as
    reports show it; \xNN stands for a byte."""
    return tuple(name for name in inside(_unescaped(path), reader).split(b"/") if name)


def _unescaped(path: bytes) -> bytes:
    return _ESCAPED.sub(lambda found: bytes.fromhex(found[1].decode()), path)


def explain(journal: str, sites: Sequence[SiteSettings], path: bytes, now_ns: int) -> Explanation:
    """All that can be told. NoJournalError, CorruptionError, OSError."""
    notes: list[str] = []
    with JournalReader(journal) as reader:
        asked = _look_at_source(reader, names_of(path, reader), notes)
        wanted = {"path": about_path(asked.path)}
        if asked.object is not None:
            wanted["object"] = about_object(asked.object)
        records = last_of(reader, wanted)
        asked = _Asked(
            asked.names,
            asked.ids,
            asked.version,
            asked.looked,
            records.get("path"),
            records.get("object"),
        )
        reports = read_reports(journal)
        told = tuple(
            _Site(reader, each, reports.get(each.name), asked, now_ns).tell() for each in sites
        )
    path_record, object_record = asked.record, asked.object_record
    return Explanation(
        path="/" + escaped(asked.path),
        source=asked.version,
        record=_record(path_record),
        object_record=None if object_record == path_record else _record(object_record),
        sites=told,
        notes=tuple(notes),
    )


def source_object(
    reader: JournalReader, names: Sequence[bytes]
) -> tuple[ObjectId | None, int | None]:
    """Id and mode of what stands in the source there. SourceError, SourceRefusedError, OSError."""
    source = open_journaled_source(reader)
    with contextlib.closing(source), _walked(source, names) as objects:
        found = objects[-1]
        return (found.id, found.mode) if len(objects) > len(names) else (None, None)


@contextlib.contextmanager
def _walked(source: Source, names: Sequence[bytes]) -> Iterator[list[SourceObject]]:
    """The objects on the way, the root first, as far as there are any."""
    with contextlib.ExitStack() as opened:
        objects: list[SourceObject] = [source.root]
        for name in names:
            at = objects[-1]
            below = source.lookup(at, name) if stat.S_ISDIR(at.mode) else None
            if below is None:
                break
            objects.append(opened.enter_context(below))
        yield objects


def _look_at_source(reader: JournalReader, names: tuple[bytes, ...], notes: list[str]) -> _Asked:
    try:
        with contextlib.closing(open_journaled_source(reader)) as source:
            ids, found = _walk(source, names)
            return _Asked(names, tuple(ids), found, looked=True)
    except (SourceError, SourceRefusedError, ControlError, OSError) as error:
        notes.append(f"the source cannot be looked at: {error}")
        return _Asked(names)


def _walk(source: Source, names: Sequence[bytes]) -> tuple[list[ObjectId], Version | None]:
    """Ids on the way, and what stands at its end."""
    with _walked(source, names) as objects:
        ids, at = [each.id for each in objects], objects[-1]
        if len(objects) <= len(names):
            return ids, None
        found = at.stat()
        version = Version(
            kind=_kind(found.mode),
            size=found.size,
            modified=moment(found.mtime_ns),
            mtime_ns=found.mtime_ns,
            owner=f"{found.uid}:{found.gid}",
            mode=f"{stat.S_IMODE(found.mode):04o}",
            object=at.id.hex(),
        )
        return ids, version


def _kind(mode: int) -> str:
    return TYPES.get(stat.S_IFMT(mode), "thing of unknown type")


def _record(record: Record | None) -> RecordTold | None:
    if record is None or not isinstance(record.body, Change):
        return None
    who, path = record.body.who, record.body.path
    return RecordTold(
        sequence=record.sequence,
        time=moment(record.time_ns),
        kind=record.kind.label,
        path=None if path is None else "/" + escaped(path),
        pid=None if who is None else who.pid,
        uid=None if who is None else who.uid,
        job=None if who is None else who.job,
    )


class _Site:
    """One site, and the question."""

    def __init__(
        self,
        reader: JournalReader,
        settings: SiteSettings,
        report: SiteReport | StateError | None,
        asked: _Asked,
        now_ns: int,
    ) -> None:
        self._reader = reader
        self._settings = settings
        self._report = report
        self._asked = asked
        self._now_ns = now_ns

    def tell(self) -> SiteTold:
        """The verdict on it."""
        version, mark, away = self._version()
        verdict, text = self._verdict(version, mark, away)
        arrived = None
        if verdict == "there" and self._asked.object is not None:
            arrived = self._arrived(self._asked.object)
        url = self._report.url if isinstance(self._report, SiteReport) else self._settings.url
        return SiteTold(
            site=self._settings.name,
            url=url,
            verdict=verdict,
            text=f"{text}, since {arrived}" if arrived else text,
            version=version,
            arrived=arrived,
        )

    def _arrived(self, object: ObjectId) -> str | None:
        record = self._asked.object_record
        since_ns = 0 if record is None else record.time_ns
        applied = last_applied(self._reader.path, self._settings.name, object.hex(), since_ns)
        return None if applied is None else moment(applied.applied_ns)

    def _version(self) -> tuple[Version | None, Mark | None, str | None]:
        """What stands there, its mark; or why that cannot be told."""
        try:
            root = os.open(self._settings.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            return None, None, f"{self._settings.path}: {error.strerror}"
        try:
            with Tree(root).open(self._asked.names) as fd:
                found, mark = os.fstat(fd), read_mark(path_of(fd))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                return None, None, None
            return None, None, f"{self._settings.path}: {error.strerror}"
        finally:
            os.close(root)
        version = Version(
            kind=_kind(found.st_mode),
            size=found.st_size,
            modified=moment(found.st_mtime_ns),
            mtime_ns=found.st_mtime_ns,
            owner=f"{found.st_uid}:{found.st_gid}",
            mode=f"{stat.S_IMODE(found.st_mode):04o}",
            object=None if mark is None else mark.object.hex(),
            sequence=None if mark is None else mark.sequence,
        )
        return version, mark, None

    def _verdict(
        self, version: Version | None, mark: Mark | None, away: str | None
    ) -> tuple[str, str]:
        asked = self._asked
        if asked.names[:1] == (RESERVED,):
            return "excluded", "excluded: .mirrorfs belongs to mirrorfs and is never replicated"
        report = self._report
        if not isinstance(report, SiteReport):
            why = "no replicator has ever reported on it" if report is None else f"report {report}"
            return "never", why
        why_not = self._why_not(report)
        if why_not and version is None and not away:
            return "filtered", f"rightly absent: {why_not}"
        held = self._own(report)
        if held is not None:
            return self._step(held, "")
        if asked.looked and away is None and _equal(asked.version, version, mark):
            if version is None:
                return "absent", "rightly absent: it is not in the source"
            return "there", "there, as in the source"
        for reason in self._reasons(report, away):
            return reason
        return "unexplained", (
            "it differs, and no record, held step or queue explains it: it was changed behind"
            " mirrorfs or at the site; 'replicator touch' has it compared"
        )

    def _why_not(self, report: SiteReport) -> str:
        """The pattern that keeps it, or a directory above, away."""
        wanted = Wanted(report.state.include, report.state.exclude)
        names = self._asked.names
        here = self._asked.version
        for depth in range(1, len(names) + 1):
            directory = depth < len(names) or (here is not None and here.kind == "directory")
            why_not = wanted.why_not(b"/".join(names[:depth]), directory=directory)
            if why_not:
                return why_not
        return ""

    def _reasons(self, report: SiteReport, away: str | None) -> Iterator[tuple[str, str]]:
        """Why it is not there (yet), the best reason first."""
        now = self._state(report)
        for step in () if report.work is None or now else report.work.under_way:
            if step.path == "/" + escaped(self._asked.path):
                how = f"{size(step.copied)} of {size(step.size)}" if step.size else "begun"
                lasted = span((self._now_ns - step.since_ns) / 1e9)
                yield "copying", f"it is being copied now: {how}, for {lasted}"
        yield from self._held(report)
        for skipped in reversed(report.state.skipped):
            if skipped.path == self._asked.path and skipped.sequence >= self._asked.newest:
                yield (
                    "skipped",
                    f"skipped by an operator (user {skipped.by}, {moment(skipped.time_ns)}):"
                    f" {skipped.reason}; it had failed: {skipped.error}",
                )
        queued = self._queued(report)
        if queued is not None:
            verdict = "paused" if report.phase == Phase.PAUSED.value else "queued"
            yield verdict, "; ".join(part for part in (queued, now) if part)
        at = standing(self._reader, report.state)
        if at.working < 0:
            told = at.reason and f"an initial copy is due: {at.reason}"
            told = told or "the initial copy has not come to it yet"
            yield "queued", "; ".join(part for part in (told, now) if part)
        if away is not None:
            yield "away", f"the site cannot be looked at: {away}"
        if not self._asked.looked:
            yield "unexplained", "no record, held step or queue speaks of it"

    def _state(self, report: SiteReport) -> str:
        """What keeps the whole site from going on."""
        pause = read_pause(self._reader.path, report.site)
        if pause is not None:
            reason = f": {pause.reason}" if pause.reason else ""
            return f"the site is paused since {moment(pause.time_ns)}{reason}"
        if report.phase == Phase.HALTED.value:
            return f"the site is halted: {report.reason}"
        silent = why_silent(report, self._now_ns)
        if silent is not None:
            return f"its replicator is {silent}"
        if report.phase == Phase.BACKING_OFF.value:
            return f"the site is backing off: {report.reason}"
        return ""

    def _own(self, report: SiteReport) -> HeldStep | None:
        """The held step of the path itself, unless one above is to be done before."""
        names, ids, path = self._asked.names, self._asked.ids, self._asked.path
        for verdict, _ in self._blocked(report):
            if verdict == "blocked":
                return None
        for step in report.state.held:
            if step.path == path or (step.object and step.object == self._asked.object):
                return step
        return Pending(report.state.held).holder(names, ids) if ids else None

    def _blocked(self, report: SiteReport) -> Iterator[tuple[str, str]]:
        """Directories on the way that are not there because their steps are held."""
        names, ids = self._asked.names, self._asked.ids
        for depth in range(1, min(len(names), len(ids) + 1)):
            for step in report.state.held:
                place = (step.kind, step.directory, step.name)
                if place == ("place", ids[depth - 1], names[depth - 1]):
                    yield self._step(step, "blocked: ")

    def _held(self, report: SiteReport) -> Iterator[tuple[str, str]]:
        yield from self._blocked(report)
        names, ids = self._asked.names, self._asked.ids
        pending = Pending(report.state.held)
        for depth in range(len(names) - 1, -1, -1):
            above = pending.holder(names[:depth], ids[: depth + 1]) if ids else None
            if above is not None and above.kind != "object":
                yield self._step(above, "blocked: ")

    def _step(self, step: HeldStep, before: str) -> tuple[str, str]:
        where = "" if step.path in (None, self._asked.path) else f" of /{escaped(step.path or b'')}"
        due = f"is due {'now' if step.due_ns <= self._now_ns else moment(step.due_ns)}"
        if step.waiting:
            told = f"the step{where} waits for a writer to close the file: {step.error}"
            return "blocked" if before else "waiting", f"{before}{told}; the next look {due}"
        if step.error.startswith("hot"):
            return "blocked" if before else "hot", f"{before}{step.error}; the next try {due}"
        code = errno.errorcode.get(step.errno, "")
        told = (
            f"the step{where} (id {step.id}) failed {count(step.tries, 'time')}, last with"
            f" {code + ': ' if code else ''}{step.error}; the next try {due}"
        )
        return "blocked" if before else "failed", before + told

    def _queued(self, report: SiteReport) -> str | None:
        """Its position in the queue, found by planning again what the replicator has planned."""
        at = standing(self._reader, report.state)
        done = max(at.working, report.done)
        if at.working < 0 or self._asked.newest <= done:
            return None
        head = self._reader.head()
        if head - done > _PLAN_MAX:
            return f"queued: record {self._asked.newest:,}, the site is at {done:,}"
        tag = self._reader.tag_of(SequenceNumber(max(1, done)))
        plan = Plan(SequenceNumber(done), tag)
        for record in between(self._reader, SequenceNumber(done + 1), SequenceNumber(head + 1)):
            plan.add(record, tag)
        names, ids = self._asked.names, self._asked.ids
        place = (ids[len(names) - 1], names[-1]) if 0 < len(names) <= len(ids) else None
        items = sorted(plan.waiting(), key=lambda item: item.position)
        for position, item in enumerate(items, 1):
            about = item.path == self._asked.path
            if isinstance(item, ObjectItem):
                about |= item.object == self._asked.object
            elif isinstance(item, PlaceItem):
                about |= (item.place.directory, item.place.name) == place
            if about:
                return f"queued at position {position:,} of {len(items):,}"
        return f"queued: record {self._asked.newest:,}, the site is at {done:,}"


def _equal(here: Version | None, there: Version | None, mark: Mark | None) -> bool:
    """Whether the site has it, as far as a look from outside tells."""
    if here is None or there is None:
        return here is there
    same = (here.kind, here.owner) == (there.kind, there.owner)
    if here.kind != "symlink":
        same = same and here.mode == there.mode
    if mark is not None and here.object is not None:
        same = same and mark.object.hex() == here.object
    if here.kind == "file":
        content = mark is None or MarkFlag.CONTENT in mark.flags
        same = same and content and (here.size, here.mtime_ns) == (there.size, there.mtime_ns)
    return same
