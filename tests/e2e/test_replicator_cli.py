"""The command `replicator` on real mounts and sites: what is refused, and what the rest says.

Each refusal is one line on standard error, a documented exit code, and changes nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import mounting as file_systems
from tests.support.mounts import ROOT, Mounted, Mounting, mounting

__all__ = ["mounting"]
pytestmark = pytest.mark.fuse

_PATIENCE_SECONDS = 60.0
REPLICATOR = (sys.executable, "-m", "replicator")


def replicator(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*REPLICATOR, *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_PATIENCE_SECONDS,
        check=False,
    )


@dataclass
class Setting:
    """A mounted source with a journal, an empty directory for a site, and running replicators."""

    volume: Mounted
    site: Path
    running: list[subprocess.Popen[bytes]]

    @property
    def words(self) -> list[str]:
        """Options that name journal and site."""
        return ["--journal", str(self.volume.journal), "--site", f"backup={self.site}"]

    def start(self, *words: str) -> None:
        """A replicator that has come up: the site has everything there is."""
        command = [*REPLICATOR, "run", *(words or self.words)]
        self.running.append(subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL))
        self.wait()

    def wait(self) -> None:
        """Until the site has everything."""
        journal = str(self.volume.journal)
        words = ("--journal", journal, "--site", "backup", "--timeout", "60", "now")
        done = replicator("wait", *words)
        assert done.returncode == 0, done.stderr

    def stop(self) -> None:
        """End the replicator, after what is in the journal."""
        process = self.running.pop()
        process.send_signal(signal.SIGTERM)
        assert process.wait(_PATIENCE_SECONDS) == 0

    def verify(self) -> subprocess.CompletedProcess[str]:
        """Compare."""
        return replicator("verify", "--full", "--journal", self.volume.journal)


@pytest.fixture
def setting(mounting: Mounting, tmp_path: Path) -> Iterator[Setting]:
    site = tmp_path / "site"
    site.mkdir()
    made = Setting(mounting(), site, [])
    try:
        yield made
    finally:
        for process in made.running:
            process.kill()
            process.wait()


# refusals ----------------------------------------------------------------------------------------

Spoil = Callable[[Setting], None]


def site_missing(s: Setting) -> None:
    s.site.rmdir()


def site_is_a_file(s: Setting) -> None:
    s.site.rmdir()
    s.site.touch()


def site_not_empty(s: Setting) -> None:
    (s.site / "precious").touch()


def site_inside_source(s: Setting) -> None:
    s.site = s.volume.source / "site"
    s.site.mkdir()


def source_inside_site(s: Setting) -> None:
    s.site = s.volume.source.parent


def site_is_the_source(s: Setting) -> None:
    s.site = s.volume.source


def site_of_another_volume(s: Setting) -> None:
    (s.site / ".mirrorfs").mkdir()
    value = {"format": 1, "volume": "11111111-2222-3333-4444-555555555555", "name": "backup"}
    (s.site / ".mirrorfs" / "site").write_text(json.dumps(value))


def site_of_another_name(s: Setting) -> None:
    s.start("--journal", str(s.volume.journal), "--site", f"backup={s.site}")
    s.stop()
    s.site.rename(s.site.with_name("moved"))
    s.site = s.site.with_name("moved")
    text = (s.site / ".mirrorfs" / "site").read_text()
    (s.site / ".mirrorfs" / "site").write_text(text.replace('"backup"', '"other"'))


def site_in_use(s: Setting) -> None:
    s.start()


def state_unreadable(s: Setting) -> None:
    s.start()
    s.stop()
    (s.site / ".mirrorfs" / "state").write_text("{")


def journal_missing(s: Setting) -> None:
    s.volume.umount()
    shutil.rmtree(s.volume.journal)


def journal_corrupt(s: Setting) -> None:
    s.volume.umount()
    (segment,) = s.volume.journal.glob("*.seg")
    data = bytearray(segment.read_bytes())
    data[4] ^= 1
    segment.write_bytes(data)


def another_source(s: Setting) -> None:
    s.volume.umount()
    reserved = s.volume.source / ".mirrorfs"
    (reserved / "volume").write_text("11111111-2222-3333-4444-555555555555\n")


def source_missing(s: Setting) -> None:
    s.volume.umount()
    s.volume.source.rename(s.volume.source.with_name("moved"))


REFUSALS: dict[str, tuple[Spoil, int, str]] = {
    "site missing": (site_missing, 66, "does not exist"),
    "site is a file": (site_is_a_file, 66, "not a directory"),
    "site not empty": (site_not_empty, 69, "replicator attach --adopt"),
    "site inside source": (site_inside_source, 69, "inside the source"),
    "source inside site": (source_inside_site, 69, "the source tree is inside it"),
    "site is the source": (site_is_the_source, 69, ""),
    "another volume's site": (site_of_another_volume, 69, "belongs to another volume"),
    "another name's site": (site_of_another_name, 69, "is site 'other' of this volume"),
    "site in use": (site_in_use, 69, "in use by process"),
    "state unreadable": (state_unreadable, 74, "cannot be read"),
    "journal missing": (journal_missing, 66, "no journal there"),
    "journal corrupt": (journal_corrupt, 74, "corrupt at offset"),
    "another source": (another_source, 66, "not the source this journal names"),
    "source missing": (source_missing, 66, "the source does not exist"),
}


CASES = [("run", *case) for case in REFUSALS.items()] + [
    ("attach", name, REFUSALS[name]) for name in ("site missing", "site not empty", "site in use")
]


@pytest.mark.parametrize(
    ("command", "refusal"),
    [(command, refusal) for command, _, refusal in CASES],
    ids=[f"{command}: {name}" for command, name, _ in CASES],
)
def test_refusals(setting: Setting, command: str, refusal: tuple[Spoil, int, str]) -> None:
    spoil, code, says = refusal
    spoil(setting)
    before = sorted(setting.site.iterdir()) if setting.site.is_dir() else []
    done = replicator(command, *setting.words)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("replicator: ")
    assert says in done.stderr
    assert (sorted(setting.site.iterdir()) if setting.site.is_dir() else []) == before


def test_a_read_only_site(setting: Setting) -> None:
    with file_systems.tmpfs(setting.site):
        file_systems.remount(setting.site, "ro")
        done = replicator("run", *setting.words)
    assert done.returncode == 73
    assert len(done.stderr.splitlines()) == 1


def test_a_site_inside_the_mountpoint(setting: Setting) -> None:
    site = setting.volume.mountpoint / "site"
    site.mkdir()
    journal = str(setting.volume.journal)
    done = replicator("run", "--journal", journal, "--site", f"backup={site}")
    assert done.returncode == 69
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", ["run", "attach", "verify --full"])
def test_only_root_may(setting: Setting, command: str) -> None:
    with tempfile.TemporaryDirectory() as home:
        shutil.copytree(setting.volume.journal, Path(home) / "journal", ignore=no_sockets)
        subprocess.run(["chmod", "-R", "a+rwX", home], check=True)
        done = subprocess.run(
            [*REPLICATOR, *command.split(), "--journal", f"{home}/journal", "--site", "b=/tmp"],
            cwd="/",
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            user=65534,
            group=65534,
            extra_groups=[],
            capture_output=True,
            text=True,
            timeout=_PATIENCE_SECONDS,
        )
    assert done.returncode == 77, done.stderr
    assert len(done.stderr.splitlines()) == 1


def no_sockets(_: object, names: list[str]) -> list[str]:
    return [name for name in names if name == "control"]


# what it does ------------------------------------------------------------------------------------


def test_run_status_verify_and_stop(setting: Setting) -> None:
    for number in range(20):
        (setting.volume.mountpoint / f"f{number}").write_text("x" * number)
    setting.start()
    status = replicator("status", "--journal", setting.volume.journal, "--json")
    told = json.loads(status.stdout)
    assert (status.returncode, told["severity"]) == (0, 0), told
    assert told["volume"]["mounted"]
    (site,) = told["sites"]
    assert site["running"]
    assert site["clean"] == site["working"] == told["volume"]["head"]
    done = setting.verify()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "1 site, 20 entries, 0 differences\n"
    setting.stop()
    shown = replicator("status", "--journal", setting.volume.journal)
    assert shown.returncode == 1
    assert "not running: stopped" in shown.stdout
    os.truncate(setting.site / "f3", 0)
    (setting.site / "extra").touch()
    done = setting.verify()
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert any(line.startswith("backup: /f3: ") for line in lines)
    assert "backup: /extra: only at the site: a file" in lines
    assert lines[-1] == "1 site, 20 entries, 3 differences"


def test_verify_as_json(setting: Setting) -> None:
    setting.start()
    (setting.site / "\udcff").touch()
    done = replicator("verify", "--full", "--journal", setting.volume.journal, "--json")
    assert done.returncode == 1
    *places, last = map(json.loads, done.stdout.splitlines())
    assert {
        "site": "backup",
        "path": "/\\xff",
        "difference": "only at the site: a file",
        "in_flight": False,
    } in places
    assert last == {"sites": 1, "entries": 0, "differences": len(places), "in_flight": 0}


WRITER = """
import sys
with open(sys.argv[1], "r+") as stream:
    stream.write("later, and not closed")
    stream.flush()
    print("written", flush=True)
    sys.stdin.read()
