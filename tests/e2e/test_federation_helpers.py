"""mount(8), umount(8) and fstab for federations, on a machine that this was installed on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.federation import Federation
from tests.support.machine import Done, Machine

pytestmark = [pytest.mark.fuse, pytest.mark.xrootd]

NOBODY = 65534
QUIET = (0, "", "")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Of a federation with one file."""
    with Federation(servers=2) as federation:
        federation.put("/atlas/file", b"of the federation")
        yield f"{federation.url}//atlas"


@pytest.fixture
def mountpoint(machine: Machine, tmp_path: Path) -> Iterator[Path]:
    """Whatever is mounted there is unmounted again."""
    path = tmp_path / "grid"
    path.mkdir()
    machine.write("/etc/fstab", "")
    yield path
    while found(machine, path):
        machine.run("umount", "--internal-only", "--lazy", path, check=True)


def found(machine: Machine, path: Path) -> list[str]:
    """Source, type and options of what is mounted there."""
    columns = ("--noheadings", "--list", "--output", "SOURCE,FSTYPE,OPTIONS")
    return machine.run("findmnt", "--kernel", *columns, "--mountpoint", path).stdout.split()


def said(done: Done) -> tuple[int, str, str]:
    """Exit code and both streams."""
    return done.returncode, done.stdout, done.stderr


def test_mount_and_umount(machine: Machine, url: str, mountpoint: Path) -> None:
    assert said(machine.run("mount", "-t", "xrootdfs", url, mountpoint)) == QUIET
    assert found(machine, mountpoint)[:2] == [url, "fuse.xrootdfs"]
    assert machine.run("cat", mountpoint / "file").stdout == "of the federation"
    machine.write(f"{mountpoint}/new", "written")
    assert said(machine.run("umount", mountpoint)) == QUIET
    assert said(machine.run("mount", "-t", "fuse.xrootdfs", url, mountpoint)) == QUIET
    assert machine.run("cat", mountpoint / "new").stdout == "written"
    shown = machine.run("df", "--output=source,fstype,target", mountpoint).stdout
    assert shown.splitlines()[1].split() == [url, "fuse.xrootdfs", str(mountpoint)]


def test_fstab(machine: Machine, url: str, mountpoint: Path) -> None:
    options = "ro,_netdev,nofail,x-systemd.automount,attr-timeout=1"
    machine.write("/etc/fstab", f"{url} {mountpoint} xrootdfs {options} 0 0\n")
    for _ in range(2):  # what is mounted already is passed over
        assert said(machine.run("mount", "-a")) == QUIET
    assert found(machine, mountpoint)[2].startswith("ro,")
    assert machine.run("touch", mountpoint / "file").returncode == 1
    assert said(machine.run("mount", "-o", "remount,rw", mountpoint)) == QUIET
    machine.run("touch", mountpoint / "file", check=True)
    done = machine.run("mount", "-o", "remount,attr-timeout=2", mountpoint)
    assert (done.returncode, done.stdout) == (32, "")
    assert done.stderr.startswith(f"xrootdfs: {mountpoint}: remount: attr-timeout is 1.0 until")
    assert said(machine.run("umount", mountpoint)) == QUIET
    listed = machine.run("cat", "/run/mount/utab").stdout
    assert str(mountpoint) not in listed


def test_names_for_findmnt(machine: Machine, url: str, mountpoint: Path) -> None:
    options = "fsname=atlas,subtype=grid"
    assert said(machine.run("mount", "-t", "xrootdfs", "-o", options, url, mountpoint)) == QUIET
    assert found(machine, mountpoint)[:2] == ["atlas", "fuse.grid"]


def test_a_user_may_mount_where_fstab_says_so(machine: Machine, url: str) -> None:
    mountpoint = Path("/run/grid")
    machine.write("/etc/fstab", f"{url} {mountpoint} xrootdfs user,noauto 0 0\n")
    machine.run("install", "--directory", f"--owner={NOBODY}", mountpoint, check=True)
    try:
        assert said(machine.run("mount", mountpoint, user=NOBODY)) == QUIET
        content = machine.run("cat", mountpoint / "file", user=NOBODY).stdout
        assert content == "of the federation"
        assert {"nosuid", "nodev"} <= set(found(machine, mountpoint)[2].split(","))
        assert said(machine.run("umount", mountpoint, user=NOBODY)) == QUIET
        assert found(machine, mountpoint) == []
    finally:
        machine.run("umount", "--internal-only", "--lazy", mountpoint)
        machine.write("/etc/fstab", "")


def test_as_autofs_calls_it(machine: Machine, url: str, mountpoint: Path) -> None:
    command = ("mount", "-n", "-s", "-t", "xrootdfs", "-o", "ro,colour=green", url, mountpoint)
    assert said(machine.run(*command)) == QUIET
    assert said(machine.run("umount", "-n", mountpoint)) == QUIET


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (("root://127.0.0.1:1//", "DIR"), 32, "xrootdfs: "),
        (("http://example.org/", "DIR"), 1, "xrootdfs: "),
        (("URL", "DIR/missing"), 32, "xrootdfs: mountpoint: DIR/missing: No such file"),
        (("URL", "DIR", "-o", "colour=green"), 1, "xrootdfs: option 'colour=green': not known"),
        (("URL", "DIR", "-o", "placement=best"), 1, "xrootdfs: option 'placement': best: "),
    ],
)
def test_refusals(
    machine: Machine, url: str, mountpoint: Path, arguments: tuple[str, ...], code: int, reason: str
) -> None:
    words = [word.replace("URL", url).replace("DIR", str(mountpoint)) for word in arguments]
    done = machine.run("/sbin/mount.xrootdfs", *words)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(reason.replace("DIR", str(mountpoint)))
    assert done.stderr.count("\n") == 1
    assert found(machine, mountpoint) == []
