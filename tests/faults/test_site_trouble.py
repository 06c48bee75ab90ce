"""Sites that hang, go away, are emptied, rolled back or another volume's, and files the replicator
dies at: it says so, nothing is lost, and the other sites go on.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from replicator.site_state import HeldStep
from tests.support import campaign
from tests.support.ill import BUG, DIE, ILL
from tests.support.mounts import Mounting, mounting
from tests.support.power import Disk
from tests.support.replicating import Replicating, Replication, replicating, run
from tests.support.trees import differences, snapshot

pytestmark = pytest.mark.fuse

__all__ = ["mounting", "replicating"]

LARGE = 3 << 20


def same(source: Path, replication: Replication, *sites: str) -> None:
    replication.settle(*sites)
    for name in sites or replication.sites:
        assert differences(snapshot(source), snapshot(replication.sites[name])) == [], name


def held(replication: Replication, site: str, told: str) -> list[HeldStep]:
    """Wait for a step held for that reason."""

    def found() -> list[HeldStep]:
        return [step for step in replication.state(site).held if told in step.error]

    replication.expect(lambda: bool(found()), f"nothing is held: {told}")
    return found()


def mistakes_repeat(replication: Replication, site: str) -> bool:
    """Whether both files are held because of one, and were tried again."""
    told = "internal error: KeyError: 'a mistake'"
    steps = [step for step in replication.state(site).held if step.error == told]
    tried = all(step.tries > 1 for step in steps)
    return tried and {step.path for step in steps} == {b"small", b"large"}


@pytest.mark.parametrize("size", [100, LARGE], ids=["inline", "workers"])
def test_a_file_the_replicator_dies_at_is_quarantined(
    size: int, mounting: Mounting, replicating: Replicating
) -> None:
    mounted = mounting()
    replication = replicating(mounted.journal, "site", start=False)
    replication.command = ILL
    replication.start()
    replication.settle()
    top = mounted.mountpoint
    for name in ("before", "poison", "after"):
        (top / name).mkdir()
        (top / name / "file").write_bytes((DIE if name == "poison" else b"well").ljust(size))
    (top / "after" / "small").write_text("small")
    codes = [replication.wait()]
    while len(codes) < 3:
        replication.start()
        codes.append(replication.wait())
    assert codes == [-signal.SIGKILL] * 3
    replication.start()
    steps = held(replication, "site", "quarantined: the replicator died at it three times")
    assert {step.path for step in steps} == {b"poison/file"}
    step = min(steps, key=lambda each: each.sequence)
    assert step.due_ns - step.since_ns >= 600 * 10**9
    site = replication.sites["site"]
    replication.expect(lambda: replication.state("site").working > step.sequence, "it stands still")
    replication.stop()
    assert not (site / "poison" / "file").exists()
    assert replication.clean("site") < step.sequence
    for name in ("before/file", "after/file", "after/small"):
        assert (site / name).read_bytes() == (top / name).read_bytes()


def test_kills_do_not_quarantine_what_is_done_between_them(
    mounting: Mounting, replicating: Replicating
) -> None:
    mounted = mounting()
    replication = replicating(mounted.journal, "site")
    for number in range(6):
        replication.wait_for_reports()
        (mounted.mountpoint / f"{number}").write_bytes(b"x" * LARGE)
        replication.kill()
        replication.start()
        replication.settle()
    same(mounted.source, replication)
    assert replication.state("site").held == []


def test_a_mistake_holds_one_step_and_is_logged_once(
    mounting: Mounting, replicating: Replicating
) -> None:
    mounted = mounting()
    replication = replicating(mounted.journal, "one", "two", start=False)
    replication.command = ILL
    replication.start()
    replication.settle()
    for name, data in (("small", BUG), ("large", BUG.ljust(LARGE)), ("well", b"well")):
        (mounted.mountpoint / name).write_bytes(data)
    logged = 0
    for site in replication.sites:
        repeat = functools.partial(mistakes_repeat, replication, site)
        replication.expect(repeat, "not held, or not tried again")
        logged += len(replication.state(site).held)
        assert (replication.sites[site] / "well").read_bytes() == b"well"
    assert 4 <= replication.said().count("Traceback") <= logged
    for name in ("small", "large"):  # it need not stay so
        (mounted.mountpoint / name).write_bytes(b"mended")
    same(mounted.source, replication)
    replication.stop()


def test_a_site_that_hangs_is_stalled_and_holds_up_nothing(
    mounting: Mounting, replicating: Replicating, tmp_path: Path
) -> None:
    mounted = mounting()
    disk = Disk("ext4", tmp_path / "image", tmp_path / "disk")
    try:
        disk.make()
        sites = {"hangs": disk.where / "site", "well": tmp_path / "well"}
        for site in sites.values():
            site.mkdir()
        replication = replicating.to(mounted.journal, sites, start=False)
        replication.command = ILL
        replication.start()
        replication.settle()
        subprocess.run(["fsfreeze", "--freeze", disk.where], check=True)
        try:
            (mounted.mountpoint / "new").write_text("new")
            replication.settle("well")
            replication.expect(
                lambda: replication.report("hangs").phase == "stalled", "it is not stalled"
            )
            assert "/new" in replication.report("hangs").reason
            told = run("status", "--journal", mounted.journal)
            assert told.returncode == 1
            assert "hangs is stalled: no progress for" in told.stdout
            (mounted.mountpoint / "more").write_text("more")
            replication.settle("well")
            replication.signal(signal.SIGTERM)
            replication.expect(
                lambda: "hangs: it does not stop: left as it is" in replication.said(),
                "it waits for the site that hangs",
            )
            assert replication.state("well").stopped
        finally:
            subprocess.run(["fsfreeze", "--unfreeze", disk.where], check=True)
        assert replication.wait() == 66, replication.said()
        replication.start()
        same(mounted.source, replication)
        replication.stop()
    finally:
        replicating.clean_up()
        disk.remove()


def test_a_site_that_goes_away_is_waited_for(
    mounting: Mounting, replicating: Replicating, tmp_path: Path
) -> None:
    """Its mount point is not taken for it."""
    mounted = mounting()
    disk = Disk("ext4", tmp_path / "image", tmp_path / "disk")
    try:
        disk.make()
        sites = {"away": disk.where / "site", "well": tmp_path / "well"}
        for site in sites.values():
            site.mkdir()
        replication = replicating.to(mounted.journal, sites, start=False)
        replication.command = ILL
        replication.start()
        (mounted.mountpoint / "before").write_text("before")
        same(mounted.source, replication)
        disk.sync()
        disk.cut()
        (mounted.mountpoint / "while").write_text("while")
        disk.unmount()
        replication.expect(
            lambda: "does not exist" in replication.report("away").reason, "it is not missed"
        )
        (disk.where / "site").mkdir()
        replication.expect(
            lambda: "is it not mounted?" in replication.report("away").reason, "it is not missed"
        )
        assert os.listdir(disk.where / "site") == []
        same(mounted.source, replication, "well")
        (disk.where / "site").rmdir()
        disk.mount()
        same(mounted.source, replication)
        replication.stop()
    finally:
        replicating.clean_up()
        disk.remove()


def test_a_site_put_back_from_an_older_copy(
    mounting: Mounting, replicating: Replicating, tmp_path: Path
) -> None:
    """With marks, state and all: it goes on from there."""
    mounted = mounting()
    top = mounted.mountpoint
    replication = replicating(mounted.journal, "site")
    for name in ("kept", "written", "moved", "removed"):
        (top / name).mkdir()
        (top / name / "file").write_text(name)
        os.link(top / name / "file", top / name / "other")
    same(mounted.source, replication)
    replication.stop()
    site, copy = replication.sites["site"], tmp_path / "copy"
    subprocess.run(["cp", "-a", site, copy], check=True)
    replication.start()
    (top / "written" / "file").write_text("written again")
    (top / "moved").rename(top / "kept" / "moved")
    shutil.rmtree(top / "removed")
    (top / "new").mkdir()
    (top / "new" / "file").write_text("new")
    same(mounted.source, replication)
    listed = replication.report("site").counters["directories_listed"]
    replication.stop()
    shutil.rmtree(site)
    subprocess.run(["cp", "-a", copy, site], check=True)
    replication.start()
    same(mounted.source, replication)
    replication.stop()
    assert replication.report("site").counters["directories_listed"] <= listed + 4
    assert replication.left_over("site") == []


def empty(site: Path) -> None:
    """With all that was ours."""
    shutil.rmtree(site)
    site.mkdir()


def test_a_site_that_was_emptied_is_refused_until_it_is_taken_over(
    mounting: Mounting, replicating: Replicating
) -> None:
    mounted = mounting()
    (mounted.mountpoint / "file").write_text("file")
    replication = replicating(mounted.journal, "site")
    same(mounted.source, replication)
    replication.stop()
    site = replication.sites["site"]
    empty(site)
    options: list[str | Path] = ["--journal", mounted.journal, *replication.options()]
    for refused in (run("run", *options), run("attach", *options)):
        assert (refused.returncode, refused.stderr.count("\n")) == (66, 1), refused.stderr
        assert "nothing of site 'site', which was replicated to before" in refused.stderr
    assert os.listdir(site) == []
    assert run("attach", *options, "--take-over").returncode == 0
    replication.start()
    same(mounted.source, replication)
    replication.stop()


def test_a_forgotten_site_may_be_made_anew(mounting: Mounting, replicating: Replicating) -> None:
    mounted = mounting()
    replication = replicating(mounted.journal, "site")
    same(mounted.source, replication)
    replication.stop()
    empty(replication.sites["site"])
    detached = run("detach", "--journal", mounted.journal, "--site", "site", "--forget")
    assert detached.returncode == 0
    replication.start()
    same(mounted.source, replication)
    replication.stop()


def test_a_site_of_another_volume_is_taken_over_and_nothing_of_it_is_lost(
    mounting: Mounting, replicating: Replicating
) -> None:
    other, mounted = mounting(name="other"), mounting()
    for at, text in ((other, "other"), (mounted, "this")):
        (at.mountpoint / "both").write_text(text)
        (at.mountpoint / text).mkdir()
        (at.mountpoint / text / "file").write_text(text)
    first = replicating(other.journal, "site")
    same(other.source, first)
    first.stop()
    replication = replicating.to(mounted.journal, first.sites, start=False)
    options: list[str | Path] = ["--journal", mounted.journal, *replication.options()]
    for refused in (run("run", *options), run("attach", *options, "--adopt")):
        assert (refused.returncode, refused.stderr.count("\n")) == (69, 1), refused.stderr
        assert "'replicator attach --take-over' takes it" in refused.stderr
    assert run("attach", *options, "--take-over").returncode == 0
    replication.start()
    same(mounted.source, replication)
    replication.stop()
    kept = replication.sites["site"] / ".mirrorfs" / "kept"
    texts = {path.read_text() for path in kept.rglob("*") if path.is_file()}
    assert texts == {"other"}
    assert len([path for path in kept.rglob("*") if path.is_file()]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", campaign.pick(("ext4",), ("ext4", "xfs")))
def test_power_is_cut_while_workers_copy(
    kind: str, mounting: Mounting, replicating: Replicating, tmp_path: Path
) -> None:
    mounted = mounting()
    disk = Disk(kind, tmp_path / "image", tmp_path / "disk")
    try:
        disk.make()
        (disk.where / "site").mkdir()
        replication = replicating.to(mounted.journal, {"site": disk.where / "site"})
        replication.settle()
        stage = disk.where / "site" / ".mirrorfs" / "stage"
        for cut in range(campaign.pick(2, 12)):
            batch = 0
            while True:  # until it is met in the middle of several copies
                replication.wait_for_reports()
                for number in range(6):
                    data = b"%d %d %d\n" % (cut, batch, number) * (1 << 17)
                    (mounted.mountpoint / f"{number}").write_bytes(data)
                replication.expect(
                    lambda: bool(os.listdir(stage)) or replication.clean("site") > 0, "nothing"
                )
                replication.signal(signal.SIGSTOP)
                if len(os.listdir(stage)) > 1 or batch > 20:
                    break
                replication.signal(signal.SIGCONT)
                batch += 1
            disk.cut()
            replication.kill()
            disk.unmount()
            disk.mount()
            replication.start()
            same(mounted.source, replication)
        replication.stop()
        assert replication.left_over("site") == []
    finally:
        replicating.clean_up()
        disk.remove()
