"""Real applications on a mount over its source: their own checks pass, and both sides agree."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from mirrorfs.journal.control_client import ControlClient
from tests.support.mounts import ROOT, Mounted, Mounting, mounting
from tests.support.overlay import as_user, fails, limited, overlaid
from tests.support.trees import snapshot

pytestmark = pytest.mark.fuse

__all__ = ["mounting"]


def _run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _same(overlay: Mounted, path: Path) -> None:
    """What jobs see is what the source holds."""
    assert snapshot(path) == snapshot(overlay.source / path.relative_to(overlay.mountpoint))


def _sources(directory: Path) -> None:
    """A small program in a few files with a Makefile."""
    directory.mkdir(exist_ok=True)
    names = [f"part{number}" for number in range(8)]
    for name in names:
        (directory / f"{name}.c").write_text(f"int {name}(void) {{ return 1; }}\n")
    calls = " + ".join(f"{name}()" for name in names)
    heads = "".join(f"int {name}(void);\n" for name in names)
    (directory / "main.c").write_text(f"{heads}int main(void) {{ return {calls} != 8; }}\n")
    objects = " ".join(f"{name}.o" for name in ("main", *names))
    (directory / "Makefile").write_text(f"program: {objects}\n\tcc -o $@ $^\n")


def test_git(overlay: Mounted, work: Path) -> None:
    plain = work / "plain"
    _sources(plain)
    git = ("git", "-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "gc.auto=0")
    _run(*git, "init", "-q", cwd=plain)
    for number in range(5):
        (plain / "part0.c").write_text(f"int part0(void) {{ return {number}; }}\n")
        _run(*git, "add", "-A", cwd=plain)
        _run(*git, "commit", "-qm", f"number {number}", cwd=plain)
    _run("git", "clone", "-q", "--no-local", plain, work / "clone", cwd=work)
    _run("git", "gc", "-q", cwd=work / "clone")
    _run("git", "fsck", "--full", "--strict", cwd=work / "clone")
    assert _run("git", "status", "--porcelain", cwd=work / "clone") == ""
    (work / "clone").rename(work / "moved")
    assert _run("git", "status", "--porcelain", cwd=work / "moved") == ""
    _same(overlay, work)


def test_compiling(overlay: Mounted, work: Path) -> None:
    _sources(work)
    _run("make", "-j4", cwd=work)
    _run(work / "program", cwd=work)
    assert "up to date" in _run("make", cwd=work)
    (work / "part3.c").write_text("int part3(void) { return 2 - 1; }\n")
    assert _run("make", cwd=work).count("part3.c") == 1
    _run(work / "program", cwd=work)
    _same(overlay, work)


def test_archives_and_copies(overlay: Mounted, work: Path) -> None:
    original = work / "original"
    (original / "sub").mkdir(parents=True)
    (original / "file").write_bytes(os.urandom(300_000))
    (original / "sub" / "script").write_text("#!/bin/sh\n")
    (original / "sub" / "script").chmod(0o4755)
    os.link(original / "file", original / "sub" / "hard")
    (original / "soft").symlink_to("sub/script")
    os.mkfifo(original / "fifo", 0o620)
    os.chown(original / "sub", 5, 6)
    os.setxattr(original / "file", "user.a", b"b")
    _run("setfacl", "-m", "u:77:rx", "-m", "d:g:78:r", original / "sub", cwd=work)
    with open(original / "sparse", "wb") as file:
        file.truncate(50 << 20)
    for path in (*original.rglob("*"), original):
        os.utime(path, ns=(1, 1_600_000_000_123_456_789), follow_symlinks=False)
    wanted = snapshot(original)
    _run("cp", "-a", original, work / "copied", cwd=work)
    everything = ("--format=posix", "--xattrs", "--acls", "--xattrs-include=*", "--sparse")
    _run("tar", *everything, "-cf", "a.tar", "original", cwd=work)
    (work / "unpacked").mkdir()
    _run("tar", *everything, "-xpf", "../a.tar", cwd=work / "unpacked")
    _run("rsync", "-aHAXS", f"{original}/", "synced", cwd=work)
    for name in ("copied", "unpacked/original", "synced"):
        assert snapshot(work / name) == wanted, name
    _same(overlay, work)
    assert (work / "copied" / "sparse").stat().st_blocks < 100


def test_an_environment_and_an_archive_of_many_files(overlay: Mounted, work: Path) -> None:
    _run(sys.executable, "-m", "venv", "--without-pip", "environment", cwd=work)
    _run(work / "environment" / "bin" / "python", "-c", "import json, sqlite3", cwd=work)
    with tarfile.open(work / "project.tar", "w") as archive:
        archive.add(ROOT / "mirrorfs", "mirrorfs")
    _run("tar", "-xf", "project.tar", cwd=work)
    _same(overlay, work)


def test_a_directory_of_8_000_names(overlay: Mounted, work: Path) -> None:
    below = overlay.source / work.relative_to(overlay.mountpoint)
    for number in range(8_000):
        os.mknod(below / f"{number:05}")
    assert len(os.listdir(work)) == 8_000
    _run("rm", "-r", work, cwd=overlay.mountpoint)
    assert not below.exists()


def test_few_descriptors(tmp_path: Path) -> None:
    """A daemon that may open few files serves a tree of many directories and open files."""
    with limited(tmp_path, 160) as overlay:
        places = [overlay.mountpoint / f"d{number}" for number in range(400)]
        for place in places:
            place.mkdir()
            (place / "f").write_text(place.name)
        held = [open(place / "f") for place in places[:40]]  # noqa: SIM115 - all at once
        for place in places:
            assert (place / "f").read_text() == place.name
            (place / "f").rename(place / "g")
        assert [file.read() for file in held] == [place.name for place in places[:40]]
        for file in held:
            file.close()
        _same(overlay, overlay.mountpoint)


def test_the_kernel_is_asked_to_forget(tmp_path: Path) -> None:
    """However many files are looked at, only so many are known at a time."""
    with overlaid(tmp_path, "inode-cache=1000") as overlay:
        for number in range(30):
            directory = overlay.source / f"d{number}"
            directory.mkdir()
            for name in range(200):
                os.mknod(directory / str(name))
        (overlay.source / "open").write_text("held")
        with open(overlay.mountpoint / "open") as held:
            assert len(list(overlay.mountpoint.rglob("*"))) == 30 * 201 + 1
            with ControlClient(str(overlay.journal)) as client:
                for directory in sorted(overlay.mountpoint.glob("d*")):
                    assert len(list(directory.iterdir())) == 200
                    while client.status().nodes > 1500:  # the kernel forgets in its own time
                        os.stat(overlay.mountpoint)
            assert held.read() == "held"
        (overlay.mountpoint / "d3" / "7").write_text("goes on")
        _same(overlay, overlay.mountpoint)


def test_another_file_system_inside_is_hidden_and_reported(
    tmp_path: Path, mounting: Mounting
) -> None:
    inside = tmp_path / "volume" / "inside"
    inside.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", inside], check=True)
    try:
        overlay = mounting()
        assert os.listdir(overlay.mountpoint) == []
        for _ in range(2):
            assert fails(errno.EXDEV, lambda: os.stat(overlay.mountpoint / "inside"))
        log = (overlay.journal / "mirrorfs.log").read_text()
        assert log.count("inside: another file system") == 1
    finally:
        subprocess.run(["umount", inside], check=True)


def test_a_mount_over_its_source_hides_the_raw_tree(tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume" / "before").write_text("1")
    with overlaid(tmp_path, over=True) as overlay:
        assert overlay.source == overlay.mountpoint
        assert (overlay.mountpoint / "before").read_text() == "1"
        (overlay.mountpoint / "d").mkdir()
        (overlay.mountpoint / "d").chmod(0o777)
        assert as_user("open(arg[0] + '/f', 'w').close()", overlay.mountpoint / "d").returncode == 0
        assert not (overlay.mountpoint / ".mirrorfs").exists()
    assert sorted(os.listdir(tmp_path / "volume")) == [".mirrorfs", "before", "d"]
