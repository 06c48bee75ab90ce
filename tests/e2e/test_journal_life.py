"""A journal that is cut behind its sites: what they need stays, and a gap is never "up to date"."""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path

import msgspec
import pytest

from mirrorfs.journal.open_segment import list_segments, read_head
from mirrorfs.journal.reader import JournalReader
from mirrorfs.journal.segment import COMPRESSED
from mirrorfs.journal.site_cursor import SiteCursor
from mirrorfs.journal.site_files import read_cursor, read_retention, write_cursor
from tests.support.mounts import Mounted, Mounting, mounting
from tests.support.mounts import run as mirrorfs
from tests.support.replicating import Replicating, Replication, replicating, run, state, until
from tests.support.trees import differences, snapshot

pytestmark = pytest.mark.fuse

__all__ = ["mounting", "replicating"]

CUT = ("journal-segment-bytes=4096", "journal-keep=0")


def first(mounted: Mounted) -> int:
    """The oldest record that is kept."""
    with JournalReader(str(mounted.journal)) as reader:
        return reader.first()


def churn(mounted: Mounted, seed: int, count: int = 60) -> None:
    """Files made, written, renamed and removed: a few segments of records."""
    chance = random.Random(seed)
    for number in range(count):
        name = mounted.mountpoint / f"f{chance.randrange(40)}"
        name.write_bytes(b"%d %d\n" % (seed, number))
        if chance.random() < 0.3:
            os.replace(name, mounted.mountpoint / f"r{chance.randrange(10)}")
        elif chance.random() < 0.2:
            name.unlink()


def same(mounted: Mounted, replication: Replication) -> None:
    replication.settle()
    for site in replication.sites.values():
        assert differences(snapshot(mounted.source), snapshot(site)) == []


def passed(mounted: Mounted, cursor: int) -> None:
    """Make records until the journal has been cut beyond that cursor."""
    seed = 1000

    def cut() -> bool:
        nonlocal seed
        seed += 1
        churn(mounted, seed, 20)
        return first(mounted) > cursor + 1

    until(cut, lambda: f"the journal is not cut behind {cursor}")


def known(mounted: Mounted, site: str) -> SiteCursor:
    found = read_cursor(str(mounted.journal), site)
    assert found is not None
    return found


def initial_copies(replication: Replication) -> int:
    return replication.said().count("initial copy")


def test_a_site_that_is_behind_keeps_its_records(
    mounting: Mounting, replicating: Replicating
) -> None:
    """The replicator is killed again and again while the journal is cut behind it."""
    mounted = mounting(*CUT)
    replication = replicating(mounted.journal, "backup")
    churn(mounted, 1)
    same(mounted, replication)
    for seed in range(2, 6):
        churn(mounted, seed)
        replication.kill()
        before = known(mounted, "backup").sequence
        churn(mounted, 100 + seed)
        until(
            lambda: read_retention(str(mounted.journal)).holders != (),
            lambda: "nobody is said to hold the journal",
        )
        told = json.loads(mirrorfs("status", "--json", mounted.mountpoint).stdout)["kept"]
        assert told["holders"] == [{"site": "backup", "reason": "attached"}]
        assert told["disk_bytes"] > 0
        assert first(mounted) <= before + 1
        replication.start()
        same(mounted, replication)
    passed(mounted, 1)
    same(mounted, replication)
    assert initial_copies(replication) == 1
    assert known(mounted, "backup").status == "attached"


def test_a_detached_site_past_its_budget_gets_an_initial_copy(
    mounting: Mounting, replicating: Replicating
) -> None:
    mounted = mounting(*CUT, "journal-detached-bytes=40K")
    near = replicating(mounted.journal, "near")
    far = replicating(mounted.journal, "far")
    churn(mounted, 1)
    same(mounted, near)
    same(mounted, far)
    words = ("--journal", mounted.journal, "--site", "far")
    refused = run("detach", *words)
    assert refused.returncode == 69
    assert "a replicator works on it" in refused.stderr
    far.stop()
    assert run("detach", *words).stdout.startswith("far: detached")
    away = state(far.sites["far"])
    assert away is not None
    told = json.loads(run("status", "--journal", mounted.journal, "--json").stdout)
    (site,) = (each for each in told["sites"] if each["site"] == "far")
    assert site["attached"] is False
    assert site["problems"] == []
    (far.sites["far"] / "stray").write_text("made at the site")
    (mounted.mountpoint / "gone").write_text("soon")
    same(mounted, near)
    (mounted.mountpoint / "gone").unlink()
    passed(mounted, away.working)
    told = json.loads(run("status", "--journal", mounted.journal, "--json").stdout)
    (site,) = (each for each in told["sites"] if each["site"] == "far")
    assert "an initial copy is due" in site["problems"][0]["text"]
    assert site["working"] is None
    waited = run("wait", *words, "--timeout", "0", "now")
    assert waited.returncode == 1
    far.start()
    same(mounted, far)
    assert initial_copies(far) == 2
    assert known(mounted, "far").status == "attached"
    same(mounted, near)


