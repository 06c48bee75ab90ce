"""The source tree below, by itself: identity, ids, listing, and the budget of descriptors."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirrorfs.backing_tree import BackingTree, granularity_ns, truncates, wants_write
from mirrorfs.callers import ActingAs
from mirrorfs.errors import UnusableError, errno_of
from mirrorfs.inodes import Node
from mirrorfs.listing import Listing
from mirrorfs.objects import Objects

pytestmark = pytest.mark.fuse  # file handles can be opened by root alone


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[BackingTree]:
    """A tree over an empty directory."""
    opened = BackingTree.open(bytes(tmp_path), 1)
    yield opened
    opened.close()


def _found(tree: BackingTree, name: bytes) -> int:
    return tree.find(tree.root, name)


def test_a_source_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in ("missing", "file"):
        with pytest.raises(UnusableError, match=name) as caught:
            BackingTree.open(bytes(tmp_path / name), 1)
        assert caught.value.exit_code == 66


def test_a_source_without_file_handles() -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(UnusableError, match="must offer file handles"):
        BackingTree.open(b"/proc", 1)
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_identity(tree: BackingTree, tmp_path: Path) -> None:
    identity = tree.identity()
    assert identity.path == bytes(tmp_path)
    assert identity.root == tree.root_id
    assert len(identity.fs_uuid) in (0, 16)
    assert identity.ctime_granularity_ns in (0, 10_000_000, 2_000_000_000)
    assert os.listdir(tmp_path) == [".mirrorfs"]
    assert os.listdir(tmp_path / ".mirrorfs") == []
    assert tree.identity() == identity


@pytest.mark.parametrize(("inode_bytes", "whole_seconds"), [(128, True), (256, False)])
def test_a_source_with_times_in_whole_seconds(
    tmp_path: Path, inode_bytes: int, whole_seconds: bool
) -> None:
    image, mounted = tmp_path / "image", tmp_path / "mounted"
    mounted.mkdir()
    with open(image, "wb") as file:
        file.truncate(8 << 20)
    making = ("mkfs.ext4", "-q", "-F", "-I", str(inode_bytes), image)
    subprocess.run(making, check=True, capture_output=True)
    subprocess.run(["mount", "-o", "loop", image, mounted], check=True)
    try:
        tree = BackingTree.open(bytes(mounted), 1)
        granularity = tree.identity().ctime_granularity_ns
        tree.close()
    finally:
        subprocess.run(["umount", mounted], check=True)
    assert granularity == 2_000_000_000 if whole_seconds else granularity <= 10_000_000


@pytest.mark.parametrize(
    ("tick", "step", "here", "elsewhere"),
    [
        (1, 100_001, 0, 0),
        (4, 4_000_001, 10_000_000, 2_000_000_000),
        (1, 4_000_001, 10_000_000, 2_000_000_000),  # one change takes as long as a tick
        (1, 1_000_000_000, 2_000_000_000, 2_000_000_000),
        (100, 1_000_000_000, 2_000_000_000, 2_000_000_000),
    ],
    ids=["fine", "ticks", "ticks, slow disk", "seconds, slow disk", "seconds"],
)
def test_granularity_by_the_times_of_changes(
    tick: int, step: int, here: int, elsewhere: int
) -> None:
    times = [at // tick * step for at in range(100, 148)]
    assert granularity_ns(times, local=True) == here
    assert granularity_ns(times, local=False) == elsewhere


def test_ids_outlive_names_and_die_with_the_object(tree: BackingTree, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    first = tree.object_id(tree.root, b"f")
    (tmp_path / "f").rename(tmp_path / "g")
    assert tree.object_id(tree.root, b"g") == first
    reopened = tree.reopen(first)
    assert tree.attributes(reopened).st_ino == (tmp_path / "g").stat().st_ino
    tree.close_descriptor(reopened)
    (tmp_path / "g").unlink()
    with pytest.raises(OSError, match="tale") as caught:
        tree.reopen(first)
    assert caught.value.errno == errno.ESTALE


def test_listing_goes_on_where_it_was(tree: BackingTree, tmp_path: Path) -> None:
    for number in range(3000):
        os.mknod(tmp_path / f"{number:0100}")
    root = tree.open_directory(tree.root)
    listing = Listing(tree, Node(1, directory=True), root)
    listing.seek(0)
    names, places = [], [0]
    while (name := listing.peek()) is not None:
        names.append(name.name)
        places.append(name.following)
        listing.advance()
    assert len(set(names)) == len(names) == 3002
    assert listing.peek() is None
    for at in (1, 2999, 77):
        listing.seek(places[at])
        again = listing.peek()
        assert again is not None
        assert again.name == names[at]
    listing.seek(places[-1])
    assert listing.peek() is None
    tree.close_descriptor(root)


def test_flags_of_open() -> None:
    assert [wants_write(flag) for flag in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR)] == [
        False,
        True,
        True,
    ]
    assert truncates(os.O_TRUNC | os.O_RDWR)
    assert not truncates(os.O_RDWR)


def _open_descriptors(objects: Objects) -> int:
    return sum(node.descriptor >= 0 for node in objects.table.nodes.values())


def test_few_descriptors_serve_many_objects(tree: BackingTree, tmp_path: Path) -> None:
    objects = Objects(tree, descriptors_max=64)
    nodes = []
    for number in range(300):
        (tmp_path / str(number)).mkdir()
        node, attributes = objects.look(objects.table.root, b"%d" % number)
        node.lookups += 1
        objects.descriptor(node)
        nodes.append((node, attributes.st_ino))
        assert _open_descriptors(objects) <= 64 + 16
    (tmp_path / "0").rename(tmp_path / "moved")
    objects.move(objects.table.root, b"0", objects.table.root, b"moved")
    for node, inode in nodes:
        assert tree.attributes(objects.descriptor(node)).st_ino == inode
    for node, _ in nodes:
        objects.forget(node.number, 1)
    assert list(objects.table.nodes) == [1]
    assert _open_descriptors(objects) == 1
    objects.close()


def _opened(objects: Objects, tree: BackingTree, name: str, flags: int) -> int:
    """A file that some job has open."""
    node, _ = objects.look(objects.table.root, os.fsencode(name))
    node.lookups += 1
    objects.room()
    where = objects.descriptor(node)
    objects.identity(node)
    return objects.opened(node, flags, tree.open_file(where, flags), 0)


def _read(objects: Objects, tree: BackingTree, number: int) -> bytes:
    return tree.read(objects.file(objects.files[number]), 100, 0)


def test_more_open_files_than_descriptors(tree: BackingTree, tmp_path: Path) -> None:
    objects = Objects(tree, descriptors_max=64)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(300):
        (tmp_path / str(number)).write_text(f"content {number}")
    numbers = [_opened(objects, tree, str(at), os.O_RDWR) for at in range(300)]
    assert len(os.listdir("/proc/self/fd")) - before <= 64 + 16
    for at in (0, 150, 299):
        (tmp_path / str(at)).rename(tmp_path / f"moved{at}")  # the handle knows no name
    for at, number in enumerate(numbers):
        assert _read(objects, tree, number) == b"content %d" % at
        assert tree.write(objects.file(objects.files[number]), b"changed", 0) == 7
    assert len(os.listdir("/proc/self/fd")) - before <= 64 + 16
    assert (tmp_path / "7").read_text() == "changed 7"
    for number in numbers:
        objects.closed(number)
    assert len(objects.files) == 0
    objects.close()


def test_opening_again_does_not_empty_a_file(tree: BackingTree, tmp_path: Path) -> None:
    objects = Objects(tree, descriptors_max=64)
    (tmp_path / "f").touch()
    number = _opened(objects, tree, "f", os.O_RDWR | os.O_TRUNC | os.O_CREAT | os.O_EXCL)
    (tmp_path / "f").write_text("written")
    objects.files.close_coldest(1, None)
    assert objects.files[number].descriptor < 0
    assert _read(objects, tree, number) == b"written"
    objects.close()


def test_descriptors_in_use_stay_open(tree: BackingTree, tmp_path: Path) -> None:
    objects = Objects(tree, descriptors_max=64)
    for name in "ab":
        (tmp_path / name).write_text(name)
    one, two = (objects.files[_opened(objects, tree, name, os.O_RDONLY)] for name in "ab")
    one.busy = 1  # a system call in another thread
    objects.files.close_coldest(2, two)
    assert min(one.descriptor, two.descriptor) >= 0
    one.busy = 0
    objects.files.close_coldest(2, two)
    assert one.descriptor < 0 <= two.descriptor
    objects.close()


def test_an_error_of_closing_is_kept(
    tree: BackingTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = Objects(tree, descriptors_max=64)
    (tmp_path / "f").touch()
    handle = objects.files[_opened(objects, tree, "f", os.O_RDWR)]

    def close(descriptor: int) -> None:
        os.close(descriptor)
        raise OSError(errno.EDQUOT, "quota")

    with monkeypatch.context() as patch:
        patch.setattr(tree, "close_descriptor", close)
        objects.files.close_coldest(1, None)
    assert handle.error is not None
    assert handle.error.errno == errno.EDQUOT
    objects.close()


def test_only_nameless_open_files_need_a_descriptor_each(tree: BackingTree, tmp_path: Path) -> None:
    """... and when those alone fill the room, nothing more is opened."""
    objects = Objects(tree, descriptors_max=64)
    before = len(os.listdir("/proc/self/fd"))
    numbers: list[int] = []

    def open_and_remove() -> None:
        (tmp_path / "x").write_text(str(len(numbers)))
        number = _opened(objects, tree, "x", os.O_RDWR)
        tree.remove(tree.root, b"x")
        objects.files[number].node.removed = True
        objects.unbind(objects.table.root, b"x")
        numbers.append(number)

    for _ in range(50):
        open_and_remove()
    for at, number in enumerate(numbers):
        assert _read(objects, tree, number) == b"%d" % at
    refused = 0
    while not refused:
        try:
            open_and_remove()
        except OSError as error:
            refused = errno_of(error)
    assert refused == errno.ENFILE
    assert 64 <= len(numbers) < 70
    assert len(os.listdir("/proc/self/fd")) - before <= 64 + 16
    for at, number in enumerate(numbers):
        assert _read(objects, tree, number) == b"%d" % at
        node = objects.files[number].node
        objects.closed(number)
        objects.forget(node.number, 1)
    open_and_remove()
    objects.close()


def test_a_number_used_again_is_another_object(tree: BackingTree, tmp_path: Path) -> None:
    objects = Objects(tree, descriptors_max=64)
    (tmp_path / "a").touch()
    node, _ = objects.look(objects.table.root, b"a")
    node.lookups += 1
    first = objects.identity(node)
    objects.close()  # as if it had not been used for long
    (tmp_path / "b").mkdir()
    seen = list((tmp_path / "b").stat())[:10]
    seen[1] = node.number  # as if the file system had given the number out again
    again = objects.meet(objects.table.root, b"b", os.stat_result(seen))
    assert again is node
    assert node.generation == 1
    assert node.directory
    assert objects.identity(node) != first
    objects.close()


def test_what_was_replaced_behind_the_mount_is_stale(tree: BackingTree, tmp_path: Path) -> None:
    objects = Objects(tree, descriptors_max=64)
    (tmp_path / "a").touch()
    node, _ = objects.look(objects.table.root, b"a")
    node.lookups += 1
    (tmp_path / "b").touch()
    (tmp_path / "b").replace(tmp_path / "a")
    for _ in range(2):
        with pytest.raises(OSError, match="replaced") as caught:
            objects.descriptor(node)
        assert caught.value.errno == errno.ESTALE
    (tmp_path / "a").unlink()
    with pytest.raises(FileNotFoundError):
        objects.look(objects.table.root, b"a")
    with pytest.raises(OSError, match="no way") as caught:
        objects.descriptor(node)
    with pytest.raises(OSError, match="unknown inode"):
        objects.node(4711)
    objects.close()


def test_removed_files_of_some_size_are_closed_elsewhere(tree: BackingTree, tmp_path: Path) -> None:
    objects = Objects(tree, descriptors_max=64)
    for name, size in (("small", 1), ("large", 65 << 20)):
        with open(tmp_path / name, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
        node, _ = objects.look(objects.table.root, os.fsencode(name))
        node.lookups += 1
        objects.descriptor(node)
        tree.remove(tree.root, os.fsencode(name))
        node.removed = True
        objects.unbind(objects.table.root, os.fsencode(name))
        objects.forget(node.number, 1)
        assert len(objects.slow_to_close) == (name == "large")
    objects.close()
    assert objects.slow_to_close == []


def test_acting_as_somebody_else(tree: BackingTree, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    tree.make_directory(tree.root, b"d", 0o755, ActingAs(0, 0))
    status = (tmp_path / "d").stat()
    assert (status.st_uid, status.st_gid) == (os.geteuid(), os.getegid())
