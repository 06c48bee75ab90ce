"""Many open files, many names, many objects: jobs see no limit of the daemon's."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mirrorfs.journal.control_client import ControlClient
from tests.support.campaign import pick
from tests.support.mounts import Mounted
from tests.support.overlay import fails, limited, overlaid

pytestmark = pytest.mark.fuse

_OPEN_MANY = """
import os, resource, sys
directory, who, many = sys.argv[1], sys.argv[2], int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
os.chdir(directory)
files = []
for number in range(many):
    name = f"{who}-{number}"
    files.append(os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    os.write(files[-1], b"%d" % number)
print("open", flush=True)
sys.stdin.readline()
for number, file in enumerate(files):
    if number % 100 == 0:
        os.rename(f"{who}-{number}", f"{who}-moved-{number}")
    if number % 250 == 1:
        os.unlink(f"{who}-{number}")
for number, file in enumerate(files):
    assert os.pread(file, 20, 0) == b"%d" % number, number
    os.pwrite(file, b"!", 20)
    if number % 50 == 0:
        os.fsync(file)
print("used", flush=True)
sys.stdin.readline()
"""


def _held(overlay: Mounted) -> int:
    """How many descriptors the daemon has."""
    with ControlClient(str(overlay.journal)) as client:
        return len(os.listdir(f"/proc/{client.status().pid}/fd"))


def test_more_files_open_than_the_daemon_may_open(tmp_path: Path) -> None:
    many, descriptors = pick((700, 500), (15_000, 20_000))
    with limited(tmp_path, descriptors) as overlay:
        command = [sys.executable, "-c", _OPEN_MANY, str(overlay.mountpoint)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        jobs = [
            subprocess.Popen([*command, who, str(many)], **pipes)  # type: ignore[call-overload]
            for who in "ab"
        ]
        for word in (b"open\n", b"used\n"):
            assert [job.stdout.readline() for job in jobs] == [word] * 2
            with ControlClient(str(overlay.journal)) as client:
                assert client.status().open_files == 2 * many
            assert _held(overlay) <= descriptors * 9 // 10
            for job in jobs:
                job.stdin.write(b"\n")
                job.stdin.flush()
        for job in jobs:
            job.communicate()
        assert [job.returncode for job in jobs] == [0, 0]
        for number in range(2, many, 100):
            content = (overlay.source / f"a-{number}").read_bytes()
            assert content == b"%d" % number + bytes(20 - len(str(number))) + b"!"


def test_only_removed_files_that_are_open_use_up_descriptors(tmp_path: Path) -> None:
    with limited(tmp_path, 300) as overlay:
        held: list[int] = []
        refused = 0
        while not refused:
            path = overlay.mountpoint / "f"
            try:
                held.append(os.open(path, os.O_RDWR | os.O_CREAT))
                os.write(held[-1], b"%d" % len(held))
                path.unlink()
            except OSError as error:
                refused = error.errno or 0
        assert refused == errno.ENFILE
        assert 200 < len(held) < 300
        (overlay.mountpoint / "d").mkdir()  # what needs no descriptor for long is served
        (overlay.mountpoint / "d").rmdir()
        for number, descriptor in enumerate(held[:-1], 1):
            assert os.pread(descriptor, 9, 0) == b"%d" % number
        for descriptor in held:
            os.close(descriptor)
        while fails(errno.ENFILE, lambda: path.write_text("there is room again")):
            pass  # the kernel releases them in its own time
        assert path.read_text() == "there is room again"


def test_many_objects(tmp_path: Path) -> None:
    """The kernel knows them all, or as many as it may; few of them are open."""
    directories, names = pick((20, 500), (1000, 1050))
    descriptors, cache = pick((300, 5000), (20_000, 1_000_000))
    base = tmp_path / "memory"
    base.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nr_inodes=3m", "tmpfs", base], check=True)
    try:
        with limited(base, descriptors, f"inode-cache={cache}") as overlay:
            for number in range(directories):
                directory = overlay.source / f"d{number}"
                directory.mkdir()
                for name in range(names):
                    os.mknod(directory / str(name))
            seen = 0
            for directory in overlay.mountpoint.iterdir():
                for entry in os.scandir(directory):
                    seen += entry.stat().st_nlink
            assert seen == directories * names
            with ControlClient(str(overlay.journal)) as client:
                while client.status().nodes > cache * 5 // 4:  # the kernel forgets in its own time
                    os.stat(overlay.mountpoint)
                assert client.status().nodes > cache // 2
            for number in range(pick(1500, 20_000)):
                path = overlay.mountpoint / f"d{number % directories}" / str(number % names)
                path.chmod(0o600)
                path.write_text("x")
            assert _held(overlay) <= descriptors * 9 // 10
    finally:
        subprocess.run(["umount", base], check=True)


def test_many_names_in_a_directory(tmp_path: Path) -> None:
    many = pick(10_000, 100_000)
    with overlaid(tmp_path) as overlay:
        for number in range(many):
            os.mknod(overlay.mountpoint / f"{number:06}")
        assert len(os.listdir(overlay.mountpoint)) == many
        done = subprocess.run(["ls", "-f"], cwd=overlay.mountpoint, check=True, capture_output=True)
        assert len(done.stdout.splitlines()) == many + 2
        subprocess.run(["find", ".", "-type", "f", "-delete"], cwd=overlay.mountpoint, check=True)
        assert os.listdir(overlay.source) == [".mirrorfs"]
