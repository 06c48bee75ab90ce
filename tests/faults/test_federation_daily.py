"""Programs and operators, while a data server or the redirector is missing."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.federation import Federation
from tests.support.federation_mounts import FederationMount, mounted, run

pytestmark = [pytest.mark.xrootd, pytest.mark.fuse]

LOST, SILENT = 1, 2


@pytest.fixture
def federation() -> Iterator[Federation]:
    """A federation of one's own, to break, with a tree that is on all its servers."""
    with Federation() as made:
        for server in made.servers:
            for name in ("tree/a", "tree/b", "tree/below/c"):
                server.put(f"/{name}{server.number}", b"content %d" % server.number)
        yield made


@pytest.fixture
def mount(federation: Federation, tmp_path: Path) -> Iterator[FederationMount]:
    """It, mounted."""
    with mounted(federation, tmp_path / "mount") as made:
        yield made


def _return(federation: Federation, mount: FederationMount) -> None:
    """The lost server runs again, and the mount has noticed."""
    federation.servers[LOST].start()
    federation.wait_ready()
    while os.getxattr(mount.mountpoint, "user.xrootd.partial"):
        pass


def _program(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True)


def test_ls_shows_what_is_there_and_fails(federation: Federation, mount: FederationMount) -> None:
    federation.servers[LOST].kill()
    listed = _program("ls", mount.mountpoint / "tree")
    assert listed.stdout.split() == ["a0", "a2", "b0", "b2", "below"]
    assert listed.returncode != 0
    assert "Input/output error" in listed.stderr
    _return(federation, mount)
    listed = _program("ls", mount.mountpoint / "tree")
    assert listed.stdout.split() == ["a0", "a1", "a2", "b0", "b1", "b2", "below"]
    assert (listed.returncode, listed.stderr) == (0, "")


def test_rm_fails_and_what_it_could_not_see_stays(
    federation: Federation, mount: FederationMount
) -> None:
    held = federation.servers[LOST].files()
    federation.servers[LOST].kill()
    removed = _program("rm", "-r", mount.mountpoint / "tree")
    assert removed.returncode != 0
    assert "Input/output error" in removed.stderr
    _return(federation, mount)
    assert federation.servers[LOST].files() == held
    for name in held:
        assert (mount.mountpoint / name.lstrip("/")).read_bytes() == b"content %d" % LOST
    removed = _program("rm", "-r", mount.mountpoint / "tree")
    assert (removed.returncode, removed.stderr) == (0, "")
    assert federation.holders("/tree") == []


def test_cp_of_a_tree_fails_and_copies_nothing_wrong(
    federation: Federation, mount: FederationMount, tmp_path: Path
) -> None:
    federation.servers[LOST].kill()
    copied = _program("cp", "-r", mount.mountpoint / "tree", tmp_path / "copy")
    assert copied.returncode != 0
    for directory, _, names in os.walk(tmp_path / "copy"):
        for name in names:
            assert Path(directory, name).read_bytes() == b"content %s" % name[-1].encode()


def test_space_is_that_of_the_servers_that_answer(federation: Federation, tmp_path: Path) -> None:
    federation.servers[LOST].kill()
    federation.wait_gone(federation.servers[LOST])
    with mounted(federation, tmp_path / "mount") as mount:
        assert _program("df", mount.mountpoint).returncode == 0


def test_unmounts_while_a_server_is_silent(federation: Federation, mount: FederationMount) -> None:
    federation.servers[SILENT].pause()
    asking = subprocess.Popen(
        ["cat", mount.mountpoint / f"tree/a{SILENT}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert asking.wait() != 0
        mount.umount()
    finally:
        federation.servers[SILENT].resume()


def test_killed_mount_is_unmounted_and_mounted_again(
    federation: Federation, mount: FederationMount
) -> None:
    path = mount.mountpoint / "tree" / "a0"
    path.write_bytes(b"closed")
    mount.kill()
    with pytest.raises(OSError, match="not connected"):
        path.read_bytes()
    done = run("umount", mount.mountpoint)
    assert done.returncode == 0, done.stderr
    mount.mount()
    assert path.read_bytes() == b"closed"


def test_refused_in_one_line_where_no_redirector_answers(
    federation: Federation, tmp_path: Path
) -> None:
    (tmp_path / "mount").mkdir()
    federation.redirector.kill()
    refused = run("mount", f"{federation.url}//", tmp_path / "mount")
    assert refused.returncode == 66
    assert refused.stderr.startswith("xrootdfs: ")
    assert len(refused.stderr.splitlines()) == 1
    assert os.listdir(tmp_path / "mount") == []
