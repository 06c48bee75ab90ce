"""Several jobs at once on one directory: started, stopped between two operations, ended."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final

from mirrorfs.journal.reader import JournalReader
from tests.support.churn import DEAD_MOUNT
from tests.support.mounts import ROOT

PATIENCE_SECONDS: Final = 120.0


@dataclass
class Load:
    """Jobs of `tests.support.churn`; each start gives them new seeds."""

    directory: Path
    seed: int
    jobs: int = 3
    _running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self) -> None:
        """All of them, at work when this returns."""
        assert not self._running, "they run already"
        for _ in range(self.jobs):
            self.seed += 1
            words = (sys.executable, "-m", "tests.support.churn", self.directory, str(self.seed))
            self._running.append(subprocess.Popen(words, stdout=subprocess.PIPE, cwd=ROOT))
        for job in self._running:
            assert job.stdout is not None
            assert job.stdout.readline() == b"ready\n"

    @property
    def running(self) -> bool:
        """Started, and neither stopped nor lost."""
        return bool(self._running)

    @property
    def pids(self) -> list[int]:
        """Of the jobs."""
        return [job.pid for job in self._running]

    def pause(self) -> None:
        """Every job stands still between two operations, with nothing open."""
        for job in self._running:
            job.send_signal(signal.SIGUSR1)
        for job in self._running:
            if job.returncode is None:
                stopped = os.waitid(os.P_PID, job.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
                assert stopped is not None
                if stopped.si_code == os.CLD_STOPPED:
                    continue
                job.wait()
            # another job has truncated what it had mapped, and stored to
            assert job.returncode == -signal.SIGBUS, f"a job has ended with {job.returncode}"

    def resume(self) -> None:
        """After `pause`."""
        for job in self._running:
            job.send_signal(signal.SIGCONT)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """While inside, nothing is changed: those that run stand still."""
        if not self._running:
            yield
            return
        self.pause()
        try:
            yield
        finally:
            self.resume()

    def waiting(self) -> int:
        """How many jobs are in a system call that waits at this moment."""
        states = [Path(f"/proc/{job.pid}/stat").read_bytes() for job in self._running]
        return sum(state.rpartition(b")")[2].split()[0] in (b"S", b"D") for state in states)

    def stop(self) -> None:
        """They end after the operation they are at."""
        for job in self._running:
            job.send_signal(signal.SIGCONT)
            job.terminate()
        self._join(0, -signal.SIGBUS)

    def lose_mount(self) -> None:
        """The mount has died: every job has noticed, and ended."""
        self._join(DEAD_MOUNT, -signal.SIGBUS)  # that is how a mapping notices

    def _join(self, *allowed: int) -> None:
        codes = [job.wait(PATIENCE_SECONDS) for job in self._running]
        self._close()
        assert set(codes) <= set(allowed), codes

    def _close(self) -> None:
        for job in self._running:
            assert job.stdout is not None
            job.stdout.close()
        self._running.clear()

    def clean_up(self) -> None:
        """Leave no process."""
        for job in self._running:
            job.kill()
            job.wait()
        self._close()


@contextmanager
def loaded(directory: Path, seed: int, jobs: int = 3) -> Iterator[Load]:
    """A load on that directory, not started yet."""
    load = Load(directory, seed * 1000, jobs)
    try:
        yield load
    finally:
        load.clean_up()


class Moments:
    """Moments under load, chosen by the number of records made since the last one."""

    def __init__(self, journal: Path, seed: int) -> None:
        self._journal = journal
        self._random = Random(seed)

    def wait(self, at_least: int, at_most: int) -> int:
        """Until so many more records were made; the journal's head then."""
        with JournalReader(str(self._journal)) as reader:
            target = reader.head() + self._random.randint(at_least, at_most)
            descriptor = reader.wake_fd
            while (head := reader.head()) < target:
                ready, _, _ = select.select([descriptor], [], [], PATIENCE_SECONDS)
                assert ready, "no records are made"
                reader.drain_wake()
            return head
