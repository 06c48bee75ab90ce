"""Which process, and which batch job, is behind a request."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirrorfs import callers, system_calls
from mirrorfs.callers import Jobs
from mirrorfs.journal.record import Who

_PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}


@pytest.fixture
def jobs() -> Iterator[Jobs]:
    """With room for two processes."""
    made = Jobs(("JOB", "BATCH"), 2)
    yield made
    made.close()


def _cat(**environment: str) -> subprocess.Popen[bytes]:
    """A process that has begun its program."""
    process = subprocess.Popen(["cat"], **_PIPES, env=environment)  # type: ignore[call-overload]
    process.stdin.write(b"x")
    process.stdin.flush()
    process.stdout.read(1)
    return process  # type: ignore[no-any-return]


def test_the_first_variable_that_is_set(jobs: Jobs) -> None:
    for environment, job in (
        ({"JOB": "7", "BATCH": "8"}, "7"),
        ({"JOB": "", "BATCH": "8"}, "8"),
        ({"NOJOB": "7"}, ""),
        ({"A": "JOB=7"}, ""),
        ({}, ""),
    ):
        with _cat(**environment) as process:
            for uid in (0, 5, 0):
                assert jobs.who(process.pid, uid) == Who(process.pid, uid, job)
            process.communicate()


def test_a_process_that_ended_is_not_its_successor(jobs: Jobs) -> None:
    with _cat(JOB="7") as process:
        assert jobs.who(process.pid, 0).job == "7"
        process.communicate()
    assert jobs.who(process.pid, 0) == Who(process.pid, 0, "")


def test_nobody_is_behind_it(jobs: Jobs) -> None:
    """A kernel's thread, or a process that this one cannot see."""
    for pid in (0, 2):
        assert jobs.who(pid, 5) == Who(pid, 5, "")


def test_another_program_with_another_environment(jobs: Jobs) -> None:
    """A batch system opens the output of a job, then begins the job, in one process."""
    program = (
        "import os, sys\n"
        "sys.stdin.readline()\n"
        "print('cat', flush=True)\n"
        "os.execvpe('cat', ['cat'], {'JOB': 'inner'})\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], **_PIPES, env={**os.environ, "JOB": "outer"}
    ) as process:  # type: ignore[call-overload]
        while jobs.who(process.pid, 0).job != "outer":  # it is this program until its exec
            pass
        assert jobs.who(process.pid, 0).job == "outer"
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"cat\n"
        process.stdin.write(b"x")
        process.stdin.flush()
        assert process.stdout.read(1) == b"x"
        assert jobs.who(process.pid, 0) == Who(process.pid, 0, "inner")
        process.communicate()


def test_a_process_that_still_has_its_parent_s_memory(jobs: Jobs, tmp_path: Path) -> None:
    """Between vfork and exec it may open files: a spawned program's output, say."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    program = (
        "import os, sys\n"
        "actions = [(os.POSIX_SPAWN_OPEN, 0, sys.argv[1], os.O_RDONLY, 0)]\n"
        "os.posix_spawn('/bin/cat', ['cat'], {'JOB': 'inner'}, file_actions=actions)\n"
        "os.wait()\n"
    )
    command = (sys.executable, "-c", program, str(fifo))
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, env={**os.environ, "JOB": "outer"}
    ) as parent:
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
        while not (child := children.read_text().strip()):
            pass
        pid = int(child)
        assert system_calls.share_memory(pid, parent.pid)
        for _ in range(2):
            assert jobs.who(pid, 0) == Who(pid, 0, "outer")
        with open(fifo, "wb", 0) as writer:
            writer.write(b"x")
            assert parent.stdout is not None
            assert parent.stdout.read(1) == b"x"
            assert not system_calls.share_memory(pid, parent.pid)
            for _ in range(2):
                assert jobs.who(pid, 0) == Who(pid, 0, "inner")


def test_a_thread_is_its_process(jobs: Jobs) -> None:
    seen: list[int] = []
    begun, done = threading.Event(), threading.Event()

    def wait() -> None:
        seen.append(threading.get_native_id())
        begun.set()
        done.wait()

    thread = threading.Thread(target=wait)
    thread.start()
    begun.wait()
    try:
        assert seen[0] != os.getpid()
        for _ in range(2):
            assert jobs.who(seen[0], 3).pid == os.getpid()
        assert list(jobs._known) == [os.getpid()]
    finally:
        done.set()
        thread.join()


def test_a_thread_that_has_ended(jobs: Jobs) -> None:
    nothing = int(Path("/proc/sys/kernel/pid_max").read_text())  # no thread has this number
    jobs._process_of[nothing] = os.getpid()
    assert jobs.who(nothing, 3) == Who(nothing, 3, "")


def test_a_thread_s_number_goes_to_another_process(jobs: Jobs) -> None:
    with _cat(JOB="7") as process:
        jobs._process_of[process.pid] = os.getpid()  # as if it had been a thread of this one
        assert jobs.who(process.pid, 0) == Who(process.pid, 0, "7")
        process.communicate()


def test_few_threads_are_remembered(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callers, "_THREADS_MAX", 2)
    done = threading.Event()
    threads = [threading.Thread(target=done.wait) for _ in range(5)]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            assert thread.native_id is not None
            assert jobs.who(thread.native_id, 0).pid == os.getpid()
            assert len(jobs._process_of) <= 2
    finally:
        done.set()
        for thread in threads:
            thread.join()


def test_few_processes_are_remembered(jobs: Jobs) -> None:
    before = len(os.listdir("/proc/self/fd"))
    processes = [_cat(JOB=str(number)) for number in range(4)]
    for _ in range(2):
        for number, process in enumerate(processes):
            assert jobs.who(process.pid, 0).job == str(number)
    assert len(jobs._known) == 2
    for process in processes:
        process.communicate()
    jobs.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_groups_of_processes() -> None:
    assert not callers.in_group(0, 0)
    assert callers.in_group(os.getpid(), 987654) is (987654 in os.getgroups())
    for group in os.getgroups():
        assert callers.in_group(os.getpid(), group)
