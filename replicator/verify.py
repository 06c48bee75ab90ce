"""Compare the source with its sites, exactly and as a whole, while both may be changing.

A place that differs is looked at again when the site has everything that was in the journal when
the difference was seen; it is reported if neither side was touched in between. If the site does not
get that far, a difference is still one where no record that is left to apply touches the place. So
changes under way are not taken for faults, nor faults for changes under way. Nothing is changed
here.

A walk of a tree that is being changed may miss what moves from where it was not yet to where it
was already; what is reported is true all the same.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from mirrorfs.journal.control_client import ControlClient, ControlError, NotRunningError
from mirrorfs.journal.reader import JournalReader, RecordsGoneError
from mirrorfs.journal.record import SequenceNumber, handle_id
from mirrorfs.journal.segment import Header
from replicator import system_calls
from replicator.comparing import Comparer, Path, Seen, Tree, shown
from replicator.config import SiteSettings
from replicator.cursor import read_reports
from replicator.opening import open_journaled_source
from replicator.patterns import Wanted
from replicator.pending import Pending
from replicator.site_state import (
    STATE_FILE,
    SiteReport,
    SiteState,
    StateError,
    decode_state,
)
from replicator.standing import standing, why_silent
from replicator.stores.base import RESERVED, SiteMissingError, SiteRefusedError
from replicator.stores.site_root import SiteFile

PATIENCE_SECONDS: Final = 30.0
"""How long a site may need for what was in the journal; once it needed longer, no more waiting."""

_POLL_SECONDS: Final = 0.05
_SUSPECTS_MAX: Final = 1000
_ROUNDS_MAX: Final = 10
_RECORDS_MAX: Final = 200_000
_OPEN_FILE_NS: Final = 60_000_000_000
"""What was written to a file that stays open has a record after less than this."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A place that differs. `in_flight`: it may be equal soon, the site is not that far yet."""

    site: str
    path: str
    difference: str
    in_flight: bool


@dataclass(slots=True)
class SiteResult:
    """What came out for one site. `entries`: of the source, without its root."""

    site: str
    entries: int = 0
    differences: int = 0
    in_flight: int = 0


@dataclass(frozen=True, slots=True)
class _Suspect:
    """A place that differed; `entered`: what is below it was compared, or will be."""

    path: Path
    seen: Seen
    entered: bool


