"""A replicator as it runs for an operator: real applications, sites that fill up, adoption."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

from tests.support.mounting import remount, tmpfs
from tests.support.mounts import Mounted, Mounting, mounting
from tests.support.replicating import Replicating, Replication, replicating, run, until
from tests.support.trees import differences, snapshot

pytestmark = pytest.mark.fuse

__all__ = ["mounting", "replicating"]

SURELY_WRITTEN_NS = 2 * 10**9
"""A file that changed later than so before it was copied may have been in the middle of a write."""


def same(mounted: Mounted, replication: Replication, *sites: str) -> None:
    """These sites (all) have all there is now, and equal the source."""
    replication.settle(*sites)
    expected = snapshot(mounted.source)
    for name in sites or replication.sites:
        assert differences(expected, snapshot(replication.sites[name])) == [], name


def _command(*words: str | Path, cwd: Path) -> str:
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _files(tree: Path) -> int:
    return sum(len(files) for top, _, files in os.walk(tree) if ".mirrorfs" not in top)


# applications --------------------------------------------------------------------------------


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A git repository of a few commits, outside of the tree."""
    path = tmp_path / "upstream"
    path.mkdir()
    git = ("git", "-c", "user.name=test", "-c", "user.email=test@localhost")
    _command(*git, "init", "--quiet", cwd=path)
    for number in range(8):
        for name in ("a", "b/c", "b/d/e"):
            file = path / f"{name}{number}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{name} {number}\n" * 300)
        _command(*git, "add", ".", cwd=path)
        _command(*git, "commit", "--quiet", "-m", f"commit {number}", cwd=path)
    return path


def test_git(mounting: Mounting, replicating: Replicating, repository: Path) -> None:
    mounted = mounting()
    replication = replicating(mounted.journal, "site")
    clone = mounted.mountpoint / "clone"
    _command("git", "clone", "--quiet", "--no-hardlinks", repository, clone, cwd=repository)
    _command("git", "fsck", "--full", "--strict", cwd=clone)
    _command("git", "checkout", "--quiet", "HEAD~3", cwd=clone)
    _command("git", "gc", "--quiet", "--prune=now", cwd=clone)
    same(mounted, replication)
    there = replication.sites["site"] / "clone"
    _command("git", "fsck", "--full", "--strict", cwd=there)
    assert _command("git", "status", "--porcelain", cwd=there) == ""


def test_sqlite_with_a_write_ahead_log(mounting: Mounting, replicating: Replicating) -> None:
    mounted = mounting()
    replication = replicating(mounted.journal, "site")
    with sqlite3.connect(mounted.mountpoint / "db", isolation_level=None) as base:
        assert base.execute("pragma journal_mode = wal").fetchone() == ("wal",)
        base.execute("create table t (n integer primary key, text blob)")
        for start in range(0, 2000, 100):
            base.execute("begin")
            rows = [(number, os.urandom(500)) for number in range(start, start + 100)]
            base.executemany("insert into t values (?, ?)", rows)
            base.execute("commit")
    base.close()
    same(mounted, replication)
    with sqlite3.connect(f"file:{replication.sites['site']}/db?mode=ro", uri=True) as copy:
        assert copy.execute("pragma integrity_check").fetchone() == ("ok",)
        assert copy.execute("select count(*) from t").fetchone() == (2000,)
    copy.close()


def test_tar_and_cp(mounting: Mounting, replicating: Replicating, repository: Path) -> None:
    mounted = mounting()
    replication = replicating(mounted.journal, "site")
    os.link(repository / "a1.txt", repository / "linked")
    os.utime(repository / "b", ns=(10**18, 123_456_789_012_345_678))
    archive = repository.parent / "archive.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(repository, "extracted")
    _command("tar", "-xf", archive, cwd=mounted.mountpoint)
    _command("cp", "-a", repository, mounted.mountpoint / "copied", cwd=repository)
    _command("cp", "-a", "copied", "copied-again", cwd=mounted.mountpoint)
    _command("rsync", "-aHAX", "copied/", "synced/", cwd=mounted.mountpoint)
    shutil.rmtree(mounted.mountpoint / "copied")
    same(mounted, replication)
    assert snapshot(repository / "b") == snapshot(replication.sites["site"] / "synced" / "b")


# sites ---------------------------------------------------------------------------------------


def test_the_initial_copy_goes_on_where_it_was_killed(
    mounting: Mounting, replicating: Replicating
) -> None:
    mounted = mounting.prepare()
    for directory in range(40):
        (mounted.source / f"d{directory}").mkdir()
        for number in range(50):
            (mounted.source / f"d{directory}" / f"{number}").write_bytes(b"x" * number)
    newest = max(path.lstat().st_ctime_ns for path in mounted.source.rglob("*"))
    until(lambda: time.time_ns() > newest + SURELY_WRITTEN_NS, lambda: "the clock stands still")
    mounted.mount()
    replication = replicating(mounted.journal, "site", start=False)
    site = replication.sites["site"]
    for count in (200, 600, 1200):
        replication.start()
        replication.expect(
            lambda count=count: _files(site) > count,  # type: ignore[misc]
            "the copy does not go on",
        )
        replication.kill()
    replication.start()
    same(mounted, replication)
    assert replication.left_over("site") == []
    copied = replication.report("site").counters["files_copied"]
    assert copied <= 40 * 50 - 1200