"""


def test_an_open_file_is_in_flight(setting: Setting) -> None:
    path = setting.volume.mountpoint / "f"
    path.write_text("before")
    setting.start()
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"written\n"
        done = setting.verify()
    finally:
        writer.communicate()
    assert done.returncode == 0, done.stdout
    first, second, last = done.stdout.splitlines()
    assert first.startswith("backup: /f: ")
    assert first.endswith(" (in flight)")
    assert second == "backup: 1 place in flight, not counted"
    assert last == "1 site, 1 entries, 0 differences"
    setting.wait()
    assert setting.verify().stdout == "1 site, 1 entries, 0 differences\n"


def test_attach_then_run(setting: Setting) -> None:
    done = replicator("attach", *setting.words)
    assert done.returncode == 0
    assert done.stdout.startswith("backup: ")
    setting.start()
    assert setting.verify().returncode == 0


def test_adopt(setting: Setting) -> None:
    (setting.volume.mountpoint / "same").write_text("same")
    (setting.volume.mountpoint / "other").write_text("here")
    shutil.copy2(setting.volume.source / "same", setting.site)
    (setting.site / "other").write_text("there")
    (setting.site / "surplus").write_text("precious")
    done = replicator("attach", *setting.words, "--adopt")
    assert done.returncode == 0, done.stderr
    setting.start()
    assert setting.verify().stdout == "1 site, 2 entries, 0 differences\n"
    kept = setting.site / ".mirrorfs" / "kept"
    assert {path.read_text() for path in kept.glob("*/*")} == {"there", "precious"}


def test_the_site_may_be_named_in_the_volume_file(setting: Setting, tmp_path: Path) -> None:
    file = tmp_path / "prod.toml"
    file.write_text(
        f'[volume]\nname = "x"\nsource = "{setting.volume.source}"\n'
        f'journal = "{setting.volume.journal}"\n[[site]]\nname = "backup"\nurl = "{setting.site}"\n'
    )
    assert replicator("attach", file, "--site", "backup").returncode == 0
    setting.start(str(file))
    assert replicator("wait", file, "now").returncode == 0
    assert replicator("verify", "--full", file).returncode == 0
    assert replicator("status", file).returncode == 0
