"""One replicator per site: who gets the lease, who is refused, who loses it."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from replicator.stores.base import SiteRefusedError
from replicator.stores.lease import STALE_SECONDS, Holder, Lease, myself


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


def write(path: Path, holder: Holder, age_seconds: float = 0) -> None:
    path.joinpath("lock").write_bytes(msgspec.json.encode(holder))
    age(path, age_seconds)


def age(path: Path, seconds: float) -> None:
    renewed = path.joinpath("lock").stat().st_mtime_ns - int(seconds * 1e9)
    os.utime(path / "lock", ns=(renewed, renewed))


def elsewhere() -> Holder:
    return msgspec.structs.replace(myself(), host="other", machine="m", boot="b", pid=1)


def test_taken_released_and_taken_again(directory: int, tmp_path: Path) -> None:
    for _ in range(2):
        lease = Lease(directory)
        lease.renew()
        lease.release()
        lease.release()
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_a_second_one_is_refused_and_told_who(directory: int) -> None:
    lease = Lease(directory)
    with pytest.raises(SiteRefusedError, match=f"in use by process {os.getpid()} on "):
        Lease(directory)
    lease.renew()
    lease.release()


def test_without_locks_the_text_alone_refuses(
    directory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    lease = Lease(directory)
    with pytest.raises(SiteRefusedError, match="last heard of"):
        Lease(directory)
    age(tmp_path, STALE_SECONDS + 1)  # silent for so long, it has lost its right
    second = Lease(directory)
    with pytest.raises(SiteRefusedError, match="the lease was taken"):
        lease.renew()
    lease.release()
    second.renew()
    second.release()


def test_another_host_is_waited_for(directory: int, tmp_path: Path) -> None:
    write(tmp_path, elsewhere(), STALE_SECONDS - 5)
    with pytest.raises(SiteRefusedError, match=r"process 1 on other, last heard of 5[0-9] s ago"):
        Lease(directory)
    age(tmp_path, STALE_SECONDS + 5)
    Lease(directory).release()


def test_a_holder_that_died_is_followed_at_once(directory: int, tmp_path: Path) -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    for dead in (
        msgspec.structs.replace(myself(), pid=child.pid),
        msgspec.structs.replace(myself(), boot="an earlier boot"),
        msgspec.structs.replace(myself(), started=1),
    ):
        write(tmp_path, dead)
        Lease(directory).release()


def test_a_dead_child_nobody_has_waited_for_is_dead(directory: int, tmp_path: Path) -> None:
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    write(tmp_path, msgspec.structs.replace(myself(), pid=child.pid))
    Lease(directory).release()
    child.wait()


def test_what_cannot_be_read_counts_by_its_age(directory: int, tmp_path: Path) -> None:
    (tmp_path / "lock").write_bytes(b'{"host": "x", ')
    with pytest.raises(SiteRefusedError, match="in use by another replicator"):
        Lease(directory)
    age(tmp_path, STALE_SECONDS + 1)
    Lease(directory).release()


def test_a_lease_taken_by_somebody_else_is_lost(directory: int, tmp_path: Path) -> None:
    lease = Lease(directory)
    write(tmp_path, elsewhere())
    with pytest.raises(SiteRefusedError, match="taken by process 1 on other"):
        lease.renew()
    text = (tmp_path / "lock").read_bytes()
    lease.release()
    assert (tmp_path / "lock").read_bytes() == text


def test_renewing_is_seen(directory: int, tmp_path: Path) -> None:
    lease = Lease(directory)
    age(tmp_path, 1000)
    before = (tmp_path / "lock").stat().st_mtime_ns
    lease.renew()
    assert (tmp_path / "lock").stat().st_mtime_ns > before + 900 * 10**9
    lease.release()


def test_what_could_not_be_given_back_is_taken_again(directory: int) -> None:
    """The disk was away when it was let go of: it still says that this process holds it."""
    lease = Lease(directory)
    text = os.pread(lease._fd, 4096, 0)
    lease.release()
    fd = os.open(b"lock", os.O_WRONLY, dir_fd=directory)
    os.pwrite(fd, text, 0)
    os.close(fd)
    Lease(directory).release()
