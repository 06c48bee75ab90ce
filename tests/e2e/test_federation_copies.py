"""Names that several data servers hold, placed there by others than the mount.

The mount believes nothing for longer than a request takes, so that it sees what was placed.
"""

from __future__ import annotations

import errno
import os
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.federated_work import fails, served_name
from tests.support.federated_work import work as work
from tests.support.federation import Federation
from tests.support.federation import federation as federation
from tests.support.federation_mounts import FederationMount, mounted

pytestmark = [pytest.mark.xrootd, pytest.mark.fuse]

EXACT = ("attr-timeout=0", "negative-timeout=0", "listing-timeout=0")


@pytest.fixture(scope="module")
def federation_mount(
    federation: Federation, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FederationMount]:
    """The module's federation, mounted."""
    with mounted(federation, tmp_path_factory.mktemp("exact") / "mount", *EXACT) as made:
        yield made


def test_a_rename_over_a_file_at_another_server(
    work: Path, federation: Federation, federation_mount: FederationMount
) -> None:
    """Whichever is where, and whichever is newer: the name has what was renamed, at one server."""
    for old, new in ((0, 1), (1, 0), (2, 0)):
        source, target = work / f"s{old}{new}", work / f"t{old}{new}"
        federation.put(served_name(source, federation_mount), b"renamed", old)
        federation.put(served_name(target, federation_mount), b"stale, and longer", new)
        newer = federation.servers[new].data_dir / served_name(target, federation_mount)[1:]
        os.utime(newer, (2_000_000_000, 2_000_000_000))
        source.rename(target)
        assert target.read_bytes() == b"renamed"
        assert not source.exists()
        (holder,) = federation.holders(served_name(target, federation_mount))
        assert holder is federation.servers[old]


def test_a_rename_of_a_file_with_copies(
    work: Path, federation: Federation, federation_mount: FederationMount
) -> None:
    federation.put(served_name(work / "s", federation_mount), b"copied", 0, 1)
    federation.put(served_name(work / "t", federation_mount), b"stale", 1, 2)
    (work / "s").rename(work / "t")
    assert (work / "t").read_bytes() == b"copied"
    assert federation.holders(served_name(work / "s", federation_mount)) == []
    assert federation.holders(served_name(work / "t", federation_mount)) == federation.servers[:2]


def test_a_file_with_copies_is_written_and_removed_everywhere(
    work: Path, federation: Federation, federation_mount: FederationMount
) -> None:
    name = served_name(work / "f", federation_mount)
    federation.put(name, b"before", 0, 2)
    with open(work / "f", "r+b") as file:
        file.write(b"behind, and longer")
    stored = [server.data_dir / name[1:] for server in federation.holders(name)]
    assert [path.read_bytes() for path in stored] == [b"behind, and longer"] * 2
    os.truncate(work / "f", 3)
    assert [path.read_bytes() for path in stored] == [b"beh"] * 2
    (work / "f").unlink()
    assert federation.holders(name) == []


def test_renames_of_directories(
    work: Path, federation: Federation, federation_mount: FederationMount
) -> None:
    """Their files are at all servers, and stay there."""
    (work / "d/e").mkdir(parents=True)
    for server in range(3):
        federation.put(
            served_name(work / f"d/e/{server}", federation_mount), b"%d" % server, server
        )
    (work / "d").rename(work / "r")
    assert {path.name: path.read_bytes() for path in (work / "r/e").iterdir()} == {
        "0": b"0",
        "1": b"1",
        "2": b"2",
    }
    assert federation.holders(served_name(work / "d", federation_mount)) == []
    (work / "empty").mkdir()
    (work / "r").rename(work / "empty")
    assert len(os.listdir(work / "empty/e")) == 3
    (work / "full").mkdir()
    federation.put(served_name(work / "full/f", federation_mount), b"", 2)
    with fails(errno.ENOTEMPTY):
        os.replace(work / "empty", work / "full")
    with fails(errno.EINVAL):
        os.replace(work / "empty", work / "empty/e/below")
    with fails(errno.EISDIR):
        os.replace(work / "full/f", work / "empty")
    with fails(errno.ENOTDIR):
        os.replace(work / "empty", work / "full/f")
    assert os.listdir(work / "full") == ["f"]
    assert len(os.listdir(work / "empty/e")) == 3


