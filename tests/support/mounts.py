"""Real mounts for tests: `mirrorfs mount` as an operator runs it, always cleaned up.

A test asks for the fixture `mounting` (import it into its conftest or module) or uses `Mounted`
itself; either way nothing stays mounted and no daemon stays behind, whatever the test does.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mirrorfs import mountinfo
from mirrorfs.journal.control_client import ControlClient, NotRunningError, Status
from mirrorfs.journal.reader import JournalReader
from mirrorfs.journal.record import Record

_MNT_DETACH = 2
_PATIENCE_SECONDS = 60.0
_LOOK_SECONDS = 0.02
_libc = ctypes.CDLL(None, use_errno=True)

MIRRORFS = (sys.executable, "-m", "mirrorfs")
ROOT = Path(__file__).parents[2]


def run(*arguments: str | Path, check: bool = False) -> subprocess.CompletedProcess[str]:
    """Run `mirrorfs` with these arguments to its end."""
    return subprocess.run(
        [*MIRRORFS, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=_PATIENCE_SECONDS,
        check=check,
        cwd=ROOT,
    )


@dataclass
class Mounted:
    """One source, its mountpoint and its journal; mounted, or not at the moment.

    Attributes:
        options: further `-o` options.
        pid, supervisor: of the engine, and of the process that would start it again; 0 for none.
        journal_option: what `journal=` says, if that is not the journal itself.
    """

    source: Path
    mountpoint: Path
    journal: Path
    options: Sequence[str] = ()
    pid: int = 0
    supervisor: int = 0
    journal_option: Path | None = None
    _pidfds: list[int] = field(default_factory=list)

    def mount(self) -> None:
        """Mount it; the command's line is the error if it refuses."""
        journal = str(self.journal_option or self.journal).replace(",", "\\,")
        options = ",".join((f"journal={journal}", *self.options))
        done = run("mount", self.source, self.mountpoint, "-o", options)
        if done.returncode != 0:
            raise AssertionError(f"mirrorfs mount: {done.returncode}: {done.stderr}")
        self.look()

    def umount(self) -> None:
        """Unmount it and wait for the daemon's end."""
        done = run("umount", self.mountpoint)
        if done.returncode != 0:
            raise AssertionError(f"mirrorfs umount: {done.returncode}: {done.stderr}")

    def look(self) -> Status:
        """Which processes serve it now."""
        with ControlClient(str(self.journal)) as client:
            status = client.status()
        self.pid, self.supervisor = status.pid, status.supervisor
        # The supervisor first: it shall not see the engine die.
        found = [pid for pid in (self.supervisor, self.pid) if pid]
        self._pidfds, old = [os.pidfd_open(pid) for pid in found], self._pidfds
        for pidfd in old:
            os.close(pidfd)
        return status

    def wait_for_another(self) -> Status:
        """Wait until another engine than the one looked at last serves it."""
        old, deadline = self.pid, time.monotonic() + _PATIENCE_SECONDS
        while True:
            with contextlib.suppress(NotRunningError, OSError):
                status = self.look()
                if status.pid != old:
                    return status
            assert time.monotonic() < deadline, "no other engine comes"
            select.select([], [], [], _LOOK_SECONDS)

    def die(self) -> None:
        """kill -9 all of the daemon, and wait for its end; the dead mount stays."""
        for pidfd in self._pidfds:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        self.wait()

    def kill(self) -> None:
        """The same, and take the dead mount away."""
        self.die()
        _libc.umount2(os.fsencode(self.mountpoint), _MNT_DETACH)

    def wait(self) -> None:
        """Wait until all of the daemon has ended."""
        for pidfd in self._pidfds:
            ended, _, _ = select.select([pidfd], [], [], _PATIENCE_SECONDS)
            assert ended, "the daemon does not end"

    def records(self) -> list[Record]:
        """All records of the journal, up to this moment."""
        with JournalReader(str(self.journal)) as reader:
            return [record for batch in reader.read() for record in batch]

    def clean_up(self) -> None:
        """Leave nothing: no mount, no daemon."""
        path = os.path.realpath(self.mountpoint)
        while any(entry.path == path for entry in mountinfo.mounts()):
            if _libc.umount2(os.fsencode(path), _MNT_DETACH) != 0:
                break
        for pidfd in self._pidfds:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            select.select([pidfd], [], [], _PATIENCE_SECONDS)
            os.close(pidfd)
        self._pidfds.clear()


@dataclass
class Mounting:
    """Makes mounts below one directory."""

    directory: Path
    _made: list[Mounted] = field(default_factory=list)

    def __call__(self, *options: str, over: bool = False, name: str = "volume") -> Mounted:
        """Mount a new, empty source; `over`: the mountpoint is the source."""
        made = self.prepare(*options, over=over, name=name)
        made.mount()
        return made

    def prepare(self, *options: str, over: bool = False, name: str = "volume") -> Mounted:
        """The same without mounting."""
        source = self.directory / name
        mountpoint = source if over else self.directory / f"{name}-mount"
        for path in (source, mountpoint):
            path.mkdir(exist_ok=True)
        made = Mounted(source, mountpoint, self.directory / f"{name}-journal", options)
        self._made.append(made)
        return made

    def clean_up(self) -> None:
        """Leave nothing."""
        for made in self._made:
            made.clean_up()


@pytest.fixture
def mounting(tmp_path: Path) -> Iterator[Mounting]:
    """Make mounts: `mounting()` is one of an empty source, by default not over it."""
    made = Mounting(tmp_path)
    try:
        yield made
    finally:
        made.clean_up()
