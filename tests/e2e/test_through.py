"""Write-through: what a job has closed, renamed, removed or made is at the site when it goes on."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest

from mirrorfs.journal.control_client import ControlClient, ThroughStatus
from tests.support import campaign
from tests.support.asking import immutable
from tests.support.mounts import Mounted, Mounting, mounting, run
from tests.support.replicating import Replicating, Replication, replicating, until
from tests.support.replicating import run as replicator
from tests.support.trees import differences, snapshot

pytestmark = pytest.mark.fuse

__all__ = ["mounting", "replicating"]

XATTR = "trusted.mirrorfs.write-through"
PATIENT = "write-through-timeout=3600"
HASTY = "write-through-timeout=0.2"
JOBS = 4
CLOSES = campaign.pick(75, 2500)

JOB = """
import os, random, sys
mount, site, tag, count = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
choose, missed = random.Random(tag), 0

def shows(name, data):
    try:
        with open(f"{site}/{name}", "rb") as file:
            return file.read() == data
    except OSError:
        return data is None and not os.path.lexists(f"{site}/{name}")

for number in range(count):
    name, data = f"{tag}-{number % 5}", os.urandom(choose.choice([0, 10, 5000, 300000]))
    with open(f"{mount}/{name}", "wb") as file:
        file.write(data)
    missed += not shows(name, data)
    if number % 3 == 0:
        other = f"{tag}-d{number}/{name}"
        os.mkdir(f"{mount}/{tag}-d{number}")
        missed += not os.path.isdir(f"{site}/{tag}-d{number}")
        os.rename(f"{mount}/{name}", f"{mount}/{other}")
        missed += not (shows(name, None) and shows(other, data))
        os.chmod(f"{mount}/{other}", 0o600)
        missed += os.path.exists(f"{site}/{other}") and os.stat(f"{site}/{other}").st_mode & 63 > 0
        os.unlink(f"{mount}/{other}")
        missed += not shows(other, None)
