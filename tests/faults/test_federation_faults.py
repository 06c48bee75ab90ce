"""Data servers die, stop, fall silent and are cut off while jobs work on a mounted federation.

Jobs on files of the server that suffers get an error, never a wrong answer and never "no such
file"; those of all other servers go on; nothing waits longer than the deadline; and when the server
is back, so are its files. What every operation took is printed as a table.
"""

from __future__ import annotations

import errno
import itertools
import os
import signal
import subprocess
import sys
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.support import xroot_protocol
from tests.support.federation import Federation
from tests.support.federation_mounts import FederationMount, mounted
from tests.support.federation_node import Server
from tests.support.inflight import Attempt, Job, check, forget_content, working, worst
from tests.support.mounting import tmpfs

pytestmark = [pytest.mark.xrootd, pytest.mark.fuse, pytest.mark.slow]

# What is promised is 30 s for the longest operation; a loaded machine gets more.
_LONGEST_SECONDS = 40.0
_FILES = 400  # more than are looked at before what is known of the first has become old
_PATTERN_BYTES = 16 << 20
_READ_BYTES = 1 << 16
_REWRITTEN_BYTES = 3 << 20
_KINDS = ("looked-at", "read", "held", "logged", "rewritten")
_WAITS_FOR_FUSE = "request_wait_answer"

UNAVAILABLE = {errno.EIO, errno.EHOSTUNREACH, errno.ETIMEDOUT}

SUFFERS, FINE = 1, 0
"""The data server that suffers, and one that does not."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What is done to a data server, and how it is undone. refuses: no operation that needs the
    server can succeed meanwhile."""

    inflict: Callable[[Server], None]
    lift: Callable[[Server], None]
    refuses: bool = True


FAULTS = {
    "killed": Fault(Server.kill, Server.start),
    "stopped": Fault(Server.pause, Server.resume),
    "stalled": Fault(Server.stall, Server.unstall),
    "reset": Fault(Server.reset_connections, lambda server: None, refuses=False),
}


