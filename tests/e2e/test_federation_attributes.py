"""Owner, mode, times, symlinks and extended attributes on a mounted federation.

XRootD has none of the first; they are kept at the servers as docs/xattrs.md says, or refused.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.federated_work import acting_as, fails
from tests.support.federated_work import work as work
from tests.support.federation import Federation
from tests.support.federation import federation as federation
from tests.support.federation_mounts import FederationMount, mounted
from tests.support.federation_mounts import federation_mount as federation_mount
from tests.support.overlay import reachable

pytestmark = [pytest.mark.xrootd, pytest.mark.fuse]


def test_times(work: Path) -> None:
    (work / "f").write_bytes(b"content")
    os.utime(work / "f", ns=(981_173_106_123_456_789, 981_173_107_987_654_321))
    status = (work / "f").stat()
    assert status.st_atime_ns == 981_173_106_123_456_789
    assert status.st_mtime_ns == 981_173_107_987_654_321
    os.utime(work / "f", ns=(-1, -1))
    assert (work / "f").stat().st_mtime_ns == -1
    (work / "d").mkdir()
    os.utime(work / "d", (5, 6))
    assert (work / "d").stat().st_mtime == 6


def test_times_set_before_close_stay(work: Path) -> None:
    """As tar and cp -p do it."""
    with open(work / "f", "wb") as file:
        file.write(b"content")
        file.flush()
        os.utime(file.fileno(), (5, 6))
    assert (work / "f").stat().st_mtime == 6
    with os.scandir(work) as entries:
        assert [entry.stat().st_mtime for entry in entries] == [6]


def test_a_write_voids_times(work: Path) -> None:
    """Even to the same size within the same second."""
    (work / "f").write_bytes(b"content")
    os.utime(work / "f", (5, 6))
    with open(work / "f", "r+b") as file:
        file.write(b"CONTENT")
    assert (work / "f").stat().st_mtime > 6
    os.utime(work / "f", (5, 6))
    os.truncate(work / "f", 7)
    assert (work / "f").stat().st_mtime > 6


def test_attributes_are_kept_at_the_servers(work: Path, federation_mount: FederationMount) -> None:
    (work / "f").write_bytes(b"content")
    (work / "d").mkdir()
    (work / "link").symlink_to("f")
    for name in ("f", "d"):
        os.chown(work / name, 1234, 4321)
        os.chmod(work / name, 0o6751)
        os.setxattr(work / name, "user.note", b"\0\xff%41\n")
        os.utime(work / name, ns=(1, 2))
    os.chown(work / "link", 7, 8, follow_symlinks=False)

    def seen() -> list[tuple[int, ...]]:
        found: list[tuple[int, ...]] = []
        for name in ("f", "d", "link"):
            s = (work / name).lstat()
            found.append((s.st_mode, s.st_uid, s.st_gid, s.st_size * (name != "d"), s.st_mtime_ns))
        return found

    before = seen()
    assert before[0] == (stat.S_IFREG | 0o6751, 1234, 4321, 7, 2)
    assert before[1] == (stat.S_IFDIR | 0o6751, 1234, 4321, 0, 2)
    assert before[2][:3] == (stat.S_IFLNK | 0o777, 7, 8)
    federation_mount.umount()
    federation_mount.mount()
    assert seen() == before
    assert os.readlink(work / "link") == "f"
    assert os.getxattr(work / "f", "user.note") == b"\0\xff%41\n"
    assert os.getxattr(work / "d", "user.note") == b"\0\xff%41\n"


def test_modes(work: Path) -> None:
    for mode in (0o600, 0o644, 0o664, 0o4755, 0o634, 0o1777, 0o600):
        with open(work / "f", "wb"):
            pass
        os.chmod(work / "f", mode)
        assert stat.S_IMODE((work / "f").stat().st_mode) == mode
    mask = os.umask(0)
    try:
        os.close(os.open(work / "open", os.O_CREAT, 0o666))
        os.mkdir(work / "d", 0o1777)
    finally:
        os.umask(mask)
    assert stat.S_IMODE((work / "open").stat().st_mode) == 0o666
    assert stat.S_IMODE((work / "d").stat().st_mode) == 0o1777


def test_a_file_that_may_not_be_written_is_made_with_content(work: Path) -> None:
    descriptor = os.open(work / "f", os.O_WRONLY | os.O_CREAT, 0o444)
    os.write(descriptor, b"one ")
    os.close(os.dup(descriptor))
    os.write(descriptor, b"two")
    os.close(descriptor)
    assert (work / "f").read_bytes() == b"one two"


def test_new_files_belong_to_who_makes_them(work: Path) -> None:
    reachable(work)
    work.chmod(0o777)
    with acting_as(1000, 1000):
        (work / "f").write_bytes(b"one")
        (work / "f").write_bytes(b"two")
        (work / "d").mkdir()
        (work / "link").symlink_to("f")
        with fails(errno.EPERM):
            os.chown(work / "f", 0, 0)
    for name in ("f", "d", "link"):
        status = (work / name).lstat()
        assert (status.st_uid, status.st_gid) == (1000, 1000)
    os.chmod(work / "f", 0o600)
    with acting_as(1001, 1001), fails(errno.EACCES):
        (work / "f").read_bytes()
    os.chown(work / "d", 5, 6)
    os.chmod(work / "d", 0o2777)
    with acting_as(1000, 1000):
        (work / "d/f").touch()
        (work / "d/e").mkdir()
    assert (work / "d/f").stat().st_gid == 6
    assert (work / "d/e").stat().st_gid == 6
    assert (work / "d/e").stat().st_mode & stat.S_ISGID


def test_symlinks(work: Path) -> None:
    target = "../%41 \udcff/" + "x" * 200
    os.symlink(target, work / "odd")
    assert os.readlink(work / "odd") == target
    assert (work / "odd").lstat().st_size == len(os.fsencode(target))
    (work / "f").write_bytes(b"content")
    (work / "link").symlink_to("f")
    assert (work / "link").read_bytes() == b"content"
    with fails(errno.EEXIST):
        os.symlink("elsewhere", work / "link")
    (work / "link").rename(work / "renamed")
    assert os.readlink(work / "renamed") == "f"
    with os.scandir(work) as entries:
        kinds = {entry.name: entry.is_symlink() for entry in entries}
    assert kinds == {"odd": True, "f": False, "renamed": True}
    (work / "renamed").unlink()
    assert (work / "f").exists()


def test_extended_attributes(work: Path) -> None:
    (work / "f").write_bytes(b"content")
    os.setxattr(work / "f", "user.empty", b"")
    os.setxattr(work / "f", "user.note", b"text")
    os.setxattr(work / "f", "user.note", b"\xff\0 %41")
    os.setxattr(work / "f", "user.ä\n", b"odd name")
    assert sorted(os.listxattr(work / "f")) == ["user.empty", "user.note", "user.ä\n"]
    assert os.getxattr(work / "f", "user.note") == b"\xff\0 %41"
    assert os.getxattr(work / "f", "user.ä\n") == b"odd name"
    assert os.getxattr(work / "f", "user.empty") == b""
    os.removexattr(work / "f", "user.note")
    with fails(errno.ENODATA):
        os.getxattr(work / "f", "user.note")
    with fails(errno.ENODATA):
        os.removexattr(work / "f", "user.note")
    with fails(errno.ENOTSUP):
        os.setxattr(work / "f", "trusted.a", b"")
    for name in ("user.xrootd.url", "user.mirrorfs.mode"):
        with fails(errno.EPERM):
            os.setxattr(work / "f", name, b"")
    with fails(errno.ENODATA):
        os.getxattr(work / "f", "user.mirrorfs.mode")
    os.utime(work / "f", (5, 6))
    assert sorted(os.listxattr(work / "f")) == ["user.empty", "user.ä\n"]


@pytest.mark.parametrize(
    "name", ["security.selinux", "security.capability", "system.posix_acl_access", "trusted.a"]
)
def test_other_attributes_are_none_of_ours(work: Path, name: str) -> None:
    """`ls -l` asks for some of them, and after this answer not for every file again."""
    (work / "f").write_bytes(b"content")
    with fails(errno.ENOTSUP):
        os.getxattr(work / "f", name)


def test_what_a_federation_cannot_hold(work: Path) -> None:
    (work / "f").touch()
    with fails(errno.EPERM):
        os.link(work / "f", work / "g")
    with fails(errno.EPERM):
        os.mkfifo(work / "fifo")
    for name in (b"what?", b"two\nlines", b"\xff"):
        path = os.path.join(os.fsencode(work), name)
        with fails(errno.ENOENT):
            os.stat(path)
        for make in (
            lambda path: os.close(os.open(path, os.O_CREAT)),
            os.mkdir,
            lambda path: os.symlink("f", path),
            lambda path: os.replace(work / "f", path),
        ):
            with fails(errno.EINVAL, errno.EILSEQ):
                make(path)
    with fails(errno.ENAMETOOLONG):
        (work / ("x" * 255)).touch()
    assert os.listdir(work) == ["f"]


def test_nothing_is_kept_where_that_is_not_wanted(federation: Federation, tmp_path: Path) -> None:
    """What servers have themselves can be set; the rest is refused, and nothing is made."""
    with mounted(federation, tmp_path / "plain", "emulate=off", "uid=7", "gid=8") as mount:
        file = mount.mountpoint / "plain"
        file.write_bytes(b"content")
        file.chmod(0o640)
        status = file.stat()
        assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (7, 8, 0o640)
        refusals: list[Callable[[], object]] = [
            lambda: file.chmod(0o4755),
            lambda: os.chown(file, 1, 1),
            lambda: os.utime(file, (5, 6)),
            lambda: (mount.mountpoint / "link").symlink_to("plain"),
        ]
        for refused in refusals:
            with fails(errno.EPERM):
                refused()
        assert file.stat().st_mode & 0o7777 == 0o640
        assert os.listdir(mount.mountpoint) == ["plain"]
        os.setxattr(file, "user.note", b"a user's own are")
        file.unlink()
