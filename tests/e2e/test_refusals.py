"""What `mirrorfs mount` and its siblings refuse: one line, a documented exit code, no traces."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from mirrorfs import mountinfo
from tests.support.mounts import MIRRORFS, ROOT, Mounted, Mounting, mounting, run

__all__ = ["mounting"]

pytestmark = pytest.mark.fuse


@dataclass
class Setting:
    """Three directories to spoil before `mirrorfs mount` is tried."""

    mounting: Mounting
    base: Path
    source: Path
    mountpoint: Path
    journal: Path
    options: str = ""

    @property
    def prepared(self) -> Mounted:
        """The same, to be mounted."""
        made = self.mounting.prepare()
        made.source, made.mountpoint, made.journal = self.source, self.mountpoint, self.journal
        return made


@pytest.fixture
def setting(mounting: Mounting, tmp_path: Path) -> Setting:
    base = tmp_path / "base"
    made = Setting(mounting, base, base / "source", base / "mountpoint", base / "journal")
    for path in (base, made.source, made.mountpoint):
        path.mkdir()
    return made


def missing_source(s: Setting) -> None:
    s.source = s.base / "missing"


def source_is_a_file(s: Setting) -> None:
    s.source = s.base / "file"
    s.source.touch()


def missing_mountpoint(s: Setting) -> None:
    s.mountpoint = s.base / "missing"


def mountpoint_is_a_file(s: Setting) -> None:
    s.mountpoint = s.base / "file"
    s.mountpoint.touch()


def mounted_already(s: Setting) -> None:
    s.prepared.mount()


def mounted_over_the_source_already(s: Setting) -> None:
    s.mountpoint = s.source
    s.prepared.mount()


def source_mounted_elsewhere(s: Setting) -> None:
    other = s.prepared
    other.mountpoint = s.base / "other"
    other.mountpoint.mkdir()
    other.journal = s.base / "other-journal"
    other.mount()


def journal_in_use(s: Setting) -> None:
    other = s.prepared
    other.mountpoint = s.base / "other"
    other.mountpoint.mkdir()
    other.mount()


def source_inside_a_mount(s: Setting) -> None:
    other = s.mounting(name="outer")
    s.source = other.mountpoint / "below"
    s.source.mkdir()


def dead_mount(s: Setting) -> None:
    """One that is not ours by its type."""
    other = s.prepared
    other.options = ("subtype=data",)
    other.mount()
    other.die()


def dead_mount_over_the_source(s: Setting) -> None:
    s.mountpoint = s.source
    dead_mount(s)


def mountpoint_inside_source(s: Setting) -> None:
    s.mountpoint = s.source / "below"
    s.mountpoint.mkdir()


def source_inside_mountpoint(s: Setting) -> None:
    s.source = s.mountpoint / "below"
    s.source.mkdir()


def journal_inside_source(s: Setting) -> None:
    s.journal = s.source / "not" / "yet" / "there"


def journal_is_the_source(s: Setting) -> None:
    s.journal = s.source


def journal_inside_source_by_symlink(s: Setting) -> None:
    (s.base / "link").symlink_to(s.source)
    s.journal = s.base / "link" / "journal"


def journal_inside_source_by_dots(s: Setting) -> None:
    s.journal = s.mountpoint / ".." / "source" / "journal"


def journal_inside_mountpoint(s: Setting) -> None:
    s.journal = s.mountpoint / "journal"


def journal_is_a_file(s: Setting) -> None:
    s.journal.touch()


def journal_not_writable(s: Setting) -> None:
    s.journal = Path("/proc/journal")


def journal_of_another_volume(s: Setting) -> None:
    other = s.mounting(name="other")
    other.umount()
    s.journal = other.journal


def journal_of_a_replaced_volume(s: Setting) -> None:
    other = s.prepared
    other.mount()
    other.umount()
    (s.source / ".mirrorfs" / "volume").write_text("12345678-1234-5678-1234-567812345678\n")


def journal_of_another_directory(s: Setting) -> None:
    other = s.mounting(name="other")
    other.umount()
    shutil.copytree(other.source / ".mirrorfs", s.source / ".mirrorfs")
    s.journal = other.journal


def volume_file_spoiled(s: Setting) -> None:
    (s.source / ".mirrorfs").mkdir()
    (s.source / ".mirrorfs" / "volume").write_text("not a UUID")


def reserved_name_taken(s: Setting) -> None:
    (s.source / ".mirrorfs").touch()


def source_without_handles(s: Setting) -> None:
    s.source = Path("/proc/self")


def corrupt_segment(s: Setting) -> None:
    other = s.prepared
    other.mount()
    (other.mountpoint / "file").touch()
    other.umount()
    (segment,) = s.journal.glob("*.seg")
    data = bytearray(segment.read_bytes())
    data[-150] ^= 1
    segment.write_bytes(data)


def corrupt_header(s: Setting) -> None:
    s.journal.mkdir()
    (s.journal / "00000000000000000001-0000000000000001.seg").write_bytes(b"spoiled")


def unknown_option(s: Setting) -> None:
    s.options = "colour=green"


def bad_number(s: Setting) -> None:
    s.options = "attr-timeout=long"


def unknown_choice(s: Setting) -> None:
    s.options = "writers=few"


def volume_file(text: str) -> Callable[[Setting], None]:
    def write(s: Setting) -> None:
        (s.base / "volume.toml").write_text(text)
        s.options = f"volume={s.base}/volume.toml"

    return write


VALID = '[volume]\nname = "v"\nsource = "/s"\njournal = "/j"\n'

REFUSALS: list[tuple[Callable[[Setting], None], int, str]] = [
    (missing_source, 66, "source: BASE/missing: No such file or directory"),
    (source_is_a_file, 66, "source: BASE/file: not a directory"),
    (missing_mountpoint, 66, "mountpoint: BASE/missing: No such file or directory"),
    (mountpoint_is_a_file, 66, "mountpoint: BASE/file: not a directory"),
    (mounted_already, 69, "mountpoint: BASE/mountpoint: mirrorfs is mounted there already"),
    (mounted_over_the_source_already, 69, "BASE/source: mirrorfs is mounted there already"),
    (source_mounted_elsewhere, 69, "BASE/source: another mirrorfs has mounted this source"),
    (journal_in_use, 69, "another mirrorfs has mounted this source"),
    (source_inside_a_mount, 69, "inside the mirrorfs mount"),
    (dead_mount, 69, "a dead mount: run 'umount -l BASE/mountpoint' first"),
    (dead_mount_over_the_source, 69, "a dead mount: run 'umount -l BASE/source' first"),
    (mountpoint_inside_source, 66, "mountpoint: BASE/source/below: inside the source"),
    (source_inside_mountpoint, 66, "mountpoint: BASE/mountpoint: above the source"),
    (journal_inside_source, 66, "journal: BASE/source/not/yet/there: inside the source"),
    (journal_is_the_source, 66, "journal: BASE/source: inside the source"),
    (journal_inside_source_by_symlink, 66, "journal: BASE/link/journal: inside the source"),
    (journal_inside_source_by_dots, 66, "journal: BASE/source/journal: inside the source"),
    (journal_inside_mountpoint, 66, "journal: BASE/mountpoint/journal: inside the mountpoint"),
    (journal_is_a_file, 73, "journal: BASE/journal: Not a directory"),
    (journal_not_writable, 73, "journal: /proc/journal: No such file or directory"),
    (journal_of_another_volume, 69, "but BASE/source has no .mirrorfs/volume"),
    (journal_of_a_replaced_volume, 69, "this source is volume 12345678-1234-5678-1234-5678"),
    (journal_of_another_directory, 69, "the source is not the one this journal names"),
    (volume_file_spoiled, 66, "BASE/source/.mirrorfs/volume: not a UUID"),
    (reserved_name_taken, 66, "BASE/source/.mirrorfs: not a directory"),
    (source_without_handles, 66, "its file system must offer file handles"),
    (corrupt_segment, 74, "corrupt at offset"),
    (corrupt_header, 74, "not a journal segment"),
    (unknown_option, 64, "option 'colour=green': not known"),
    (bad_number, 64, "option 'attr-timeout': long: a number is allowed"),
    (unknown_choice, 64, "option 'writers': few: one or many is allowed"),
    (volume_file("[volume"), 65, "BASE/volume.toml: not TOML"),
    (volume_file(VALID + 'colour = "green"'), 65, "BASE/volume.toml: volume.colour: not known"),
    (volume_file(VALID), 65, "BASE/volume.toml: volume.source is /s, not BASE/source"),
]


def mounts_below(directory: Path) -> list[str]:
    return [e.path for e in mountinfo.mounts() if e.path.startswith(f"{directory}/")]


@pytest.mark.parametrize(
    ("spoil", "code", "says"), REFUSALS, ids=lambda v: getattr(v, "__name__", None)
)
def test_refusal(setting: Setting, spoil: Callable[[Setting], None], code: int, says: str) -> None:
    """One line that says what and where, the documented code, and nothing left behind."""
    spoil(setting)
    before = mounts_below(setting.base)
    options = setting.options or f"journal={setting.journal}"
    if setting.options and "volume=" not in setting.options:
        options = f"journal={setting.journal},{setting.options}"
    done = run("mount", setting.source, setting.mountpoint, "-o", options)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("mirrorfs: ")
    assert done.stderr.count("\n") == 1
    assert says.replace("BASE", str(setting.base)) in done.stderr
    assert mounts_below(setting.base) == before


def test_a_refused_mount_changes_neither_source_nor_journal(setting: Setting) -> None:
    journal_of_another_volume(setting)
    before = sorted(os.listdir(setting.journal))
    run("mount", setting.source, setting.mountpoint, "-o", f"journal={setting.journal}")
    assert os.listdir(setting.source) == []
    assert sorted(os.listdir(setting.journal)) == before


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["umount", "/tmp"], 66, "/tmp: not a mirrorfs mount"),
        (["umount", "/missing"], 66, "/missing: not a mirrorfs mount"),
        (["status", "/missing"], 66, "/missing: no journal there"),
        (["mount", "/tmp"], 64, "MOUNTPOINT: missing"),
        (["mount"], 64, "SOURCE and MOUNTPOINT: missing"),
        (["mount", "/a", "/b"], 64, "option 'journal': missing"),
    ],
)
def test_commands_that_find_nothing(arguments: list[str], code: int, says: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.count("\n") == 1
    assert says in done.stderr


def as_nobody(*command: str | Path) -> subprocess.CompletedProcess[str]:
    program = (
        "import os, sys; os.setgid(65534); os.setuid(65534); os.execv(sys.argv[1], sys.argv[1:])"
    )
    return subprocess.run(
        [sys.executable, "-c", program, *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=ROOT,
    )


@pytest.mark.parametrize("command", ["mount", "umount"])
def test_only_root_may(setting: Setting, command: str) -> None:
    places = [setting.source, setting.mountpoint] if command == "mount" else [setting.mountpoint]
    options = ["-o", f"journal={setting.journal}"] if command == "mount" else []
    done = as_nobody(*MIRRORFS, command, *places, *options)
    verb = command.replace("umount", "unmount")
    assert done.returncode == 77, done.stderr
    assert done.stderr == f"mirrorfs: {command}: not permitted: only root may {verb}\n"


def test_without_dev_fuse(setting: Setting) -> None:
    """In a mount namespace where /dev/fuse is something else."""
    script = 'mount --bind /dev/null /dev/fuse && exec "$@"'
    unshared = ["unshare", "-m", "sh", "-c", script, "sh"]
    options = f"journal={setting.journal}"
    command = [*MIRRORFS, "mount", setting.source, setting.mountpoint, "-o", options]
    done = subprocess.run(
        [*unshared, *map(str, command)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=ROOT,
    )
    assert done.returncode == 77, done.stderr
    assert done.stderr.startswith("mirrorfs: /dev/fuse: ")
    assert done.stderr.count("\n") == 1
