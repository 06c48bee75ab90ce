"""Life cycle of real mounts: what is refused and how, starting, ending, crashing, degrading."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mirrorfs import mountinfo
from mirrorfs.journal.control_client import ControlClient, NotRunningError
from mirrorfs.journal.reader import JournalReader
from mirrorfs.journal.record import (
    Change,
    Checkpoint,
    Kind,
    Mount,
    Reconcile,
    Record,
    SequenceNumber,
)
from tests.support.mounts import MIRRORFS, ROOT, Mounted, Mounting, mounting, run

__all__ = ["mounting"]

pytestmark = pytest.mark.fuse


def kinds(records: list[Record]) -> list[str]:
    return [record.kind.label for record in records]


# Mounting and unmounting


@pytest.mark.parametrize("over", [False, True])
def test_mount_work_unmount(mounting: Mounting, over: bool) -> None:
    mounted = mounting(over=over)
    (mounted.mountpoint / "directory").mkdir()
    (mounted.mountpoint / "directory" / "file").write_text("text")
    mounted.umount()
    mounted.wait()
    assert (mounted.source / "directory" / "file").read_text() == "text"
    records = mounted.records()
    assert kinds(records) == ["mount", "mkdir", "create", "write", "unmount"]
    first = records[0].body
    assert isinstance(first, Mount)
    assert (first.clean, first.mountpoint) == (True, os.fsencode(mounted.mountpoint))
    assert not (mounted.journal / "control").exists()


def test_the_reserved_name_is_hidden(mounting: Mounting) -> None:
    mounted = mounting()
    assert os.listdir(mounted.mountpoint) == []
    assert os.listdir(mounted.source) == [".mirrorfs"]
    assert sorted(os.listdir(mounted.source / ".mirrorfs")) == ["volume"]


def test_an_incarnation_after_a_clean_one(mounting: Mounting) -> None:
    mounted = mounting()
    mounted.umount()
    mounted.mount()
    mounted.umount()
    records = mounted.records()
    assert kinds(records) == ["mount", "unmount"] * 2
    with JournalReader(str(mounted.journal)) as reader:
        assert reader.tag_of(SequenceNumber(2)) != reader.tag_of(SequenceNumber(3))


def test_foreground_ends_cleanly_at_a_signal(mounting: Mounting) -> None:
    mounted = mounting.prepare()
    options = f"journal={mounted.journal}"
    process = subprocess.Popen(
        [*MIRRORFS, "mount", "-f", mounted.source, mounted.mountpoint, "-o", options],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stderr is not None
    try:
        assert "mounted over" in process.stderr.readline()
        (mounted.mountpoint / "file").write_text("text")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert "unmounted" in process.stderr.read()
    finally:
        process.kill()
        process.stderr.close()
        process.wait()
    assert kinds(mounted.records()) == ["mount", "create", "write", "unmount"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_unmounts(mounting: Mounting, number: signal.Signals) -> None:
    mounted = mounting()
    os.kill(mounted.pid, number)
    mounted.wait()
    assert mountinfo.mounted_at(str(mounted.mountpoint)) is None
    assert kinds(mounted.records()) == ["mount", "unmount"]


def test_a_signal_while_in_use_waits_for_the_last_user(mounting: Mounting) -> None:
    mounted = mounting()
    with (mounted.mountpoint / "file").open("w") as stream:
        os.kill(mounted.pid, signal.SIGTERM)
        with ControlClient(str(mounted.journal)) as client:
            while mountinfo.mounted_at(str(mounted.mountpoint)) is not None:
                client.status()
        stream.write("the last words")
    mounted.wait()
    assert kinds(mounted.records()) == ["mount", "create", "write", "unmount"]
    assert (mounted.source / "file").read_text() == "the last words"


def test_umount_refuses_a_busy_mount(mounting: Mounting) -> None:
    mounted = mounting()
    with (mounted.mountpoint / "file").open("w") as stream:
        done = run("umount", mounted.mountpoint)
        assert done.returncode == 69
        assert done.stderr.count("\n") == 1
        assert "in use" in done.stderr
        stream.write("goes on")
    mounted.umount()
    assert kinds(mounted.records())[-1] == "unmount"


def test_lazy_umount_of_a_busy_mount(mounting: Mounting) -> None:
    mounted = mounting()
    with (mounted.mountpoint / "file").open("w") as stream:
        assert run("umount", "-l", mounted.mountpoint).returncode == 0
        assert mountinfo.mounted_at(str(mounted.mountpoint)) is None
        stream.write("recorded all the same")
    mounted.wait()
    last, end = mounted.records()[-2:]
    assert isinstance(last.body, Change)
    assert (last.kind, last.body.size, end.kind) == (Kind.WRITE, 21, Kind.UNMOUNT)


def test_kernel_options(mounting: Mounting) -> None:
    mounted = mounting("ro", "nosuid", "x-systemd.automount", "defaults")
    with pytest.raises(OSError, match="Read-only") as raised:
        (mounted.mountpoint / "file").touch()
    assert raised.value.errno == errno.EROFS
    line = next(
        line
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if f" {mounted.mountpoint} " in line
    )
    flags = line.split(" ")[5].split(",")
    assert "nosuid" in flags
    assert "nodev" not in flags
    assert f" fuse.mirrorfs {mounted.source} " in line


def test_it_allows_no_more_than_the_mount_of_the_source(
    mounting: Mounting, small_disk: Path
) -> None:
    subprocess.run(["mount", "-o", "remount,nosuid,nodev,noexec", small_disk], check=True)
    mounted = mounting.prepare()
    mounted.source = small_disk / "source"
    mounted.source.mkdir()
    mounted.mount()
    entry = next(
        line
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if f" {mounted.mountpoint} " in line
    )
    assert {"nosuid", "nodev", "noexec"} <= set(entry.split(" ")[5].split(","))
    mounted.umount()


def test_the_daemon_holds_nothing_of_its_caller(mounting: Mounting, tmp_path: Path) -> None:
    """A lock held by the script that mounts is free once the script has ended."""
    mounted = mounting.prepare()
    command = [*MIRRORFS, "mount", str(mounted.source), str(mounted.mountpoint)]
    script = f'exec 9>{tmp_path}/lock && flock 9 && "$@"'
    options = f"journal={mounted.journal}"
    done = subprocess.run(
        ["sh", "-c", script, "sh", *command, "-o", options], cwd=ROOT, check=False
    )
    try:
        assert done.returncode == 0
        subprocess.run(["flock", "-n", tmp_path / "lock", "true"], check=True)
    finally:
        mounted.umount()


def test_a_source_with_a_comma_and_a_newline(mounting: Mounting) -> None:
    mounted = mounting(name="a,b=\\c\nd")
    (mounted.mountpoint / "file").touch()
    mounted.umount()
    assert kinds(mounted.records()) == ["mount", "create", "write", "unmount"]


# Crashes


def test_a_dead_mount_is_named_and_removed(mounting: Mounting) -> None:
    mounted = mounting()
    os.kill(mounted.pid, signal.SIGKILL)
    mounted.wait()
    done = run("mount", mounted.source, mounted.mountpoint, "-o", f"journal={mounted.journal}")
    assert done.returncode == 69
    assert f"run 'mirrorfs umount {mounted.mountpoint}' first" in done.stderr
    assert run("status", mounted.mountpoint).returncode == 66
    done = run("umount", mounted.mountpoint)
    assert (done.returncode, done.stderr) == (0, "")
    assert "dead mount removed" in done.stdout
    mounted.mount()


def test_after_a_kill_the_tree_is_reconciled(mounting: Mounting) -> None:
    mounted = mounting()
    (mounted.mountpoint / "file").touch()
    mounted.kill()
    assert run("status", mounted.journal).returncode == 2
    mounted.mount()
    mounted.umount()
    records = mounted.records()
    assert kinds(records) == ["mount", "create", "write", "mount", "reconcile", "unmount"]
    again, reconcile = records[3].body, records[4].body
    assert isinstance(again, Mount)
    assert not again.clean
    with JournalReader(str(mounted.journal)) as reader:
        root = reader.header.source.root
    assert reconcile == Reconcile(root, True, b"", "mirrorfs stopped without unmounting")


def test_a_torn_tail_is_repaired_at_the_next_mount(mounting: Mounting) -> None:
    mounted = mounting()
    mounted.kill()
    (segment,) = mounted.journal.glob("*.seg")
    with segment.open("ab") as stream:
        stream.write(b"half a record")
    assert "13 bytes after the last record" in run("journal", "verify", mounted.journal).stdout
    mounted.mount()
    (copy,) = (mounted.journal / "torn").iterdir()
    assert copy.read_bytes() == b"half a record"
    assert "torn tail" in (mounted.journal / "mirrorfs.log").read_text()


# Degraded


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB for the journal."""
    disk = tmp_path / "small"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "mirrorfs-test", disk], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_journal_disk_fails_no_job_and_is_covered(
    mounting: Mounting, small_disk: Path
) -> None:
    mounted = mounting.prepare()
    mounted.journal = small_disk / "journal"
    mounted.mount()
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(bytes(4096))
    for number in range(100):
        (mounted.mountpoint / f"file{number}").write_text("text")
    assert (mounted.source / ".mirrorfs" / "degraded").exists()
    assert run("status", mounted.mountpoint).returncode == 1
    filler.unlink()
    with JournalReader(str(mounted.journal)) as reader:
        head = reader.head()
        while not [r for r in read_all(reader) if r.kind is Kind.RECONCILE]:
            assert select.select([reader.wake_fd], [], [], 60)[0]
            reader.drain_wake()
            reader.seek(head)
    (mounted.mountpoint / "after").touch()
    mounted.umount()
    assert not (mounted.source / ".mirrorfs" / "degraded").exists()
    records = mounted.records()
    covered = kinds(records).index("reconcile")
    assert kinds(records)[covered:] == ["reconcile", "create", "write", "unmount"]
    body = records[covered].body
    assert isinstance(body, Reconcile)
    assert body.whole
    assert "No space left" in body.reason


