"""`mirrorfs doctor` before, beside and after real mounts; and what status says."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.mounting import tmpfs
from tests.support.mounts import Mounting, mounting, run
from tests.support.replicating import Replicating, replicating

__all__ = ["mounting", "replicating"]

pytestmark = pytest.mark.fuse


def examined(*arguments: str | Path) -> dict[str, dict[str, Any]]:
    """What doctor finds, by check; other mounts of this host are not looked at."""
    done = run("doctor", *arguments, "--json")
    assert done.returncode in (0, 1, 2), done.stderr
    told = json.loads(done.stdout)
    assert done.returncode == ["ok", "warning", "problem"].index(told["level"])
    assert all(found["do"] for found in told["checks"] if found["level"] != "ok")
    return {found["check"]: found for found in told["checks"] if found["check"] != "mount"}


def volume_file(at: Path, **keys: str) -> Path:
    at.write_text("[volume]\n" + "".join(f'{key} = "{value}"\n' for key, value in keys.items()))
    return at


def test_the_host_alone() -> None:
    found = examined()
    assert {"kernel", "fuse", "engine", "descriptors", "clock"} == set(found)
    lines = run("doctor").stdout.splitlines()
    assert any(line.startswith("ok       fuse") for line in lines)


def test_before_a_mount(mounting: Mounting, tmp_path: Path) -> None:
    prepared = mounting.prepare()
    places = {"source": str(prepared.source), "mountpoint": str(prepared.mountpoint)}
    journal = str(prepared.journal)
    found = examined(volume_file(tmp_path / "v.toml", name="v", journal=journal, **places))
    assert found["journal"]["level"] == "warning"
    assert "on the disk of the source" in found["journal"]["says"]
    assert found["records"]["says"].endswith("does not exist yet")
    assert not prepared.journal.exists()
    for check in ("source", "submounts", "guard", "processes", "sync", "options"):
        assert found[check]["level"] == "ok", found[check]
    inside = str(prepared.source / "journal")
    found = examined(volume_file(tmp_path / "v.toml", name="v", journal=inside, **places))
    assert found["options"]["level"] == "problem"
    assert "inside the source" in found["options"]["says"]
    assert os.listdir(prepared.source) == []


def test_what_is_in_the_way_at_the_source(mounting: Mounting, tmp_path: Path) -> None:
    prepared = mounting.prepare()
    (prepared.source / "d").mkdir()
    holder = subprocess.Popen(["sleep", "600"], cwd=prepared.source / "d")
    try:
        with tmpfs(prepared.source / "other"):
            found = examined(prepared.source)
            assert found["submounts"]["level"] == "warning"
            assert str(prepared.source / "other") in found["submounts"]["says"]
            assert found["processes"]["level"] == "warning"
            assert f"{holder.pid} (sleep)" in found["processes"]["says"]
    finally:
        holder.kill()
        holder.wait()
    assert examined(prepared.source)["processes"]["level"] == "ok"
    assert examined(tmp_path / "missing")["source"]["level"] == "problem"
    assert examined("/proc/self")["source"]["level"] == "problem"


def test_beside_a_mount_over_itself(mounting: Mounting, replicating: Replicating) -> None:
    """Who came before the mount is named; who came after it uses it."""
    mounted = mounting.prepare("guard=on", "force", over=True)
    before = subprocess.Popen(["sleep", "600"], cwd=mounted.source)
    try:
        mounted.mount()
        after = subprocess.Popen(["sleep", "600"], cwd=mounted.source)
        try:
            replication = replicating(mounted.journal, "site")
            (mounted.mountpoint / "f").write_text("text")
            replication.settle()
            found = examined(mounted.mountpoint)
        finally:
            after.kill()
            after.wait()
    finally:
        before.kill()
        before.wait()
    assert f"{before.pid} (sleep)" in found["processes"]["says"]
    assert f"{after.pid} (sleep)" not in found["processes"]["says"]
    assert "replicator" not in found["processes"]["says"]
    for check in ("source", "records", "times", "clock steps", "guard", "options", "site site"):
        assert found[check]["level"] == "ok", found[check]
    replication.stop()
    assert examined(mounted.mountpoint)["site site"]["level"] == "warning"


def test_a_dead_mount(mounting: Mounting) -> None:
    mounted = mounting()
    mounted.die()
    done = run("doctor", mounted.source)
    assert done.returncode == 2
    dead = [line for line in done.stdout.splitlines() if str(mounted.mountpoint) in line]
    assert len(dead) == 1
    assert dead[0].startswith("problem  mount")
    assert "mount it again: that replaces it" in dead[0]


def test_a_mount_that_hangs_is_not_waited_for(mounting: Mounting) -> None:
    mounted = mounting()
    os.kill(mounted.pid, signal.SIGSTOP)
    try:
        done = run("doctor", mounted.source)
    finally:
        os.kill(mounted.pid, signal.SIGCONT)
    assert done.returncode == 2
    assert f"{mounted.mountpoint}: does not answer" in done.stdout


def test_status_and_the_control_socket(mounting: Mounting) -> None:
    mounted = mounting("guard=on", "noatime", "node=here")
    done = run("status", mounted.mountpoint, "--json")
    assert done.returncode == 0
    told = json.loads(done.stdout)
    volume = (mounted.source / ".mirrorfs" / "volume").read_text().strip()
    expected = {
        "running": True,
        "pid": mounted.pid,
        "degraded": None,
        "writers": "one",
        "source": str(mounted.source),
        "mountpoint": str(mounted.mountpoint),
        "journal": str(mounted.journal),
        "volume": volume,
        "node": "here",
        "kernel_options": ["noatime"],
        "guard": "on",
        "guard_overflows": 0,
    }
    assert {key: told[key] for key in expected} == expected
    assert set(told) - set(expected) == {
        *("host", "version", "head", "durable_head", "nodes", "open_files", "started"),
        *("degraded_since", "marks", "everything", "journal_full", "room_bytes", "room_seconds"),
        *("guard_directories", "kept", "supervisor", "restarts", "restarted", "restart_reason"),
        *("restart", "holders", "write_through", "write_through_directories", "through"),
    }
    text = run("status", mounted.mountpoint).stdout
    assert "guard       on; 0 directories were changed behind the mount" in text
    assert stat.S_IMODE((mounted.journal / "control").stat().st_mode) == 0o600
    assert stat.S_IMODE(mounted.journal.stat().st_mode) == 0o700
