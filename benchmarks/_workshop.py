"""Where benchmarks happen: a temporary directory with real mounts and a real replicator.

Everything is made below one temporary directory, and is unmounted, ended and removed whatever ends
the benchmark. It uses the installed commands as an operator would.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from types import FrameType

PATIENCE_SECONDS = 600.0
_SETTLE_SECONDS = 2.0
# Not by PATH, where another program of this name stands before it: ours.
_PEER_XROOTDFS = "/usr/bin/xrootdfs"


class BenchmarkError(Exception):
    """It cannot be measured; the message is all there is to say."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


class _Interrupts:
    """SIGINT, SIGTERM and SIGHUP are KeyboardInterrupt, but inside `held` only at its end: nothing
    is begun without being known, and cleaning up is not cut short."""

    def __init__(self) -> None:
        self._held = 0
        self._pending = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._interrupt)

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        if not self._held:
            raise KeyboardInterrupt
        self._pending = True

    @contextmanager
    def held(self) -> Iterator[None]:
        """In here they wait."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
        if self._pending and not self._held:
            self._pending = False
            raise KeyboardInterrupt


class Workshop:
    """One temporary directory; what is mounted and started here ends with it."""

    def __init__(self, base: Path, interrupts: _Interrupts) -> None:
        self.base = base
        self._held = interrupts.held
        self._mountpoints = 0
        self._stack = ExitStack()
        self._stack.callback(self._remove)

    def directory(self, name: str) -> Path:
        """A new directory."""
        path = self.base / name
        path.mkdir(parents=True)
        return path

    def bindfs(self, source: Path, mountpoint: Path) -> AbstractContextManager[None]:
        """bindfs, in its faster mode."""
        mount = ("bindfs", "--multithreaded", source, mountpoint)
        return self._mounted(mountpoint, mount, "umount")

    def mirrorfs(
        self, source: Path, mountpoint: Path, journal: Path, *, activity: bool = True
    ) -> AbstractContextManager[None]:
        """mirrorfs, with its journal; without its activity log if not `activity`."""
        program: tuple[str, ...] = ("mirrorfs",)
        if not activity:
            program = (sys.executable, "-m", "benchmarks._without_activity")
        mount: tuple[str | Path, ...] = (
            *program,
            "mount",
            source,
            mountpoint,
            "-o",
            f"journal={journal}",
        )
        return self._mounted(mountpoint, mount, "mirrorfs", "umount")

    @contextmanager
    def xrootdfs(self, url: str) -> Iterator[Path]:
        """A federation; where it is mounted."""
        mountpoint = self._mountpoint()
        mount = ("xrootdfs", "mount", f"{url}//", mountpoint)
        with self._mounted(mountpoint, mount, "xrootdfs", "umount"):
            yield mountpoint

    @contextmanager
    def peer_xrootdfs(self, url: str) -> Iterator[Path]:
        """A federation, by Debian's C++ program; where it is mounted. In the foreground, so that
        it can be ended even if it answers nobody any more."""
        mountpoint = self._mountpoint()
        words = (_PEER_XROOTDFS, mountpoint, "-f", "-o", f"rdr={url}//,uid=daemon")
        with ExitStack() as stack:
            with self._held():
                stack.callback(self._unmount, mountpoint, ("umount",))
                process = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
                stack.callback(_end, process)
            while not _mounts_below(mountpoint):
                if process.poll() is not None:
                    raise BenchmarkError(f"{_PEER_XROOTDFS}: ended with {process.returncode}")
                time.sleep(0.01)
            yield mountpoint

    @staticmethod
    def has_peer_xrootdfs() -> bool:
        """Whether Debian's program is installed."""
        return os.access(_PEER_XROOTDFS, os.X_OK)

    def _mountpoint(self) -> Path:
        self._mountpoints += 1
        return self.directory(f"mount-{self._mountpoints}")

    def abandon(self, process: subprocess.Popen[bytes]) -> None:
        """A process that may wait in a dead mount: it ends at the latest when that is unmounted."""
        process.kill()
        self._stack.callback(process.wait)

    @contextmanager
    def _mounted(
        self, mountpoint: Path, mount: Sequence[str | Path], *umount: str
    ) -> Iterator[None]:
        with ExitStack() as stack:
            with self._held():
                stack.callback(self._unmount, mountpoint, umount)
                run(*mount)
            yield

    def _unmount(self, mountpoint: Path, umount: Sequence[str]) -> None:
        with self._held():
            for options in ((), ("-l",)):
                if _mounts_below(mountpoint):
                    words = (*umount, *options, mountpoint)
                    subprocess.run(words, capture_output=True, start_new_session=True)

    def replicator(self, journal: Path, name: str, site: Path) -> None:
        """A replicator to one site, from now on; returns when the site is equal, and things have
        settled: for a second after an initial copy it looks at everything more closely."""
        log = self.base / f"replicator-{name}.log"
        words = ("replicator", "run", "--journal", journal, "--site", f"{name}=file://{site}")
        with self._held(), log.open("wb") as said:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
            self._stack.callback(_end, process)
        try:
            wait(journal, name)
        except BenchmarkError as error:
            raise BenchmarkError(f"{error}\n{log.read_text(errors='replace')}") from None
        time.sleep(_SETTLE_SECONDS)

    @contextmanager
    def follower(self, journal: Path, name: str, site: Path) -> Iterator[subprocess.Popen[bytes]]:
        """A replicator to one site for as long as this lasts; it ends as `kill` ends it."""
        words = ("replicator", "run", "--journal", journal, "--site", f"{name}=file://{site}")
        with self.running(words, f"replicator-{name}") as process:
            yield process

    @contextmanager
    def running(self, words: Sequence[str | Path], name: str) -> Iterator[subprocess.Popen[bytes]]:
        """A program for as long as this lasts; asked to end, it must not fail. What it says is in
        `name`.log."""
        log = self.base / f"{name}.log"
        with ExitStack() as stack:
            with self._held(), log.open("ab") as said:
                process = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=said,
                    stderr=said,
                    start_new_session=True,
                )
                stack.callback(_end, process)
            yield process
            process.terminate()
            code = process.wait(PATIENCE_SECONDS)
            if code not in (0, -signal.SIGTERM, 128 + signal.SIGTERM):
                told = log.read_text(errors="replace")
                raise BenchmarkError(f"{words[0]}: ended with status {code}\n{told}")

    def close(self) -> None:
        """End and remove everything."""
        with self._held():
            self._stack.close()

    def _remove(self) -> None:
        if left := _mounts_below(self.base):
            sys.stderr.write(f"still mounted, left as it is: {', '.join(left)}\n")
        else:
            shutil.rmtree(self.base)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def processor_seconds(process: subprocess.Popen[bytes]) -> float:
    """What it has taken of processors so far."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_peak(process: subprocess.Popen[bytes]) -> int:
    """The most memory it has had so far, in bytes."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    peak = next(line for line in lines if line.startswith("VmHWM:"))
    return int(peak.split()[1]) * 1024


