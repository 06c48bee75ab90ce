"""The source by handle: what an id and a place mean while everything is renamed."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirrorfs.journal.record import birth_id, handle_id, split_handle_id
from replicator.source import OpenObject, Source
from replicator.view import SourceError, SourceObject, SourceTree, Steps
from tests.support import mounting

pytestmark = pytest.mark.fuse  # root, for handles

EPOCH = 3
ACL = bytes.fromhex(
    "02000000 01000600ffffffff 02000700d2040000 04000400ffffffff 10000600ffffffff 20000400ffffffff"
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    made = tmp_path / "source"
    (made / ".mirrorfs").mkdir(parents=True)
    (made / ".mirrorfs" / "volume").write_text("x")
    return made


@pytest.fixture
def source(tree: Path) -> Iterator[Source]:
    made = open_tree(tree)
    view: SourceTree = made
    assert stat.S_ISDIR(view.root.mode)
    yield made
    made.close()
    made.close()


def open_tree(path: Path, granularity_ns: int = 0) -> Source:
    return Source(os.open(path, os.O_RDONLY | os.O_DIRECTORY), EPOCH, granularity_ns)


def found(source: Source, *names: str) -> OpenObject:
    """The object at that path; those on the way are closed."""
    here: SourceObject = source.root
    for name in names:
        child = source.lookup(here, os.fsencode(name))
        assert child is not None, name
        here.close()
        here = child
    assert isinstance(here, OpenObject)
    return here


def way(source: Source, *names: str) -> Steps:
    """What `ancestors` should say."""
    steps: Steps = []
    for length in range(len(names)):
        with found(source, *names[:length]) as above, found(source, *names[: length + 1]) as below:
            steps.append((above.id, os.fsencode(names[length]), below.id))
    return steps


def test_an_object_is_the_same_by_name_and_by_id(source: Source, tree: Path) -> None:
    (tree / "f").write_bytes(b"data")
    with found(source, "f") as by_name:
        (tree / "f").rename(tree / "g")
        by_id = source.open(by_name.id)
        assert by_id is not None
        with by_id, by_id.content() as content:
            assert content.read() == b"data"
            assert os.pread(content.fileno(), 2, 1) == b"at"
        assert by_id.id == by_name.id
    assert source.lookup(source.root, b"f") is None


def test_the_fields_are_those_of_stat(source: Source, tree: Path) -> None:
    (tree / "f").write_bytes(b"data")
    os.link(tree / "f", tree / "g")
    os.chown(tree / "f", 12, 34)
    os.chmod(tree / "f", 0o4711)
    os.utime(tree / "f", ns=(123, 456))
    with found(source, "f") as file:
        for status in (file, file.stat()):
            assert (status.mode, status.uid, status.gid) == (stat.S_IFREG | 0o4711, 12, 34)
            assert (status.size, status.links, status.rdev) == (4, 2, 0)
            assert (status.atime_ns, status.mtime_ns) == (123, 456)
            assert status.ctime_ns == os.stat(tree / "f").st_ctime_ns
        (tree / "f").write_bytes(b"longer data")
        assert (file.size, file.stat().size) == (4, 11)


def test_what_is_gone_is_gone(source: Source, tree: Path) -> None:
    (tree / "f").write_bytes(b"data")
    (tree / "d").mkdir()
    with found(source, "f") as file, found(source, "d") as directory:
        held = os.open(tree / "f", os.O_RDONLY)
        (tree / "f").unlink()
        (tree / "d").rmdir()
        assert source.open(file.id) is None  # open, but without a name
        assert source.open(directory.id) is None
        assert source.list(directory) == []
        assert source.lookup(directory, b"x") is None
        assert source.ancestors(directory) is None
        assert source.path_key(directory) is None
        with file.content() as content:
            assert content.read() == b"data"
        os.close(held)
    assert source.open(file.id) is None


def test_ids_of_another_epoch_name_nothing(source: Source, tree: Path) -> None:
    (tree / "f").touch()
    with found(source, "f") as file:
        _, kind, handle = split_handle_id(file.id)
    assert source.open(handle_id(EPOCH - 1, kind, handle)) is None


def test_an_id_of_the_wrong_form_is_an_error(source: Source) -> None:
    with pytest.raises(SourceError) as raised:
        source.open(birth_id(EPOCH, 5, 6))
    assert not raised.value.transient
    with pytest.raises(SourceError) as raised:
        source.open(handle_id(EPOCH, 1, b"x" * 129))
    assert raised.value.errno == errno.EINVAL


def test_the_reserved_name_is_hidden_at_the_root_alone(source: Source, tree: Path) -> None:
    (tree / "d" / ".mirrorfs").mkdir(parents=True)
    assert source.list(source.root) == [b"d"]
    assert source.lookup(source.root, b".mirrorfs") is None
    with found(source, "d") as directory:
        assert source.list(directory) == [b".mirrorfs"]
        again = source.lookup(directory, b".mirrorfs")
        assert again is not None
        again.close()


def test_names_are_bytes(source: Source, tree: Path) -> None:
    name = b"\xff\n\\ x"
    os.mkdir(os.path.join(os.fsencode(tree), name))
    assert source.list(source.root) == [name]
    child = source.lookup(source.root, name)
    assert child is not None
    with child:
        assert source.ancestors(child) == [(source.root.id, name, child.id)]


def test_attributes(source: Source, tree: Path) -> None:
    path = tree / "f"
    path.write_bytes(b"data")
    os.setxattr(path, "trusted.one", b"1\0")
    os.setxattr(path, "trusted.mirrorfs.write-through", b"1")
    os.setxattr(path, "system.posix_acl_access", ACL)
    os.chown(path, 5, 6)
    os.utime(path, ns=(7, 8))
    with found(source, "f") as file:
        attributes = file.attributes()
    assert attributes.xattrs == {b"trusted.one": b"1\0", b"system.posix_acl_access": ACL}
    assert (attributes.uid, attributes.gid, attributes.target) == (5, 6, None)
    assert (attributes.atime_ns, attributes.mtime_ns) == (7, 8)


def test_a_symlink_is_looked_at_itself(source: Source, tree: Path) -> None:
    (tree / "s").symlink_to(b"/etc/\xff".decode(errors="surrogateescape"))
    os.setxattr(tree / "s", "trusted.one", b"1", follow_symlinks=False)
    os.chown(tree / "s", 5, 6, follow_symlinks=False)
    with found(source, "s") as link:
        attributes = link.attributes()
        assert attributes.target == link.target() == b"/etc/\xff"
        assert attributes.xattrs == {b"trusted.one": b"1"}
        assert (stat.S_IFMT(attributes.mode), attributes.uid) == (stat.S_IFLNK, 5)


def test_devices_and_fifos(source: Source, tree: Path) -> None:
    os.mkfifo(tree / "fifo")
    os.mknod(tree / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    with found(source, "fifo") as fifo, found(source, "null") as null:
        assert stat.S_ISFIFO(fifo.attributes().mode)
        assert null.attributes().rdev == os.makedev(1, 3)
        for special in (fifo, null):
            with pytest.raises(SourceError) as raised, special.content():
                pass
            assert raised.value.errno == errno.EINVAL


def test_reading_moves_no_access_time(source: Source, tree: Path) -> None:
    (tree / "d").mkdir()
    (tree / "d" / "f").write_bytes(b"data")
    for path in (tree / "d" / "f", tree / "d"):
        os.utime(path, ns=(1, 2))
    with found(source, "d") as directory, found(source, "d", "f") as file:
        assert source.list(directory) == [b"f"]
        with file.content() as content:
            assert content.read() == b"data"
        assert (directory.stat().atime_ns, file.stat().atime_ns) == (1, 1)


def test_only_directories_are_listed(source: Source, tree: Path) -> None:
    (tree / "f").touch()
    with found(source, "f") as file:
        with pytest.raises(SourceError) as raised:
            source.list(file)
        assert raised.value.errno == errno.ENOTDIR


def test_another_file_system_below_is_no_part_of_the_source(source: Source, tree: Path) -> None:
    (tree / "d").mkdir()
    with mounting.tmpfs(tree / "d"):
        with pytest.raises(SourceError) as raised:
            source.lookup(source.root, b"d")
        assert (raised.value.errno, raised.value.transient) == (errno.EXDEV, False)
        assert source.list(source.root) == [b"d"]


def test_content_is_closed_and_objects_close_twice(source: Source, tree: Path) -> None:
    (tree / "f").touch()
    open_before = os.listdir("/proc/self/fd")
    with found(source, "f") as file:
        with file.content() as content:
            assert content.read() == b""
        file.close()
    file.close()
    source.root.close()
    assert os.listdir("/proc/self/fd") == open_before
    assert b"f" in source.list(source.root)


# The way to a directory


def test_the_way_to_a_directory(source: Source, tree: Path) -> None:
    (tree / "a" / "b" / "c").mkdir(parents=True)
    assert source.ancestors(source.root) == []
    with found(source, "a", "b", "c") as directory:
        assert source.ancestors(directory) == way(source, "a", "b", "c")
        key = source.path_key(directory)
        assert key == source.path_key(directory)
        (tree / "x").mkdir()
        (tree / "a" / "b").rename(tree / "x" / "y")
        assert source.ancestors(directory) == way(source, "x", "y", "c")
        assert source.path_key(directory) not in (key, None)
        by_id = source.open(directory.id)
        assert by_id is not None
        with by_id:
            assert source.ancestors(by_id) == way(source, "x", "y", "c")


@pytest.mark.parametrize("name", ["d (deleted)", " (deleted)", "new\nline", "back\\slash"])
def test_names_that_look_like_something_else(source: Source, tree: Path, name: str) -> None:
    (tree / name / "c").mkdir(parents=True)
    with found(source, name, "c") as directory, found(source, name) as above:
        assert source.ancestors(directory) == way(source, name, "c")
        assert source.ancestors(above) == way(source, name)


def test_a_path_longer_than_the_kernel_tells(source: Source, tree: Path) -> None:
    names = [f"{number:03}" + "n" * 247 for number in range(20)]
    here = os.open(tree, os.O_RDONLY)
    for name in names:
        os.mkdir(name, dir_fd=here)
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.mkdir("beside", dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    with found(source, *names) as directory:
        assert source.path_key(directory) is None
        assert source.ancestors(directory) == way(source, *names)


def test_a_directory_outside_the_root_has_no_way(tree: Path) -> None:
    (tree / "root" / "d").mkdir(parents=True)
    (tree / "rooted").mkdir()
    source = open_tree(tree / "root")
    with found(source, "d") as directory:
        for outside in (tree / "elsewhere", tree / "rooted" / "d"):
            os.rename(tree / "root" / "d", outside)  # noqa: TID251 - of the test's own tree
            assert source.ancestors(directory) is None
            os.rename(outside, tree / "root" / "d")  # noqa: TID251
        assert source.ancestors(directory) == way(source, "d")
    source.close()


def test_renames_meanwhile_give_a_way_that_held(source: Source, tree: Path) -> None:
    (tree / "a" / "d" / "e").mkdir(parents=True)
    (tree / "b").mkdir()
    places = tree / "a" / "d", tree / "b" / "d"
    ways = [way(source, "a", "d", "e")]
    places[0].rename(places[1])
    ways.append(way(source, "b", "d", "e"))
    stop = threading.Event()

    def rename() -> None:
        while not stop.is_set():
            places[1].rename(places[0])
            places[0].rename(places[1])

    with found(source, "b", "d", "e") as directory:
        thread = threading.Thread(target=rename)
        thread.start()
        try:
            for _ in range(300):
                with contextlib.suppress(SourceError):  # it kept changing for too long
                    assert source.ancestors(directory) in ways
        finally:
            stop.set()
            thread.join()
        assert source.ancestors(directory) == ways[1]


# When a change time can be trusted


def test_a_change_time_is_trusted_when_a_later_change_would_get_another(tree: Path) -> None:
    (tree / "f").touch()
    source = open_tree(tree, granularity_ns=3600 * 10**9)
    with found(source, "f") as file:
        assert 3500 < source.settle_delay(file.ctime_ns) <= 3600
    source.close()
    source = open_tree(tree, granularity_ns=0)
    with found(source, "f") as file:
        assert source.settle_delay(file.ctime_ns) == 0
    source.close()


def test_a_change_is_complete_when_its_change_time_is_old(source: Source, tree: Path) -> None:
    (tree / "f").touch()
    with found(source, "f") as file:
        assert not source.is_quiet(file.ctime_ns)
        assert source.is_quiet(file.ctime_ns - 3600 * 10**9)


def test_clocks_that_differ_make_nobody_wait_for_long(
    source: Source, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / "f").touch()
    source = open_tree(tree, granularity_ns=2 * 10**9)
    with found(source, "f") as file:
        monkeypatch.setattr(time, "time_ns", lambda: file.ctime_ns - 10**15)
        assert source.settle_delay(file.ctime_ns) == 2
        monkeypatch.setattr(time, "time_ns", lambda: file.ctime_ns + 2 * 10**9)
        assert source.settle_delay(file.ctime_ns) == 0
    source.close()
