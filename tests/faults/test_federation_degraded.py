"""What a mount answers while a data server is missing: what is known, and otherwise an error.

Nothing is taken for absent, or for empty, because nobody answered; nothing is begun that cannot be
done everywhere; and what failed half-way is as it was.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.federated_work import fails
from tests.support.federation import Federation
from tests.support.federation_mounts import FederationMount, mounted

pytestmark = [pytest.mark.xrootd, pytest.mark.fuse]

EXACT = ("attr-timeout=0", "negative-timeout=0", "listing-timeout=0")
UNAVAILABLE = (errno.EIO, errno.EHOSTUNREACH, errno.ETIMEDOUT)
LOST, ALIVE = 1, 0


@pytest.fixture
def federation() -> Iterator[Federation]:
    """A federation of one's own, to break."""
    with Federation(servers=3) as made:
        yield made


@pytest.fixture
def mount(federation: Federation, tmp_path: Path) -> Iterator[FederationMount]:
    """It, mounted, with a file on every server."""
    for server in range(3):
        federation.put(f"/d/{server}", b"%d" % server, server)
        federation.put(f"/d/own{server}/f", b"content", server)
    with mounted(federation, tmp_path / "mount", *EXACT) as made:
        yield made


def _names(directory: Path) -> tuple[list[str], int]:
    """What a listing gives, and the errno it ends with."""
    names: list[str] = []
    try:
        with os.scandir(directory) as entries:
            names.extend(entry.name for entry in entries)
    except OSError as error:
        return sorted(names), error.errno or 0
    return sorted(names), 0


def _await_names(directory: Path, names: list[str]) -> None:
    """Until the mount has noticed that the server is back."""
    while (found := _names(directory))[1]:
        assert found[1] in UNAVAILABLE
    assert found[0] == names


def test_doubt_is_an_error(federation: Federation, mount: FederationMount) -> None:
    top = mount.mountpoint / "d"
    federation.servers[LOST].kill()
    assert (top / "0").read_bytes() == b"0"
    for path in (top / "1", top / "own1/f", top / "unknown"):
        with fails(*UNAVAILABLE):
            path.read_bytes()
    assert _names(top) == (["0", "2", "own0", "own2"], errno.EIO)
    assert os.getxattr(top, "user.xrootd.partial").decode() == federation.servers[LOST].address


def test_nothing_is_begun_that_cannot_be_done_everywhere(
    federation: Federation, mount: FederationMount
) -> None:
    top = mount.mountpoint / "d"
    federation.servers[LOST].kill()
    for change in (
        lambda: (top / "new").write_bytes(b"new"),
        lambda: (top / "new").mkdir(),
        lambda: (top / "new").symlink_to("0"),
        lambda: (top / "own0").rmdir(),
        lambda: (top / "own0").rename(top / "renamed"),
        lambda: (top / "0").rename(top / "renamed"),
        lambda: (top / "0").rename(top / "2"),
        lambda: shutil.rmtree(mount.mountpoint / "d"),
    ):
        with fails(*UNAVAILABLE):
            change()
    federation.servers[LOST].start()
    federation.wait_ready()
    _await_names(top, ["0", "1", "2", "own0", "own1", "own2"])
    assert {name: (top / name).read_bytes() for name in "012"} == {"0": b"0", "1": b"1", "2": b"2"}
    assert (top / "own1/f").read_bytes() == b"content"


def test_what_was_known_to_be_whole_stays_usable(federation: Federation, tmp_path: Path) -> None:
    """In a directory listed just before, what the lost server does not hold is known."""
    for server in range(3):
        federation.put(f"/d/{server}", b"%d" % server, server)
    with mounted(federation, tmp_path / "mount") as mount:
        top = mount.mountpoint / "d"
        assert _names(top) == (["0", "1", "2"], 0)
        federation.servers[LOST].kill()
        (top / "new").write_bytes(b"new")
        assert (top / "new").read_bytes() == b"new"
        (top / "0").rename(top / "renamed")
        (top / "renamed").unlink()
        with pytest.raises(FileNotFoundError):
            (top / "unknown").stat()


