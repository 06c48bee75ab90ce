"""Large, growing and odd files, over quotas and through kills, copied by a real replicator."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from replicator.stores.unfinished import EXTENTS, SYNC_BYTES
from tests.support.mounting import btrfs_with_quota, ext4, limit_quota
from tests.support.mounts import Mounted, Mounting, mounting
from tests.support.replicating import Replicating, Replication, replicating, run
from tests.support.trees import differences, snapshot

pytestmark = pytest.mark.fuse

__all__ = ["mounting", "replicating"]

MIB = 1 << 20


def same(mounted: Mounted, replication: Replication) -> None:
    replication.settle()
    expected = snapshot(mounted.source, sockets=False)
    for name, site in replication.sites.items():
        assert differences(expected, snapshot(site)) == [], name


def configured(
    mounted: Mounted, replication: Replication, keys: str, file: Path, *, start: bool = True
) -> None:
    """Run with these keys for the site."""
    ((name, site),) = replication.sites.items()
    file.write_text(
        f'[volume]\nname = "v"\nsource = "{mounted.source}"\njournal = "{mounted.journal}"\n'
        f'[[site]]\nname = "{name}"\nurl = "file://{site}"\n{keys}\n'
    )
    replication.options = lambda sites=(): [str(file)]  # type: ignore[method-assign]
    if start:
        replication.start()


def test_a_site_over_its_quota_waits_and_deletes_go_on(
    mounting: Mounting, replicating: Replicating, tmp_path: Path
) -> None:
    mounted = mounting()
    tree = mounted.mountpoint
    with btrfs_with_quota(tmp_path / "btrfs", 12 * MIB) as site:
        replication = replicating.to(mounted.journal, {"site": site})
        (tree / "old").write_bytes(os.urandom(5 * MIB))
        (tree / "log").write_bytes(os.urandom(3 * MIB))
        same(mounted, replication)
        (tree / "new").write_bytes(os.urandom(10 * MIB))
        replication.expect(
            lambda: replication.report("site").reason.startswith("waiting for space"),
            "the full site does not say so",
        )
        assert not (site / "new").exists()
        assert (site / "old").exists()
        (tree / "log").unlink()
        replication.expect(lambda: not (site / "log").exists(), "deletes wait, too")
        assert not (site / "new").exists()
        limit_quota(site, 64 * MIB)
        same(mounted, replication)
        replication.stop()


@pytest.mark.slow
def test_a_large_copy_goes_on_after_a_kill(
    mounting: Mounting, replicating: Replicating, tmp_path: Path
) -> None:
    mounted = mounting()
    file = mounted.mountpoint / "large"
    size = SYNC_BYTES + 256 * MIB
    with ext4(tmp_path / "disk", 4 << 30) as disk:  # another one than the source's: no reflinks
        replication = replicating.to(mounted.journal, {"site": disk / "site"}, start=False)
        (disk / "site").mkdir()
        configured(mounted, replication, 'bandwidth = "40MB/s"', tmp_path / "volume.toml")
        replication.settle()
        with file.open("wb") as stream:
            for number in range(size // MIB):
                stream.write(b"%d\n" % number + os.urandom(4096) * 256)
        stage = disk / "site" / ".mirrorfs" / "stage"

        def written_down() -> bool:
            return any(
                EXTENTS in os.listxattr(each) for each in stage.iterdir() if each.name[0] == "P"
            )

        replication.expect(written_down, "nothing is written down")
        replication.kill()
        assert not (disk / "site" / "large").exists()
        configured(mounted, replication, "workers = 4", tmp_path / "volume.toml")
        same(mounted, replication)
        replication.stop()
        written = replication.report("site").counters["bytes_written"]
        assert written <= file.stat().st_size - SYNC_BYTES
        assert list(stage.iterdir()) == []


def test_a_log_that_grows_is_appended_to_and_never_torn(
    mounting: Mounting, replicating: Replicating, tmp_path: Path
) -> None:
    mounted = mounting()
    file = mounted.mountpoint / "log"
    line = b"%07d\n"
    with ext4(tmp_path / "disk", 256 << 20) as disk:
        (disk / "site").mkdir()
        replication = replicating.to(mounted.journal, {"site": disk / "site"})
        there = disk / "site" / "log"
        file.write_bytes(b"".join(line % number for number in range(3 * MIB // 8)))
        same(mounted, replication)
        inode = there.stat().st_ino
        ended, torn = threading.Event(), list[bytes]()
        whole = b"".join(line % number for number in range(6 * MIB // 8))

        def watch() -> None:
            while not ended.is_set():
                data = there.read_bytes()
                if not whole.startswith(data):
                    torn.append(data)

        watcher = threading.Thread(target=watch)
        watcher.start()
        for start in range(3 * MIB, 4 * MIB, MIB // 8):
            with file.open("ab") as stream:
                stream.write(whole[start : start + MIB // 8])
            same(mounted, replication)
        ended.set()
        watcher.join()
        assert torn == []
        assert there.stat().st_ino == inode
        replication.stop()
        assert replication.report("site").counters["extended"] == 8
        assert replication.report("site").counters["bytes_written"] == 4 * MIB


def test_sockets_are_skipped_and_counted(
    mounting: Mounting, replicating: Replicating, tmp_path: Path
) -> None:
    mounted = mounting()
    tree = mounted.mountpoint
    replication = replicating(mounted.journal, "site")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tree / "s"))
        (tree / "beside").write_text("content")
        same(mounted, replication)
        assert not (replication.sites["site"] / "s").exists()
        checked = run("verify", "--full", "--journal", mounted.journal, *replication.options())
        assert checked.returncode == 0, checked.stdout
    replication.stop()
    assert replication.report("site").counters["sockets_skipped"] == 1