def test_a_detached_site_within_its_budget_goes_on(
    mounting: Mounting, replicating: Replicating
) -> None:
    mounted = mounting(*CUT)
    replication = replicating(mounted.journal, "backup")
    churn(mounted, 1)
    same(mounted, replication)
    replication.stop()
    words = ("--journal", mounted.journal, "--site", "backup")
    assert run("detach", *words).returncode == 0
    away = known(mounted, "backup")
    churn(mounted, 2)
    until(
        lambda: [h.reason for h in read_retention(str(mounted.journal)).holders] == ["detached"],
        lambda: "nobody is said to hold the journal",
    )
    assert run("detach", *words).returncode == 0
    assert known(mounted, "backup") == away
    replication.start()
    same(mounted, replication)
    assert initial_copies(replication) == 1
    assert known(mounted, "backup").status == "attached"


def test_a_replicator_whose_records_went_makes_an_initial_copy_by_itself(
    mounting: Mounting, replicating: Replicating
) -> None:
    """It was stopped in its tracks, and somebody detached the site meanwhile."""
    mounted = mounting(*CUT, "journal-detached-keep=0")
    replication = replicating(mounted.journal, "backup")
    churn(mounted, 1)
    same(mounted, replication)
    replication.signal(signal.SIGSTOP)
    cursor = known(mounted, "backup")
    away = msgspec.structs.replace(cursor, status="detached", since_ns=1)
    write_cursor(str(mounted.journal), away, durable=True)
    passed(mounted, cursor.sequence + 100)
    replication.signal(signal.SIGCONT)
    same(mounted, replication)
    assert known(mounted, "backup").status == "attached"
    assert initial_copies(replication) == 2


def test_a_forgotten_site_holds_nothing(mounting: Mounting, replicating: Replicating) -> None:
    mounted = mounting(*CUT)
    replication = replicating(mounted.journal, "backup")
    churn(mounted, 1)
    same(mounted, replication)
    replication.stop()
    words = ("--journal", mounted.journal, "--site", "backup")
    cursor = known(mounted, "backup").sequence
    assert "forgotten" in run("detach", *words, "--forget").stdout
    assert json.loads(run("status", "--journal", mounted.journal, "--json").stdout)["sites"] == []
    passed(mounted, cursor)
    replication.start()
    same(mounted, replication)


def test_sealed_segments_are_compressed_while_jobs_and_sites_go_on(
    mounting: Mounting, replicating: Replicating
) -> None:
    mounted = mounting("journal-segment-bytes=70000")
    replication = replicating(mounted.journal, "backup")

    def compressed() -> int:
        fd = os.open(mounted.journal, os.O_RDONLY)
        try:
            found = 0
            for segment in list_segments(fd):
                one = os.open(segment.name, os.O_RDONLY, dir_fd=fd)
                found += bool(read_head(one, segment).flags & COMPRESSED)
                os.close(one)
            return found
        finally:
            os.close(fd)

    seed = 0

    def enough() -> bool:
        nonlocal seed
        seed += 1
        churn(mounted, seed)
        return compressed() >= 3

    until(enough, lambda: "nothing is compressed")
    same(mounted, replication)
    late = replicating(mounted.journal, "late")
    same(mounted, late)
    assert mirrorfs("journal", "verify", mounted.journal).returncode == 0
    assert ", compressed\n" in mirrorfs("journal", "ls", mounted.journal).stdout
    assert "kept        from record 1: " in mirrorfs("status", mounted.mountpoint).stdout
    mounted.kill()
    mounted.mount()
    churn(mounted, 1)
    same(mounted, replication)
    assert mirrorfs("journal", "verify", mounted.journal).returncode == 0


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--site", "backup"), 66, "the journal has no cursor of it"),
        ((), 64, "one is needed"),
        (("--site", "a/b"), 64, "1 to 64 letters"),
    ],
)
def test_what_detach_refuses(
    mounting: Mounting, words: tuple[str, ...], code: int, said: str
) -> None:
    mounted = mounting()
    refused = run("detach", "--journal", mounted.journal, *words)
    assert refused.returncode == code
    assert said in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_detaching_without_a_journal(tmp_path: Path) -> None:
    refused = run("detach", "--journal", tmp_path, "--site", "backup")
    assert refused.returncode == 66