print(missed)
"""
"""Changes something, looks at the site at once, and counts what it misses there."""


class Jobs:
    """Processes that do so, each at names of its own."""

    def __init__(self, mounted: Mounted, site: Path) -> None:
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-c", JOB, mounted.mountpoint, site, f"job{n}", str(CLOSES)],
                stdout=subprocess.PIPE,
                text=True,
            )
            for n in range(JOBS)
        ]

    @property
    def at_work(self) -> bool:
        """Whether one has not ended."""
        return any(each.poll() is None for each in self.processes)

    def missed(self) -> int:
        """Wait for all; how many changes they missed."""
        told = [each.communicate()[0] for each in self.processes]
        assert all(each.returncode == 0 for each in self.processes), told
        return sum(int(each) for each in told)


def of(mounted: Mounted) -> ThroughStatus:
    """How the only site fares."""
    with ControlClient(str(mounted.journal)) as client:
        (found,) = client.status().through
    return found


def follows(mounted: Mounted) -> bool:
    """Its replicator is there, and it is waited for."""
    found = of(mounted)
    return found.followed and found.down is None


def wait_until_it_follows(mounted: Mounted) -> None:
    until(lambda: follows(mounted), lambda: f"it does not follow: {of(mounted)}")


def followed(
    mounting: Mounting, replicating: Replicating, *options: str
) -> tuple[Mounted, Replication, Path]:
    """A mount whose site is waited for, and is there."""
    mounted = mounting("write-through=site", *options)
    replication = replicating(mounted.journal, "site")
    replication.settle()
    wait_until_it_follows(mounted)
    return mounted, replication, replication.sites["site"]


@contextmanager
def closing(path: Path, before: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """A job that writes a file and closes it; `before`: what it does before it closes."""
    script = "import sys; f = open(sys.argv[1], 'w'); f.write('x'); f.flush(); print(flush=True)"
    job = subprocess.Popen(
        [sys.executable, "-c", f"{script}{before}; f.close()", path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert job.stdout is not None
        job.stdout.readline()
        yield job
    finally:
        job.kill()
        job.communicate()


@contextmanager
def refused() -> Iterator[None]:
    """EIO."""
    with pytest.raises(OSError, match="Input/output error") as raised:
        yield
    assert raised.value.errno == errno.EIO


# what is promised ------------------------------------------------------------------------------


def test_what_was_answered_is_at_the_site_though_the_replicator_is_killed(
    mounting: Mounting, replicating: Replicating
) -> None:
    mounted, replication, there = followed(mounting, replicating, PATIENT)
    jobs, random, kills = Jobs(mounted, there), Random(1), 0
    while jobs.at_work:
        records = mounted.records()[-1].sequence + random.randint(20, 150)

        def later(records: int = records) -> bool:
            with ControlClient(str(mounted.journal)) as client:
                return client.status().head >= records or not jobs.at_work

        until(later, lambda: "the jobs stand still")
        replication.kill()
        replication.start()
        kills += 1
    assert jobs.missed() == 0
    assert of(mounted).passed == 0
    assert kills >= 2
    replication.settle()
    assert differences(snapshot(mounted.source), snapshot(there)) == []


def test_what_was_answered_without_the_site_is_told(
    mounting: Mounting, replicating: Replicating
) -> None:
    mounted, replication, there = followed(mounting, replicating, HASTY)
    jobs = Jobs(mounted, there)
    replication.kill()
    until(lambda: of(mounted).down is not None, lambda: "nobody has noticed")
    replication.start()
    missed = jobs.missed()
    wait_until_it_follows(mounted)
    assert 0 < of(mounted).passed >= missed
    (mounted.mountpoint / "last").write_text("x")
    assert (there / "last").read_text() == "x" or of(mounted).down is not None
    replication.settle()
    assert differences(snapshot(mounted.source), snapshot(there)) == []


def test_all_kinds_of_changes(mounting: Mounting, replicating: Replicating) -> None:
    mounted, _, there = followed(mounting, replicating, PATIENT, "write-through-fsync=on")
    top = mounted.mountpoint
    (top / "d").mkdir()
    assert (there / "d").is_dir()
    os.symlink("target", top / "s")
    assert os.readlink(there / "s") == "target"
    os.mkfifo(top / "p")
    assert (there / "p").is_fifo()
    with socket.socket(socket.AF_UNIX) as listener:  # has no copy: nobody waits for one
        listener.bind(str(top / "u"))
    (top / "u").rename(top / "v")
    os.unlink(top / "v")
    (top / "f").write_text("content")
    os.link(top / "f", top / "d/l")
    assert os.path.samefile(there / "f", there / "d/l")
    os.truncate(top / "f", 3)
    assert (there / "d/l").read_text() == "con"
    os.setxattr(top / "f", "user.a", b"1")
    assert os.getxattr(there / "f", "user.a") == b"1"
    os.utime(top / "d", ns=(10**18, 10**18))
    assert (there / "d").stat().st_mtime_ns == 10**18
    (top / "d").rename(top / "e")
    assert (there / "e/l").read_text() == "con"
    with (top / "open").open("w") as file:
        file.write("x")
        file.flush()
        os.fchmod(file.fileno(), 0o600)  # not waited for: it is being written
        os.fsync(file.fileno())
        assert (there / "open").read_text() == "x"
    os.unlink(top / "e/l")
    os.rmdir(top / "e")
    assert not (there / "e").exists()
    assert (of(mounted).passed, of(mounted).undone) == (0, 0)


def test_what_jobs_wait_for_passes_what_waits(mounting: Mounting, replicating: Replicating) -> None:
    """A backlog is not waited for; but what is in the same directory is."""
    mounted = mounting(PATIENT, "write-through=site")
    os.mkdir(mounted.source / "other")  # behind the mount: nobody waits
    replication = replicating(mounted.journal, "site")
    replication.settle()
    for name in ("backlog", "here"):
        (mounted.mountpoint / name).mkdir()
    os.setxattr(mounted.mountpoint / "backlog", XATTR, b"off")
    replication.signal(signal.SIGSTOP)
    for number in range(3000):
        (mounted.mountpoint / f"backlog/{number}").touch()
    with closing(mounted.mountpoint / "here/f") as job:
        replication.signal(signal.SIGCONT)
        assert job.wait() == 0
        assert (replication.sites["site"] / "here/f").read_text() == "x"
    replication.settle()
    assert len(os.listdir(replication.sites["site"] / "backlog")) == 3000


def test_a_site_that_has_a_part_has_that(
    mounting: Mounting, replicating: Replicating, tmp_path: Path
) -> None:
    mounted = mounting("write-through=site", PATIENT)
    replication = replicating(mounted.journal, "site", start=False)
    replication.volume = tmp_path / "v.toml"
    there, top = replication.sites["site"], mounted.mountpoint
    replication.volume.write_text(
        f'[volume]\njournal = "{mounted.journal}"\n[[site]]\nname = "site"\n'
        f'url = "file://{there}"\nexclude = ["/raw/", "*.tmp"]\n'
    )
    replication.start()
    replication.settle()
    wait_until_it_follows(mounted)
    for number in range(CLOSES // 15):
        (top / f"raw/{number}/sub").mkdir(parents=True)
        for name in ("a", "b.tmp", "sub/c"):
            (top / f"raw/{number}/{name}").write_text(name)
        (top / f"raw/{number}").rename(top / f"{number}")  # comes with all that is in it
        assert (there / f"{number}/a").read_text() == "a"
        assert (there / f"{number}/sub/c").read_text() == "sub/c"
        assert not (there / f"{number}/b.tmp").exists()
        (top / f"{number}/b.tmp").rename(top / f"{number}/b")
        assert (there / f"{number}/b").read_text() == "b.tmp"
        (top / f"{number}/b").rename(top / f"raw/b{number}")
        assert not (there / f"{number}/b").exists()
        (top / f"{number}").rename(top / f"raw/{number}")
        assert not (there / f"{number}").exists()
    assert (of(mounted).passed, of(mounted).undone) == (0, 0)
    replication.settle()


# which directories -----------------------------------------------------------------------------


def test_a_directory_names_its_sites(mounting: Mounting, replicating: Replicating) -> None:
    mounted = mounting(HASTY)
    replication = replicating(mounted.journal, "site")
    top, there = mounted.mountpoint, replication.sites["site"]
    (top / "d/e/f").mkdir(parents=True)
    os.setxattr(top / "d", XATTR, b"nowhere")
    os.setxattr(top / "d/e/f", XATTR, b"off")
    assert os.getxattr(top / "d", XATTR) == b"nowhere"
    assert os.getxattr(top / "d/e", "user.mirrorfs.write-through") == b"nowhere"
    assert os.getxattr(top / "d/e/f", "user.mirrorfs.write-through") == b"off"
    assert XATTR not in os.listxattr(top / "d")
    (top / "d/e/f/x").write_text("x")
    assert of(mounted).passed == 0
    (top / "d/e/x").write_text("x")
    assert of(mounted).passed == 1
    assert "NOT KNOWN" not in run("status", top).stdout
    assert "site nowhere: record" in run("status", top).stdout
    replication.settle()
    assert XATTR not in os.listxattr(there / "d")
    mounted.umount()
    mounted.mount()
    assert os.getxattr(top / "d/e", "user.mirrorfs.write-through") == b"nowhere"
    assert "NOT KNOWN   site nowhere" in run("status", top).stdout
    os.setxattr(top / "d", XATTR, b"site")
    os.removexattr(top / "d/e/f", XATTR)
    with pytest.raises(OSError, match="No data"):
        os.getxattr(top / "d/e/f", XATTR)
    assert os.getxattr(top / "d/e/f", "user.mirrorfs.write-through") == b"site"


def test_what_a_directory_may_not_say(mounting: Mounting) -> None:
    mounted = mounting()
    (mounted.mountpoint / "f").touch()
    for value in (b"", b"a,,b", b"a,off", b"a b", b"\xff"):
        with pytest.raises(OSError, match="Invalid argument"):
            os.setxattr(mounted.mountpoint, XATTR, value)
    with pytest.raises(NotADirectoryError):
        os.setxattr(mounted.mountpoint / "f", XATTR, b"a")
    script = f"import os, sys; os.setuid(1); os.setxattr(sys.argv[1], {XATTR!r}, b'a')"
    done = subprocess.run(
        [sys.executable, "-c", script, mounted.mountpoint], capture_output=True, check=False
    )
    assert b"PermissionError" in done.stderr


def test_several_writers_refuse(mounting: Mounting) -> None:
    made = mounting.prepare("writers=many", "locks=local", "write-through=site")
    with pytest.raises(AssertionError, match=r"64: .*'write-through': with writers=many none"):
        made.mount()
    made = mounting.prepare("writers=many", "locks=local", name="other")
    made.journal_option = made.journal
    made.journal = made.journal / os.uname().nodename
    made.mount()
    with pytest.raises(OSError, match="not supported"):
        os.setxattr(made.mountpoint, XATTR, b"site")


# without the site ------------------------------------------------------------------------------


def test_without_a_replicator_the_first_one_waits_and_it_is_told_once(
    mounting: Mounting, replicating: Replicating
) -> None:
    mounted = mounting("write-through=site", HASTY)
    assert run("status", mounted.mountpoint).returncode == 1  # no such site is known
    for number in range(5):
        with closing(mounted.mountpoint / f"f{number}") as job:
            assert job.wait(60) == 0
    found = of(mounted)
    assert (found.passed, found.known, found.followed) == (5, False, False)
    assert found.down == "record 3 was not there in 0.2 s, and no replicator of it is there"
    done = run("status", mounted.mountpoint)
    assert done.returncode == 1
    assert "NOT THROUGH site site: record 3" in done.stdout
    replication = replicating(mounted.journal, "site")
    replication.settle()
    wait_until_it_follows(mounted)
    (mounted.mountpoint / "g").write_text("x")
    assert (replication.sites["site"] / "g").exists() or of(mounted).down
    assert "site site" in replicator("status", "--journal", mounted.journal).stdout


def test_error_is_answered_where_it_can_be(mounting: Mounting, replicating: Replicating) -> None:
    options = ("fallback=error", HASTY, "write-through-fsync=on")
    mounted = mounting("write-through=site", *options)
    top = mounted.mountpoint
    (top / "made").mkdir()  # it waited, and was made
    assert of(mounted).down is not None
    for change in (
        lambda: (top / "d").mkdir(),
        lambda: (top / "made").rename(top / "other"),
        lambda: (top / "made").rmdir(),
        lambda: os.symlink("x", top / "s"),
        lambda: (top / "f").touch(),
        lambda: os.chmod(top / "made", 0o700),
    ):
        with refused():
            change()
    assert sorted(os.listdir(mounted.source)) == [".mirrorfs", "made"]
    replication = replicating(mounted.journal, "site")
    wait_until_it_follows(mounted)
    descriptor = os.open(top / "made/f", os.O_CREAT | os.O_WRONLY)
    os.write(descriptor, b"x")
    replication.kill()
    with refused():
        os.fsync(descriptor)
    os.write(descriptor, b"y")
    with refused():
        os.close(descriptor)
    assert (mounted.source / "made/f").read_text() == "xy"
    replication.start()
    wait_until_it_follows(mounted)
    replication.settle()
    (top / "made/f").unlink()
    assert not (replication.sites["site"] / "made/f").exists() or of(mounted).down


def test_a_site_that_is_paused_is_not_waited_for(
    mounting: Mounting, replicating: Replicating
) -> None:
    mounted, replication, there = followed(mounting, replicating, PATIENT)
    replicator("pause", "--journal", mounted.journal, "site", "--reason", "work", check=True)
    until(lambda: of(mounted).down is not None, lambda: "it is not told")
    (mounted.mountpoint / "f").write_text("x")
    assert "paused" in (of(mounted).down or "")
    replicator("resume", "--journal", mounted.journal, "site", check=True)
    wait_until_it_follows(mounted)
    (mounted.mountpoint / "g").write_text("x")
    assert (there / "g").exists()
    replication.settle()


def test_what_fails_at_the_site_is_not_waited_for(
    mounting: Mounting, replicating: Replicating
) -> None:
    mounted, _, there = followed(mounting, replicating, PATIENT)
    (mounted.mountpoint / "d").mkdir()
    with immutable(there / "d"):
        (mounted.mountpoint / "d/f").write_text("x")
        found = of(mounted)
        assert (found.undone, found.passed, found.down) == (1, 1, None)
        assert "NOT THROUGH site site: 1 objects" in run("status", mounted.mountpoint).stdout
        (mounted.mountpoint / "g").write_text("x")  # others are
        assert (there / "g").exists()
    replicator("retry", "--journal", mounted.journal, "--site", "site", "--all", check=False)
    until(lambda: of(mounted).undone == 0, lambda: f"it stays: {of(mounted)}")
    assert (there / "d/f").read_text() == "x"
    (mounted.mountpoint / "d/f").write_text("y")
    assert (there / "d/f").read_text() == "y"
    assert run("status", mounted.mountpoint).returncode == 0


def test_an_error_is_told_to_all_who_wrote(mounting: Mounting) -> None:
    """The first close records what both have written."""
    mounted = mounting("write-through=site", "fallback=error", HASTY)
    path = mounted.source / "f"
    path.touch()
    one, other = (os.open(mounted.mountpoint / "f", os.O_WRONLY) for _ in range(2))
    os.pwrite(one, b"1", 0)
    os.pwrite(other, b"2", 1)
    for descriptor in (one, other):
        with refused():
            os.close(descriptor)
    assert path.read_text() == "12"