class SiteVerifier:
    """Compares one site with the source."""

    def __init__(
        self,
        reader: JournalReader,
        source: Tree,
        site: Tree,
        name: str,
        found: Callable[[Finding], None],
        progress: Callable[[str, int], None],
    ) -> None:
        """`found` is told of every finding, `progress` now and then of the entries so far."""
        self.result = SiteResult(name)
        self._reader = reader
        self._source = source
        self._site = site
        state = self._state()
        wanted = None if state is None else Wanted(state.include, state.exclude)
        self._comparer = Comparer(source, site, wanted)
        self._found = found
        self._progress = progress
        self._suspects: list[_Suspect] = []
        self._unlisted: set[Path] = set()
        self._patience = PATIENCE_SECONDS

    def run(self) -> SiteResult:
        """Compare everything. CorruptionError; errors of the trees are findings."""
        self._judge_first((), self._comparer.look(()))
        left: list[Path] = [()]
        while left or self._suspects:
            while left and len(self._suspects) < _SUSPECTS_MAX:
                left += reversed(self._directory(left.pop()))
                self._progress(self.result.site, self.result.entries)
            left += self._settle()
        return self.result

    # the walk ----------------------------------------------------------------------------------

    def _directory(self, path: Path) -> list[Path]:
        """Compare what is in a directory that both sides have; the directories in it."""
        below: list[Path] = []
        with contextlib.ExitStack() as opened:
            try:
                here = opened.enter_context(self._source.open(path))
                there = opened.enter_context(self._site.open(path))
                names = sorted({*self._source.list(here), *self._site.list(there)})
            except OSError as error:
                self._not_listed(path, error)
                return below
            for name in names:
                place = (*path, name)
                seen = self._comparer.look(place, (here, there))
                self.result.entries += seen.kinds[0] is not None
                if self._judge_first(place, seen):
                    below.append(place)
        return below

    def _judge_first(self, path: Path, seen: Seen) -> bool:
        """Suspect a place that differs; whether it is to be entered."""
        entered = _is_directory(seen)
        if seen.difference is not None:
            self._suspects.append(_Suspect(path, seen, entered))
        return entered

    def _not_listed(self, path: Path, error: OSError) -> None:
        """It went away, which a second look will show, or it cannot be read."""
        seen = self._comparer.look(path)
        if path in self._unlisted:
            seen = replace(seen, difference=f"cannot be listed: {error.strerror}")
            self._tell(path, seen, in_flight=False)
            return
        self._unlisted.add(path)
        difference = seen.difference or "cannot be listed"
        self._suspects.append(_Suspect(path, replace(seen, difference=difference), False))

    def _count(self, path: Path) -> None:
        """Count what is below a directory that the site does not have."""
        left = [path]
        while left:
            at = left.pop()
            with contextlib.suppress(OSError), self._source.open(at) as directory:
                for name in self._source.list(directory):
                    self.result.entries += 1
                    with contextlib.suppress(OSError), self._source.child(directory, name) as fd:
                        if stat.S_ISDIR(os.fstat(fd).st_mode):
                            left.append((*at, name))

    # the second look ---------------------------------------------------------------------------

    def _settle(self) -> list[Path]:
        """Decide about the suspects; directories that can be entered only now."""
        enter: list[Path] = []
        suspects, self._suspects = self._suspects, []
        deadline = time.monotonic() + self._patience
        rounds = 0
        while suspects:
            rounds += 1
            pending = self._wait_for(self._reader.head(), deadline)
            last = rounds >= _ROUNDS_MAX or time.monotonic() >= deadline
            moving: list[_Suspect] = []
            for suspect in suspects:
                seen = self._comparer.look(suspect.path)
                if _is_directory(seen) and not suspect.entered:
                    enter.append(suspect.path)
                    suspect = replace(suspect, entered=True)
                if seen.difference is None:
                    continue
                if seen.versions == suspect.seen.versions:
                    self._decide(suspect, seen, pending)
                elif last:
                    self._tell(suspect.path, seen, in_flight=True)
                else:
                    moving.append(replace(suspect, seen=seen))
            suspects = moving
        return enter

    def _decide(self, suspect: _Suspect, seen: Seen, pending: Pending) -> None:
        """It differs, and nobody has touched it since it was seen to differ."""
        ids = list(self._ids(suspect.path))
        in_flight = pending.touches(suspect.path, ids) or self._may_be_open(seen)
        step = pending.holder(suspect.path, ids)
        if step is not None and step.waiting:
            in_flight = True
        elif step is not None:
            in_flight = False
            seen = replace(seen, difference=f"{seen.difference} (failed: {step.error})")
        if seen.kinds[0] == stat.S_IFDIR and not suspect.entered:
            self._count(suspect.path)
        self._tell(suspect.path, seen, in_flight=in_flight)

    def _tell(self, path: Path, seen: Seen, *, in_flight: bool) -> None:
        if in_flight:
            self.result.in_flight += 1
        else:
            self.result.differences += 1
        self._found(Finding(self.result.site, shown(path), seen.difference or "", in_flight))

    def _may_be_open(self, seen: Seen) -> bool:
        """Whether it may have been written without a record yet, by a job that has it open."""
        young = time.time_ns() - seen.changed_ns < _OPEN_FILE_NS
        if not young or seen.kinds[0] != stat.S_IFREG:
            return False
        try:
            with ControlClient(self._reader.path) as client:
                return client.status().open_files > 0
        except (NotRunningError, ControlError, OSError):
            return False

    # where the site is -------------------------------------------------------------------------

    def _wait_for(self, head: SequenceNumber, deadline: float) -> Pending:
        """Wait until the site has worked on everything up to `head`, while there is hope."""
        while True:
            state = self._state()
            working = -1 if state is None else standing(self._reader, state).working
            comparing = state is not None and bool(state.comparing)
            pending = Pending([] if state is None else state.held, anything=comparing)
            if working >= head and not comparing:
                return pending
            late = time.monotonic() >= deadline
            if late:
                self._patience = 0.0
            if late or not self._is_running():
                self._read(pending, working, head)
                return pending
            time.sleep(_POLL_SECONDS)

    def _read(self, pending: Pending, working: int, head: SequenceNumber) -> None:
        """What is left to apply; if that is too much to look at: anything."""
        if working < 0 or head - working > _RECORDS_MAX:
            pending.anything = True
            return
        try:
            for records in self._reader.read(SequenceNumber(working + 1)):
                pending.add(records)
        except RecordsGoneError:
            pending.anything = True

    def _state(self) -> SiteState | None:
        """The site's own word, which no report can be ahead of."""
        try:
            data = _read_reserved(self._site.root_fd, STATE_FILE)
            return None if data is None else decode_state(data)
        except (OSError, StateError):
            return None

    def _is_running(self) -> bool:
        report = read_reports(self._reader.path).get(self.result.site)
        return isinstance(report, SiteReport) and why_silent(report, time.time_ns()) is None

    def _ids(self, path: Path) -> Iterator[bytes]:
        """Ids of the source's objects from the root to that place, as far as they exist."""
        epoch = self._reader.header.epoch
        for length in range(len(path) + 1):
            try:
                with self._source.open(path[:length]) as fd:
                    handle = system_calls.handle_of(fd)
            except OSError:
                return
            yield handle_id(epoch, handle.type, handle.handle)


