"""`mirrorfs recover`: what it foresees is what a mount does; it changes nothing, or all it must."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mirrorfs import activity_log, prospect
from mirrorfs.activity import SLOTS
from mirrorfs.journal.activity_header import FILE_NAME, encode_activity_header
from mirrorfs.journal.record import Change, Kind, Mount, Reconcile
from mirrorfs.marks import Mark, encode_head, encode_mark
from mirrorfs.prospect import Prospect, Why
from tests.support import campaign
from tests.support.crashing import Crashing
from tests.support.mounts import ROOT, Mounted, Mounting, mounting, run
from tests.support.replicating import Replicating, replicating
from tests.support.trees import differences, snapshot

__all__ = ["mounting", "replicating"]

pytestmark = pytest.mark.fuse


def work(mounted: Mounted) -> None:
    """Changes in some directories, and in some not."""
    for name in ("busy/deep", "quiet/deep"):
        (mounted.mountpoint / name).mkdir(parents=True, exist_ok=True)
    (mounted.mountpoint / "busy/deep/file").write_bytes(b"content")


def killed(mounting: Mounting, *options: str) -> Mounted:
    mounted = mounting(*options)
    work(mounted)
    mounted.kill()
    return mounted


def foreseen(mounted: Mounted) -> Prospect:
    return prospect.look(prospect.named(str(mounted.journal)))


def dry_run(mounted: Mounted) -> tuple[int, dict[str, Any]]:
    done = run("recover", "--dry-run", "--json", mounted.journal)
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)


def bytes_of(*trees: Path) -> dict[str, tuple[str, int, int]]:
    """Everything there: names, content and change times."""
    found = {}
    for tree in trees:
        for above, directories, files in os.walk(tree):
            for name in (*directories, *files):
                path = os.path.join(above, name)
                told = os.lstat(path)
                regular = name in files and os.path.isfile(path)
                data = Path(path).read_bytes() if regular else b""
                digest = hashlib.sha256(data).hexdigest()
                found[path] = (digest, told.st_ctime_ns, told.st_mode)
    return found


def text_of(mounted: Mounted) -> str:
    return "\n".join(prospect.lines(foreseen(mounted)))


def test_after_a_kill(mounting: Mounting) -> None:
    mounted = killed(mounting)
    before = bytes_of(mounted.source, mounted.journal)
    code, told = dry_run(mounted)
    done = run("recover", "-n", mounted.journal)
    assert bytes_of(mounted.source, mounted.journal) == before
    assert (code, done.returncode) == (1, 1)
    assert {each["path"] for each in told["compare"]} == {
        *("/", "/busy", "/busy/deep", "/quiet", "/quiet/deep")
    }
    assert (told["clean"], told["torn_bytes"], told["marked"]) == (False, 0, None)
    lines = done.stdout.splitlines()
    assert "  ended         without unmounting" in lines
    assert "  to compare    5 directories" in lines
    assert "      /busy/deep" in lines
    assert all(len(line) <= 80 or str(mounted.source.parent) in line for line in lines)


def test_the_mount_does_what_was_foreseen(mounting: Mounting) -> None:
    mounted = killed(mounting)
    before = foreseen(mounted)
    mounted.mount()
    records = [record for record in mounted.records() if record.sequence > before.head]
    found = [r.body for r in records if isinstance(r.body, Reconcile)]
    assert {body.directory for body in found} == {each.object for each in before.compared}
    assert {body.reason for body in found} == {before.reason}


def test_recovered_without_a_mount(mounting: Mounting, replicating: Replicating) -> None:
    mounted = mounting()
    replication = replicating(mounted.journal, "site")
    replication.settle()
    work(mounted)
    mounted.kill()
    (mounted.source / "busy/deep/behind").write_bytes(b"as after a lost record")
    done = run("recover", mounted.journal)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith("This stands in the journal now")
    last = mounted.records()
    assert last[-1].kind is Kind.UNMOUNT
    assert [r.body.mountpoint for r in last if isinstance(r.body, Mount)][-1] == b""
    assert "recovered, not mounted, on" in run("journal", "cat", mounted.journal).stdout
    replication.settle()
    assert differences(snapshot(mounted.source), snapshot(replication.sites["site"])) == []
    assert dry_run(mounted)[0] == 0
    again = run("recover", mounted.journal)
    assert again.stdout.splitlines()[-1] == "  to compare    nothing: it ended cleanly"
    assert len(mounted.records()) == len(last)
    mounted.mount()
    assert not [r for r in mounted.records()[len(last) :] if isinstance(r.body, Reconcile | Change)]


def test_while_it_is_mounted(mounting: Mounting) -> None:
    mounted = mounting()
    for what in (mounted.journal, mounted.mountpoint):
        done = run("recover", "--dry-run", what)
        assert done.returncode == 0
        assert f"nothing to recover: mounted at {mounted.mountpoint} by" in done.stdout
    assert dry_run(mounted)[1]["pid"] == mounted.pid
    done = run("recover", mounted.journal)
    assert done.returncode == 69
    assert "mounted at" in done.stderr
    mounted.umount()
    assert dry_run(mounted)[0] == 0


def test_by_a_volume_file(mounting: Mounting, tmp_path: Path) -> None:
    mounted = killed(mounting)
    file = tmp_path / "volume.toml"
    file.write_text(
        f'[volume]\nname = "v"\nsource = "{mounted.source}"\nmountpoint = "{tmp_path}/nowhere"\n'
        f'journal = "{mounted.journal}"\n'
    )
    assert run("recover", "--dry-run", file).returncode == 1
    assert run("recover", file).returncode == 0
    assert run("recover", "--dry-run", file).returncode == 0


def test_of_one_node_of_many(mounting: Mounting) -> None:
    options = ("writers=many", "locks=local", "node=one")
    mounted = mounting.prepare(*options)
    mounted.journal_option, mounted.journal = mounted.journal, mounted.journal / "one"
    mounted.mount()
    work(mounted)
    mounted.kill()
    before = foreseen(mounted)
    assert len(before.compared) == 5
    assert run("recover", mounted.journal).returncode == 0
    assert foreseen(mounted).nothing
    mounted.mount()
    assert dry_run(mounted)[0] == 0


def test_a_file_of_which_no_name_is_known(mounting: Mounting) -> None:
    """Sites may have to look everywhere for it, so once must do."""
    mounted = mounting()
    one = mounted.mountpoint / "one"
    one.write_bytes(b"content")
    os.link(one, mounted.mountpoint / "two")
    descriptor = os.open(one, os.O_WRONLY)
    os.write(descriptor, b"changed")
    one.unlink()
    mounted.kill()
    with contextlib.suppress(OSError):  # the mount is dead
        os.close(descriptor)
    assert [each.is_object for each in foreseen(mounted).compared] == [False, True]
    told = text_of(mounted)
    assert "  to compare    1 directory, 1 file" in told
    mounted.mount()
    mounted.kill()
    assert [each.is_object for each in foreseen(mounted).compared] == [False]


def test_a_torn_tail(mounting: Mounting) -> None:
    mounted = mounting()
    mounted.umount()
    (segment,) = mounted.journal.glob("*.seg")
    with segment.open("ab") as file:
        file.write(b"\x50\0\0\0")
    assert foreseen(mounted).torn_bytes == 4
    assert "  torn tail     4 bytes, to be cut off; a copy is kept" in text_of(mounted)
    assert dry_run(mounted)[0] == 1
    assert run("recover", mounted.journal).returncode == 0
    assert foreseen(mounted).nothing


def test_marks(mounting: Mounting, caplog: pytest.LogCaptureFixture) -> None:
    mounted = mounting()
    work(mounted)
    busy = next(r.body for r in mounted.records() if r.kind is Kind.MKDIR)
    assert isinstance(busy, Change)
    mounted.umount()
    marks = (Mark(busy.object, True, b"busy"), Mark(busy.object, False, None))
    (mounted.source / ".mirrorfs/degraded").write_bytes(
        encode_head(5, "the disk was full") + b"".join(map(encode_mark, marks))
    )
    told = text_of(mounted)
    assert "  marks         the disk was full" in told
    assert "  to compare    2 directories, 1 of them with all below" in told
    assert "      /busy and all below it" in told
    assert f"      object {busy.object.hex()}" in told
    assert run("recover", mounted.journal).returncode == 0
    assert not (mounted.source / ".mirrorfs/degraded").exists()
    assert foreseen(mounted).nothing
    (mounted.source / ".mirrorfs/degraded").write_bytes(b"no marks")
    assert [each.whole for each in foreseen(mounted).compared] == [True]
    assert caplog.messages == ["the marks cannot be read: everything is compared"]


def test_nothing_tells_what_was_changed(mounting: Mounting) -> None:
    mounted = killed(mounting)
    (mounted.source / ".mirrorfs/untold").touch()
    found = foreseen(mounted)
    assert [(each.path, each.whole, each.why) for each in found.compared] == [
        (b"", True, Why.EVERYTHING)
    ]
    told = text_of(mounted)
    assert "  activity log  none that tells of all changes" in told
    assert "      / and all below it" in told
    (mounted.source / ".mirrorfs/untold").unlink()
    (mounted.journal / FILE_NAME).unlink()
    assert [each.why for each in foreseen(mounted).compared] == [Why.EVERYTHING]


def test_after_another_boot(mounting: Mounting) -> None:
    mounted = mounting()
    work(mounted)
    mounted.umount()
    assert foreseen(mounted).nothing
    directory = os.open(mounted.journal, os.O_RDONLY)
    try:
        told = activity_log.read(directory)
    finally:
        os.close(directory)
    assert told is not None
    path = mounted.journal / FILE_NAME
    header = told[0]._replace(boot=b"another-boot".ljust(36, b"-"))
    path.write_bytes(encode_activity_header(header, SLOTS) + path.read_bytes()[256:])
    found = foreseen(mounted)
    assert (found.clean, found.other_boot, len(found.compared)) == (True, True, 5)
    assert "of before the host was started again" in text_of(mounted)
    assert "was mounted again" in found.reason


def test_refusals(mounting: Mounting, tmp_path: Path) -> None:
    mounted = killed(mounting)
    done = run("recover", "--dry-run", mounted.source)
    assert (done.returncode, "name its journal" in done.stderr) == (66, True)
    done = run("recover", "--dry-run", tmp_path / "none")
    assert (done.returncode, "no journal there" in done.stderr) == (66, True)
    other = mounting(name="other")
    other.umount()
    volume = mounted.source / ".mirrorfs/volume"
    kept = volume.read_bytes()
    for content in ((other.source / ".mirrorfs/volume").read_bytes(), None):
        volume.unlink()
        if content is not None:
            volume.write_bytes(content)
        done = run("recover", "--dry-run", mounted.journal)
        assert (done.returncode, len(done.stderr.splitlines())) == (69, 1)
        assert run("recover", mounted.journal).returncode == 69
    os.rename(mounted.source / ".mirrorfs", tmp_path / "away")  # noqa: TID251
    assert run("recover", "--dry-run", mounted.journal).returncode == 69
    os.rename(tmp_path / "away", mounted.source / ".mirrorfs")  # noqa: TID251
    volume.write_bytes(kept)
    unprivileged = ("setpriv", "--reuid=1234", "--clear-groups", "--inh-caps=-all")
    mounted.journal.chmod(0o755)
    for path in mounted.journal.iterdir():
        path.chmod(0o644)
    code = f"import sys; from mirrorfs.cli import main; main(['recover', {str(mounted.journal)!r}])"
    done = subprocess.run(
        [*unprivileged, sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode in (77, 66), done.stderr  # below the directory of another user
    (segment,) = mounted.journal.glob("*.seg")
    data = bytearray(segment.read_bytes())
    data[-200] ^= 1
    segment.write_bytes(data)
    done = run("recover", "--dry-run", mounted.journal)
    assert (done.returncode, len(done.stderr.splitlines())) == (74, 1)


def test_a_dead_mount_over_the_source(mounting: Mounting) -> None:
    mounted = mounting(over=True)
    work(mounted)
    mounted.die()
    done = run("recover", "--dry-run", mounted.journal)
    assert (done.returncode, done.stderr) == (1, "")
    assert "/busy/deep" in done.stdout
    assert run("recover", mounted.journal).returncode == 0


def crash(volume: Crashing, number: int) -> list[str]:
    """A recovery that is killed at its call of that number; the calls it made."""
    volume.page.arm(before=number)
    words = (sys.executable, "-m", "tests.support.crashing", volume.page_file)
    subprocess.run([*words, "recover", volume.journal], stdout=subprocess.DEVNULL, cwd=ROOT)
    return volume.page.disarm()


def test_a_recovery_that_is_killed(mounting: Mounting, tmp_path: Path) -> None:
    """Wherever it is, the next one finds what is to be compared, and not the whole tree."""
    at = mounting.prepare()
    volume = Crashing(at.source, at.mountpoint, at.journal, page_file=tmp_path / "page")
    try:
        volume.mount()
        work(volume)
        volume.kill()
        names = crash(volume, 0)
        volume.mount()
        work(volume)
        volume.kill()
        wanted = {each.object for each in foreseen(volume).compared}
        probes = {number for number, name in enumerate(names) if name == "pwrite"}
        numbers = [number for number in range(len(names)) if number not in probes]
        if not campaign.LONG:
            numbers = numbers[1::3]
        begun, cut_off = foreseen(volume).head, 0
        for number in numbers:
            crash(volume, number + 1)
            found = foreseen(volume)
            if found.clean:  # only a sync was still to come
                break
            cut_off += 1
            assert {each.object for each in found.compared} >= wanted, names[number]
            assert not any(each.why is Why.EVERYTHING for each in found.compared), names[number]
        assert cut_off > 5
        crash(volume, 0)
        assert foreseen(volume).nothing
        told = [r.body for r in volume.records() if r.sequence > begun]
        assert wanted <= {body.directory for body in told if isinstance(body, Reconcile)}
    finally:
        volume.clean_up()