def test_a_rename_into_a_directory_that_only_another_server_has(
    work: Path, federation: Federation, federation_mount: FederationMount
) -> None:
    federation.put(served_name(work / "there/f", federation_mount), b"", 1)
    federation.put(served_name(work / "f", federation_mount), b"content", 0)
    os.chmod(work / "there", 0o750)
    (work / "f").rename(work / "there/g")
    assert (work / "there/g").read_bytes() == b"content"
    for server in federation.holders(served_name(work / "there", federation_mount)):
        directory = server.data_dir / served_name(work / "there", federation_mount)[1:]
        assert stat.S_IMODE(directory.stat().st_mode) == 0o750


def test_removal_of_directories(
    work: Path, federation: Federation, federation_mount: FederationMount
) -> None:
    (work / "d").mkdir()
    with fails(errno.EEXIST):
        os.mkdir(work / "d")
    for server in range(3):
        federation.put(served_name(work / "d/f", federation_mount), b"", server)
        with fails(errno.ENOTEMPTY):
            os.rmdir(work / "d")
        (work / "d/f").unlink()
    (work / "f").touch()
    with fails(errno.ENOTDIR):
        os.rmdir(work / "f")
    with fails(errno.EISDIR):
        os.unlink(work / "d")
    with fails(errno.ENOENT):
        os.rmdir(work / "nothing")
    os.rmdir(work / "d")
    assert federation.holders(served_name(work / "d", federation_mount)) == []


def test_listings(work: Path, federation: Federation, federation_mount: FederationMount) -> None:
    names = {f"{number:04d}" for number in range(700)}
    for number, name in enumerate(sorted(names)):
        federation.put(served_name(work / name, federation_mount), bytes(number), number % 3)
    with os.scandir(work) as entries:
        sizes = {entry.name: entry.stat().st_size for entry in entries}
    assert sizes == {name: int(name) for name in names}
    (work / "0000").unlink()
    (work / "new").touch()
    assert set(os.listdir(work)) == names - {"0000"} | {"new"}


def test_listings_of_what_servers_cannot_tell_of(
    work: Path, federation: Federation, federation_mount: FederationMount
) -> None:
    """A dead symlink or a newline at a server hides nothing but itself."""
    name = served_name(work, federation_mount)
    federation.put(f"{name}/good", b"content", 1)
    directory = federation.servers[1].data_dir / name[1:]
    (directory / "dead").symlink_to("nothing")
    assert [(path.name, path.stat().st_size) for path in work.iterdir()] == [("good", 7)]
    (directory / "dead").unlink()
    (directory / "two\nlines").touch()
    (work / "changed").touch()
    assert sorted(os.listdir(work)) == ["changed", "good"]
    (directory / "two\nlines").unlink()


def test_attributes_that_tell_of_a_file(
    work: Path, federation: Federation, federation_mount: FederationMount
) -> None:
    name = served_name(work / "f", federation_mount)
    federation.put(name, b"content", 0, 2)
    first, third = federation.servers[0].address, federation.servers[2].address
    told = {
        what: os.getxattr(work / "f", f"user.xrootd.{what}").decode()
        for what in ("url", "server", "locations", "checksum")
    }
    assert told["server"] in (first, third)
    assert told["url"] == f"root://{told['server']}/{name}"
    assert sorted(told["locations"].split()) == sorted(
        f"root://{address}/{name}" for address in (first, third)
    )
    assert told["checksum"] == f"adler32:{zlib.adler32(b'content'):08x}"
    assert os.getxattr(work, "user.xrootd.partial") == b""
    assert os.listxattr(work / "f") == []
    with fails(errno.ENODATA):
        os.getxattr(work / "f", "user.xrootd.nothing")