def _mounts_below(path: Path) -> list[str]:
    """Mount points at or below it, alive or dead (stat(2) of a dead one only fails)."""
    lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    points = [line.split(" ")[4] for line in lines]
    return [point for point in points if f"{point}/".startswith(f"{path}/")]


def run(*words: str | Path, patience: float = PATIENCE_SECONDS) -> str:
    """Run a command to its end and return what it printed; BenchmarkError if it fails."""
    try:
        ended = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            timeout=patience,
        )
    except FileNotFoundError:
        raise BenchmarkError(f"{words[0]}: not installed", 66) from None
    except subprocess.TimeoutExpired:
        raise BenchmarkError(f"{words[0]}: not done after {patience:.0f} s") from None
    if ended.returncode != 0:
        said = ended.stdout.strip() or f"{words[0]}: ended with status {ended.returncode}"
        raise BenchmarkError(said, ended.returncode)
    return ended.stdout


def wait(journal: Path, name: str, patience: float = PATIENCE_SECONDS) -> None:
    """Until the site has everything up to now."""
    words = ("replicator", "wait", "--journal", journal, "--site", name, "now")
    run(*words, patience=patience)


def main(measure: Callable[[Workshop, argparse.Namespace], None], given: argparse.Namespace) -> int:
    """Measure in a workshop, which is cleared away; the exit code."""
    os.environ["PATH"] = os.pathsep.join((os.path.dirname(sys.executable), os.environ["PATH"]))
    interrupts = _Interrupts()
    try:
        with ExitStack() as stack:
            with interrupts.held():
                base = Path(tempfile.mkdtemp(prefix="mirrorfs-bench-", dir=given.where)).resolve()
                workshop = Workshop(base, interrupts)
                stack.callback(workshop.close)
            measure(workshop, given)
    except BenchmarkError as error:
        sys.stderr.write(f"{error}\n")
        return error.status
    except KeyboardInterrupt:
        return 130
    return 0
