"""Several clusters as one tree: below a meta manager, and side by side in one mount."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.federation import Federation
from tests.support.federation_mounts import FederationMount, mounted

pytestmark = [pytest.mark.xrootd, pytest.mark.fuse]


@pytest.fixture(scope="module")
def clusters() -> Iterator[Federation]:
    """Two clusters of two data servers each, below a meta manager."""
    with Federation(2, clusters=2) as made:
        for server in made.servers:
            server.put(f"/held/{server.number}", b"%d" % server.number)
        yield made


def _use(top: Path) -> dict[str, bytes]:
    """Make, rename, change and remove files; what is there then."""
    choice = random.Random(40)
    (top / "used").mkdir()
    content = {}
    for number in range(20):
        content[f"f{number}"] = choice.randbytes(choice.randrange(1 << 17))
        (top / "used" / f"f{number}").write_bytes(content[f"f{number}"])
    for number in range(0, 20, 3):
        (top / "used" / f"f{number}").rename(top / "used" / f"f{number}.renamed")
        content[f"f{number}.renamed"] = content.pop(f"f{number}")
    for number in range(1, 20, 3):
        (top / "used" / f"f{number}").unlink()
        del content[f"f{number}"]
    return content


def _check(clusters: Federation, top: Path) -> None:
    assert sorted(os.listdir(top / "held")) == ["0", "1", "2", "3"]
    for number in range(4):
        assert (top / "held" / str(number)).read_bytes() == b"%d" % number
    content = _use(top)
    assert {path.name: path.read_bytes() for path in (top / "used").iterdir()} == content
    for cluster in clusters.clusters:
        assert any(
            name.startswith("/used/") for server in cluster.servers for name in server.files()
        )
    shutil.rmtree(top / "used")
    assert clusters.holders("/used") == []


def test_below_a_meta_manager(clusters: Federation, tmp_path: Path) -> None:
    with mounted(clusters, tmp_path / "mount") as mount:
        _check(clusters, mount.mountpoint)


def test_side_by_side(clusters: Federation, tmp_path: Path) -> None:
    urls = ",".join(f"{cluster.redirector.url}//" for cluster in clusters.clusters)
    mount = FederationMount(urls, tmp_path / "mount")
    mount.mountpoint.mkdir()
    try:
        mount.mount()
        _check(clusters, mount.mountpoint)
        mount.umount()
    finally:
        mount.clean_up()


def test_a_cluster_alone(clusters: Federation, tmp_path: Path) -> None:
    """It knows nothing of the other."""
    mount = FederationMount(f"{clusters.clusters[1].redirector.url}//held", tmp_path / "mount")
    mount.mountpoint.mkdir()
    try:
        mount.mount()
        assert sorted(os.listdir(mount.mountpoint)) == ["2", "3"]
        mount.umount()
    finally:
        mount.clean_up()
