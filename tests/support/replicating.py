"""Real replicators for tests: a process as an operator runs it, always ended.

A test asks for the fixture `replicating` (import it into its module) or uses `Replication` itself.
What a site has done is read where the truth is: in the site's own state file.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from mirrorfs.journal.reader import JournalReader
from replicator.cursor import read_reports
from replicator.site_state import SiteReport, SiteState, decode_state
from tests.support import campaign
from tests.support.mounts import ROOT

PATIENCE_SECONDS: Final = campaign.pick(120.0, 1800.0)
_LOOK_SECONDS: Final = 0.02

REPLICATOR: Final = (sys.executable, "-m", "replicator")


def run(*arguments: str | Path, check: bool = False) -> subprocess.CompletedProcess[str]:
    """Run `replicator` with these arguments to its end."""
    return subprocess.run(
        [*REPLICATOR, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=PATIENCE_SECONDS,
        check=check,
        cwd=ROOT,
    )


def head(journal: Path) -> int:
    """Sequence of the last record."""
    with JournalReader(str(journal)) as reader:
        return reader.head()


def state(site: Path) -> SiteState | None:
    """What the site remembers; None before its first cursor."""
    try:
        return decode_state((site / ".mirrorfs" / "state").read_bytes())
    except FileNotFoundError:
        return None


def until(condition: Callable[[], bool], what: Callable[[], str]) -> None:
    """Wait for something that cannot wake us; `what` says what it was, if it does not come."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, what()
        select.select([], [], [], _LOOK_SECONDS)


@dataclass
class Replication:
    """One journal, its sites (by name), and a replicator that runs, or does not at the moment.

    Attributes:
        log: what the replicator says.
        arguments: further ones for `run`.
        volume: the volume file, if there is one.
        command: the program.
    """

    journal: Path
    sites: Mapping[str, Path]
    log: Path
    _process: subprocess.Popen[bytes] | None = None
    arguments: Sequence[str] = ()
    volume: Path | None = None
    command: Sequence[str] = REPLICATOR

    def start(self) -> None:
        """Start it; `settle` waits for its work."""
        assert self._process is None, "it runs already"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self.command, "run", *self.arguments, *self._volume()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                start_new_session=True,
            )

    def _volume(self) -> list[str | Path]:
        if self.volume is not None:
            return [self.volume]
        return ["--journal", self.journal, *self.options()]

    def options(self, sites: Sequence[str] = ()) -> list[str]:
        """`--site` options for these sites; for all by default."""
        names = sites or list(self.sites)
        return [word for name in names for word in ("--site", f"{name}={self.sites[name]}")]

    @property
    def pid(self) -> int:
        """Of the process."""
        assert self._process is not None, "it does not run"
        return self._process.pid

    def stop(self) -> None:
        """SIGTERM: it applies what is in the journal, and ends with 0."""
        self.wait_for_reports()
        self.signal(signal.SIGTERM)
        code = self.wait()
        assert code == 0, f"ended with {code}:\n{self.said()}"

    def kill(self) -> None:
        """SIGKILL."""
        self.signal(signal.SIGKILL)
        self.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None, "it does not run"
        self._process.send_signal(number)

    @contextlib.contextmanager
    def standing_still(self) -> Iterator[None]:
        """While inside, it does nothing, wherever it is."""
        self.signal(signal.SIGSTOP)
        try:
            stopped = os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            assert stopped is not None
            assert stopped.si_code == os.CLD_STOPPED, self.said()
            yield
        finally:
            self.signal(signal.SIGCONT)

    def wait(self) -> int:
        """Wait for its end; its exit code."""
        assert self._process is not None, "it does not run"
        code = self._process.wait(PATIENCE_SECONDS)
        self._process = None
        return code

    def said(self) -> str:
        """All it wrote, in all its runs."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def state(self, site: str) -> SiteState:
        """What that site remembers."""
        found = state(self.sites[site])
        assert found is not None, f"{site} has no state yet"
        return found

    def report(self, site: str) -> SiteReport:
        """What the replicator last reported of it."""
        found = read_reports(str(self.journal))[site]
        assert isinstance(found, SiteReport), found
        return found

    def wait_for_reports(self) -> None:
        """Until the replicator that runs now has reported of every site: it is at work."""

        def reported() -> bool:
            reports = read_reports(str(self.journal))
            found = [reports.get(name) for name in self.sites]
            return all(isinstance(each, SiteReport) and each.pid == self.pid for each in found)

        self.expect(reported, "it does not report")

    def clean(self, site: str) -> int:
        """The clean cursor; -1 before there is one."""
        found = state(self.sites[site])
        return -1 if found is None else found.clean

    def settle(self, *sites: str) -> None:
        """Wait until the clean cursors of these sites (of all) are at the journal's present head.

        It must go on running.
        """
        target = head(self.journal)
        self.wait_for_reports()
        for name in sites or self.sites:
            self.expect(
                lambda name=name: self.clean(name) >= target,  # type: ignore[misc]
                f"{name} does not come to record {target}",
            )

    def expect(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for something it will do; it must go on running."""
        process = self._process
        assert process is not None, "it does not run"

        def looked() -> bool:
            found = condition()
            assert found or process.poll() is None, (
                f"ended with {process.returncode}:\n{self.said()}"
            )
            return found

        until(looked, lambda: f"{what}: {self._reports()}\n{self.said()}")

    def _reports(self) -> list[str]:
        return [
            f"{each.site}: {each.phase} {each.reason} clean {each.state.clean}"
            f" working {each.state.working} held {each.state.held}"
            for each in read_reports(str(self.journal)).values()
            if isinstance(each, SiteReport)
        ]

    def left_over(self, site: str) -> list[str]:
        """Paths below `kept`, `limbo` and `stage` of the site."""
        top = self.sites[site] / ".mirrorfs"
        return [
            os.path.relpath(os.path.join(above, name), top)
            for part in ("kept", "limbo", "stage")
            for above, directories, files in os.walk(top / part)
            for name in (*directories, *files)
        ]

    def clean_up(self) -> None:
        """Leave no process."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            self._process.wait()
            self._process = None


@dataclass
class Replicating:
    """Makes replications below one directory."""

    directory: Path
    _made: list[Replication] = field(default_factory=list)

    def __call__(self, journal: Path, *sites: str, start: bool = True) -> Replication:
        """A replicator of that journal to new, empty directories of these names."""
        paths = {name: self.directory / name for name in sites}
        for path in paths.values():
            path.mkdir(exist_ok=True)
        return self.to(journal, paths, start=start)

    def to(self, journal: Path, sites: Mapping[str, Path], *, start: bool = True) -> Replication:
        """The same to directories that are there."""
        log = self.directory / f"replicator-{len(self._made)}.log"
        made = Replication(journal, sites, log)
        self._made.append(made)
        if start:
            made.start()
        return made

    def clean_up(self) -> None:
        """Leave no process."""
        for made in self._made:
            made.clean_up()


@pytest.fixture
def replicating(tmp_path: Path) -> Iterator[Replicating]:
    """Run replicators: `replicating(journal, "backup")` runs one to a new directory."""
    made = Replicating(tmp_path)
    try:
        yield made
    finally:
        made.clean_up()
