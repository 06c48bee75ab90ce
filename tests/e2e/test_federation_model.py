"""Random operations on a mounted federation, by several jobs at once, held against a model."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.federation import Federation
from tests.support.federation import federation as federation
from tests.support.federation_mounts import FederationMount
from tests.support.federation_mounts import federation_mount as federation_mount

pytestmark = [pytest.mark.xrootd, pytest.mark.fuse]

_JOBS = 4
_STEPS = 400
_NAMES = 30
_SIZES = (0, 10, 5000, 200_000, 1_500_000)


class Job:
    """One job: a directory of its own, what should be in it, and names that all jobs use."""

    def __init__(self, top: Path, number: int) -> None:
        self.number = number
        self.directory = top / f"job{number}"
        self.shared = top / "shared"
        self.content: dict[str, bytes] = {}
        self.chance = random.Random(number)
        self.directory.mkdir()

    def run(self) -> None:
        """All steps; the first difference ends it."""
        steps: list[Callable[[str], None]] = [
            *(self._write, self._write, self._overwrite, self._truncate),
            *(self._read, self._read, self._stat, self._list),
            *(self._rename, self._remove, self._rename_directory, self._share),
        ]
        for _ in range(_STEPS):
            self.chance.choice(steps)(f"f{self.chance.randrange(_NAMES)}")
        self._list("")
        for name in self.content:
            self._read(name)

    def _write(self, name: str) -> None:
        self.content[name] = self.chance.randbytes(self.chance.choice(_SIZES))
        (self.directory / name).write_bytes(self.content[name])

    def _overwrite(self, name: str) -> None:
        if name in self.content:
            content, data = bytearray(self.content[name]), self.chance.randbytes(1000)
            offset = self.chance.randrange(len(content) + 1)
            with open(self.directory / name, "r+b") as file:
                file.seek(offset)
                file.write(data)
            content[offset : offset + len(data)] = data
            self.content[name] = bytes(content)

    def _truncate(self, name: str) -> None:
        if name in self.content:
            content = self.content[name]
            size = self.chance.randrange(len(content) + 100)
            os.truncate(self.directory / name, size)
            self.content[name] = content[:size] + bytes(max(size - len(content), 0))

    def _read(self, name: str) -> None:
        if name in self.content:
            assert (self.directory / name).read_bytes() == self.content[name], name
        else:
            assert not (self.directory / name).exists(), name

    def _stat(self, name: str) -> None:
        if name in self.content:
            assert (self.directory / name).stat().st_size == len(self.content[name]), name

    def _list(self, _name: str) -> None:
        assert set(os.listdir(self.directory)) == set(self.content)

    def _rename(self, name: str) -> None:
        if name in self.content:
            other = f"f{self.chance.randrange(_NAMES)}"
            (self.directory / name).replace(self.directory / other)
            self.content[other] = self.content.pop(name)

    def _remove(self, name: str) -> None:
        if self.content.pop(name, None) is not None:
            (self.directory / name).unlink()

    def _rename_directory(self, _name: str) -> None:
        other = self.directory.with_name(f"{self.directory.name}.renamed")
        self.directory.rename(other)
        other.rename(self.directory)

    def _share(self, name: str) -> None:
        """Whatever the others do to it: a whole file of somebody, or none."""
        path = self.shared / name
        try:
            match self.chance.randrange(3):
                case 0:
                    path.write_bytes(b"%d" % self.number * 1000)
                case 1:
                    path.unlink()
                case 2:
                    assert len(path.read_bytes()) in (0, 1000)
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno != errno.ESTALE:  # it went while it was opened
                raise


def test_jobs_at_work(federation: Federation, federation_mount: FederationMount) -> None:
    top = federation_mount.mountpoint
    (top / "shared").mkdir()
    jobs = [Job(top, number) for number in range(_JOBS)]
    with ThreadPoolExecutor(_JOBS) as pool:
        for running in [pool.submit(job.run) for job in jobs]:
            running.result()
    before = {job.number: job.content for job in jobs}
    federation_mount.umount()
    for job in jobs:
        for name, content in before[job.number].items():
            (holder,) = federation.holders(f"/{job.directory.name}/{name}")
            stored = holder.data_dir / job.directory.name / name
            assert stored.read_bytes() == content
    federation_mount.mount()
