"""The command as people use it: help, exit codes, journals looked into."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mirrorfs.journal.recovery import open_journal
from mirrorfs.journal.writer import WriterOptions
from tests.support.records import EVERY_KIND, SOURCE, VOLUME

ROOT = Path(__file__).parents[3]


def mirrorfs(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mirrorfs", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "COLUMNS": "80"},
    )


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A journal of every kind of record, in several segments."""
    directory = tmp_path_factory.mktemp("cli") / "journal"
    options = WriterOptions(segment_bytes_max=800)
    writer = open_journal(str(directory), VOLUME, SOURCE, "node17", options).writer
    for kind, flags, body in EVERY_KIND:
        writer.append(kind, body, flags)
    writer.close()
    return directory


COMMANDS = [
    [],
    ["mount"],
    ["umount"],
    ["status"],
    ["journal"],
    ["journal", "ls"],
    ["journal", "cat"],
    ["journal", "verify"],
    ["journal", "export"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_fits_eighty_columns(command: list[str]) -> None:
    done = mirrorfs(*command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Usage: {' '.join(['mirrorfs', *command])} ")
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_version() -> None:
    done = mirrorfs("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("mirrorfs ")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--colour"], "No such option"),
        (["fly"], "No such command 'fly'"),
        (["journal", "cat"], "Missing argument 'DIR'"),
        (["journal", "cat", "DIR", "--from", "0"], "0 is not in the range"),
        (["journal", "cat", "DIR", "-n", "many"], "not a valid integer"),
        (["mount", "a", "b", "c"], "unexpected extra argument"),
        (["mount", "a", "b", "-o", "colour=green"], "option 'colour=green'"),
    ],
)
def test_usage_errors(arguments: list[str], says: str) -> None:
    done = mirrorfs(*arguments)
    assert (done.returncode, done.stdout) == (64, "")
    assert done.stderr.startswith("mirrorfs: ")
    assert done.stderr.count("\n") == 1
    assert says.lower() in done.stderr.lower()


@pytest.mark.parametrize("command", ["ls", "cat", "verify"])
def test_no_journal(tmp_path: Path, command: str) -> None:
    done = mirrorfs("journal", command, tmp_path)
    assert (done.returncode, done.stdout) == (66, "")
    assert done.stderr == f"mirrorfs: {tmp_path}: no journal there\n"


def test_ls(journal: Path) -> None:
    lines = mirrorfs("journal", "ls", journal).stdout.splitlines()
    assert len(lines) == len(list(journal.glob("*.seg"))) > 2
    assert [line.split()[-1] for line in lines] == ["sealed"] * (len(lines) - 1) + ["active"]
    values = [
        json.loads(line)
        for line in mirrorfs("journal", "ls", "--json", journal).stdout.splitlines()
    ]
    assert [value["name"] for value in values] == [line.split()[0] for line in lines]
    assert values[0]["first"] == 1
    assert values[-1]["last"] == len(EVERY_KIND)
    assert [v["last"] + 1 for v in values[:-1]] == [v["first"] for v in values[1:]]
    assert [v["bytes"] for v in values] == [(journal / v["name"]).stat().st_size for v in values]


def test_cat(journal: Path) -> None:
    lines = mirrorfs("journal", "cat", journal).stdout.splitlines()
    assert [line.split()[2] for line in lines] == [kind.label for kind, _, _ in EVERY_KIND]
    values = [
        json.loads(line)
        for line in mirrorfs("journal", "cat", "--json", journal).stdout.splitlines()
    ]
    assert [value["sequence"] for value in values] == list(range(1, len(EVERY_KIND) + 1))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--from", "5"], range(5, 18)),
        (["--from", "5", "-n", "2"], range(5, 7)),
        (["-n", "9"], range(1, 10)),
        (["--from", "18"], range(0)),
    ],
)
def test_cat_a_part(journal: Path, options: list[str], expected: range) -> None:
    done = mirrorfs("journal", "cat", journal, *options)
    assert [int(line.split()[0]) for line in done.stdout.splitlines()] == list(expected)


def test_cat_from_beyond_the_end(journal: Path) -> None:
    done = mirrorfs("journal", "cat", journal, "--from", "99")
    assert (done.returncode, done.stdout) == (66, "")
    assert "there is no record 99, 17 is the last" in done.stderr


def test_verify(journal: Path, tmp_path: Path) -> None:
    done = mirrorfs("journal", "verify", journal)
    assert done.returncode == 0
    assert f"17 records from 1 in {len(list(journal.glob('*.seg')))} segments, whole" in done.stdout
    value = json.loads(mirrorfs("journal", "verify", "--json", journal).stdout)
    assert (value["records"], value["torn_bytes"]) == (17, 0)


def test_verify_a_torn_and_a_corrupt_journal(journal: Path, tmp_path: Path) -> None:
    for path in journal.glob("*.seg"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    first, *_, last = sorted(tmp_path.glob("*.seg"))
    with last.open("ab") as stream:
        stream.write(b"torn")
    done = mirrorfs("journal", "verify", tmp_path)
    assert done.returncode == 0
    assert "4 bytes after the last record" in done.stdout
    data = bytearray(first.read_bytes())
    data[-1] ^= 1
    first.write_bytes(data)
    for command in ("verify", "cat"):
        done = mirrorfs("journal", command, tmp_path)
        assert done.returncode == 74
        assert done.stderr.startswith(f"mirrorfs: {first}: corrupt at offset ")
        assert done.stderr.count("\n") == 1


def test_status_without_a_daemon(journal: Path) -> None:
    done = mirrorfs("status", journal)
    assert done.returncode == 2
    assert "17 records, ended cleanly" in done.stdout
    value = json.loads(mirrorfs("status", "--json", journal).stdout)
    assert (value["running"], value["head"], value["clean"]) == (False, 17, True)


def test_a_reader_that_goes_away_ends_it_quietly(journal: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "mirrorfs", "journal", "cat", str(journal)]
    done = subprocess.run(
        command, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, timeout=60, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (-signal.SIGPIPE, b"")
