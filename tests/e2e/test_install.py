"""`make install` into a directory, as a packager does it, and `make uninstall`."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from pathlib import Path

import pytest

from tests.support.machine import make

COMMANDS = {"mirrorfs", "replicator", "xrootdfs"}
HELPERS = {
    f"{way}.{kind}"
    for way in ("mount", "umount")
    for kind in ("mirrorfs", "xrootdfs", "fuse.mirrorfs", "fuse.xrootdfs")
}


def names(directory: Path) -> set[str]:
    return set(os.listdir(directory))


@pytest.fixture(scope="module", params=["/usr", "/opt/mirrorfs"])
def installed(
    request: pytest.FixtureRequest, wheels: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """A directory to pack up, and the prefix."""
    root = tmp_path_factory.mktemp("root")
    make("install", wheels, f"DESTDIR={root}", f"PREFIX={request.param}")
    return root, request.param


def test_everything_has_its_place(installed: tuple[Path, str]) -> None:
    root, prefix = installed
    below = Path(f"{root}{prefix}")
    assert names(below / "bin") == COMMANDS
    assert names(root / "sbin") == HELPERS
    assert names(below / "share/man/man1") == {f"{name}.1" for name in COMMANDS}
    assert names(below / "share/man/man8") == {"mount.mirrorfs.8", "mount.xrootdfs.8"}
    units = root / ("usr/lib" if prefix == "/usr" else "etc") / "systemd/system"
    assert names(units) == {f"{name}@.service" for name in COMMANDS}
    assert names(root / "etc/init.d") == COMMANDS
    assert {"fstab", "prod.toml", "auto.grid"} <= names(below / "share/doc/mirrorfs/examples")
    assert names(root / "etc/mirrorfs") == names(root / "etc/xrootdfs") == set()
    assert names(below / "lib") <= {"mirrorfs", "systemd"}


def test_nothing_knows_where_it_was_put_together(installed: tuple[Path, str]) -> None:
    root, prefix = installed
    found = subprocess.run(["grep", "-rlF", str(root), root], capture_output=True, text=True)
    assert found.stdout == ""
    found = subprocess.run(["grep", "-rl", "@BINDIR@", root], capture_output=True, text=True)
    assert found.stdout == ""
    for name in HELPERS:
        text = (root / "sbin" / name).read_text()
        assert re.search(rf"(?m)^PATH={prefix}/bin:", text)
    for path in root.rglob("*"):
        if path.is_symlink():
            target = os.readlink(path)
            assert not target.startswith("/") or target.startswith("/usr/bin/python")
            continue
        mode = path.stat().st_mode
        assert not mode & (stat.S_IWGRP | stat.S_IWOTH), path
        assert mode & stat.S_IROTH, path
        assert path.stat().st_uid == os.getuid(), path


def test_the_commands_use_what_was_installed_with_them(installed: tuple[Path, str]) -> None:
    root, prefix = installed
    inside = f"{prefix}/lib/mirrorfs"
    for name in COMMANDS:
        command = Path(f"{root}{prefix}/bin/{name}")
        assert os.readlink(command) == f"../lib/mirrorfs/bin/{name}"
        assert command.read_text().startswith(f"#!{inside}/bin/python -I\n")
        python = f"{root}{inside}/bin/python"
        done = subprocess.run(
            [python, "-I", command, "--version"], capture_output=True, text=True, env={}, cwd="/"
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert re.fullmatch(rf"{name} [0-9.]+\n", done.stdout)
    script = "import mirrorfs, replicator, xrootdfs, sys; print(mirrorfs.__path__[0], sys.prefix)"
    done = subprocess.run([python, "-I", "-c", script], capture_output=True, text=True, env={})
    assert [path.startswith(f"{root}{inside}") for path in done.stdout.split()] == [True, True]


def test_installed_again_and_uninstalled(installed: tuple[Path, str], wheels: Path) -> None:
    root, prefix = installed
    variables = (f"DESTDIR={root}", f"PREFIX={prefix}")
    leftover = Path(f"{root}{prefix}/lib/mirrorfs/lib/leftover.py")
    leftover.touch()
    make("install", wheels, *variables)
    assert not leftover.exists()
    configuration = root / "etc/mirrorfs/prod.toml"
    configuration.write_text("[volume]\n")
    make("uninstall", wheels, *variables)
    left = [path for path in root.rglob("*") if path.is_symlink() or not path.is_dir()]
    assert left == [configuration]
