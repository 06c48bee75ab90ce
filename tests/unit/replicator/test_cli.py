"""The command as people use it: help, versions, and what is wrong in one line with its code."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mirrorfs.journal.record import Checkpoint, Kind
from mirrorfs.journal.writer import JournalWriter
from replicator.cli import main
from tests.support.reports import held, journal_at, put_report, state_of

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Done:
    """What a command said, and its exit code."""

    returncode: int
    stdout: str
    stderr: str


def replicator(*arguments: str | Path) -> Done:
    """Run the command in this process: starting Python takes longer than all the rest."""
    streams = [io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2)]
    with (
        contextlib.redirect_stdout(streams[0]),
        contextlib.redirect_stderr(streams[1]),
        pytest.raises(SystemExit) as ended,
    ):
        main([str(argument) for argument in arguments])
    texts = []
    for stream in streams:
        stream.flush()
        stream.seek(0)
        texts.append(stream.read())
    assert isinstance(ended.value.code, int)
    return Done(ended.value.code, *texts)


@pytest.fixture(autouse=True)
def _eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def writer(journal: Path) -> Iterator[JournalWriter]:
    made = journal_at(journal)
    made.append(Kind.CHECKPOINT, Checkpoint("x"))
    yield made
    made.close()


COMMANDS = [[], ["run"], ["attach"], ["status"], ["verify"], ["wait"]]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_fits_eighty_columns(command: list[str]) -> None:
    done = replicator(*command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_version() -> None:
    done = replicator("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("replicator ")


WRONG = {
    "command": (["frobnicate"], "No such command"),
    "option": (["run", "--frob"], "No such option"),
    "no volume": (["run"], "journal: missing: --journal DIR, or a volume file"),
    "no site": (["run", "--journal", "/j"], "option '--site': missing"),
    "bad site": (["run", "--journal", "/j", "--site", "x"], "NAME=URL is allowed"),
    "two files": (["run", "a", "b"], "unexpected extra argument"),
    "attach nothing": (["attach", "--journal", "/j"], "option '--site': one is needed"),
    "attach unknown": (["attach", "--journal", "/j", "--site", "x"], "x: not known: NAME=URL"),
    "watched json": (["status", "--journal", "/j", "--json", "--watch"], "one of them"),
    "json nagios": (["status", "--journal", "/j", "--json", "--nagios"], "one of them"),
    "part": (["verify", "--journal", "/j"], "option '--full': missing"),
    "verify nothing": (["verify", "--full", "--journal", "/j"], "no site has ever been"),
    "wait for nothing": (["wait", "--journal", "/j", "--site", "x"], "arguments: [VOLUME.toml]"),
    "explain nothing": (["explain", "--journal", "/j"], "arguments: [VOLUME.toml] and a path"),
    "explain two": (["explain", "--journal", "/j", "a", "b", "c"], "arguments: [VOLUME.toml]"),
    "lag over nan": (["lag", "--journal", "/j", "--over", "nan"], "'--over': seconds from 0 on"),
    "pause reason": (["pause", "--journal", "/j", "--reason", "a\nb", "x"], "'--reason': print"),
    "retry nothing": (["retry", "--journal", "/j"], "paths or ids, or --all"),
    "retry all and some": (["retry", "--journal", "/j", "--all", "x"], "paths or ids, or --all"),
    "skip for no reason": (["skip", "--journal", "/j", "x"], "option '--reason': missing"),
    "pause nothing": (["pause", "--journal", "/j"], "arguments: [VOLUME.toml] and a site"),
    "pause nobody": (["pause", "--journal", "/j", "x"], "option '--site': x: not known"),
    "failed nobody": (["failed", "--journal", "/j", "x"], "option '--site': x: not known"),
    "checkpoint now": (["checkpoint", "--journal", "/j", "now"], "'now': 1 to 255 printable"),
    "checkpoint 17": (["checkpoint", "--journal", "/j", "17"], "'17': 1 to 255 printable"),
    "checkpoint path": (["checkpoint", "--journal", "/j", "a/b"], "'a/b': 1 to 255 printable"),
    "lag twice": (["lag", "--journal", "/j", "--csv", "--json"], "one of them"),
    "lag since": (["lag", "--journal", "/j", "--since", "noon"], "noon: a time ago is allowed"),
    "lag over": (["lag", "--journal", "/j", "--over", "-1"], "'--over': seconds from 0 on"),
    "lag of nothing": (["lag", "--journal", "/j"], "option '--site': missing: no site is known"),
    "lag slice": (["lag", "--journal", "/j", "--slice", "week"], "'week' is not one of"),
    "top": (["top", "--journal", "/j", "--by", "size"], "'size' is not one of"),
    "wait for whom": (["wait", "--journal", "/j", "now"], "option '--site': missing"),
    "time": (["wait", "--journal", "/j", "--site", "x", "--timeout", "-1", "now"], "-1"),
}


@pytest.mark.parametrize(("arguments", "says"), WRONG.values(), ids=WRONG.keys())
def test_usage_errors(arguments: list[str], says: str) -> None:
    done = replicator(*arguments)
    assert (done.returncode, done.stdout) == (64, "")
    assert done.stderr.startswith("replicator: ")
    assert len(done.stderr.splitlines()) == 1
    assert says in done.stderr


@pytest.mark.parametrize(
    "command",
    [["status"], ["wait", "--site", "x", "now"], ["verify", "--full", "--site", "x=/x"]],
    ids=lambda command: command[0],
)
def test_no_journal(tmp_path: Path, command: list[str]) -> None:
    for directory in (tmp_path, tmp_path / "none"):
        done = replicator(*command, "--journal", directory)
        assert done.returncode == 66
        assert done.stderr == f"replicator: {directory}: no journal there\n"


def test_a_wrong_volume_file(tmp_path: Path) -> None:
    file = tmp_path / "prod.toml"
    file.write_text("[volume]\nname = 'x'\n[[sites]]\n")
    done = replicator("status", file)
    assert done.returncode == 65
    assert done.stderr == (
        f"replicator: {file}: sites: not known; allowed: [volume], [replicator], [[site]]\n"
    )


def test_a_volume_file_names_journal_and_sites(
    tmp_path: Path, journal: Path, writer: JournalWriter
) -> None:
    file = tmp_path / "prod.toml"
    file.write_text(f'[volume]\njournal = "{journal}"\n[[site]]\nname = "backup"\nurl = "/mnt/b"\n')
    told = json.loads(replicator("status", "--json", file).stdout)
    assert [site["state"] for site in told["sites"]] == ["never ran"]
    put_report(journal, state_of(writer))
    assert replicator("wait", file, "now").returncode == 0
    assert replicator("wait", file, "1").returncode == 0


def test_wait(journal: Path, writer: JournalWriter) -> None:
    words = ["wait", "--journal", str(journal), "--site", "backup", "--timeout", "0"]
    put_report(journal, state_of(writer))
    assert replicator(*words, "now").returncode == 0
    late = replicator(*words, "2")
    assert late.returncode == 1
    assert late.stderr == "replicator: site backup: record 1 of 2\n"
    put_report(journal, state_of(writer, held=[held(1)]))
    failed = replicator(*words, "now")
    assert failed.returncode == 2
    assert failed.stderr == (
        "replicator: site backup: 1 step failed, the first is /a/b: Permission denied\n"
    )


def test_a_corrupt_journal(journal: Path, writer: JournalWriter) -> None:
    (segment,) = journal.glob("*.seg")
    segment.write_bytes(b"x" * 100)
    done = replicator("wait", "--journal", journal, "--site", "backup", "now")
    assert done.returncode == 74
    assert len(done.stderr.splitlines()) == 1
    done = replicator("status", "--journal", journal)
    assert (done.returncode, done.stderr) == (2, "")
    assert "the journal is corrupt" in done.stdout


def test_watch_ends_with_an_interrupt(journal: Path, writer: JournalWriter) -> None:
    watching = subprocess.Popen(
        [sys.executable, "-m", "replicator", "status", "--watch", "--journal", journal],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert watching.stdout is not None
        assert watching.stdout.readline()
        watching.send_signal(signal.SIGINT)
        _, errors = watching.communicate(timeout=60)
    finally:
        watching.kill()
        watching.communicate()
    assert (watching.returncode, errors) == (0, "")


def test_options_of_the_background_need_it(journal: Path) -> None:
    for option in ("--log", "--pid-file"):
        site = ("--site", "s=/mnt/s")
        done = replicator("run", "--journal", journal, *site, option, journal / "x")
        line = f"replicator: option '{option}': only with --background\n"
        assert (done.returncode, done.stderr) == (64, line)
