"""Power cuts: file systems in files that lose what was not synced, and what lives on them.

FS_IOC_SHUTDOWN stops a mounted file system dead: what was made durable stays, all the rest is gone
after the next mount. Everything that lives there is stopped before, so that nothing learns of it,
and killed afterwards.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final

from mirrorfs import mountinfo
from tests.support.load import Load
from tests.support.mounts import Mounted
from tests.support.replicating import Replicating, Replication

FLUSH_LOG: Final = 1
NO_FLUSH: Final = 2
_SHUTDOWN: Final = 0x8004587D
_PATIENCE_SECONDS: Final = 60.0
_LOOK_SECONDS: Final = 0.01
_MAKE: Final = {
    "ext4": (256 << 20, ("mkfs.ext4", "-q", "-b", "4096", "-N", "32768")),
    "xfs": (320 << 20, ("mkfs.xfs", "-q")),
}


@dataclass
class Disk:
    """A file system in a sparse file, mounted or not at the moment."""

    kind: str
    image: Path
    where: Path
    _device: str = ""

    def make(self) -> None:
        """Make it, and mount it."""
        size_bytes, command = _MAKE[self.kind]
        with self.image.open("wb") as file:
            file.truncate(size_bytes)
        subprocess.run([*command, self.image], check=True)
        self.where.mkdir()
        self.mount()

    def mount(self) -> None:
        """After a cut its own journal is replayed."""
        command: list[str | Path] = ["losetup", "--find", "--show", self.image]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        self._device = done.stdout.strip()
        try:
            subprocess.run(["mount", "-t", self.kind, self._device, self.where], check=True)
        finally:  # it goes with the last who uses it
            subprocess.run(["losetup", "-d", self._device], check=True)

    def sync(self) -> None:
        """All of it is durable."""
        subprocess.run(["sync", "--file-system", self.where], check=True)

    def cut(self, how: int = NO_FLUSH) -> None:
        """From here on nothing reaches the disk, and whoever needs it gets EIO.

        With FLUSH_LOG what was done to names and inodes is durable; the content of files is not.
        """
        descriptor = os.open(self.where, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(descriptor, _SHUTDOWN, struct.pack("I", how))
        finally:
            os.close(descriptor)

    def unmount(self) -> None:
        """Take it away; waits until nobody holds it any more."""
        if any(entry.path == str(self.where) for entry in mountinfo.mounts()):
            subprocess.run(["umount", "-l", self.where], check=True)
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while self._device and self._attached():
            assert time.monotonic() < deadline, f"{self.where}: somebody still holds it"
            select.select([], [], [], _LOOK_SECONDS)
        self._device = ""

    def _attached(self) -> bool:
        name = os.path.basename(self._device)
        try:
            text = Path(f"/sys/block/{name}/loop/backing_file").read_text()
        except OSError:  # not there, or no more
            return False
        return text.strip() == str(self.image)

    def remove(self) -> None:
        """Leave nothing."""
        self.unmount()
        self.image.unlink(missing_ok=True)


OATHS: Final = """
import os, sys
top = sys.argv[1]
directory = os.open(top, os.O_RDONLY)
number = int(sys.argv[2])
while True:
    name = b"sworn-%d" % number
    file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=directory)
    os.write(file, b"%d\\n" % number * (1 + number % 700))
    os.fsync(file)
    os.close(file)
    os.fsync(directory)
    os.write(1, b"%d\\n" % number)
    number += 1
