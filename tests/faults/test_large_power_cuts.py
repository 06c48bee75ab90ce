"""The power of a site is cut while large files are copied, go on where they ended, or grow.

With names and inodes durable and content not (FLUSH_LOG), or neither. What then stands there is
looked at before anything mends it: large files are whole, a log is the beginning of what it is at
the source, and what an unfinished copy says of itself is so. Afterwards the site comes to be equal.
"""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path
from random import Random

import pytest

from replicator.stores.unfinished import EXTENTS
from tests.support import campaign
from tests.support.mounts import Mounted, Mounting, mounting
from tests.support.power import FLUSH_LOG, NO_FLUSH, Disk
from tests.support.replicating import PATIENCE_SECONDS, Replicating, Replication, head, replicating
from tests.support.small_extents import EXTENT_BYTES, LARGE_BYTES, SMALL_EXTENTS
from tests.support.trees import differences, snapshot

pytestmark = [pytest.mark.fuse, pytest.mark.slow]

__all__ = ["mounting", "replicating"]

CUTS = campaign.pick(6, 60)
FILES = 3
SITE = '[volume]\nname = "v"\nsource = "{}"\njournal = "{}"\n[[site]]\nname = "site"\nurl = "file://{}"\n'


class Plant:
    """A tree with some large files and a log, and a site of it on a disk of its own."""

    def __init__(self, mounted: Mounted, replication: Replication, disk: Disk, seed: int) -> None:
        self.top, self.source = mounted.mountpoint, mounted.source
        self.replication = replication
        self.disk = disk
        self.random = Random(seed)
        self.site = disk.where / "site"
        self.had: dict[str, set[bytes]] = {}
        self.going_on = 0

    def write(self) -> None:
        """A large file anew, and more of the log."""
        name = f"large-{self.random.randrange(FILES)}"
        data = self.random.randbytes(self.random.choice((2, 3, 5)) * LARGE_BYTES + 77)
        self.had.setdefault(name, set()).add(data)
        beside = self.top / f"{name}.new"
        beside.write_bytes(data)
        beside.replace(self.top / name)
        with (self.top / "log").open("ab") as log:
            log.write(self.random.randbytes(self.random.choice((1, 3)) * LARGE_BYTES // 4))
            if self.random.random() < 0.5:
                log.truncate(log.tell() + LARGE_BYTES // 4)

    def await_moment(self, before: list[tuple[str, int, int]], *, placed: bool) -> None:
        """Until bytes of a copy are written down (unless `placed`), or a copy has its place, or all
        is done."""
        stage, head_now = self.site / ".mirrorfs" / "stage", head(self.replication.journal)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.inodes() == before:
            assert time.monotonic() < deadline, self.replication.said()
            if not placed and any(EXTENTS in _xattrs(each) for each in stage.glob("P*")):
                return
            if self.replication.clean("site") >= head_now:
                return

    def inodes(self) -> list[tuple[str, int, int]]:
        found = [(path, path.stat()) for path in self.site.iterdir()]
        return sorted((p.name, s.st_ino, s.st_size) for p, s in found if stat.S_ISREG(s.st_mode))

    def cut(self, how: int) -> None:
        with self.replication.standing_still():
            self.disk.cut(how)
        self.replication.kill()
        self.disk.unmount()
        self.disk.mount()

    def look(self) -> None:
        """Nothing has mended it yet."""
        for path in self.site.glob("large-*"):
            name = path.name.removesuffix(".new")
            assert path.read_bytes() in self.had[name], f"{path.name} is torn"
        log = self.site / "log"
        if log.exists():
            assert (self.source / "log").read_bytes().startswith(log.read_bytes()), "log is torn"
        contents = [data for each in self.had.values() for data in each]
        contents.append((self.source / "log").read_bytes())
        for path in (self.site / ".mirrorfs" / "stage").glob("P*"):
            data = path.read_bytes()
            done = _done(_xattrs(path).get(EXTENTS, b""), len(data))
            self.going_on += bool(done)
            has = {at: data[at : at + EXTENT_BYTES] for at in done}
            assert any(
                all(each[at:].startswith(part) for at, part in has.items()) for each in contents
            ), "what was never synced is said to be there"


def _xattrs(path: Path) -> dict[str, bytes]:
    try:
        return {name: os.getxattr(path, name) for name in os.listxattr(path)}
    except OSError:  # it has gone, or it has
        return {}


def _done(told: bytes, size: int) -> list[int]:
    """Where the extents begin that are said to be there: their bits come last."""
    count = -(-size // EXTENT_BYTES)
    bits = int.from_bytes(told[len(told) - (count + 7) // 8 :], "little") if told else 0
    return [number * EXTENT_BYTES for number in range(count) if bits >> number & 1]


@pytest.mark.parametrize("seed", campaign.seeds(1, 2))
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_large_files_through_power_cuts(
    kind: str, seed: int, mounting: Mounting, replicating: Replicating, tmp_path: Path
) -> None:
    mounted = mounting()
    disk = Disk(kind, tmp_path / "image", tmp_path / "disk")
    try:
        disk.make()
        site = disk.where / "site"
        site.mkdir()
        disk.sync()
        replication = replicating.to(mounted.journal, {"site": site}, start=False)
        replication.command = SMALL_EXTENTS
        replication.volume = tmp_path / "volume.toml"
        text = SITE.format(mounted.source, mounted.journal, site) + 'bandwidth = "15MB/s"\n'
        replication.volume.write_text(text)
        at = Plant(mounted, replication, disk, seed)
        (mounted.mountpoint / "log").write_bytes(at.random.randbytes(2 * LARGE_BYTES))
        replication.start()
        replication.settle()
        for number in range(CUTS):
            before = at.inodes()
            at.write()
            placed = number % 2 == 0
            at.await_moment(before, placed=placed)
            at.cut(at.random.choice((FLUSH_LOG, NO_FLUSH)) if placed else FLUSH_LOG)
            at.look()
            replication.start()
            if at.random.random() < 0.4:
                replication.settle()
                assert differences(snapshot(mounted.source), snapshot(site)) == []
        replication.settle()
        assert differences(snapshot(mounted.source), snapshot(site)) == []
        replication.stop()
        assert at.going_on
        assert replication.left_over("site") == []
        campaign.tally(power_cuts=CUTS)
    finally:
        replicating.clean_up()
        disk.remove()
