"""The comparison sees each kind of difference, in two trees that nobody changes."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import socket
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from replicator.comparing import Comparer, Tree
from replicator.stores.base import SiteMissingError, SiteRefusedError
from replicator.verify import SiteResult
from replicator.view import SourceRefusedError
from tests.support import mounting
from tests.support.verifying import ENTRIES, Bench, bench

__all__ = ["bench"]
pytestmark = pytest.mark.fuse  # root, for owners, devices, trusted attributes and handles


def test_equal_trees(bench: Bench) -> None:
    assert bench.verify() == SiteResult("backup", ENTRIES, 0, 0)


def keeping_times(path: Path, change: Callable[[], object]) -> None:
    before = path.stat()
    change()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def swap(path: Path, make: Callable[[Path], object]) -> None:
    def change() -> None:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        make(path)

    keeping_times(path.parent, change)


def poke(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    os.pwrite(descriptor, b"y", 1 << 39)
    os.close(descriptor)


def bind_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "content": (
        lambda top: keeping_times(top / "d" / "f", lambda: (top / "d" / "f").write_bytes(b"atad")),
        "/d/f: content differs",
    ),
    "size": (
        lambda top: keeping_times(top / "d" / "f", lambda: (top / "d" / "f").write_bytes(b"x")),
        "/d/f: content differs: 4 bytes, 1 at the site",
    ),
    "content after a hole": (
        lambda top: keeping_times(top / "sparse", lambda: poke(top / "sparse")),
        "/sparse: content differs",
    ),
    "mode": (lambda top: (top / "d" / "f").chmod(0o2700), "/d/f: mode 0644, 2700 at the site"),
    "owner": (
        lambda top: os.chown(top / "s", 5, 6, follow_symlinks=False),
        "/s: owner 0:0, 5:6 at the site",
    ),
    "time": (lambda top: os.utime(top / "d" / "f", ns=(1, 1)), "/d/f: modification time "),
    "time of a directory": (lambda top: os.utime(top / "d", ns=(1, 1)), "/d: modification time "),
    "time of the root": (
        lambda top: os.utime(top, ns=(1, 2)),
        "/: modification time 0.000000001, 0.000000002 at the site",
    ),
    "target": (
        lambda top: swap(top / "s", lambda path: path.symlink_to("e")),
        "/s: ",
    ),
    "type": (
        lambda top: swap(top / "s", lambda path: path.mkdir()),
        "/s: a symlink, a directory at the site",
    ),
    "socket": (
        lambda top: swap(top / "fifo", bind_socket),
        "/fifo: a fifo, a socket at the site",
    ),
    "device": (
        lambda top: keeping_times(
            top,
            lambda: swap(
                top / "null",
                lambda path: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5)),
            ),
        ),
        "/null: ",
    ),
    "attribute": (
        lambda top: os.setxattr(top / "d" / "f", "trusted.one", b"2"),
        "/d/f: extended attributes differ: trusted.one",
    ),
    "acl": (
        lambda top: subprocess.run(["setfacl", "-m", "u:1234:rwx", top / "d"], check=True),
        "/d: ",
    ),
    "fewer links": (
        lambda top: swap(top / "h", lambda path: shutil.copy2(top / "g", path)),
        "/h: hard links: with /g on one side only",
    ),
    "more links": (
        lambda top: swap(top / "d" / "f", lambda path: os.link(top / "g", path)),
        "/",
    ),
    "missing": (
        lambda top: keeping_times(top, (top / "null").unlink),
        "/null: missing at the site: a character device",
    ),
    "missing directory": (
        lambda top: keeping_times(top, lambda: shutil.rmtree(top / "d")),
        "/d: missing at the site: a directory",
    ),
    "surplus": (
        lambda top: keeping_times(top, (top / "\udcff").mkdir),
        "/\\xff: only at the site: a directory",
    ),
    "reserved name below": (
        lambda top: keeping_times(top / "d", (top / "d" / ".mirrorfs").touch),
        "/d/.mirrorfs: only at the site: a file",
    ),
}


@pytest.mark.parametrize(("change", "line"), CHANGES.values(), ids=CHANGES.keys())
def test_each_difference_is_seen(bench: Bench, change: Callable[[Path], object], line: str) -> None:
    change(bench.site)
    result = bench.verify()
    assert result.entries == ENTRIES
    assert result.in_flight == 0
    assert any(said.startswith(line) for said in bench.lines), bench.lines
    assert result.differences == 1 or line == "/"


SAID = {"target": "symlink target differs", "device": "device 1:3, 1:5 at the site"}


@pytest.mark.parametrize("kind", SAID)
def test_what_comes_with_a_new_time(bench: Bench, kind: str) -> None:
    CHANGES[kind][0](bench.site)
    bench.verify()
    assert SAID[kind] in bench.lines[0]


def test_surplus_links_are_seen(bench: Bench) -> None:
    CHANGES["more links"][0](bench.site)
    bench.verify()
    assert any("hard links" in line for line in bench.lines)


def test_what_is_below_a_missing_directory_counts_as_entries(bench: Bench) -> None:
    (bench.source / "d" / "e" / "e").mkdir(parents=True)
    (bench.source / "d" / "e" / "e" / "f").touch()
    shutil.rmtree(bench.site / "d")
    result = bench.verify()
    assert result.entries == ENTRIES + 3
    assert [line for line in bench.lines if line.startswith("/d")] == [
        "/d: missing at the site: a directory"
    ]


def test_no_access_time_moves(bench: Bench) -> None:
    paths = [top / name for top in (bench.source, bench.site) for name in ("", "d", "d/f")]
    for path in paths:
        os.utime(path, ns=(1, path.stat().st_mtime_ns))
    bench.verify()
    assert {path.stat().st_atime_ns for path in paths} == {1}


def test_deep_trees_need_few_descriptors(bench: Bench) -> None:
    for top in (bench.source, bench.site):
        at = os.open(top / "d", os.O_RDONLY)
        for _ in range(200):
            os.mkdir("n" * 100, dir_fd=at)
            below = os.open("n" * 100, os.O_RDONLY, dir_fd=at)
            os.utime(at, ns=(1, 1))
            os.close(at)
            at = below
        os.utime(at, ns=(1, 1))
        os.close(at)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, limits[1]))
    try:
        result = bench.verify()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for top in (bench.source, bench.site):
            subprocess.run(["rm", "-rf", top / "d"], check=True)
    assert (result.entries, result.differences) == (ENTRIES + 200, 0)


def test_no_descriptor_is_left(bench: Bench) -> None:
    before = os.listdir("/proc/self/fd")
    shutil.rmtree(bench.site / "d")
    bench.verify()
    assert os.listdir("/proc/self/fd") == before


def test_another_file_system_is_named_not_compared(bench: Bench) -> None:
    with mounting.tmpfs(bench.source / "d"):
        bench.verify()
    assert bench.lines == ["/d: cannot be read at the source: another file system is mounted there"]


def test_a_directory_that_cannot_be_listed_is_a_difference(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = Tree.list
    broken = (bench.site / "d").stat()

    def fail(tree: Tree, directory: int) -> list[bytes]:
        if os.path.samestat(os.fstat(directory), broken):
            raise OSError(errno.EIO, "Input/output error")
        return listed(tree, directory)

    monkeypatch.setattr(Tree, "list", fail)
    bench.verify()
    assert bench.lines == ["/d: cannot be listed: Input/output error"]


def test_a_file_that_cannot_be_read_is_a_difference(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bool:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("replicator.comparing._same_bytes", fail)
    bench.verify()
    assert "/d/f: cannot be compared: Input/output error" in bench.lines


def test_names_of_one_object_that_was_replaced_are_paired_again(bench: Bench) -> None:
    roots = [os.open(top, os.O_RDONLY) for top in (bench.source, bench.site)]
    comparer = Comparer(Tree(roots[0]), Tree(roots[1]))
    assert [comparer.look((name,)).difference for name in (b"g", b"h")] == [None, None]
    subprocess.run(["cp", "-a", bench.source / "g", bench.site / "new"], check=True)
    (bench.site / "new").replace(bench.site / "g")
    assert comparer.look((b"g",)).difference is None
    assert comparer.look((b"h",)).difference == "hard links: with /g on one side only"
    (bench.site / "h").unlink()
    os.link(bench.site / "g", bench.site / "h")
    assert [comparer.look((name,)).difference for name in (b"g", b"h")] == [None, None]
    for root in roots:
        os.close(root)


# refusals ----------------------------------------------------------------------------------------


def test_no_such_site(bench: Bench) -> None:
    shutil.rmtree(bench.site)
    with pytest.raises(SiteMissingError, match=r"site backup: .*: No such file"):
        bench.verify()
    bench.site.touch()
    with pytest.raises(SiteMissingError, match="Not a directory"):
        bench.verify()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "not a site"),
        ("{", "cannot be read"),
        ('{"format": 1, "volume": "x", "name": "b"}', "belongs to another volume, x"),
    ],
)
def test_other_directories_are_no_sites(bench: Bench, text: str | None, says: str) -> None:
    file = bench.site / ".mirrorfs" / "site"
    file.unlink() if text is None else file.write_text(text)
    with pytest.raises(SiteRefusedError, match=says):
        bench.verify()


def test_another_source_is_refused(bench: Bench) -> None:
    (bench.source / ".mirrorfs" / "volume").write_text("other\n")
    with pytest.raises(SourceRefusedError, match="not the source this journal names"):
        bench.verify()