@pytest.fixture(scope="module")
def proxied() -> Iterator[Federation]:
    """With files on every data server, in directories that are on all, as xrootdfs makes them.

    No two kinds of jobs have a directory in common: the kernel asks about names in one directory
    one at a time, so that one that has to wait for a silent server lets others wait.
    """
    pattern = array("Q", range(_PATTERN_BYTES // 8)).tobytes()
    with Federation(proxied=True) as made:
        for server in made.servers:
            for number, kind in itertools.product(range(3), _KINDS):
                server.make_directory(f"/{kind}/{number}")
            for directory in ("made", "nothing"):
                server.make_directory(f"/{directory}")
            for number, kind in itertools.product(range(_FILES), ("looked-at", "read")):
                name = f"/{kind}/{server.number}/f{number}"
                server.put(name, _content(server.number, number))
            server.put(f"/held/{server.number}/pattern", pattern)
            server.put(f"/logged/{server.number}/log", b"")
            server.put(f"/rewritten/{server.number}/file", b"")
            for number in range(5):
                server.put(f"/listed/{server.number}.{number}", b"")
        yield made


@pytest.fixture
def mount(proxied: Federation, tmp_path: Path) -> Iterator[FederationMount]:
    """Mounted anew for each test: none knows what an earlier one met."""
    proxied.wait_ready()  # a mount learns from the redirector which servers there are
    short = ("attr-timeout=1", "negative-timeout=1", "listing-timeout=1")
    with mounted(proxied, tmp_path / "mount", *short) as made:
        yield made


def _content(server: int, number: int) -> bytes:
    return b"%d %05d\n" % (server, number) * 512


class Jobs:
    """What jobs do with files of one data server, and with directories of all."""

    def __init__(self, federation: Federation, top: Path) -> None:
        self.federation = federation
        self.top = top
        self.list = Job("list", self._list)
        self.removed: list[str] = []
        self.logged: dict[int, list[bytes]] = {SUFFERS: [], FINE: []}
        self._handles = {
            server: os.open(top / f"held/{server}/pattern", os.O_RDONLY)
            for server in (SUFFERS, FINE)
        }

    def close(self) -> None:
        """Close what is open."""
        for descriptor in self._handles.values():
            os.close(descriptor)

    def of_server(self, server: int, whose: str) -> list[Job]:
        """Jobs that need that server and no other."""
        acts = {
            "stat": self._stat,
            "open and read": self._open_and_read,
            "read, open before": self._read,
            "append and fsync": self._append,
            "rewrite and close": self._rewrite,
        }
        return [Job(f"{name}, {whose}", partial(act, server)) for name, act in acts.items()]

    def of_all(self) -> list[Job]:
        """Jobs that need every server to be sure."""
        return [
            self.list,
            Job("stat of what is not there", self._stat_missing),
            Job("create and remove", self._create_and_remove),
        ]

    def _stat(self, server: int, number: int) -> None:
        status = (self.top / f"looked-at/{server}/f{number % _FILES}").stat()
        check(status.st_size == len(_content(server, number)), "size")

    def _open_and_read(self, server: int, number: int) -> None:
        number %= _FILES
        content = (self.top / f"read/{server}/f{number}").read_bytes()
        check(content == _content(server, number), f"content of {server}, {number}")

    def _read(self, server: int, number: int) -> None:
        at = number * 7919 * _READ_BYTES % _PATTERN_BYTES
        forget_content(self._handles[server])
        content = os.pread(self._handles[server], _READ_BYTES, at)
        check(content == array("Q", range(at // 8, (at + _READ_BYTES) // 8)).tobytes(), "content")

    def _append(self, server: int, number: int) -> None:
        line = b"%d\n" % number
        descriptor = os.open(self.top / f"logged/{server}/log", os.O_WRONLY | os.O_APPEND)
        try:
            os.write(descriptor, line)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self.logged[server].append(line)

    def _rewrite(self, server: int, number: int) -> None:
        """No fsync: it is the close that must tell of what went wrong."""
        content = number.to_bytes(4, "big") * (_REWRITTEN_BYTES // 4)
        (self.top / f"rewritten/{server}/file").write_bytes(content)
        stored = self.federation.servers[server].data_dir / f"rewritten/{server}/file"
        check(stored.read_bytes() == content, "closed without an error, and not on disk")

    def _list(self, _number: int) -> None:
        names = set(os.listdir(self.top / "listed"))
        expected = {f"{server}.{number}" for server in range(3) for number in range(5)}
        check(names == expected, f"no error, and only {sorted(names)}")

    def _stat_missing(self, number: int) -> None:
        try:
            (self.top / f"nothing/missing{number}").stat()
        except FileNotFoundError:
            return
        check(False, "what is not there has a status")

    def _create_and_remove(self, number: int) -> None:
        path = self.top / "made" / f"new{number}"
        path.write_bytes(b"new")
        check(path.read_bytes() == b"new", "content of a new file")
        path.unlink()
        self.removed.append(path.name)


def _await_answer(server: Server) -> None:
    """Until it answers to clients."""
    for _ in itertools.count():
        try:
            xroot_protocol.ping(server.port)
        except OSError:
            continue
        return


def _line(*cells: str) -> str:
    return f"{cells[0]:34}" + "".join(f"{cell:21}" for cell in cells[1:])


def _table(fault: str, jobs: list[Job], at: tuple[float, float, float]) -> list[str]:
    """Each operation: before, at the very moment, meanwhile, and until it was done again."""
    inflicted, lifted, end = at
    heads = ("before", "in flight", "meanwhile", "afterwards", "done again")
    lines = ["", _line(fault, *heads)]
    for job in jobs:
        during = job.between(inflicted, lifted)
        flying = [a for a in during if a.began < inflicted]
        later = [a for a in during if a.began >= inflicted]
        after = [a for a in job.between(lifted, end) if a.began >= lifted]
        good = [a for a in job.between(lifted, end) if a.ended >= lifted and not a.errno]
        again = f"{good[0].ended - lifted:.2f} s" if good else "never"
        cells = (worst(job.between(0, inflicted)[:-1]), worst(flying), worst(later), worst(after))
        lines.append(_line(job.name, *cells, again))
    return lines


def _show(
    fault: str,
    jobs: list[Job],
    at: tuple[float, float, float],
    capsys: pytest.CaptureFixture[str],
) -> None:
    with capsys.disabled():
        sys.stdout.write("\n".join(_table(fault, jobs, at)) + "\n")


def _errors(attempts: list[Attempt]) -> set[int]:
    return {attempt.errno for attempt in attempts} - {0}


@pytest.mark.parametrize("name", FAULTS)
def test_one_data_server(
    proxied: Federation, mount: FederationMount, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fault, server = FAULTS[name], proxied.servers[SUFFERS]
    doing = Jobs(proxied, mount.mountpoint)
    suffering = doing.of_server(SUFFERS, "its files")
    fine = doing.of_server(FINE, "others' files")
    jobs = [*suffering, *fine, *doing.of_all()]
    try:
        with working(jobs, mount.clean_up):
            for job in jobs:
                job.await_attempts(3, 0, failed=False)
            inflicted = time.monotonic()
            fault.inflict(server)
            try:
                for job in jobs:
                    job.await_attempts(2, inflicted)
                if fault.refuses:
                    for job in (*suffering, doing.list):
                        job.await_attempts(1, inflicted, failed=True)
            finally:
                lifting = time.monotonic()
                fault.lift(server)
            _await_answer(server)
            lifted = time.monotonic()
            for job in jobs:
                job.await_attempts(3, lifted, failed=False)
        end = time.monotonic()
    finally:
        doing.close()
        proxied.wait_ready()

    _show(f"{name}:", jobs, (inflicted, lifted, end), capsys)
    for job in jobs:
        assert job.wrong == [], job.name
        everything = job.between(0, end)
        assert max(attempt.seconds for attempt in everything) < _LONGEST_SECONDS, job.name
        assert _errors(everything) <= UNAVAILABLE, job.name
        assert _errors(job.between(0, inflicted)[:-1]) == set(), job.name
    for job in fine:
        assert _errors(job.between(0, end)) == set(), job.name
    if fault.refuses:
        for job in suffering:
            ended = [a for a in job.between(inflicted, lifting) if a.ended < lifting]
            assert ended[-1].errno, f"{job.name}: done without the server"
    _check_disks(proxied, doing)


def _check_disks(federation: Federation, doing: Jobs) -> None:
    """Every line that was acknowledged is there, in order; what was removed is gone."""
    for server in federation.servers:
        left = set(os.listdir(server.data_dir / "made"))
        assert left.isdisjoint(doing.removed), f"removed, and still on {server}"
    for number, logged in doing.logged.items():
        path = federation.servers[number].data_dir / f"logged/{number}/log"
        lines = iter(path.read_bytes().splitlines(keepends=True))
        lost = [line for line in logged if line not in lines]
        assert lost == [], f"acknowledged, and lost, on data server {number}"
        path.write_bytes(b"")


def test_redirector_killed(
    proxied: Federation, mount: FederationMount, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is only asked who is there: nobody notices that it is not, nor that it is back."""
    doing = Jobs(proxied, mount.mountpoint)
    jobs = [*doing.of_server(SUFFERS, "any file"), *doing.of_all()]
    try:
        with working(jobs, mount.clean_up):
            for job in jobs:
                job.await_attempts(3, 0, failed=False)
            inflicted = time.monotonic()
            proxied.redirector.kill()
            for job in jobs:
                job.await_attempts(20, inflicted)
            proxied.redirector.start()
            lifted = time.monotonic()
            for job in jobs:
                job.await_attempts(20, lifted)
        end = time.monotonic()
    finally:
        doing.close()
        proxied.redirector.start()
        proxied.wait_ready()
    _show("redirector killed:", jobs, (inflicted, lifted, end), capsys)
    for job in jobs:
        assert job.wrong == [], job.name
        assert _errors(job.between(0, end)) == set(), job.name
    _check_disks(proxied, doing)


@pytest.mark.parametrize("silence", [(Server.stall, Server.unstall), (Server.pause, Server.resume)])
def test_what_was_made_while_a_server_was_silent_stays_what_it_is(
    proxied: Federation,
    mount: FederationMount,
    tmp_path: Path,
    silence: tuple[Callable[[Server], None], Callable[[Server], None]],
) -> None:
    """What the server is told meanwhile it does later, when the job has long gone on."""
    server = proxied.servers[SUFFERS]
    made = mount.mountpoint / "made"
    assert list(made.iterdir()) == []
    written: dict[str, bytes] = {}
    refused: set[int | None] = set()
    silence[0](server)
    try:
        for number in range(12):
            name = f"{tmp_path.name}.{number}"
            try:
                (made / name).write_bytes(name.encode())
            except OSError as error:
                refused.add(error.errno)
            else:
                written[name] = name.encode()
    finally:
        silence[1](server)
    assert refused <= UNAVAILABLE
    _await_answer(server)
    with mounted(proxied, tmp_path / "other") as other:
        for name, content in written.items():
            assert (other.mountpoint / "made" / name).read_bytes() == content
            assert (made / name).read_bytes() == content
            assert len(proxied.holders(f"/made/{name}")) == 1, f"{name} is there twice"
    for path in made.iterdir():
        path.unlink()


@pytest.mark.parametrize("what", ["stat", "read"])
def test_killed_job_ends_although_its_server_is_silent(
    proxied: Federation, mount: FederationMount, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server = proxied.servers[SUFFERS]
    path = mount.mountpoint / f"held/{SUFFERS}/pattern"
    program = f"from pathlib import Path; Path({str(path)!r}).{what}{'_bytes' * (what == 'read')}()"
    server.stall()
    try:
        job = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
        while Path(f"/proc/{job.pid}/wchan").read_text() != _WAITS_FOR_FUSE:
            assert job.poll() is None, "answered"
            time.sleep(0.01)
        began = time.monotonic()
        job.send_signal(signal.SIGKILL)
        job.wait(_LONGEST_SECONDS)
        took = time.monotonic() - began
    finally:
        server.unstall()
    with capsys.disabled():
        sys.stdout.write(f"\njob killed in {what} of a silent server: ended after {took:.2f} s\n")


def test_full_data_server(proxied: Federation, mount: FederationMount) -> None:
    """A job that cannot store everything is told so, before or when it closes the file."""
    server = proxied.servers[SUFFERS]
    path = mount.mountpoint / "small" / "file"
    with tmpfs(server.data_dir / "small", "size=1m,mode=777"):
        server.put("/small/file", b"before")
        assert path.read_bytes() == b"before"
        with pytest.raises(OSError, match="No space left on device"):
            path.write_bytes(bytes(4 << 20))
        path.unlink()
        assert os.listdir(path.parent) == []
    (server.data_dir / "small").rmdir()
