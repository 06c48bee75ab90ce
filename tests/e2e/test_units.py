"""The units and examples as installed: systemd finds nothing wrong with them, and what they start
tells the service manager when it is at work. A socket of the test's own takes systemd's part here.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.federation import Federation
from tests.support.machine import ENVIRONMENT, Machine

pytestmark = pytest.mark.fuse

UNITS = "/usr/local/lib/systemd/system"
EXAMPLES = "/usr/local/share/doc/mirrorfs/examples"
_PATIENCE_SECONDS = 60.0


class Manager:
    """Starts what a unit starts, as systemd would."""

    def __init__(self, machine: Machine, directory: Path) -> None:
        self.machine = machine
        self._path = directory / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self._path))
        self._socket.settimeout(_PATIENCE_SECONDS)
        self._started: list[subprocess.Popen[str]] = []

    def commands(self, unit: str, setting: str) -> list[list[str]]:
        """What stands behind `ExecStart=` and the like; with the unit's environment filled in."""
        template, _, instance = unit.partition("@")
        text = self.machine.run("cat", f"{UNITS}/{template}@.service", check=True).stdout
        text = text.replace("%i", instance)
        values: dict[str, str] = {}
        for name in re.findall(r"(?m)^EnvironmentFile=(.*)$", text):
            for line in self.machine.run("cat", name, check=True).stdout.splitlines():
                key, equals, value = line.partition("=")
                if equals and not line.startswith("#"):
                    values[key] = value
        found = [line.split() for line in re.findall(rf"(?m)^{setting}=(.*)$", text)]
        return [[_filled(word, values) for word in words] for words in found]

    def start(self, unit: str) -> subprocess.Popen[str]:
        """Run ExecStartPre, then ExecStart until it says that it is ready."""
        for command in self.commands(unit, "ExecStartPre"):
            self.machine.run(*command, check=True)
        [command] = self.commands(unit, "ExecStart")
        process = self.machine.start(
            *command, env={**ENVIRONMENT, "NOTIFY_SOCKET": str(self._path)}
        )
        self._started.append(process)
        said = self._socket.recv(4096).decode()
        assert said.startswith("READY=1\n"), said
        return process

    def stop(self, process: subprocess.Popen[str], unit_process: str) -> str:
        """SIGTERM to that process of the machine; what it said on standard error."""
        self.machine.run("kill", "-TERM", unit_process, check=True)
        assert process.wait(_PATIENCE_SECONDS) == 0
        return self.said(process)

    @staticmethod
    def said(process: subprocess.Popen[str]) -> str:
        """What is left on its standard error; it has ended."""
        assert process.stderr is not None
        return process.stderr.read()

    def close(self) -> None:
        for process in self._started:
            process.kill()
            process.wait()
            assert process.stderr is not None
            process.stderr.close()
        self._socket.close()


def _filled(word: str, values: dict[str, str]) -> str:
    found = re.fullmatch(r"\$\{(\w+)\}", word)
    return values.get(found[1], "") if found else word


@pytest.fixture
def manager(machine: Machine, tmp_path: Path) -> Iterator[Manager]:
    with contextlib.closing(Manager(machine, tmp_path)) as made:
        yield made


@pytest.mark.parametrize(
    "unit",
    ["mirrorfs@prod.service", "replicator@prod.service", "xrootdfs@atlas.service"],
)
def test_units_are_right(machine: Machine, unit: str) -> None:
    done = machine.run("systemd-analyze", "verify", "--man=no", unit)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("unit", ["srv-data.mount", "grid-atlas.mount"])
def test_mount_units_are_right(machine: Machine, unit: str) -> None:
    machine.run("cp", f"{EXAMPLES}/{unit}", f"/etc/systemd/system/{unit}", check=True)
    done = machine.run("systemd-analyze", "verify", "--man=no", unit)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_manual_page_that_is_named_is_installed(machine: Machine) -> None:
    script = f"cat {UNITS}/*.service {EXAMPLES}/*.mount"
    text = machine.run("sh", "-c", script, check=True).stdout
    named = set(re.findall(r"(?m)^Documentation=man:(\S+)\((\d)\)$", text))
    assert len(named) == 5
    for name, section in named:
        page = f"/usr/local/share/man/man{section}/{name}.{section}"
        assert f".TH {name.upper()} {section} " in machine.run("cat", page, check=True).stdout