def test_nothing_is_listed_or_copied_when_nothing_happened(
    mounting: Mounting, replicating: Replicating
) -> None:
    mounted = mounting()
    (mounted.mountpoint / "directory").mkdir()
    (mounted.mountpoint / "directory" / "file").write_text("content")
    replication = replicating(mounted.journal, "site")
    same(mounted, replication)
    replication.stop()
    replication.start()
    same(mounted, replication)
    replication.stop()
    counters = replication.report("site").counters
    assert {name for name, value in counters.items() if value} <= {"directories_listed"}
    assert counters["directories_listed"] <= 2  # ours: limbo, kept


def test_a_full_site_waits_for_space_and_the_other_goes_on(
    mounting: Mounting, replicating: Replicating, tmp_path: Path
) -> None:
    mounted = mounting()
    tree = mounted.mountpoint
    with tmpfs(tmp_path / "small", "size=4m") as small:
        sites = {"small": small, "large": tmp_path / "large"}
        sites["large"].mkdir()
        replication = replicating.to(mounted.journal, sites)
        replication.settle()
        (tree / "first").write_bytes(b"1" * (3 << 20))
        same(mounted, replication)
        (tree / "second").write_bytes(b"2" * (3 << 20))
        (tree / "third").write_bytes(b"3")
        same(mounted, replication, "large")
        replication.expect(
            lambda: replication.report("small").reason.startswith("waiting for space"),
            "the full site does not say so",
        )
        assert (small / "first").stat().st_size == 3 << 20
        (tree / "first").unlink()
        same(mounted, replication)
        (tree / "second").write_bytes(b"4" * (7 << 20))
        same(mounted, replication, "large")
        assert (small / "second").read_bytes() == b"2" * (3 << 20), "the last good copy stays"
        remount(small, "size=32m")
        same(mounted, replication)
        replication.stop()


def test_steps_that_cannot_be_done_are_held_and_seen(
    mounting: Mounting, replicating: Replicating, tmp_path: Path
) -> None:
    mounted = mounting()
    tree = mounted.mountpoint
    replication = replicating(mounted.journal, "site")
    (tree / "directory").mkdir()
    same(mounted, replication)
    there = replication.sites["site"] / "directory"
    _command("chattr", "+i", there, cwd=tmp_path)
    try:
        (tree / "directory" / "file").write_text("content")
        (tree / "beside").write_text("content")
        replication.expect(lambda: replication.state("site").held != [], "nothing is held")
        replication.expect((replication.sites["site"] / "beside").exists, "all else waits, too")
        held = {step.path for step in replication.state("site").held}
        assert b"directory/file" in held
        assert held <= {b"directory/file", b"directory"}  # its times cannot be set
        replication.expect(
            lambda: "directory/file" in run("status", "--journal", mounted.journal).stdout,
            "status does not show it",
        )
        assert run("status", "--journal", mounted.journal).returncode == 1
    finally:
        _command("chattr", "-i", there, cwd=tmp_path)
    same(mounted, replication)


def test_adoption_copies_what_differs_and_keeps_what_is_surplus(
    mounting: Mounting, replicating: Replicating
) -> None:
    mounted = mounting()
    tree = mounted.mountpoint
    for name in ("a", "b", "c"):
        (tree / name).mkdir()
        for number in range(20):
            (tree / name / f"{number}").write_bytes(name.encode() * 1000)
    replication = replicating(mounted.journal, "site", start=False)
    site = replication.sites["site"]
    _command("cp", "-a", f"{mounted.source}/.", site, cwd=site)
    shutil.rmtree(site / ".mirrorfs")
    (site / "a" / "7").write_bytes(b"another content")
    (site / "b" / "9").unlink()
    (site / "surplus").mkdir()
    (site / "surplus" / "file").write_text("only here")
    options: list[str | Path] = ["--journal", mounted.journal, *replication.options()]
    refused = run("attach", *options)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (69, 1)
    assert run("attach", *options, "--adopt").returncode == 0
    replication.start()
    same(mounted, replication)
    replication.stop()
    counters = replication.report("site").counters
    assert (counters["files_copied"], counters["adopted"]) == (2, 58 + 3)  # and directories
    assert counters["bytes_written"] == 2000
    kept = [path for path in replication.left_over("site") if os.path.basename(path) != "surplus"]
    assert sorted(path.split("/", 2)[2] for path in kept if path.count("/") > 2) == [
        "a/7",
        "surplus/file",
    ]


def test_a_second_replicator_is_refused_and_does_no_harm(
    mounting: Mounting, replicating: Replicating
) -> None:
    mounted = mounting()
    replication = replicating(mounted.journal, "site")
    same(mounted, replication)
    second = run("run", "--journal", mounted.journal, *replication.options())
    assert (second.returncode, len(second.stderr.splitlines())) == (69, 1), second.stderr
    (mounted.mountpoint / "file").write_text("content")
    same(mounted, replication)
    replication.stop()


def test_what_is_already_gone_or_moved_when_it_is_looked_at(
    mounting: Mounting, replicating: Replicating
) -> None:
    """Nothing of a night's work is replicated one by one when the replicator comes back."""
    mounted = mounting()
    replication = replicating(mounted.journal, "site")
    replication.settle()
    replication.stop()
    tree = mounted.mountpoint
    for number in range(200):
        temporary = tree / "x.tmp"
        temporary.write_bytes(b"%d" % number * 1000)
        temporary.replace(tree / "x")
        (tree / f"gone{number}").write_text("never seen")
        (tree / f"gone{number}").unlink()
    replication.start()
    same(mounted, replication)
    replication.stop()
    assert replication.report("site").counters["files_copied"] == 1
