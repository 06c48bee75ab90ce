"""The init scripts, as an init system calls them: real volumes, replicators and federations."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mirrorfs.journal.reader import JournalReader
from tests.support.federation import Federation
from tests.support.machine import Done, Machine

pytestmark = pytest.mark.fuse

BIN = "/usr/local/bin"
NOBODY = 65534


@dataclass
class Script:
    """One of /etc/init.d."""

    machine: Machine
    name: str

    def __call__(self, *arguments: str, user: int = 0) -> tuple[int, str, str]:
        """Exit code, and what it said; it gets no environment at all."""
        done = self.run(*arguments, user=user)
        return done.returncode, done.stdout, done.stderr

    def run(self, *arguments: str, user: int = 0) -> Done:
        return self.machine.run(f"/etc/init.d/{self.name}", *arguments, env={}, user=user)


@dataclass
class Volume:
    """A volume of a name, with one site."""

    name: str
    source: Path
    site: Path
    journal: Path

    @property
    def file(self) -> str:
        """Its file."""
        return f"/etc/mirrorfs/{self.name}.toml"

    def text(self) -> str:
        """What stands in it."""
        return (
            f'[volume]\nname = "{self.name}"\nsource = "{self.source}"\n'
            f'journal = "{self.journal}"\n[[site]]\nname = "backup"\nurl = "file://{self.site}"\n'
        )

    def kinds(self) -> list[str]:
        """Of all records."""
        with JournalReader(str(self.journal)) as reader:
            return [record.kind.label for batch in reader.read() for record in batch]


@pytest.fixture
def volumes(machine: Machine, tmp_path: Path) -> Iterator[list[Volume]]:
    """Two volumes that are all the machine has; nothing of them runs afterwards."""
    made = []
    for name in ("archive", "prod"):
        top = tmp_path / name
        volume = Volume(name, top / "source", top / "site", top / "journal")
        for path in (volume.source, volume.site):
            path.mkdir(parents=True)
        machine.write(volume.file, volume.text())
        made.append(volume)
    yield made
    for script in ("replicator", "mirrorfs"):
        done = machine.run(f"/etc/init.d/{script}", "stop")
        assert done.returncode == 0, done
    machine.run("sh", "-c", "rm -f /etc/mirrorfs/*.toml /etc/default/mirrorfs", check=True)


@pytest.fixture
def mirrorfs(machine: Machine) -> Script:
    return Script(machine, "mirrorfs")


@pytest.fixture
def replicator(machine: Machine) -> Script:
    return Script(machine, "replicator")


def kill(machine: Machine, volume: Volume) -> None:
    """kill -9 the mirrorfs of a volume, and what would start it again."""
    said = machine.run(f"{BIN}/mirrorfs", "status", "--json", volume.file, check=True).stdout
    told = json.loads(said)
    machine.run("kill", "-KILL", str(told["supervisor"]), str(told["pid"]), check=True)


def test_a_day(mirrorfs: Script, replicator: Script, volumes: list[Volume]) -> None:
    archive, prod = volumes
    machine = mirrorfs.machine
    assert mirrorfs("start") == (0, "mirrorfs: archive: mounted\nmirrorfs: prod: mounted\n", "")
    assert replicator("start") == (
        0,
        "replicator: archive: started\nreplicator: prod: started\n",
        "",
    )
    machine.write(f"{prod.source}/file", "for the site")
    wait = (f"{BIN}/replicator", "wait", prod.file, "--site", "backup", "--timeout", "60", "now")
    machine.run(*wait, check=True)
    assert (prod.site / "file").read_text() == "for the site"
    assert mirrorfs("status")[0] == 0
    assert replicator("status")[0] == 0

    assert replicator("restart")[0] == 0
    assert mirrorfs("restart")[0] == 0
    machine.write(f"{archive.source}/file", "just before the end")
    assert replicator("stop")[:2] == (
        0,
        "replicator: archive: stopped\nreplicator: prod: stopped\n",
    )
    assert (archive.site / "file").read_text() == "just before the end"
    assert mirrorfs("stop")[:2] == (0, "mirrorfs: archive: unmounted\nmirrorfs: prod: unmounted\n")
    assert archive.kinds()[-1] == "unmount"
    assert "reconcile" not in archive.kinds()


def test_start_and_stop_twice(mirrorfs: Script, replicator: Script, volumes: list[Volume]) -> None:
    assert volumes[1].name == "prod"
    for script, running, ended in (
        (mirrorfs, "mounted already", "not mounted"),
        (replicator, "running already", "not running"),
    ):
        assert script("stop", "prod") == (0, f"{script.name}: prod: {ended}\n", "")
        assert script("start", "prod")[0] == 0
        assert script("start", "prod") == (0, f"{script.name}: prod: {running}\n", "")
        assert script("stop", "prod")[0] == 0
        assert script("stop", "prod") == (0, f"{script.name}: prod: {ended}\n", "")


def test_status(mirrorfs: Script, replicator: Script, volumes: list[Volume]) -> None:
    _, prod = volumes
    for script in (mirrorfs, replicator):
        assert script("status")[0] == 3  # not running
        assert script("start", "prod")[0] == 0
        assert script("status", "prod")[0] == 0
        assert script("status")[0] == 3  # one of two is not
        assert script("status", "archive")[0] == 3
        assert script("status", "nothing")[0] == 4
    kill(mirrorfs.machine, prod)
    pid = mirrorfs.machine.run("cat", "/run/replicator-prod.pid", check=True).stdout.strip()
    mirrorfs.machine.run("kill", "-KILL", pid, check=True)
    wait = ("flock", "--timeout", "60", "/run/replicator-prod.pid", "true")
    mirrorfs.machine.run(*wait, check=True)
    for script in (mirrorfs, replicator):
        assert script("status", "prod")[0] == 1  # died
    assert replicator("status", "prod")[1] == f"replicator: prod: died; it was process {pid}\n"


def test_start_after_a_crash(mirrorfs: Script, volumes: list[Volume]) -> None:
    prod = volumes[1]
    for action in ("start", "restart", "force-reload"):
        assert mirrorfs("start", "prod")[0] == 0
        kill(mirrorfs.machine, prod)
        assert mirrorfs(action, "prod")[0] == 0
        assert mirrorfs("status", "prod")[0] == 0
    assert prod.kinds().count("mount") == 4
    kill(mirrorfs.machine, prod)
    assert mirrorfs("stop", "prod")[0] == 0


def test_over_a_file_system_of_its_own(mirrorfs: Script, volumes: list[Volume]) -> None:
    """The source is where another file system is mounted: that one is let be."""
    prod = volumes[1]
    machine = mirrorfs.machine
    machine.run("mount", "-t", "tmpfs", "beneath", prod.source, check=True)
    try:
        assert mirrorfs("stop", "prod") == (0, "mirrorfs: prod: not mounted\n", "")
        assert mirrorfs("start", "prod") == (0, "mirrorfs: prod: mounted\n", "")
        kill(machine, prod)
        assert mirrorfs("restart", "prod")[0] == 0
        assert mirrorfs("status", "prod")[0] == 0
        assert mirrorfs("stop", "prod") == (0, "mirrorfs: prod: unmounted\n", "")
        columns = ("--noheadings", "--output", "SOURCE")
        left = machine.run("findmnt", "--kernel", *columns, "--mountpoint", prod.source).stdout
        assert left == "beneath\n"
    finally:
        mirrorfs("stop", "prod")
        machine.run("umount", prod.source, check=True)


def test_only_what_runs_is_restarted(
    mirrorfs: Script, replicator: Script, volumes: list[Volume]
) -> None:
    assert volumes
    for script in (mirrorfs, replicator):
        assert script("try-restart", "prod") == (0, "", "")
        assert script("status", "prod")[0] == 3
        assert script("start", "prod")[0] == 0
        assert script("try-restart", "prod")[0] == 0
        assert script("status", "prod")[0] == 0


def test_volumes_to_choose(mirrorfs: Script, volumes: list[Volume]) -> None:
    assert volumes
    mirrorfs.machine.write("/etc/default/mirrorfs", 'VOLUMES="prod"\n')
    assert mirrorfs("start") == (0, "mirrorfs: prod: mounted\n", "")
    assert mirrorfs("status", "archive")[0] == 3
    assert mirrorfs("start", "archive") == (0, "mirrorfs: archive: mounted\n", "")


def test_one_that_cannot_start_does_not_keep_others_from_it(
    mirrorfs: Script, replicator: Script, volumes: list[Volume]
) -> None:
    archive, _ = volumes
    for path in (archive.source, archive.site):
        path.rmdir()
    code, said, error = mirrorfs("start")
    assert (code, said) == (1, "mirrorfs: prod: mounted\n")
    assert error == f"mirrorfs: source: {archive.source}: No such file or directory\n"
    code, said, error = replicator("start")
    assert (code, said) == (1, "replicator: prod: started\n")
    assert error == f"replicator: {archive.journal}: no journal there\n"
    mirrorfs.machine.write(archive.file, "[volume]\ncolour = 1\n")
    assert mirrorfs("start", "archive")[0] == 6  # not configured
    assert replicator("start", "archive")[0] == 6
    mirrorfs.machine.run("rm", archive.file, check=True)
    assert mirrorfs("start", "archive", "prod") == (
        6,
        "mirrorfs: prod: mounted already\n",
        f"mirrorfs: {archive.file}: cannot be read\n",
    )


def test_a_mount_in_use_is_not_stopped(mirrorfs: Script, volumes: list[Volume]) -> None:
    prod = volumes[1]
    assert mirrorfs("start", "prod")[0] == 0
    script = f"cd {prod.source}; /etc/init.d/mirrorfs restart prod"
    done = mirrorfs.machine.run("sh", "-c", script)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{prod.source}: in use" in done.stderr
    assert mirrorfs("status", "prod")[0] == 0


def test_a_replicator_that_hangs_is_stopped_all_the_same(
    replicator: Script, mirrorfs: Script, volumes: list[Volume]
) -> None:
    """What was not applied is applied after the next start."""
    prod = volumes[1]
    machine = replicator.machine
    machine.write("/etc/default/replicator", "STOP_SECONDS=1 KILL_SECONDS=1\n")
    try:
        assert mirrorfs("start", "prod")[0] == 0
        assert replicator("start", "prod")[0] == 0
        machine.run("sh", "-c", "kill -STOP $(cat /run/replicator-prod.pid)", check=True)
        machine.write(f"{prod.source}/file", "later")
        goes_on = "replicator: prod: goes on after the next start: not all was applied within 1 s\n"
        assert replicator("stop", "prod") == (0, f"{goes_on}replicator: prod: stopped\n", "")
        assert replicator("status", "prod")[0] == 3
        assert replicator("start", "prod")[0] == 0
        assert replicator("stop", "prod") == (0, "replicator: prod: stopped\n", "")
        assert (prod.site / "file").read_text() == "later"
    finally:
        machine.run("rm", "-f", "/etc/default/replicator", check=True)


@pytest.mark.parametrize("name", ["mirrorfs", "replicator", "xrootdfs"])
def test_what_is_not_done(machine: Machine, name: str) -> None:
    script = Script(machine, name)
    for arguments in ((), ("begin",)):
        code, _, error = script(*arguments)
        assert code == 2
        assert error.startswith(f"usage: /etc/init.d/{name} start|stop|restart|")
    assert script("reload")[0] == 3
    assert script("start", user=NOBODY) == (4, "", f"{name}: only root may do this\n")
    header = machine.run("sed", "-n", "/BEGIN INIT INFO/,/END INIT INFO/p", f"/etc/init.d/{name}")
    for key in ("Provides", "Required-Start", "Required-Stop", "Default-Start", "Default-Stop"):
        assert f"\n# {key}:" in header.stdout


def test_scripts_can_be_enabled(machine: Machine) -> None:
    names = ("xrootdfs", "mirrorfs", "replicator")
    for name in names:
        machine.run("update-rc.d", name, "defaults", check=True)
    links = machine.run("sh", "-c", "cd /etc/rc2.d && ls", check=True).stdout.split()
    started = [link.lstrip("S0123456789") for link in links if link.startswith("S")]
    assert set(names) <= set(started)
    for name in names:
        machine.run("update-rc.d", name, "remove", check=True)


@pytest.mark.parametrize("name", ["mirrorfs", "replicator"])
def test_with_nothing_configured(machine: Machine, name: str) -> None:
    script = Script(machine, name)
    nothing = f"{name}: no volume: /etc/mirrorfs has no *.toml\n"
    assert script("start") == (0, nothing, "")
    assert script("stop") == (0, nothing, "")
    assert script("status") == (3, nothing, "")


@pytest.mark.xrootd
def test_six_space_directories(machine: Machine, tmp_path: Path) -> None:
    """The classic set-up: six mounts of parts of one federation, in one table."""
    script = Script(machine, "xrootdfs")
    assert script("start") == (6, "xrootdfs: /etc/xrootdfs/fstab: cannot be read\n", "")
    assert script("status")[0] == 3
    names = ["datadisk", "mcdisk", "proddisk", "groupdisk", "scratchdisk", "local group disk"]
    dirs = [tmp_path / name for name in names]
    try:
        with Federation(servers=2) as federation:
            lines = []
            for path in dirs:
                path.mkdir()
                space = path.name.replace(" ", "")
                federation.put(f"/{space}/file", space.encode())
                target = str(path).replace(" ", "\\040")
                lines.append(f"{federation.url}//{space} {target} xrootdfs rw,_netdev 0 0\n")
            extra = tmp_path / "extra"
            extra.mkdir()
            lines.append(f"{federation.url}//datadisk {extra} xrootdfs noauto 0 0\n")
            machine.write("/etc/xrootdfs/fstab", "# the spaces\n" + "".join(lines))

            assert script("status")[0] == 3
            mounted = "".join(f"xrootdfs: {path}: mounted\n" for path in dirs)
            assert script("start") == (0, mounted, "")
            already = "".join(f"xrootdfs: {path}: mounted already\n" for path in dirs)
            assert script("start") == (0, already, "")
            for path in dirs:
                content = machine.run("cat", path / "file", check=True).stdout
                assert content == path.name.replace(" ", "")
            assert script("status")[0] == 0
            assert script("status", str(extra))[0] == 3
            assert script("start", str(extra))[0] == 0
            assert script("stop", str(extra)) == (0, f"xrootdfs: {extra}: unmounted\n", "")
            assert script("start", "/nowhere")[0] == 2

            machine.write(f"{dirs[4]}/new", "written on the mount")
            assert script("restart")[0] == 0
            assert machine.run("cat", dirs[4] / "new").stdout == "written on the mount"

            said = machine.run(f"{BIN}/xrootdfs", "status", "--json", dirs[0], check=True).stdout
            machine.run("kill", "-KILL", str(json.loads(said)["pid"]), check=True)
            assert script("status")[0] == 1
            assert script("start")[0] == 0
            assert script("status")[0] == 0

            unmounted = "".join(f"xrootdfs: {path}: unmounted\n" for path in reversed(dirs))
            assert script("stop") == (0, f"xrootdfs: {extra}: not mounted\n{unmounted}", "")
            assert script("stop")[0] == 0
            assert script("status")[0] == 3
    finally:
        script("stop")
        machine.run("rm", "-f", "/etc/xrootdfs/fstab", check=True)
