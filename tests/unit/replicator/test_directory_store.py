"""The directory store beyond what all stores do: whose the site is, what is left behind, limits."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from replicator.source import FileContent
from replicator.stores.base import SiteRefusedError, StoreError
from replicator.stores.directory import DirectoryStore
from tests.support import mounting
from tests.support.sites import VOLUME, Bytes, attributes, mark, put_directory, put_file

pytestmark = pytest.mark.fuse  # root, for owners and marks

OTHER_VOLUME = bytes(16)
FILE = stat.S_IFREG | 0o644


@pytest.fixture
def site(tmp_path: Path) -> Path:
    made = tmp_path / "site"
    made.mkdir()
    return made


def opened(
    path: Path,
    *,
    volume: bytes = VOLUME,
    name: str = "backup",
    adopt: bool = False,
    source: int | None = None,
) -> DirectoryStore:
    return DirectoryStore.open(
        os.fsencode(path), volume=volume, name=name, adopt=adopt, source=source
    )


def refusal(path: Path, **how: object) -> str:
    """The line a refused site gives; it leaves nothing open."""
    before = os.listdir("/proc/self/fd")
    with pytest.raises(SiteRefusedError) as raised:
        opened(path, **how).close()  # type: ignore[arg-type]
    assert os.listdir("/proc/self/fd") == before
    line = str(raised.value)
    assert line.startswith(f"{path}: ")
    assert "\n" not in line
    return line


# Whose it is


def test_a_new_site(site: Path) -> None:
    opened(site).close()
    reserved = site / ".mirrorfs"
    assert sorted(os.listdir(reserved)) == ["kept", "limbo", "lock", "site", "stage"]
    assert stat.S_IMODE(reserved.stat().st_mode) == 0o700
    said = json.loads((reserved / "site").read_text())
    assert said == {"format": 1, "volume": str(uuid.UUID(bytes=VOLUME)), "name": "backup"}
    assert (reserved / "lock").read_bytes() == b""
    opened(site).close()


def test_no_directory_no_site(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "does not exist" in refusal(tmp_path / "none")
    assert "not a directory" in refusal(tmp_path / "file")


def test_a_directory_in_use_by_others_is_adopted_only_if_said_so(site: Path) -> None:
    (site / "precious").write_text("data")
    assert "not empty ('precious')" in refusal(site)
    assert os.listdir(site) == ["precious"]
    store = opened(site, adopt=True)
    entry = store.lookup(store.root(), b"precious")
    assert entry is not None
    assert entry.mark is None
    store.close()
    opened(site).close()


def test_a_site_of_another_volume_is_never_taken(site: Path) -> None:
    opened(site, volume=OTHER_VOLUME).close()
    for adopt in (False, True):
        line = refusal(site, adopt=adopt)
        assert "belongs to another volume, 00000000-0000-" in line


def test_another_site_of_the_volume_is_taken_only_if_said_so(site: Path) -> None:
    opened(site, name="first").close()
    assert "is site 'first' of this volume, not 'backup'" in refusal(site)
    opened(site, adopt=True).close()
    opened(site).close()


def test_a_source_is_no_site(site: Path) -> None:
    (site / ".mirrorfs").mkdir()
    (site / ".mirrorfs" / "volume").write_text("x")
    assert "is the source tree of a volume" in refusal(site, adopt=True)


def test_a_site_and_its_source_do_not_overlap(tmp_path: Path, site: Path) -> None:
    (site / "below").mkdir()
    for source, line in (
        (tmp_path, "is inside the source tree"),
        (site, "is inside the source tree"),
        (site / "below", "the source tree is inside it"),
    ):
        descriptor = os.open(source, os.O_RDONLY)
        assert line in refusal(site, source=descriptor, adopt=True)
        os.close(descriptor)
    (site / "below").rmdir()
    (tmp_path / "source").mkdir()
    descriptor = os.open(tmp_path / "source", os.O_RDONLY)
    opened(site, source=descriptor).close()
    os.close(descriptor)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{", "cannot be read"),
        ('{"format": 2, "volume": "x", "name": "backup"}', "has format 2"),
    ],
)
def test_a_site_file_that_is_not_known(site: Path, text: str, line: str) -> None:
    (site / ".mirrorfs").mkdir()
    (site / ".mirrorfs" / "site").write_text(text)
    assert line in refusal(site, adopt=True)


def test_a_reserved_name_that_leads_elsewhere(site: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (site / ".mirrorfs").symlink_to(tmp_path / "elsewhere")
    assert "its .mirrorfs cannot be opened" in refusal(site)
    assert os.listdir(tmp_path / "elsewhere") == []


def test_a_read_only_site(tmp_path: Path) -> None:
    with mounting.tmpfs(tmp_path / "site") as site:
        opened(site).close()
        mounting.remount(site, "ro")
        assert "not writable: Read-only file system" in refusal(site)
    with mounting.tmpfs(tmp_path / "site", "ro") as site:
        assert "not writable: Read-only file system" in refusal(site)


def test_a_file_system_that_keeps_no_marks(tmp_path: Path, site: Path) -> None:
    (tmp_path / "beneath").mkdir()
    with mounting.bindfs(tmp_path / "beneath", site, "--xattr-none"):
        assert "does not keep trusted.* extended attributes" in refusal(site)


def test_a_second_replicator_is_refused(site: Path) -> None:
    store = opened(site)
    assert f"in use by process {os.getpid()}" in refusal(site)
    store.renew()
    (site / ".mirrorfs" / "lock").write_bytes(b"{}")
    with pytest.raises(SiteRefusedError, match="the lease was taken by another replicator"):
        store.renew()
    store.close()
    store.close()


# What is left behind


def test_the_stage_is_emptied_when_a_site_is_opened(site: Path) -> None:
    store = opened(site)
    store.stage(attributes(FILE), Bytes(b"x"), mark())
    store.stage(attributes(stat.S_IFDIR | 0o755), None, mark())
    stage = site / ".mirrorfs" / "stage"
    (stage / "1" / "below" / "deep").mkdir(parents=True)
    (stage / "1" / "below" / "s").symlink_to(site)
    (stage / "1" / "f").touch()
    (site / ".mirrorfs" / "limbo" / "waiting").mkdir()
    store.close()
    store = opened(site)
    assert os.listdir(stage) == []
    assert store.list(store.limbo()) == [b"waiting"]
    store.close()


def test_nothing_is_inherited_from_the_site_directory(site: Path) -> None:
    """A setgid root with a default ACL: what is staged gets what the source has, no more."""
    os.chown(site, -1, 1234)
    site.chmod(0o2775)
    subprocess.run(["setfacl", "-d", "-m", "u:1234:rwx", site], check=True)
    store = opened(site)
    for mode in (FILE, stat.S_IFDIR | 0o755):
        store.commit(store.stage(attributes(mode), None, mark()), store.root(), b"x")
        found = store.lookup(store.root(), b"x")
        assert found is not None
        assert (found.mode, found.gid) == (mode, 0)
        assert store.xattrs(store.root(), b"x") == {}
        store.remove(store.root(), b"x")
    store.close()


def test_nothing_stays_open(site: Path) -> None:
    before = os.listdir("/proc/self/fd")
    store = opened(site)
    directory = put_directory(store, store.root(), b"d")
    put_file(store, directory, b"f", b"data")
    store.keep(directory, b"f", b"d/e/f")
    store.lookup(directory, b"f")
    with pytest.raises(StoreError):
        store.xattrs(directory, b"f")
    store.write_file("state", b"x")
    store.close_directory(directory)
    store.close()
    assert os.listdir("/proc/self/fd") == before


def test_names_of_files_of_ours_stay_in_their_directory(site: Path) -> None:
    store = opened(site)
    for name in ("../x", "a/b", "", ".", "..", "site", "lock"):
        with pytest.raises(ValueError, match="no name"):
            store.write_file(name, b"x")
    store.close()


def test_kept_makes_way_for_what_stands_there(site: Path) -> None:
    store = opened(site)
    put_file(store, store.root(), b"a", b"a file")
    store.keep(store.root(), b"a", b"a")
    put_file(store, store.root(), b"b", b"below")
    store.keep(store.root(), b"b", b"a/../b/")
    (day,) = (site / ".mirrorfs" / "kept").iterdir()
    assert (day / "a").read_text() == "a file"
    assert (day / "a.1" / "b").read_text() == "below"
    store.close()


# Limits of the file system


def test_attributes_the_file_system_refuses_are_counted_not_failed(site: Path) -> None:
    store = opened(site)
    refused = {b"unknown.namespace": b"1", b"system.posix_acl_access": b"garbage"}
    wanted = attributes(FILE, xattrs={**refused, b"trusted.one": b"1"})
    store.commit(store.stage(wanted, Bytes(b"data"), mark()), store.root(), b"f")
    assert store.xattrs(store.root(), b"f") == {b"trusted.one": b"1"}
    assert store.fidelity_debt == 2
    store.set_attributes(store.root(), b"f", wanted, mark(b"f", 2))
    assert store.fidelity_debt == 4
    store.close()


def test_attributes_too_large_for_the_file_system_are_counted(tmp_path: Path) -> None:
    """On ext4 all attributes of an object share a block; no space there is no full disk."""
    with mounting.ext4(tmp_path / "mounted") as mounted:
        site = mounted / "site"
        site.mkdir()
        store = opened(site)
        wanted = attributes(FILE, xattrs={b"trusted.a": b"a" * 3000, b"trusted.b": b"b" * 3000})
        store.commit(store.stage(wanted, None, mark()), store.root(), b"f")
        assert store.fidelity_debt == 1
        entry = store.lookup(store.root(), b"f")
        assert entry is not None
        assert entry.mark == mark()
        store.close()


def test_a_full_site_says_so_and_still_removes(tmp_path: Path) -> None:
    with mounting.tmpfs(tmp_path / "site", "size=512k") as site:
        store = opened(site)
        put_file(store, store.root(), b"f", b"x" * 300_000)
        with pytest.raises(StoreError, match="No space left") as raised:
            store.stage(attributes(FILE), Bytes(b"x" * 300_000), mark())
        assert (raised.value.errno, raised.value.no_space) == (errno.ENOSPC, True)
        assert raised.value.transient
        assert os.listdir(site / ".mirrorfs" / "stage") == []
        store.remove(store.root(), b"f")
        put_file(store, store.root(), b"g", b"x" * 300_000)
        store.close()


def test_a_dead_disk_is_a_transient_error(tmp_path: Path) -> None:
    with mounting.ext4(tmp_path / "mounted") as mounted:
        (mounted / "site").mkdir()
        store = opened(mounted / "site")
        mounting.shut_down(mounted)
        actions: list[Callable[[], object]] = [
            lambda: store.stage(attributes(FILE), None, mark()),
            lambda: store.write_file("state", b"x"),
            store.sync,
            store.renew,
        ]
        for action in actions:
            with pytest.raises(StoreError, match="Input/output error") as raised:
                action()
            assert (raised.value.errno, raised.value.transient) == (errno.EIO, True)
        store.close()


def test_a_name_too_long_is_a_permanent_error(site: Path) -> None:
    store = opened(site)
    with pytest.raises(StoreError) as raised:
        put_file(store, store.root(), b"n" * 256)
    assert (raised.value.errno, raised.value.transient) == (errno.ENAMETOOLONG, False)
    put_file(store, store.root(), b"n" * 255)
    store.close()


def test_user_attributes_are_kept(site: Path) -> None:
    store = opened(site)
    wanted = attributes(FILE, xattrs={b"user.one": b"1"})
    store.commit(store.stage(wanted, None, mark()), store.root(), b"f")
    assert store.xattrs(store.root(), b"f") == wanted.xattrs
    store.close()


def test_holes_are_kept(site: Path, tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb+") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(b"data")
        file.flush()
        store = opened(site)
        content = FileContent(file.fileno())
        store.commit(store.stage(attributes(FILE), content, mark()), store.root(), b"f")
    found = (site / "f").stat()
    assert (found.st_size, found.st_blocks * 512 < 1 << 20) == (64 << 20, True)
    store.close()


# Nothing half-way is ever seen


def watch(path: Path, judge: Callable[[Path], object], act: Callable[[], object]) -> None:
    """Act, while another thread judges without a pause."""
    done = threading.Event()
    looked: list[BaseException | None] = []

    def look() -> None:
        while not done.is_set():
            try:
                judge(path)
            except BaseException as error:  # noqa: BLE001 - told to the test below
                looked.append(error)
                return

    thread = threading.Thread(target=look)
    thread.start()
    try:
        act()
    finally:
        done.set()
        thread.join()
    assert looked == []


def test_a_replaced_file_is_always_there_and_whole(site: Path) -> None:
    store = opened(site)
    versions = [Bytes(bytes([letter]) * 50_000) for letter in b"ab"]
    put_file(store, store.root(), b"f", versions[0].read())

    def judge(path: Path) -> None:
        data = path.read_bytes()
        assert len(data) == 50_000
        assert len(set(data)) == 1
        assert stat.S_IMODE(path.stat().st_mode) == 0o644

    def act() -> None:
        for turn in range(200):
            staged = store.stage(attributes(FILE), versions[turn % 2], mark())
            store.commit(staged, store.root(), b"f")

    watch(site / "f", judge, act)
    store.close()


def test_a_file_replaced_by_a_directory_or_a_link_is_always_there(site: Path) -> None:
    store = opened(site)
    put_file(store, store.root(), b"f")
    put_file(store, store.root(), b"g")

    def act() -> None:
        for _ in range(100):
            for mode in (stat.S_IFDIR | 0o755, FILE):
                staged = store.stage(attributes(mode), None, mark())
                store.commit(staged, store.root(), b"f")
            store.link(store.root(), b"g", store.root(), b"f")

    watch(site / "f", os.lstat, act)
    store.close()


def test_an_exchange_leaves_no_moment_without_either(site: Path) -> None:
    store = opened(site)
    put_file(store, store.root(), b"f")
    directory = put_directory(store, store.root(), b"d")
    put_file(store, directory, b"below")

    def judge(path: Path) -> None:
        os.lstat(path / "f")
        os.lstat(path / "d")

    def act() -> None:
        for _ in range(500):
            store.exchange(store.root(), b"f", store.root(), b"d")

    watch(site, judge, act)
    store.close_directory(directory)
    store.close()
