"""Sites that cannot be opened when the replicator starts: it says so, the other sites go on, and
one that comes back ends equal.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mirrorfs.journal.site_files import read_cursor
from tests.support.ill import ILL
from tests.support.mounts import ROOT, Mounted, Mounting, mounting
from tests.support.power import Disk
from tests.support.replicating import Replicating, Replication, replicating, run
from tests.support.trees import differences, snapshot

pytestmark = pytest.mark.fuse

__all__ = ["mounting", "replicating"]


def same(source: Path, replication: Replication, *sites: str) -> None:
    replication.settle(*sites)
    for name in sites or replication.sites:
        assert differences(snapshot(source), snapshot(replication.sites[name])) == [], name


@pytest.fixture
def disk(tmp_path: Path, replicating: Replicating) -> Iterator[Disk]:
    """A file system of its own, which is away afterwards."""
    made = Disk("ext4", tmp_path / "image", tmp_path / "disk")
    made.make()
    try:
        yield made
    finally:
        replicating.clean_up()
        made.remove()


@contextmanager
def frozen(disk: Disk) -> Iterator[None]:
    """Who writes there hangs."""
    subprocess.run(["fsfreeze", "--freeze", disk.where], check=True)
    try:
        yield
    finally:
        subprocess.run(["fsfreeze", "--unfreeze", disk.where], check=True)


def two(replicating: Replicating, mounted: Mounted, ill: Path, tmp_path: Path) -> Replication:
    """One of which something is to be wrong, which comes first, and another one."""
    well = tmp_path / "well"
    well.mkdir()
    replication = replicating.to(mounted.journal, {"ill": ill, "well": well}, start=False)
    replication.command = ILL
    return replication


def known(replication: Replication, mounted: Mounted) -> None:
    """Both sites are replicated to, and the replicator has ended."""
    replication.start()
    (mounted.mountpoint / "before").write_text("before")
    same(mounted.source, replication)
    replication.stop()


def reported(replication: Replication, phase: str, told: str) -> None:
    """Wait until `ill` is said to be so, and why."""

    def is_so() -> bool:
        report = replication.report("ill")
        return report.phase == phase and told in report.reason and report.pid == replication.pid

    replication.wait_for_reports()
    replication.expect(is_so, f"ill is not {phase}: {told}")


def status(mounted: Mounted, code: int, told: str) -> None:
    done = run("status", "--journal", mounted.journal)
    assert done.returncode == code, done.stdout
    assert told in " ".join(done.stdout.split())


def test_one_that_hangs_holds_up_nothing(
    mounting: Mounting, replicating: Replicating, disk: Disk, tmp_path: Path
) -> None:
    mounted = mounting()
    (disk.where / "site").mkdir()
    replication = two(replicating, mounted, disk.where / "site", tmp_path)
    known(replication, mounted)
    with frozen(disk):
        replication.start()
        (mounted.mountpoint / "while").write_text("while")
        same(mounted.source, replication, "well")
        reported(replication, "stalled", "at the site itself")
        status(mounted, 1, "ill is stalled: no progress for")
        kept = read_cursor(str(mounted.journal), "ill")
        assert kept is not None
        assert kept.status == "attached"
        assert kept.sequence < replication.state("well").clean
        (mounted.mountpoint / "more").write_text("more")
        same(mounted.source, replication, "well")
    same(mounted.source, replication)
    replication.stop()


def test_one_that_hangs_is_left_as_it_is_at_a_stop(
    mounting: Mounting, replicating: Replicating, disk: Disk, tmp_path: Path
) -> None:
    mounted = mounting()
    (disk.where / "site").mkdir()
    replication = two(replicating, mounted, disk.where / "site", tmp_path)
    known(replication, mounted)
    with frozen(disk):
        (mounted.mountpoint / "while").write_text("while")
        replication.start()
        replication.wait_for_reports()
        replication.signal(signal.SIGTERM)
        replication.expect(
            lambda: "ill: it does not stop: left as it is" in replication.said(),
            "it waits for the site that hangs",
        )
    assert replication.wait() == 66, replication.said()
    replication.start()
    same(mounted.source, replication)
    replication.stop()


def test_the_only_one_hangs(
    mounting: Mounting, replicating: Replicating, disk: Disk, tmp_path: Path
) -> None:
    """Whoever starts it does not wait for that; a refusal is told later."""
    mounted = mounting()
    (disk.where / "site").mkdir()
    replication = replicating.to(mounted.journal, {"ill": disk.where / "site"}, start=False)
    replication.command = ILL
    (mounted.mountpoint / "before").write_text("before")
    log = tmp_path / "log"
    words: list[str | Path] = ["--journal", mounted.journal, *replication.options()]
    words += ["--background", "--log", log, "--pid-file", tmp_path / "pid"]
    with frozen(disk):
        subprocess.run([*ILL, "run", *words], check=True, cwd=ROOT)
    pid = int((tmp_path / "pid").read_text())
    try:
        waited = run("wait", "--journal", mounted.journal, "--site", "ill", "now")
        assert waited.returncode == 0, waited.stderr
    finally:
        os.kill(pid, signal.SIGTERM)
        subprocess.run(["flock", "--shared", tmp_path / "pid", "true"], check=True)
    assert differences(snapshot(mounted.source), snapshot(disk.where / "site")) == []


def fill(directory: Path) -> Path:
    """To the last byte, and the last block for a directory."""
    filler = directory / "filler"

    def write(size: int) -> None:
        with filler.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(size))

    def make() -> None:
        for number in itertools.count():
            (directory / f"filler.{number}").mkdir()

    for size in (1 << 20, 4096, 1):
        with pytest.raises(OSError, match="No space left"):
            write(size)
    with pytest.raises(OSError, match="No space left"):
        make()
    return filler


def test_one_that_is_full(
    mounting: Mounting, replicating: Replicating, disk: Disk, tmp_path: Path
) -> None:
    """Before anything of it was ever written."""
    mounted = mounting()
    (disk.where / "site").mkdir()
    replication = two(replicating, mounted, disk.where / "site", tmp_path)
    (mounted.mountpoint / "before").write_text("before")
    filler = fill(disk.where)
    replication.start()
    same(mounted.source, replication, "well")
    reported(replication, "backing off", "No space left on device")
    status(mounted, 1, "ill is backing off: ")
    filler.unlink()
    same(mounted.source, replication)
    replication.stop()


@pytest.mark.parametrize("was_known", [False, True], ids=["new", "known"])
def test_one_that_is_not_there(
    was_known: bool, mounting: Mounting, replicating: Replicating, tmp_path: Path
) -> None:
    mounted = mounting()
    ill = tmp_path / "ill"
    replication = two(replicating, mounted, ill, tmp_path)
    if was_known:
        ill.mkdir()
        known(replication, mounted)
        ill.rename(tmp_path / "away")
    (mounted.mountpoint / "while").write_text("while")
    replication.start()
    same(mounted.source, replication, "well")
    reported(replication, "backing off", f"{ill}: does not exist")
    status(mounted, 1, f"ill is backing off: {ill}: does not exist")
    if was_known:
        (tmp_path / "away").rename(ill)
    else:
        ill.mkdir()
    same(mounted.source, replication)
    replication.stop()


def test_a_stop_while_one_is_not_there(
    mounting: Mounting, replicating: Replicating, tmp_path: Path
) -> None:
    mounted = mounting()
    replication = two(replicating, mounted, tmp_path / "ill", tmp_path)
    replication.start()
    (mounted.mountpoint / "while").write_text("while")
    same(mounted.source, replication, "well")
    reported(replication, "backing off", "does not exist")
    replication.stop()
    assert "Traceback" not in replication.said()
    assert replication.report("ill").phase == "stopped"


def test_one_that_was_emptied_is_waited_for(
    mounting: Mounting, replicating: Replicating, tmp_path: Path
) -> None:
    """It may be a mount point, without its mount."""
    mounted = mounting()
    ill = tmp_path / "ill"
    ill.mkdir()
    replication = two(replicating, mounted, ill, tmp_path)
    known(replication, mounted)
    ill.rename(tmp_path / "away")
    ill.mkdir()
    replication.start()
    (mounted.mountpoint / "while").write_text("while")
    same(mounted.source, replication, "well")
    reported(replication, "backing off", "is it not mounted?")
    status(mounted, 1, "'replicator attach --take-over' makes it anew")
    assert os.listdir(ill) == []
    ill.rmdir()
    (tmp_path / "away").rename(ill)
    same(mounted.source, replication)
    replication.stop()


def test_one_of_another_volume_is_halted(
    mounting: Mounting, replicating: Replicating, tmp_path: Path
) -> None:
    other, mounted = mounting(name="other"), mounting()
    (other.mountpoint / "other").write_text("other")
    first = replicating(other.journal, "ill")
    same(other.source, first)
    first.stop()
    before = snapshot(first.sites["ill"])
    replication = two(replicating, mounted, first.sites["ill"], tmp_path)
    (mounted.mountpoint / "file").write_text("file")
    replication.start()
    same(mounted.source, replication, "well")
    reported(replication, "halted", "belongs to another volume")
    assert "ill: halted: " in replication.said()
    status(mounted, 2, "'replicator attach --take-over' takes it")
    waited = run("wait", "--journal", mounted.journal, "--site", "ill", "now")
    assert (waited.returncode, "halted: " in waited.stderr + waited.stdout) == (2, True), waited
    assert differences(before, snapshot(first.sites["ill"])) == []
    options: list[str | Path] = ["--journal", mounted.journal, *replication.options(["ill"])]
    assert run("attach", *options, "--take-over").returncode == 0
    replication.stop()
    replication.start()
    same(mounted.source, replication)
    replication.stop()


def test_one_that_another_replicator_works_on_is_waited_for(
    mounting: Mounting, replicating: Replicating, tmp_path: Path
) -> None:
    mounted = mounting()
    ill = tmp_path / "ill"
    ill.mkdir()
    first = replicating.to(mounted.journal, {"ill": ill})
    (mounted.mountpoint / "before").write_text("before")
    same(mounted.source, first)
    replication = two(replicating, mounted, ill, tmp_path)
    replication.start()
    same(mounted.source, replication, "well")
    replication.expect(lambda: "in use by process" in replication.said(), "it is not told")
    first.stop()
    (mounted.mountpoint / "after").write_text("after")
    same(mounted.source, replication)
    replication.stop()


def test_none_can_be_opened(mounting: Mounting, replicating: Replicating, tmp_path: Path) -> None:
    mounted = mounting()
    replication = two(replicating, mounted, tmp_path / "ill", tmp_path)
    shutil.rmtree(replication.sites["well"])
    options: list[str | Path] = ["--journal", mounted.journal, *replication.options()]
    refused = run("run", *options)
    assert (refused.returncode, refused.stderr.count("\n")) == (66, 1), refused.stderr
    for site in replication.sites.values():
        assert f"{site}: does not exist" in refused.stderr
    (tmp_path / "ill").mkdir()
    options = ["--journal", mounted.journal]
    assert run("attach", *options, *replication.options(["ill"])).returncode == 0
    assert run("pause", *options, "ill").returncode == 0
    shutil.rmtree(tmp_path / "ill")
    replication.start()  # one that is held up is not one that cannot be opened
    reported(replication, "paused", "")
    replication.stop()
