"""Federations mounted for tests: `xrootdfs mount` as an operator runs it, always cleaned up."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from tests.support.federation import Federation

XROOTDFS: Final = (sys.executable, "-m", "xrootdfs")
ROOT: Final = Path(__file__).parents[2]

_MNT_DETACH = 2
_PATIENCE_SECONDS = 60.0
_libc = ctypes.CDLL(None, use_errno=True)


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `xrootdfs` with these arguments to its end."""
    return subprocess.run(
        [*XROOTDFS, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=_PATIENCE_SECONDS,
        cwd=ROOT,
    )


@dataclass
class FederationMount:
    """One mount of a federation; mounted, or not at the moment.

    Attributes:
        url: what is mounted, root://HOST:PORT//PREFIX.
        options: for -o, one each.
    """

    url: str
    mountpoint: Path
    options: tuple[str, ...] = ()
    _pidfds: list[int] = field(default_factory=list)

    def mount(self) -> None:
        """Mount it; the command's line is the error if it refuses."""
        options = ("-o", ",".join(self.options)) if self.options else ()
        done = run("mount", self.url, self.mountpoint, *options)
        if done.returncode != 0:
            raise AssertionError(f"xrootdfs mount: {done.returncode}: {done.stderr}")
        found = [os.pidfd_open(pid) for pid in self._daemons()]
        assert len(found) == 1, "not one daemon"
        self._pidfds += found

    def umount(self) -> None:
        """Unmount it and wait for the daemon's end."""
        done = run("umount", self.mountpoint)
        if done.returncode != 0:
            raise AssertionError(f"xrootdfs umount: {done.returncode}: {done.stderr}")
        ended, _, _ = select.select(self._pidfds[-1:], [], [], _PATIENCE_SECONDS)
        assert ended, "the daemon does not end"

    def kill(self) -> None:
        """kill -9 the daemon, and wait for its end; the dead mount stays."""
        signal.pidfd_send_signal(self._pidfds[-1], signal.SIGKILL)
        ended, _, _ = select.select(self._pidfds[-1:], [], [], _PATIENCE_SECONDS)
        assert ended, "the daemon does not end"

    def clean_up(self) -> None:
        """Leave nothing: no daemon, no mount, nobody who waits for either."""
        for pid in self._daemons():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pidfd in self._pidfds:
            select.select([pidfd], [], [], _PATIENCE_SECONDS)
            os.close(pidfd)
        self._pidfds.clear()
        while _is_mountpoint(self.mountpoint):
            if _libc.umount2(os.fsencode(self.mountpoint), _MNT_DETACH) != 0:
                break

    def _daemons(self) -> list[int]:
        """Its processes; no other mount has the same command line."""
        found = []
        for directory in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (directory / "cmdline").read_bytes().split(b"\0")
                ours = b"xrootdfs" in words and os.fsencode(self.mountpoint) in words
                if ours and int(directory.name) != os.getpid():
                    found.append(int(directory.name))
        return found


def _is_mountpoint(path: Path) -> bool:
    """Whether something is mounted there, alive or dead (stat(2) of a dead one only fails)."""
    lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    return any(line.split(" ")[4] == str(path) for line in lines)


@contextmanager
def mounted(
    federation: Federation, mountpoint: Path, *options: str, prefix: str = "/"
) -> Iterator[FederationMount]:
    """A federation, or what is below a prefix of it, mounted at a directory made here."""
    mountpoint.mkdir(exist_ok=True)
    made = FederationMount(f"{federation.url}/{prefix}", mountpoint, options)
    try:
        made.mount()
        yield made
    finally:
        made.clean_up()


@pytest.fixture(scope="module")
def federation_mount(
    federation: Federation, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FederationMount]:
    """The module's federation, mounted for all its tests."""
    with mounted(federation, tmp_path_factory.mktemp("federation") / "mount") as made:
        yield made
