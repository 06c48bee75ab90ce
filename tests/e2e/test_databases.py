"""Databases on a mount, with their own checks: locks, syncs, recovery, pages written in place."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirrorfs.journal.record import Kind
from tests.support.mounts import Mounted
from tests.support.overlay import below, changes, head, reachable
from tests.support.trees import snapshot

pytestmark = pytest.mark.fuse


_WRITER = """
import sqlite3, sys
path, who, many = sys.argv[1], sys.argv[2], int(sys.argv[3])
database = sqlite3.connect(path, timeout=120, isolation_level=None)
database.execute("pragma synchronous=normal")
for number in range(many):
    database.execute("begin immediate")
    database.execute("insert into t values (?, ?)", (who, number))
    database.execute("update s set n = n + 1")
    database.execute("rollback" if number % 5 == 4 else "commit")
"""


@pytest.mark.parametrize("mode", ["wal", "delete", "truncate", "persist"])
def test_sqlite_with_several_writers(overlay: Mounted, work: Path, mode: str) -> None:
    path = work / "database"
    made = f"pragma journal_mode={mode}; create table t (who, number); create table s (n);"
    subprocess.run(["sqlite3", path, made + "insert into s values (0);"], check=True)
    program = [sys.executable, "-c", _WRITER, str(path)]
    writers = [subprocess.Popen([*program, str(number), "25"]) for number in range(4)]
    assert [writer.wait() for writer in writers] == [0] * 4
    ask = "pragma integrity_check; select count(*) from t; select n from s;"
    said = subprocess.run(["sqlite3", path, ask], check=True, capture_output=True, text=True)
    assert said.stdout.split() == ["ok", "80", "80"]
    assert snapshot(work) == snapshot(below(overlay, work))


class Server:
    """A PostgreSQL server with its data on a mount."""

    def __init__(self, data: Path, sockets: Path) -> None:
        self.data = data
        self._sockets = sockets
        self._programs = max(Path("/usr/lib/postgresql").glob("*/bin"))

    def run(self, program: str, *arguments: str | Path) -> str:
        done = subprocess.run(
            [self._programs / program, *arguments],
            user="postgres",
            group="postgres",
            extra_groups=(),
            env={"PGHOST": str(self._sockets), "PGDATA": str(self.data), "LC_ALL": "C"},
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self) -> None:
        options = f"-c listen_addresses= -c unix_socket_directories={self._sockets}"
        options += " -c shared_buffers=8MB -c max_wal_size=64MB"
        self.run("pg_ctl", "start", "-w", "-l", self.data / "log", "-o", options)

    def stop(self, how: str) -> None:
        self.run("pg_ctl", "stop", "-w", "-m", how)

    def ask(self, question: str) -> str:
        return self.run("psql", "-Atc", question, "postgres").strip()


@pytest.fixture
def server(work: Path) -> Iterator[Server]:
    """In a new directory; not running yet."""
    data = work / "data"
    data.mkdir(0o700)
    os.chmod(work, 0o711)
    subprocess.run(["chown", "postgres:", data], check=True)
    with tempfile.TemporaryDirectory(dir="/tmp") as sockets:
        reachable(Path(sockets))
        os.chmod(sockets, 0o777)
        server = Server(data, Path(sockets))
        yield server
        if (data / "postmaster.pid").exists():
            server.stop("immediate")


@pytest.mark.postgresql
def test_postgresql(overlay: Mounted, server: Server) -> None:
    """It is loaded, crashes, recovers, and finds its own checksums right."""
    before = head(overlay)
    server.run("initdb", "--data-checksums", "--auth=trust", "--no-locale", "-D", server.data)
    server.start()
    server.run("pgbench", "-i", "-q", "-s", "1", "postgres")
    server.run("pgbench", "-n", "-c", "4", "-j", "2", "-t", "40", "postgres")
    server.stop("immediate")
    server.start()
    assert server.ask("select count(*) from pgbench_history") == "160"
    server.run("pgbench", "-n", "-c", "2", "-t", "20", "postgres")
    moved = "select sum(abalance) from pgbench_accounts union select sum(delta) from "
    assert "\n" not in server.ask(f"{moved} pgbench_history")  # both are one number
    server.ask("vacuum full pgbench_accounts")
    server.run("pg_amcheck", "--install-missing", "--heapallindexed", "postgres")
    server.stop("fast")
    assert "Bad checksums:  0" in server.run("pg_checksums", "--check")
    assert snapshot(server.data) == snapshot(below(overlay, server.data))
    kinds = {record.kind for record, _ in changes(overlay, before)}
    assert {Kind.CREATE, Kind.WRITE, Kind.RENAME, Kind.UNLINK} <= kinds