def test_systemd_understands_the_lines_of_fstab(machine: Machine, tmp_path: Path) -> None:
    machine.run("cp", f"{EXAMPLES}/fstab", "/etc/fstab", check=True)
    generator = "/usr/lib/systemd/system-generators/systemd-fstab-generator"
    machine.run(generator, tmp_path, tmp_path, tmp_path, check=True)
    machine.write("/etc/fstab", "")
    made = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*mount")}
    assert {
        "srv-data.mount",
        "local-fs.target.wants/srv-data.mount",
        "grid-atlas.mount",
        "remote-fs.target.wants/grid-atlas.mount",
        "grid-cms.mount",
        "grid-cms.automount",
        "remote-fs.target.requires/grid-cms.automount",
    } <= made
    text = (tmp_path / "grid-atlas.mount").read_text()
    assert "What=root://redirector.example.org:1094//atlas\nWhere=/grid/atlas\n" in text
    assert "Type=xrootdfs\n" in text


def test_a_volume_and_its_replicator(machine: Machine, manager: Manager, tmp_path: Path) -> None:
    source, site, journal = (tmp_path / name for name in ("source", "site", "journal"))
    source.mkdir()
    site.mkdir()
    machine.write(
        "/etc/mirrorfs/prod.toml",
        f'[volume]\nname = "prod"\nsource = "{source}"\njournal = "{journal}"\n'
        f'[[site]]\nname = "backup"\nurl = "file://{site}"\n',
    )

    def pids_of_mount() -> tuple[str, str]:
        """Of the unit's main process, and of the engine that it starts."""
        status = ("/usr/local/bin/mirrorfs", "status", "--json", "/etc/mirrorfs/prod.toml")
        told = json.loads(machine.run(*status, check=True).stdout)
        return str(told["supervisor"]), str(told["pid"])

    try:
        crashed = manager.start("mirrorfs@prod")
        machine.write(f"{source}/file", "before the crash")
        machine.run("kill", "-KILL", *pids_of_mount(), check=True)  # as with KillMode=mixed
        crashed.wait(_PATIENCE_SECONDS)
        mount = manager.start("mirrorfs@prod")  # what Restart=on-failure does
        machine.write(f"{source}/file", "after the crash")
        replicator = manager.start("replicator@prod")
        status = ("/usr/local/bin/replicator", "status", "--json", "/etc/mirrorfs/prod.toml")
        waited = ("wait", "/etc/mirrorfs/prod.toml", "--site", "backup", "--timeout", "60", "now")
        machine.run("/usr/local/bin/replicator", *waited, check=True)
        told = json.loads(machine.run(*status).stdout)
        said = manager.stop(replicator, str(told["sites"][0]["pid"]))
        assert "stopped" in said
        assert (site / "file").read_text() == "after the crash"
        said = manager.stop(mount, pids_of_mount()[0])
        assert "unmounted; the last record is" in said
    finally:
        machine.run("umount", "-l", source)
        machine.run("rm", "/etc/mirrorfs/prod.toml", check=True)


def test_nothing_is_ready_that_did_not_start(manager: Manager, machine: Machine) -> None:
    machine.write("/etc/mirrorfs/wrong.toml", "[volume]\n")
    try:
        for unit, code in (("mirrorfs@wrong", 65), ("replicator@wrong", 65)):
            [command] = manager.commands(unit, "ExecStart")
            process = machine.start(*command, env={"NOTIFY_SOCKET": "@mirrorfs-nobody-listens"})
            assert process.wait(_PATIENCE_SECONDS) == code
            assert "wrong.toml: volume" in manager.said(process)
            assert process.stderr is not None
            process.stderr.close()
    finally:
        machine.run("rm", "/etc/mirrorfs/wrong.toml", check=True)


@pytest.mark.xrootd
def test_a_federation(machine: Machine, manager: Manager, tmp_path: Path) -> None:
    mountpoint = tmp_path / "grid"
    mountpoint.mkdir()
    with Federation(servers=1) as federation:
        federation.put("/atlas/file", b"from the federation")
        machine.write(
            "/etc/xrootdfs/atlas.conf",
            f"# the example\nURL={federation.url}//atlas\nMOUNTPOINT={mountpoint}\nOPTIONS=ro\n",
        )
        try:
            process = manager.start("xrootdfs@atlas")
            content = machine.run("cat", mountpoint / "file", check=True).stdout
            assert content == "from the federation"
            status = ("/usr/local/bin/xrootdfs", "status", "--json", mountpoint)
            told = json.loads(machine.run(*status, check=True).stdout)
            manager.stop(process, str(told["pid"]))
            assert machine.run("findmnt", "--kernel", "--mountpoint", mountpoint).stdout == ""
        finally:
            machine.run("umount", "-l", mountpoint)
            machine.run("rm", "/etc/xrootdfs/atlas.conf", check=True)