def test_a_server_given_up(federation: Federation, tmp_path: Path) -> None:
    """With missing-when-degraded=absent, after the grace; and when it comes back after all, the
    newest of two is served, and nothing is lost."""
    for server in range(3):
        federation.put(f"/d/{server}", b"%d" % server, server)
        os.utime(federation.servers[server].data_dir / f"d/{server}", (5, 5))
    options = (*EXACT, "missing-when-degraded=absent", "server-grace=0")
    with mounted(federation, tmp_path / "mount", *options) as mount:
        top = mount.mountpoint / "d"
        federation.servers[LOST].kill()
        while (found := _names(top))[1]:  # until it counts as down
            assert found[1] in UNAVAILABLE
        assert found[0] == ["0", "2"]
        with pytest.raises(FileNotFoundError):
            (top / "1").read_bytes()
        assert os.getxattr(top, "user.xrootd.partial").decode() == federation.servers[LOST].address
        (top / "1").write_bytes(b"newer")
        assert (top / "1").read_bytes() == b"newer"
        federation.servers[LOST].start()
        federation.wait_ready()
        while os.getxattr(top, "user.xrootd.partial"):
            pass
        assert (top / "1").read_bytes() == b"newer"
        assert len(federation.holders("/d/1")) == 2
        assert b"differing" in os.getxattr(top / "1", "user.xrootd.locations")


def test_a_job_is_told_that_its_data_are_lost(
    federation: Federation, mount: FederationMount
) -> None:
    """By write, fsync and close, whichever comes first, and again; not the next one who opens."""
    path = mount.mountpoint / "d/1"
    one, two = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)
    os.write(one, b"unsent")
    federation.servers[LOST].kill()
    with fails(*UNAVAILABLE):
        os.fsync(one)
    with fails(*UNAVAILABLE):
        os.write(one, b"more")
    with fails(*UNAVAILABLE):
        os.close(one)
    federation.servers[LOST].start()
    federation.wait_ready()
    with fails(*UNAVAILABLE):
        os.close(two)
    _await_names(path.parent, ["0", "1", "2", "own0", "own1", "own2"])
    path.write_bytes(b"again")
    assert path.read_bytes() == b"again"


def test_a_close_tells_what_no_write_could(federation: Federation, mount: FederationMount) -> None:
    descriptor = os.open(mount.mountpoint / "d/1", os.O_WRONLY)
    os.write(descriptor, b"unsent")
    federation.servers[LOST].kill()
    with fails(*UNAVAILABLE):
        os.close(descriptor)


def test_reading_goes_on_with_another_copy(federation: Federation, tmp_path: Path) -> None:
    content = os.urandom(3 << 20)
    federation.put("/copied", content, LOST, ALIVE)
    with mounted(federation, tmp_path / "mount") as mount:
        for lost in (LOST, ALIVE):
            with open(mount.mountpoint / "copied", "rb", buffering=0) as file:
                read = file.read(1 << 16)
                federation.servers[lost].kill()
                while data := file.read(1 << 16):
                    read += data
            assert read == content
            federation.servers[lost].start()
            federation.wait_ready()
            while os.getxattr(mount.mountpoint, "user.xrootd.partial"):
                pass


def test_a_rename_that_fails_half_way_is_taken_back(
    federation: Federation, mount: FederationMount
) -> None:
    """The old target could not be removed at its server: both names are as they were."""
    top = mount.mountpoint / "d"
    directory = federation.servers[2].data_dir / "d"
    directory.chmod(0o555)
    with fails(errno.EACCES):
        (top / "0").rename(top / "2")
    assert (top / "0").read_bytes() == b"0"
    assert (top / "2").read_bytes() == b"2"
    assert federation.holders("/d/2") == [federation.servers[2]]
    directory.chmod(0o755)
    (top / "0").rename(top / "2")
    assert (top / "2").read_bytes() == b"0"


def test_a_rename_that_fails_at_one_of_two_servers_is_taken_back(
    federation: Federation, mount: FederationMount
) -> None:
    federation.put("/d/both/f", b"", 0, 2)
    directory = federation.servers[2].data_dir / "d"
    directory.chmod(0o555)
    with fails(errno.EACCES):
        (mount.mountpoint / "d/both").rename(mount.mountpoint / "d/renamed")
    assert len(federation.holders("/d/both/f")) == 2
    assert federation.holders("/d/renamed") == []
    directory.chmod(0o755)
