"""Real programs on a mounted federation: their own checks pass, and what they wrote is there."""

from __future__ import annotations

import os
import random
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.support.federation import Federation
from tests.support.federation import federation as federation
from tests.support.federation_mounts import FederationMount
from tests.support.federation_mounts import federation_mount as federation_mount

pytestmark = [pytest.mark.xrootd, pytest.mark.fuse]


def _run(*words: str | Path, cwd: Path) -> str:
    done = subprocess.run(words, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def work(federation_mount: FederationMount, request: pytest.FixtureRequest) -> Path:
    """A new directory in the mount."""
    path: Path = federation_mount.mountpoint / request.node.name
    path.mkdir()
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small tree of directories, files of several sizes and modes, and symbolic links."""
    choice = random.Random(1)
    top = tmp_path / "tree"
    for number in range(6):
        directory = top / f"part{number % 3}" / f"more{number}"
        directory.mkdir(parents=True)
        for file in range(8):
            path = directory / f"file{file}"
            path.write_bytes(choice.randbytes(choice.choice((0, 10, 4096, 100_000))))
            path.chmod((0o600, 0o644, 0o755)[file % 3])
            os.utime(path, (10**9 + file, 10**9 + number))
        (directory / "link").symlink_to("file1")
    (top / "large").write_bytes(choice.randbytes(5_000_000))
    (top / "empty").mkdir()
    return top


def _same(one: Path, other: Path) -> None:
    """Content, types, modes, times of files, targets of links."""
    _run("diff", "-r", "--no-dereference", one, other, cwd=one)
    of_files = ("find", ".", "-type", "f", "-printf", "%p %m %s %Ts\\n")
    links = ("find", ".", "-type", "l", "-printf", "%p %l\\n")
    for words in (of_files, links):
        assert sorted(_run(*words, cwd=one).splitlines()) == sorted(
            _run(*words, cwd=other).splitlines()
        )


def test_cp_archive(work: Path, tree: Path) -> None:
    _run("cp", "-a", tree, work / "copy", cwd=work)
    _same(tree, work / "copy")
    _run("cp", "-a", work / "copy", work / "again", cwd=work)
    _same(tree, work / "again")


def test_tar(work: Path, tree: Path, tmp_path: Path) -> None:
    archive = tmp_path / "tree.tar"
    with tarfile.open(archive, "w") as made:
        made.add(tree, "tree")
    _run("tar", "-x", "-f", archive, cwd=work)
    _same(tree, work / "tree")
    _run("tar", "-c", "-f", work / "made.tar", "tree", cwd=work)
    _run("tar", "--diff", "-f", work / "made.tar", cwd=work)


def test_git(work: Path, tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    origin.mkdir()
    git = ("git", "-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "gc.auto=0")
    _run(*git, "init", "-q", "-b", "main", cwd=origin)
    for number in range(4):
        for name in ("a", "b"):
            (origin / f"{name}{number}.txt").write_text(f"{name} in {number}\n" * 100)
        _run(*git, "add", "-A", cwd=origin)
        _run(*git, "commit", "-qm", f"number {number}", cwd=origin)
    clone = work / "clone"
    _run("git", "clone", "-q", "--no-local", origin, clone, cwd=work)
    _run("git", "fsck", "--full", "--strict", cwd=clone)
    assert _run("git", "status", "--porcelain", cwd=clone) == ""
    (clone / "new.txt").write_text("new\n")
    _run(*git, "add", "-A", cwd=clone)
    _run(*git, "commit", "-qm", "on the mount", cwd=clone)
    _run("git", "gc", "-q", cwd=clone)
    _run("git", "fsck", "--full", "--strict", cwd=clone)
    assert len(_run("git", "log", "--format=%s", cwd=clone).splitlines()) == 5


def test_rsync(work: Path, tree: Path) -> None:
    _run("rsync", "-rlpt", f"{tree}/", work / "copy", cwd=work)
    _same(tree, work / "copy")
    assert _run("rsync", "-rlpti", f"{tree}/", work / "copy", cwd=work) == ""


def test_rm_recursive(federation: Federation, work: Path, tree: Path) -> None:
    _run("cp", "-r", "--no-dereference", tree, work / "copy", cwd=work)
    for server in federation.servers:
        assert any(name.startswith(f"/{work.name}/") for name in server.files())
    _run("rm", "-r", "copy", cwd=work)
    assert os.listdir(work) == []
    assert federation.holders(f"/{work.name}/copy") == []


def test_dd_with_fsync(work: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(random.Random(2).randbytes(9_000_001))
    _run("dd", f"if={source}", f"of={work / 'file'}", "bs=64k", "conv=fsync", cwd=work)
    _run("cmp", source, work / "file", cwd=work)


def test_sed_in_place_and_grep(work: Path) -> None:
    (work / "text").write_text("one\ntwo\nthree\n")
    _run("sed", "-i", "s/two/zwei/", "text", cwd=work)
    assert (work / "text").read_text() == "one\nzwei\nthree\n"
    assert _run("grep", "-r", "zwei", ".", cwd=work) == "./text:zwei\n"