def read_all(reader: JournalReader) -> list[Record]:
    return [record for batch in reader.read() for record in batch]


def test_a_kill_while_degraded_is_known_from_the_source_alone(
    mounting: Mounting, small_disk: Path
) -> None:
    mounted = mounting()
    mounted.umount()
    (mounted.source / ".mirrorfs" / "degraded").write_text("as a killed mirrorfs left it")
    mounted.mount()
    assert kinds(mounted.records()) == ["mount", "unmount", "mount", "reconcile"]
    assert not (mounted.source / ".mirrorfs" / "degraded").exists()


# The control socket


def test_control(mounting: Mounting) -> None:
    mounted = mounting()
    (mounted.mountpoint / "a" / "b").mkdir(parents=True)
    (mounted.mountpoint / "link").symlink_to("a")
    assert (mounted.journal / "control").stat().st_mode & 0o777 == 0o600
    with ControlClient(str(mounted.journal)) as client:
        header, root = client.root()
        try:
            assert os.path.samestat(os.fstat(root), mounted.source.stat())
            assert sorted(os.listdir(root)) == [".mirrorfs", "a", "link"]
        finally:
            os.close(root)
        with JournalReader(str(mounted.journal)) as reader:
            assert header == reader.header
        checkpoint = client.checkpoint("cycle 00")
        reconcile = client.reconcile(b"a/b", whole=False, reason="by hand")
        for path in (b"missing", b"../x", b"a/./b", b".mirrorfs", b"link/b"):
            with pytest.raises(Exception, match=r"No such|Invalid|Not a directory"):
                client.reconcile(path, whole=True, reason="")
        status = client.status()
        assert status.head == reconcile == checkpoint + 1
        assert status.degraded is None
        assert status.mountpoint == os.fsencode(mounted.mountpoint)
    records = mounted.records()
    assert records[checkpoint - 1].body == Checkpoint("cycle 00")
    made = next(r.body for r in records if r.kind is Kind.MKDIR and r.body.path == b"a/b")  # type: ignore[union-attr]
    assert records[reconcile - 1].body == Reconcile(made.object, False, b"a/b", "by hand")  # type: ignore[union-attr]


def test_control_deep_below(mounting: Mounting, tmp_path: Path) -> None:
    """A journal directory whose socket path is longer than a socket address may be."""
    mounted = mounting.prepare()
    mounted.journal = tmp_path / ("d" * 100) / ("e" * 100)
    mounted.mount()
    with ControlClient(str(mounted.journal)) as client:
        assert client.status().pid == mounted.pid
    mounted.umount()
    with pytest.raises(NotRunningError):
        ControlClient(str(mounted.journal))


# Refusals


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
    other = s.prepared
    other.mount()
    os.kill(other.pid, signal.SIGKILL)
    other.wait()


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
    s.options = "attr_timeout=long"


def unknown_choice(s: Setting) -> None:
    s.options = "writers=many"


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
    (dead_mount, 69, "a dead mount: run 'mirrorfs umount BASE/mountpoint' first"),
    (dead_mount_over_the_source, 69, "a dead mount: run 'mirrorfs umount BASE/source' first"),
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
    (bad_number, 64, "option 'attr_timeout': long: a number is allowed"),
    (unknown_choice, 64, "option 'writers': many: one is allowed"),
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