@contextlib.contextmanager
def open_site(settings: SiteSettings, header: Header) -> Iterator[Tree]:
    """The directory of a site of this volume. Raises SiteRefusedError, OSError."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    where = f"site {settings.name}: {settings.path}"
    try:
        root_fd = os.open(settings.path, flags)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SiteMissingError(f"{where}: {error.strerror}") from None
    try:
        data = _read_reserved(root_fd, "site")
        if data is None:
            raise SiteRefusedError(f"{where}: not a site; 'replicator run' makes it one")
        try:
            volume = msgspec.json.decode(data, type=SiteFile).volume
        except msgspec.DecodeError as error:
            raise SiteRefusedError(f"{where}: its .mirrorfs/site cannot be read: {error}") from None
        if volume != str(uuid.UUID(bytes=header.volume)):
            raise SiteRefusedError(f"{where}: belongs to another volume, {volume}")
        yield Tree(root_fd)
    finally:
        os.close(root_fd)


def verify(
    journal: str,
    sites: list[SiteSettings],
    found: Callable[[Finding], None],
    progress: Callable[[str, int], None],
) -> list[SiteResult]:
    """Compare the source of a journal with each of these sites, one after the other.

    Raises NoJournalError, CorruptionError, SourceRefusedError, SourceError, SiteRefusedError,
    ControlError, OSError.
    """
    with (
        JournalReader(journal) as reader,
        contextlib.closing(open_journaled_source(reader)) as source,
        contextlib.ExitStack() as opened,
    ):
        trees = [opened.enter_context(open_site(site, reader.header)) for site in sites]
        here = Tree(source.root_fd)
        return [
            SiteVerifier(reader, here, there, site.name, found, progress).run()
            for site, there in zip(sites, trees, strict=True)
        ]


def _is_directory(seen: Seen) -> bool:
    return seen.kinds == (stat.S_IFDIR, stat.S_IFDIR)


def _read_reserved(root_fd: int, name: str) -> bytes | None:
    """A file of ours at a site; None if there is none. OSError."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        reserved = os.open(RESERVED, flags | os.O_DIRECTORY, dir_fd=root_fd)
        try:
            fd = os.open(name, flags, dir_fd=reserved)
        finally:
            os.close(reserved)
    except (FileNotFoundError, NotADirectoryError):
        return None
    with open(fd, "rb") as file:
        return file.read()
