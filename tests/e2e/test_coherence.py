"""What jobs see is what is there: under every name, behind the mount, from another node."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mirrorfs.journal.control_client import ControlClient
from mirrorfs.journal.reader import JournalReader
from mirrorfs.journal.record import Change, Kind, Reconcile
from tests.support.mounts import Mounted, Mounting, mounting, run
from tests.support.overlay import below, fails
from tests.support.replicating import Replicating, replicating

__all__ = ["mounting", "replicating"]

pytestmark = pytest.mark.fuse

MANY = ("writers=many", "locks=local")


def seen(path: Path) -> tuple[int, ...]:
    """What a job may hold against another name of the same object."""
    at = path.lstat()
    return (at.st_nlink, at.st_mode, at.st_size, at.st_uid, at.st_ctime_ns, at.st_mtime_ns)


def pairs(directory: Path) -> Path:
    """Files with two names each, one of them in another directory; all known to the kernel."""
    directory.mkdir()
    (directory / "other").mkdir()
    for name in ("a", "b", "c"):
        (directory / name).write_text("text")
        os.link(directory / name, directory / "other" / name)
    for name in ("a", "b", "c"):
        assert seen(directory / name) == seen(directory / "other" / name)
    return directory


def write(at: Path) -> None:
    (at / "a").write_text("longer than it was")


def append_by_the_other_name(at: Path) -> None:
    with (at / "other" / "a").open("a") as stream:
        stream.write("more")


def truncate(at: Path) -> None:
    os.truncate(at / "other" / "a", 1)


def change_mode(at: Path) -> None:
    (at / "a").chmod(0o4711)


def change_owner(at: Path) -> None:
    os.chown(at / "other" / "a", 4711, 4711)


def set_attribute(at: Path) -> None:
    os.setxattr(at / "a", "user.x", b"1")


def set_acl(at: Path) -> None:
    subprocess.run(["setfacl", "-m", "u:4711:rwx", at / "other" / "a"], check=True)


def set_times(at: Path) -> None:
    os.utime(at / "a", ns=(1, 2))


def add_a_name(at: Path) -> None:
    os.link(at / "a", at / "third")


def remove_a_third_name(at: Path) -> None:
    os.link(at / "a", at / "third")
    (at / "third").lstat()
    (at / "third").unlink()


def rename_over_a_third_name(at: Path) -> None:
    os.link(at / "a", at / "third")
    (at / "third").lstat()
    (at / "b").replace(at / "third")


def rename_it(at: Path) -> None:
    (at / "a").replace(at / "moved")
    (at / "moved").replace(at / "a")


CHANGES = (
    *(write, append_by_the_other_name, truncate, change_mode, change_owner, set_attribute),
    *(set_acl, set_times, add_a_name, remove_a_third_name, rename_over_a_third_name, rename_it),
)


def test_a_change_is_seen_under_all_names_at_once(mounting: Mounting) -> None:
    """With attributes kept for an hour."""
    mounted = mounting()
    for change in CHANGES:
        at = pairs(mounted.mountpoint / change.__name__)
        before = seen(at / "a")
        change(at)
        now = seen(below(mounted, at / "a"))
        assert seen(at / "a") == seen(at / "other" / "a") == now, change.__name__
        assert (now != before) or change is rename_it, change.__name__
    for removed, left in (("a", "other/a"), ("other/a", "a")):
        at = pairs(mounted.mountpoint / f"without-{removed.replace('/', '-')}")
        (at / removed).unlink()
        assert (at / left).lstat().st_nlink == 1
        assert seen(at / left) == seen(below(mounted, at / left))


def test_open_handles_of_both_names_agree(mounting: Mounting) -> None:
    at = pairs(mounting().mountpoint / "d")
    with (at / "a").open("r+") as one, (at / "other" / "a").open("r+") as other:
        one.write("longer than it was")
        one.flush()
        assert os.fstat(other.fileno()).st_size == 18
        assert other.read() == "longer than it was"
        (at / "a").unlink()
        (at / "other" / "a").unlink()
        assert os.fstat(one.fileno()).st_nlink == os.fstat(other.fileno()).st_nlink == 0


# Behind the mount


def test_without_timeout_changes_behind_the_mount_show_at_once(mounting: Mounting) -> None:
    mounted = mounting("attr-timeout=0")
    at, behind = mounted.mountpoint, mounted.source
    for turn in range(20):
        (behind / "f").write_text("x" * turn)
        assert (at / "f").read_text() == "x" * turn
        assert seen(at / "f") == seen(behind / "f")
        (behind / "f").chmod(0o600 + turn)
        assert seen(at / "f") == seen(behind / "f")
        subprocess.run(["setfacl", "-m", f"u:{5000 + turn}:r", behind / "f"], check=True)
        assert f"user:{5000 + turn}:r--" in acl(at / "f")
        os.link(behind / "f", behind / "g")
        assert (at / "g").samefile(at / "f")
        (behind / "f").unlink()
        assert not (at / "f").exists()
        (behind / "g").replace(behind / "d")
        assert os.listdir(at) == ["d"]
        assert seen(at / "d") == seen(behind / "d")
        (behind / "d").unlink()
        (behind / "d").mkdir()
        assert (at / "d").is_dir()
        (behind / "d").rmdir()
        (behind / "d").symlink_to(f"target-{turn}")
        assert (at / "d").readlink() == Path(f"target-{turn}")
        (behind / "d").unlink()
        assert not os.path.lexists(at / "d")


def acl(path: Path) -> str:
    return subprocess.run(
        ["getfacl", "-n", "-p", path], check=True, capture_output=True, text=True
    ).stdout


def test_without_timeout_content_of_the_same_size_shows_at_once(mounting: Mounting) -> None:
    """With the same time of modification, too, as within one tick of the clock."""
    mounted = mounting("attr-timeout=0")
    for turn in range(20):
        (mounted.source / "f").write_text(f"{turn:04}")
        os.utime(mounted.source / "f", ns=(10**18, 10**18))
        assert (mounted.mountpoint / "f").read_text() == f"{turn:04}"


def test_without_timeout_an_open_file_grows_and_changes(mounting: Mounting) -> None:
    mounted = mounting("attr-timeout=0")
    (mounted.source / "f").write_bytes(b"one")
    with (mounted.mountpoint / "f").open("rb", buffering=0) as stream:
        assert stream.read() == b"one"
        (mounted.source / "f").write_bytes(b"two, and longer")
        assert os.fstat(stream.fileno()).st_size == 15
        assert os.pread(stream.fileno(), 100, 0) == b"two, and longer"


# Nodes that share a source


def two(mounting: Mounting, *options: str) -> tuple[Mounted, Mounted]:
    """One source on two nodes, in one parent directory of journals."""
    first = mounting.prepare(*MANY, "node=n1", *options)
    second = mounting.prepare(*MANY, "node=n2", *options, name="second")
    second.source = first.source
    parent = first.journal
    for made, node in ((first, "n1"), (second, "n2")):
        made.journal_option, made.journal = parent, parent / node
        made.mount()
    return first, second


def test_two_nodes_see_what_the_other_has_closed(mounting: Mounting) -> None:
    """At once for what is opened, and for what was not there; the rest within the time-out."""
    first, second = two(mounting)
    here, there = first.mountpoint, second.mountpoint
    for turn in range(30):
        (there / "size").write_text(f"{turn:04}")
        os.utime(there / "size", ns=(10**18, 10**18))
        assert (here / "size").read_text() == f"{turn:04}"
        text = f"written by the first, {'x' * turn}"
        assert not (there / f"new-{turn}").exists()
        (here / f"new-{turn}").write_text(text)
        assert (there / f"new-{turn}").read_text() == text
        (there / "same").write_text(text)
        assert (here / "same").read_text() == text
        assert (there / "same").read_text() == text
        assert (there / "same").stat().st_size == len(text)
        with (here / "same").open("a") as stream:
            stream.write(" and more")
        assert (there / "same").read_text() == f"{text} and more"


def test_two_nodes_without_timeout(mounting: Mounting) -> None:
    first, second = two(mounting, "attr-timeout=0")
    here, there = first.mountpoint, second.mountpoint
    (here / "f").write_text("text")
    assert seen(here / "f") == seen(there / "f")
    (there / "f").chmod(0o600)
    (there / "f").replace(there / "g")
    assert os.listdir(here) == ["g"]
    assert seen(here / "g") == seen(there / "g")
    (here / "g").unlink()
    assert not (there / "g").exists()


def test_each_node_records_what_was_done_there(mounting: Mounting) -> None:
    """A name that another node has given to another object is recorded as what it is."""
    first, second = two(mounting)
    (first.mountpoint / "f").write_text("one")
    (first.mountpoint / "g").write_text("two")
    (second.mountpoint / "g").replace(second.mountpoint / "f")
    inode = (first.source / "f").stat().st_ino
    os.unlink(first.mountpoint / "f")
    records = [record for record in first.records() if isinstance(record.body, Change)]
    made = [r.body.object for r in records if r.kind is Kind.CREATE]  # type: ignore[union-attr]
    gone = [r.body.object for r in records if r.kind is Kind.UNLINK]  # type: ignore[union-attr]
    assert gone == made[1:]
    assert inode not in [entry.stat().st_ino for entry in os.scandir(first.source)]
    moved = [record.kind for record in second.records() if isinstance(record.body, Change)]
    assert moved == [Kind.RENAME]
    with JournalReader(str(first.journal)) as one, JournalReader(str(second.journal)) as other:
        assert (one.header.node, other.header.node) == ("n1", "n2")
        assert one.header.volume == other.header.volume
        assert one.header.journal != other.header.journal


def test_one_writer_and_several_exclude_each_other(mounting: Mounting, tmp_path: Path) -> None:
    first, second = two(mounting)
    other = tmp_path / "other"
    other.mkdir()
    one = run("mount", first.source, other, "-o", f"journal={tmp_path}/one-journal")
    assert one.returncode == 69
    assert "another mirrorfs has mounted this source: one is allowed" in one.stderr
    options = f"journal={first.journal_option},{','.join(MANY)},node=n1"
    same = run("mount", first.source, other, "-o", options)
    assert same.returncode == 69
    assert "n1: in use by process" in same.stderr
    first.umount()
    second.umount()
    alone = mounting.prepare()
    alone.journal = tmp_path / "one-journal"
    alone.mount()
    refused = run("mount", first.source, other, "-o", options)
    assert refused.returncode == 69
    assert "another mirrorfs has mounted this source: with writers=one" in refused.stderr


def test_a_directory_of_journals_is_not_a_journal(mounting: Mounting, tmp_path: Path) -> None:
    first, second = two(mounting)
    first.umount()
    second.umount()
    alone = run("mount", first.source, first.mountpoint, "-o", f"journal={first.journal_option}")
    assert alone.returncode == 69
    assert "the journals of nodes n1, n2 are in it, of writers=many" in alone.stderr
    several = f"journal={first.journal},{','.join(MANY)}"
    inside = run("mount", first.source, first.mountpoint, "-o", several)
    assert inside.returncode == 69
    assert "a journal of writers=one: for writers=many name another" in inside.stderr
    listed = run("journal", "ls", first.journal_option or "")
    assert listed.returncode == 66
    assert "2 journals are there, one a node (n1, n2), and this is for one" in listed.stderr


def test_who_wrote_alone_meanwhile_is_compared(mounting: Mounting) -> None:
    """Clean ends of this journal say nothing about what others did between."""
    first, second = two(mounting)
    first.umount()
    second.umount()
    alone = mounting.prepare()
    alone.journal = alone.journal.with_name("alone")
    alone.mount()
    assert not [r for r in alone.records() if isinstance(r.body, Reconcile)]
    alone.umount()
    first.mount()
    reasons = [r.body.reason for r in first.records() if isinstance(r.body, Reconcile)]
    assert reasons == ["other nodes may have changed the source"]
    first.umount()
    first.mount()
    assert len([r for r in first.records() if isinstance(r.body, Reconcile)]) == 1
    first.umount()
    alone.mount()
    reasons = [r.body.reason for r in alone.records() if isinstance(r.body, Reconcile)]
    assert reasons == ["other nodes may have changed the source"]


def test_the_replicator_refuses_several_journals(
    mounting: Mounting, replicating: Replicating
) -> None:
    first, second = two(mounting)
    for journal, says in (
        (first.journal_option, "2 journals are there, one a node (n1, n2)"),
        (first.journal, "nodes n1, n2 write a journal each of this source"),
    ):
        assert journal is not None
        replication = replicating(journal, "site", start=False)
        replication.start()
        assert replication.wait() in (66, 69)
        assert says in replication.said()
    second.umount()
    (first.source / ".mirrorfs" / "nodes" / "n2").unlink()
    (first.mountpoint / "f").write_text("text")
    replication = replicating(first.journal, "backup")
    replication.settle()
    assert (replication.sites["backup"] / "f").read_text() == "text"


# The options of mount(8), at the source, too


def accessed(path: Path, use: Callable[[Path], object]) -> bool:
    """Using it moves its time of access, as the source has it."""
    os.utime(path, ns=(10**18, 2 * 10**18))
    use(path)
    return path.stat().st_atime_ns != 10**18


@pytest.mark.parametrize(
    ("options", "file", "directory"),
    [
        ((), True, True),
        (("noatime",), False, False),
        (("nodiratime",), True, False),
        (("noatime", "atime"), True, True),
    ],
)
def test_noatime_holds_at_the_source(
    mounting: Mounting, options: tuple[str, ...], file: bool, directory: bool
) -> None:
    mounted = mounting(*options)
    at = mounted.mountpoint
    (at / "d").mkdir()
    for name in ("f", "g"):
        (mounted.source / name).write_text("text")

    def read(path: Path) -> None:
        (at / path.name).read_bytes()

    def change(path: Path) -> None:
        with (at / path.name).open("r+b") as stream:
            stream.read(1)

    def list_it(path: Path) -> None:
        os.listdir(at / path.name)

    assert accessed(mounted.source / "f", read) == file
    assert accessed(mounted.source / "g", change) == file
    assert accessed(mounted.source / "d", list_it) == directory


def test_noatime_may_change_while_it_is_mounted(mounting: Mounting) -> None:
    mounted = mounting("noatime", "attr-timeout=0")  # so that each read reaches the source
    (mounted.mountpoint / "f").write_text("text")

    def read(path: Path) -> None:
        (mounted.mountpoint / path.name).read_bytes()

    for option, moves in (("atime", True), ("noatime", False), ("ro", False)):
        done = run("mount", mounted.source, mounted.mountpoint, "-o", f"remount,{option}")
        assert done.returncode == 0, done.stderr
        assert accessed(mounted.source / "f", read) == moves
        with ControlClient(str(mounted.journal)) as client:
            assert ("noatime" in client.status().kernel_options) == (not moves)


@pytest.mark.parametrize("options", [("nodev", "noexec", "nosuid"), ("dev", "exec", "suid")])
def test_restrictions_and_their_opposites(mounting: Mounting, options: tuple[str, ...]) -> None:
    mounted = mounting(*options)
    restricted = "nodev" in options
    at = mounted.mountpoint
    os.mknod(at / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (at / "script").write_text("#!/bin/sh\nexit 0\n")
    (at / "script").chmod(0o755)
    opened = not fails(errno.EACCES, lambda: (at / "null").write_bytes(b"x"))
    assert opened != restricted
    ran = not fails(errno.EACCES, lambda: subprocess.run([at / "script"], check=True))
    assert ran != restricted
    assert bool(os.statvfs(at).f_flag & os.ST_NOSUID) == restricted


def test_a_mountpoint_with_something_in_it_and_all_that_fuse_users_write(
    mounting: Mounting,
) -> None:
    mounted = mounting.prepare("nonempty,allow_other,default_permissions,fsname=it,subtype=kind")
    (mounted.mountpoint / "hidden").touch()
    mounted.mount()
    line = next(
        line
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if f" {mounted.mountpoint} " in line
    )
    assert " fuse.kind it " in line
    assert "default_permissions" in line
    assert "allow_other" in line
    assert os.listdir(mounted.mountpoint) == []
    mounted.clean_up()