"""
"""Makes files, durably, and tells of each when it was."""


@dataclass
class Oaths:
    """A job that says which files are durable by its own doing."""

    directory: Path
    sworn: list[int] = field(default_factory=list)
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Go on with the next file."""
        first = self.sworn[-1] + 2 if self.sworn else 1  # one may have been made untold
        self._process = subprocess.Popen(
            [sys.executable, "-c", OATHS, self.directory, str(first)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._process.stdout is not None
        self.sworn.append(int(self._process.stdout.readline()))

    @property
    def pids(self) -> list[int]:
        """Of the process."""
        return [self._process.pid] if self._process is not None else []

    def wait(self, more: int) -> None:
        """Until so many more are made."""
        assert self._process is not None
        assert self._process.stdout is not None
        for _ in range(more):
            self.sworn.append(int(self._process.stdout.readline()))

    def end(self) -> None:
        """Kill it, and take its word."""
        if self._process is None:
            return
        self._process.kill()
        assert self._process.stdout is not None
        with self._process.stdout as told:
            self.sworn += [int(line) for line in told if line.endswith(b"\n")]
        self._process.wait()
        self._process = None

    def broken(self, tree: Path) -> list[str]:
        """Which of them a tree does not have, whole."""
        found = []
        for number in self.sworn:
            path = tree / f"sworn-{number}"
            wanted = b"%d\n" % number * (1 + number % 700)
            if not path.exists() or path.read_bytes() != wanted:
                found.append(path.name)
        return found


@dataclass
class Plant:
    """A source, its mount, its journal, a site and their disks; a load on all of it.

    Attributes:
        disks: by what is on them: "source", "journal", "site"; one may be there several times.
    """

    disks: dict[str, Disk]
    mounted: Mounted
    replication: Replication
    load: Load
    oaths: Oaths
    random: Random

    @property
    def site(self) -> Path:
        """The site's directory."""
        return self.replication.sites["site"]

    def stop(self, pids: Iterable[int]) -> None:
        """They do nothing more, wherever they are."""
        waiting = list(pids)
        for pid in waiting:
            os.kill(pid, signal.SIGSTOP)
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while waiting and time.monotonic() < deadline:
            waiting = [pid for pid in waiting if _state(pid) not in "TtZSD"]

    def go_on(self) -> None:
        """Who was stopped sees what has become of the disks."""
        os.kill(self.replication.pid, signal.SIGCONT)
        self.go_on_with_jobs()

    def go_on_with_jobs(self) -> None:
        """All but the replicator."""
        for pid in [self.mounted.pid, *self.load.pids, *self.oaths.pids]:
            os.kill(pid, signal.SIGCONT)

    def cut(self, *parts: str, how: int = NO_FLUSH) -> None:
        """Cut these disks, with everything stopped; what is to be killed is the caller's."""
        disks = {id(self.disks[part]): self.disks[part] for part in parts}.values()
        for disk in disks:
            disk.cut(how)

    def repair(self, *parts: str) -> None:
        """These disks are there again, with what they have."""
        disks = {id(self.disks[part]): self.disks[part] for part in parts}.values()
        for disk in disks:
            disk.unmount()
        for disk in disks:
            disk.mount()


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@contextlib.contextmanager
def plant(
    directory: Path, kind: str, seed: int, *, apart: bool, options: tuple[str, ...] = ()
) -> Iterator[Plant]:
    """One that is made, not mounted yet, without any process."""
    names = ("source", "journal", "site")
    images = {name: name if apart else "all" for name in names}
    disks: dict[str, Disk] = {}
    with contextlib.ExitStack() as stack:
        for image in dict.fromkeys(images.values()):
            disks[image] = disk = Disk(kind, directory / f"{image}.image", directory / image)
            stack.callback(disk.remove)
            disk.make()
        places = {name: disks[images[name]].where / f"the-{name}" for name in names}
        for name in ("source", "site"):
            places[name].mkdir()
        mountpoint = directory / "mount"
        mountpoint.mkdir()
        mounted = Mounted(places["source"], mountpoint, places["journal"], options)
        replicating = Replicating(directory)
        stack.callback(replicating.clean_up)
        replication = replicating.to(places["journal"], {"site": places["site"]}, start=False)
        load = Load(mountpoint / "work", seed * 1000)
        stack.callback(load.clean_up)
        oaths = Oaths(mountpoint / "sworn")
        stack.callback(oaths.end)
        stack.callback(mounted.clean_up)  # first of all: who is in a request of it cannot be ended
        by_name = {name: disks[images[name]] for name in names}
        yield Plant(by_name, mounted, replication, load, oaths, Random(seed))
