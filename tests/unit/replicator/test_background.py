"""A child that comes up, or does not: the caller returns with its word and its exit code."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import select
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from replicator.background import BackgroundError, Surroundings, start

Ready = Callable[[], None]
_PATIENCE_SECONDS = 60.0


class RefusedError(Exception):
    """One of ours: it has an exit code."""

    exit_code = 69


@pytest.fixture
def surroundings(tmp_path: Path) -> Iterator[Surroundings]:
    """Log and pid file; no child is left. Children wait for SIGTERM, and it may come before: all
    threads they begin with must block it (the XRootD client makes its own anew in each child)."""
    made = Surroundings(str(tmp_path / "log"), str(tmp_path / "pid"))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    yield made
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    with contextlib.suppress(ValueError, FileNotFoundError, ProcessLookupError):
        pid = pid_in(made)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def pid_in(surroundings: Surroundings) -> int:
    """What stands in the pid file."""
    assert surroundings.pid_file is not None
    return int(Path(surroundings.pid_file).read_text())


def end(pid: int) -> int:
    """Wait for a child; its exit code."""
    pidfd = os.pidfd_open(pid)
    try:
        assert select.select([pidfd], [], [], _PATIENCE_SECONDS)[0]
    finally:
        os.close(pidfd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def wait_for_sigterm(ready: Ready) -> int:
    """Work until SIGTERM."""
    ready()
    logging.getLogger("test").info("at work")
    signal.sigwait([signal.SIGTERM])
    return 3


def test_it_comes_up_and_ends(surroundings: Surroundings) -> None:
    start(surroundings, wait_for_sigterm)
    pid = pid_in(surroundings)
    assert os.getsid(pid) == pid
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert {os.readlink(f"/proc/{pid}/fd/{number}") for number in (0, 1, 2)} == {"/dev/null"}
    with pytest.raises(BackgroundError, match=f"process {pid} runs already") as refused:
        start(surroundings, wait_for_sigterm)
    assert refused.value.exit_code == 69
    os.kill(pid, signal.SIGTERM)
    assert end(pid) == 3
    assert " INFO at work\n" in Path(surroundings.log).read_text()
    assert surroundings.pid_file is not None
    with open(surroundings.pid_file, "rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert stream.read() == b""


def test_a_refusal_is_the_callers(surroundings: Surroundings) -> None:
    def refuse(_: Ready) -> int:
        raise RefusedError("the site: is another's")

    with pytest.raises(BackgroundError, match="the site: is another's") as refused:
        start(surroundings, refuse)
    assert refused.value.exit_code == 69


def test_a_fault_is_told_with_its_trace(
    surroundings: Surroundings, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(_: Ready) -> int:
        raise KeyError("fault")

    with pytest.raises(BackgroundError, match="fault") as failed:
        start(surroundings, fail)
    assert failed.value.exit_code == 70
    assert "Traceback" in capfd.readouterr().err


def test_a_fault_later_is_in_the_log(surroundings: Surroundings) -> None:
    def fail_later(ready: Ready) -> int:
        wait_for_sigterm(ready)
        raise KeyError("fault")

    start(surroundings, fail_later)
    pid = pid_in(surroundings)
    os.kill(pid, signal.SIGTERM)
    assert end(pid) == 70
    said = Path(surroundings.log).read_text()
    assert "CRITICAL ended by KeyError('fault')" in said
    assert "Traceback" in said


def test_killed_before_it_is_ready(surroundings: Surroundings) -> None:
    def kill(_: Ready) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    with pytest.raises(BackgroundError, match="ended unexpectedly with status -9") as failed:
        start(surroundings, kill)
    assert failed.value.exit_code == 70


@pytest.mark.parametrize("which", ["log", "pid_file"])
def test_where_nothing_can_be_written(tmp_path: Path, which: str) -> None:
    paths = {"log": str(tmp_path / "log"), "pid_file": None, which: "/proc/none/file"}
    with pytest.raises(BackgroundError, match="/proc/none/file: No such file") as failed:
        start(Surroundings(**paths), wait_for_sigterm)  # type: ignore[arg-type]
    assert failed.value.exit_code == 73
