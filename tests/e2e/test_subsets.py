"""Sites that are to have a part of the source only."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from replicator.patterns import Wanted
from tests.support.asking import ask, told
from tests.support.mounts import Mounting, mounting
from tests.support.replicating import Replicating, Replication, replicating, run
from tests.support.trees import Tree, differences, snapshot

__all__ = ["mounting", "replicating"]
pytestmark = pytest.mark.fuse

INCLUDE, EXCLUDE = ["/products/", "*.grid"], ["*.tmp", "/products/raw/"]


def volume_file(path: Path, journal: Path, sites: dict[str, Path], patterns: str) -> Path:
    tables = [
        f'[[site]]\nname = "{name}"\nurl = "file://{at}"\n{patterns if name == "part" else ""}'
        for name, at in sites.items()
    ]
    path.write_text("\n".join([f'[volume]\njournal = "{journal}"\n', *tables]))
    return path


def part(source: Path, wanted: Wanted) -> Tree:
    """What of the source a site is to have."""
    found: Tree = {}
    for path, each in sorted(snapshot(source).items()):
        above = os.path.dirname(path) or b"."
        directory = each.type == "directory"
        if path == b"." or (above in found and wanted(path, directory=directory)):
            found[path] = each
    return {
        path: replace(each, names=tuple(name for name in each.names if name in found))
        for path, each in found.items()
    }


def check(source: Path, replication: Replication, wanted: Wanted) -> None:
    replication.settle()
    assert differences(part(source, wanted), snapshot(replication.sites["part"])) == []
    assert differences(snapshot(source), snapshot(replication.sites["all"])) == []
    done = run("verify", "--full", replication.volume or "")
    assert done.returncode == 0, done.stdout + done.stderr


def fill(top: Path) -> None:
    for name in ("products/nwp", "products/raw", "scratch/run"):
        (top / name).mkdir(parents=True)
        (top / name / "a").write_text(name)
        (top / name / "a.tmp").write_text(name)
        (top / name / "a.grid").write_text(name)


def test_a_site_has_just_what_it_is_to_have(
    mounting: Mounting, replicating: Replicating, tmp_path: Path
) -> None:
    mounted = mounting.prepare()
    source = mounted.source
    fill(source)
    mounted.mount()
    sites = {"part": tmp_path / "part", "all": tmp_path / "all"}
    for each in sites.values():
        each.mkdir()
    patterns = f"include = {INCLUDE}\nexclude = {EXCLUDE}\n"
    volume = volume_file(tmp_path / "v.toml", mounted.journal, sites, patterns)
    replication = replicating.to(mounted.journal, sites, start=False)
    replication.volume = volume
    replication.start()
    wanted = Wanted(INCLUDE, EXCLUDE)
    check(source, replication, wanted)
    assert not (sites["part"] / "products/raw").exists()
    assert not (sites["part"] / "scratch/run/a").exists()
    assert (sites["part"] / "scratch/run/a.grid").exists()

    top = mounted.mountpoint
    (top / "products/nwp/b.tmp").write_text("flag")
    (top / "products/nwp/b.tmp").rename(top / "products/nwp/b")  # comes from what it has not
    (top / "products/nwp/a").rename(top / "scratch/gone")  # and goes there
    os.link(top / "products/nwp/b", top / "scratch/b")
    os.link(top / "products/nwp/b", top / "products/again")
    (top / "scratch/run").rename(top / "products/run")  # of which all is wanted now
    (top / "products/raw/deep").mkdir()
    (top / "products/raw/deep/x").write_text("x")
    (top / "products/raw/deep").rename(top / "products/deep")
    check(source, replication, wanted)
    (top / "products/deep").rename(top / "products/raw/deep")
    (top / "scratch/gone").write_text("rewritten where it is not wanted")
    check(source, replication, wanted)
    assert replication.report("part").state.held == []

    verdicts = {
        path: told(replication, path, "part")["verdict"]
        for path in ("/products/again", "/products/raw/a", "/products/raw", "/scratch/gone")
    }
    assert verdicts == {
        "/products/again": "there",
        "/products/raw/a": "filtered",
        "/products/raw": "filtered",
        "/scratch/gone": "filtered",
    }
    text = ask(replication, "explain", "--site", "part", "/products/raw/a").stdout
    assert "rightly absent: excluded by '/products/raw/'" in text


def test_other_patterns_have_all_compared(
    mounting: Mounting, replicating: Replicating, tmp_path: Path
) -> None:
    mounted = mounting.prepare()
    source = mounted.source
    fill(source)
    mounted.mount()
    sites = {"part": tmp_path / "part", "all": tmp_path / "all"}
    for each in sites.values():
        each.mkdir()
    volume = volume_file(tmp_path / "v.toml", mounted.journal, sites, "")
    replication = replicating.to(mounted.journal, sites, start=False)
    replication.volume = volume
    replication.start()
    check(source, replication, Wanted())
    replication.stop()
    volume_file(volume, mounted.journal, sites, 'exclude = ["*.tmp", "/scratch/"]\n')
    (mounted.mountpoint / "products/late.tmp").write_text("late")
    replication.start()
    check(source, replication, Wanted((), ["*.tmp", "/scratch/"]))
    assert [each for each in replication.left_over("part") if each.startswith("kept")] == []
    replication.stop()
    volume_file(volume, mounted.journal, sites, 'exclude = ["/scratch/"]\n')
    replication.start()
    check(source, replication, Wanted((), ["/scratch/"]))


def test_patterns_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "v.toml"
    sites = {"part": tmp_path}
    volume_file(path, tmp_path, sites, 'exclude = ["!"]\n')
    done = run("status", path)
    told = f"replicator: {path}: site[1].exclude: !: a pattern of gitignore(5) is allowed\n"
    assert (done.returncode, done.stderr) == (65, told)
    volume_file(path, tmp_path, sites, 'include = "*.grid"\n')
    done = run("status", path)
    told = f"replicator: {path}: site[1].include: *.grid: a list of strings is allowed\n"
    assert (done.returncode, done.stderr) == (65, told)
