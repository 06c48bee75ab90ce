"""Who did what to a file: `replicator log` and `mirrorfs journal cat` on a real mount."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mirrorfs.journal.paths import inside
from mirrorfs.journal.reader import JournalReader
from tests.support.mounts import Mounted, Mounting, mounting
from tests.support.mounts import run as mirrorfs
from tests.support.replicating import run as replicator

pytestmark = pytest.mark.fuse

__all__ = ["mounting"]

SOMEBODY = 1234


def write(path: Path, job: str) -> int:
    """Write a file as a batch job of somebody; its process id."""
    program = "import sys; open(sys.argv[1], 'w').write('x')"
    process = subprocess.Popen(
        [sys.executable, "-c", program, path.name],
        cwd=path.parent,  # what is above it is closed to others
        env={**os.environ, "SLURM_JOB_ID": job},
        user=SOMEBODY,
        group=SOMEBODY,
    )
    assert process.wait(60) == 0
    return process.pid


def log(mounted: Mounted, path: str | Path, *words: str) -> list[dict[str, Any]]:
    done = replicator("log", "--journal", mounted.journal, "--json", *words, path)
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


def said(records: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(record["kind"], record["path"]) for record in records]


def test_who_wrote_a_file_through_its_renames(mounting: Mounting) -> None:
    mounted = mounting()
    top = mounted.mountpoint
    (top / "old").mkdir()
    os.chmod(top / "old", 0o777)
    pid = write(top / "old/field.tmp", "4711")
    os.replace(top / "old/field.tmp", top / "old/field")
    os.replace(top / "old", top / "new")
    write(top / "new/other", "4712")
    os.chmod(top / "new/field", 0o600)
    found = log(mounted, "new/field")
    expected = [
        ("create", "old/field.tmp"),
        ("write", "old/field.tmp"),
        ("rename", "old/field"),
        ("rename", "new"),
        ("attributes", "new/field"),
    ]
    assert said(found) == expected
    assert found[1]["who"] == {"pid": pid, "uid": SOMEBODY, "job": "4711"}
    assert [record["sequence"] for record in found] == sorted(r["sequence"] for r in found)
    text = replicator("log", "--journal", mounted.journal, "/new/field").stdout
    assert f"by {pid} uid {SOMEBODY} job 4711" in text
    assert said(log(mounted, mounted.source / "new/field")) == expected
    assert said(log(mounted, "new/field", "--since", "1h")) == expected
    later = ("--since", "2100-01-01", "new/field")
    assert replicator("log", "--journal", mounted.journal, *later).stdout == ""
    (top / "new/field").unlink()
    mounted.umount()
    assert said(log(mounted, "new/field")) == [*expected, ("unlink", "new/field")]


def test_an_object_that_no_record_has_under_its_path(mounting: Mounting) -> None:
    """It was there before, and its directory was renamed behind the mount: the source tells."""
    mounted = mounting()
    (mounted.mountpoint / "d").mkdir()
    (mounted.mountpoint / "d/f").write_text("x")
    mounted.umount()
    os.replace(mounted.source / "d", mounted.source / "e")
    kinds = [record["kind"] for record in log(mounted, "e/f")]
    assert kinds == ["create", "write"]


def test_a_path_as_the_shell_has_it(mounting: Mounting, monkeypatch: pytest.MonkeyPatch) -> None:
    mounted = mounting()
    (mounted.mountpoint / "d").mkdir()
    (mounted.mountpoint / "d/f").write_text("x")
    expected = log(mounted, "d/f")
    assert [record["kind"] for record in expected] == ["create", "write"]
    assert log(mounted, mounted.source / "d/f") == expected
    assert log(mounted, mounted.mountpoint / "d/f") == expected
    for path in ("d/g", mounted.journal):
        done = replicator("log", "--journal", mounted.journal, path)
        line = f"replicator: {path}: the journal has no records about it\n"
        assert (done.returncode, done.stdout, done.stderr) == (0, "", line)
    with JournalReader(str(mounted.journal)) as reader, monkeypatch.context() as here:
        here.chdir(mounted.mountpoint / "d")
        assert inside(b"f", reader) == b"d/f"


def test_searches(mounting: Mounting) -> None:
    mounted = mounting()
    top = mounted.mountpoint
    os.chmod(top, 0o777)
    write(top / "a.grib", "4711")
    write(top / "b.grib", "4712")
    (top / "c.txt").write_text("x")

    def cat(*words: str) -> list[tuple[str, str]]:
        done = mirrorfs("journal", "cat", "--json", *words, mounted.journal)
        assert (done.returncode, done.stderr) == (0, "")
        return said([json.loads(line) for line in done.stdout.splitlines()])

    assert cat("--job", "4711") == [("write", "a.grib")]
    assert cat("--uid", str(SOMEBODY)) == [("write", "a.grib"), ("write", "b.grib")]
    assert cat("--uid", str(SOMEBODY), "--path", "b.grib") == [("write", "b.grib")]
    assert cat("--path", "*.grib", "--kind", "create") == [
        ("create", "a.grib"),
        ("create", "b.grib"),
    ]
    assert cat("--path", "*.grib", "--kind", "create", "-n", "1") == [("create", "a.grib")]
    assert cat("--path", str(mounted.source / "c.txt"), "--since", "1h") == [
        ("create", "c.txt"),
        ("write", "c.txt"),
    ]
    assert cat("--until", "2020-01-01") == []


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("log",), 64, "and a path"),
        (("log", "--since", "soon", "a"), 64, "option '--since': soon"),
        (("log", "/no/such.toml", "a"), 65, "/no/such.toml"),
    ],
)
def test_what_log_refuses(mounting: Mounting, words: tuple[str, ...], code: int, text: str) -> None:
    mounted = mounting()
    volume = () if "/no/such.toml" in words else ("--journal", mounted.journal)
    done = replicator(*words, *volume)
    assert done.returncode == code
    assert text in done.stderr
    assert len(done.stderr.splitlines()) == 1
