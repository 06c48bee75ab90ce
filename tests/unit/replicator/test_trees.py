"""The comparison every end-to-end test trusts sees each kind of difference."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.trees import differences, snapshot

pytestmark = pytest.mark.fuse  # root, for owners, devices and trusted attributes


@pytest.fixture
def trees(tmp_path: Path) -> tuple[Path, Path]:
    one, other = tmp_path / "one", tmp_path / "other"
    (one / "d").mkdir(parents=True)
    (one / "d" / "f").write_bytes(b"data")
    (one / "g").write_bytes(b"data")
    os.link(one / "g", one / "h")
    (one / "s").symlink_to("d")
    os.mknod(one / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.setxattr(one / "g", "trusted.one", b"1")
    subprocess.run(["cp", "-a", one, other], check=True)
    return one, other


def compared(trees: tuple[Path, Path]) -> list[str]:
    return differences(snapshot(trees[0]), snapshot(trees[1]))


def test_equal_trees_are_equal(trees: tuple[Path, Path]) -> None:
    (trees[1] / ".mirrorfs").mkdir()
    times = trees[0].stat()
    os.utime(trees[1], ns=(times.st_atime_ns, times.st_mtime_ns))
    os.setxattr(trees[1] / "g", "trusted.mirrorfs.mark", b"x")
    assert compared(trees) == []
    assert snapshot(trees[0])[b"h"].names == (b"g", b"h")


def keeping_times(path: Path, change: Callable[[], object]) -> None:
    before = path.stat()
    change()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def swap(path: Path, make: Callable[[Path], object]) -> None:
    def change() -> None:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        make(path)

    keeping_times(path.parent, change)


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "content": (
        lambda top: keeping_times(top / "d" / "f", lambda: (top / "d" / "f").write_bytes(b"atad")),
        "'d/f': content: ",
    ),
    "size": (
        lambda top: keeping_times(top / "d" / "f", lambda: (top / "d" / "f").write_bytes(b"x")),
        "'d/f': size: 4 | 1",
    ),
    "mode": (lambda top: (top / "d").chmod(0o2700), "'d': mode: 0755 | 2700"),
    "owner": (lambda top: os.chown(top / "s", 5, -1, follow_symlinks=False), "'s': uid: 0 | 5"),
    "time": (lambda top: os.utime(top / "d" / "f", ns=(1, 1)), "'d/f': mtime_ns: "),
    "time of a directory": (lambda top: os.utime(top / "d", ns=(1, 1)), "'d': mtime_ns: "),
    "time of the root": (lambda top: os.utime(top, ns=(1, 1)), "'.': mtime_ns: "),
    "target": (
        lambda top: swap(top / "s", lambda path: path.symlink_to("e")),
        "'s': content: b'd' | b'e'",
    ),
    "type": (lambda top: swap(top / "s", lambda path: path.mkdir()), "'s': symlink | directory"),
    "device": (
        lambda top: swap(top / "null", lambda path: os.mknod(path, stat.S_IFCHR, os.makedev(1, 5))),
        "'null': rdev: (1, 3) | (1, 5)",
    ),
    "attribute": (
        lambda top: os.setxattr(top / "g", "trusted.one", b"2"),
        "'g': xattrs: {b'trusted.one': b'1'} | {b'trusted.one': b'2'}",
    ),
    "links": (
        lambda top: swap(top / "h", lambda path: shutil.copy2(top / "g", path)),
        "'h': names: (b'g', b'h') | ()",
    ),
    "less": (
        lambda top: keeping_times(top, (top / "null").unlink),
        "'null': character device only in the first",
    ),
    "more": (
        lambda top: keeping_times(top, (top / "\udcff").mkdir),
        "'\\udcff': directory only in the second",
    ),
}


@pytest.mark.parametrize(("change", "line"), CHANGES.values(), ids=CHANGES.keys())
def test_each_difference_is_seen(
    trees: tuple[Path, Path], change: Callable[[Path], object], line: str
) -> None:
    change(trees[1])
    found = compared(trees)
    assert any(said.startswith(line) for said in found), found


def test_acls_are_compared(trees: tuple[Path, Path]) -> None:
    subprocess.run(["setfacl", "-m", "u:1234:r", trees[1] / "d"], check=True)
    assert any("'d': xattrs: {} | {b'system.posix_acl_access'" in said for said in compared(trees))


def test_many_differences_are_cut(trees: tuple[Path, Path]) -> None:
    for number in range(10):
        (trees[1] / f"n{number}").touch()
    lines = differences(snapshot(trees[0]), snapshot(trees[1]), limit=3)
    assert len(lines) == 4
    assert lines[-1] == "and 8 more"
