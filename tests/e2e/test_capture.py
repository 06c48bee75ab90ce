"""Which records the operations of jobs make, read back from the journal of a real mount."""

from __future__ import annotations

import ctypes
import mmap
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mirrorfs.journal.record import Change, Kind
from tests.support.mounts import Mounted
from tests.support.overlay import OTHER, as_user, changes, head, overlaid
from tests.support.watching import Watch

pytestmark = pytest.mark.fuse

RENAME_EXCHANGE = 2
_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def watch(overlay: Mounted, work: Path) -> Iterator[Watch]:
    watching = Watch(overlay, work)
    yield watching
    watching.close()


MAKING: list[tuple[Kind, Callable[[Path], object]]] = [
    (Kind.MKDIR, lambda path: path.mkdir()),
    (Kind.SYMLINK, lambda path: path.symlink_to("target")),
    (Kind.MKNOD, lambda path: os.mkfifo(path)),
    (Kind.MKNOD, lambda path: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))),
    (Kind.CREATE, lambda path: os.mknod(path, stat.S_IFREG | 0o600)),
]


@pytest.mark.parametrize(("kind", "make"), MAKING)
def test_making(watch: Watch, work: Path, kind: Kind, make: Callable[[Path], object]) -> None:
    make(work / "x")
    ((record, change),) = watch.records()
    status = (work / "x").lstat()
    assert record.kind is kind
    assert record.settled
    assert change == Change(
        object=watch.id(work / "x"),
        places=(watch.place("x"),),
        path=watch.path("x"),
        mode=status.st_mode,
        links=status.st_nlink,
        ctime_ns=status.st_ctime_ns,
    )


def test_create_write_close(watch: Watch, work: Path) -> None:
    with open(work / "x", "wb") as file:
        file.write(b"content")
    (created, _), (written, change) = watch.records()
    assert (created.kind, written.kind) == (Kind.CREATE, Kind.WRITE)
    assert not created.settled
    assert written.settled
    status = (work / "x").stat()
    assert change.places == (watch.place("x"),)
    assert (change.size, change.mtime_ns) == (7, status.st_mtime_ns)
    assert change.ctime_ns == status.st_ctime_ns
    assert change.extents is None
    assert change.who is not None
    assert (change.who.pid, change.who.uid, change.who.job) == (os.getpid(), 0, "")


def test_an_empty_new_file_and_an_emptied_one_have_a_write(watch: Watch, work: Path) -> None:
    (work / "x").touch()
    assert watch.kinds() == [Kind.CREATE, Kind.WRITE]
    with open(work / "x", "wb"):
        assert watch.kinds() == []
    assert watch.one(Kind.WRITE).size == 0


def test_the_record_of_a_close_is_there_when_close_returns(watch: Watch, work: Path) -> None:
    descriptor = os.open(work / "x", os.O_CREAT | os.O_WRONLY)
    watch.records()
    for _ in range(3):
        os.write(descriptor, b"x")
        assert watch.kinds() == []
        os.close(os.dup(descriptor))
        watch.one(Kind.WRITE)
    os.close(os.dup(descriptor))
    assert watch.kinds() == []
    os.close(descriptor)
    assert watch.kinds() == []


def test_reading_and_looking_make_no_record(watch: Watch, work: Path) -> None:
    (work / "x").write_text("x")
    watch.records()
    (work / "x").read_text()
    with open(work / "x", "r+"):
        (work / "x").stat()
    os.listdir(work)
    os.listxattr(work / "x")
    assert not (work / "missing").exists()
    assert watch.kinds() == []


def test_truncation_is_recorded_at_once(watch: Watch, work: Path) -> None:
    with open(work / "x", "wb") as file:
        file.write(b"123456")
        watch.records()
        os.ftruncate(file.fileno(), 3)
        assert watch.one(Kind.WRITE).size == 3
    watch.records()
    os.truncate(work / "x", 1)
    assert watch.one(Kind.WRITE).size == 1


def test_opening_for_reading_may_empty_a_file_too(watch: Watch, work: Path) -> None:
    (work / "x").write_text("x")
    watch.records()
    descriptor = os.open(work / "x", os.O_RDONLY | os.O_TRUNC)
    recorded = watch.one(Kind.WRITE)
    assert recorded.size == 0
    assert recorded.who is not None
    assert recorded.who.pid == os.getpid()
    os.close(descriptor)
    assert watch.kinds() == []


def test_fsync_of_changed_content(watch: Watch, work: Path) -> None:
    with open(work / "x", "wb", 0) as file:
        watch.records()
        file.write(b"1")
        os.fsync(file.fileno())
        assert watch.one(Kind.WRITE).size == 1
        os.fsync(file.fileno())
        assert watch.kinds() == []


def test_the_idiom_write_fsync_rename_close_is_settled_at_its_rename(
    watch: Watch, work: Path
) -> None:
    with open(work / "x.tmp", "wb", 0) as file:
        file.write(b"1")
        (work / "x.tmp").rename(work / "early")
        file.write(b"2")
        os.fsync(file.fileno())
        (work / "early").rename(work / "x")
    records = [(record.kind, record.settled) for record, _ in watch.records()]
    assert records == [
        (Kind.CREATE, False),
        (Kind.RENAME, False),
        (Kind.WRITE, True),
        (Kind.RENAME, True),
    ]


def test_stores_through_a_mapping_after_the_last_close(watch: Watch, work: Path) -> None:
    (work / "x").write_bytes(bytes(4096))
    watch.records()
    descriptor = os.open(work / "x", os.O_RDWR)
    mapping = mmap.mmap(descriptor, 4096)
    os.close(descriptor)
    watch.records()
    mapping[:4] = b"late"
    mapping.flush()
    mapping.close()
    # The kernel releases the file in its own time.
    while not (found := watch.records()):
        os.stat(work)
    ((record, change),) = found
    assert (record.kind, change.path) == (Kind.WRITE, watch.path("x"))


def test_attributes(watch: Watch, work: Path) -> None:
    path = work / "x"
    path.touch()
    watch.records()
    actions: list[Callable[[], object]] = [
        lambda: path.chmod(0o600),
        lambda: os.chown(path, 1, 2),
        lambda: os.utime(path, ns=(1, 2)),
    ]
    for action in actions:
        action()
        recorded = watch.one(Kind.ATTRIBUTES)
        status = path.stat()
        assert recorded == Change(
            watch.id(path), (watch.place("x"),), watch.path("x"), status.st_mode, 1,
            status.st_ctime_ns,
        )  # fmt: skip
    os.chmod(work, 0o700)
    assert watch.one(Kind.ATTRIBUTES).path == watch.prefix


def test_attributes_of_the_root(watch: Watch, overlay: Mounted) -> None:
    os.utime(overlay.mountpoint)
    change = watch.one(Kind.ATTRIBUTES)
    assert (change.object, change.places, change.path) == (watch.id(overlay.mountpoint), (), b"")


def test_extended_attributes(watch: Watch, work: Path) -> None:
    (work / "x").mkdir()
    watch.records()
    os.setxattr(work / "x", "user.a", b"1")
    assert watch.one(Kind.XATTR).xattr == b"user.a"
    os.removexattr(work / "x", "user.a")
    assert watch.one(Kind.XATTR).xattr == b"user.a"
    subprocess.run(["setfacl", "-m", "u:5:r", work / "x"], check=True)
    assert watch.one(Kind.XATTR).xattr == b"system.posix_acl_access"


def test_hard_links(watch: Watch, work: Path) -> None:
    (work / "x").touch()
    (work / "d").mkdir()
    watch.records()
    os.link(work / "x", work / "d" / "y")
    change = watch.one(Kind.LINK)
    assert change.object == watch.id(work / "x")
    assert change.places == (watch.place("y", work / "d"), watch.place("x"))
    assert (change.links, change.path) == (2, watch.path("d/y"))
    (work / "x").unlink()
    change = watch.one(Kind.UNLINK)
    assert change.object == watch.id(work / "d" / "y")
    assert (change.places, change.path, change.links) == ((watch.place("x"),), watch.path("x"), 1)
    assert change.ctime_ns == (work / "d" / "y").stat().st_ctime_ns
    (work / "d" / "y").write_text("by the name that is left")
    assert watch.one(Kind.WRITE).places == (watch.place("y", work / "d"),)


def test_removing(watch: Watch, work: Path) -> None:
    (work / "f").touch()
    (work / "d").mkdir()
    ids = watch.id(work / "f"), watch.id(work / "d")
    watch.records()
    (work / "f").unlink()
    change = watch.one(Kind.UNLINK)
    assert (change.object, change.places) == (ids[0], (watch.place("f"),))
    assert (change.links, change.ctime_ns) == (0, 0)
    (work / "d").rmdir()
    change = watch.one(Kind.RMDIR)
    assert (change.object, change.places) == (ids[1], (watch.place("d"),))
    assert (change.links, change.path) == (0, watch.path("d"))


def test_rename_with_displacement(watch: Watch, work: Path) -> None:
    (work / "a").touch()
    (work / "b").touch()
    os.link(work / "b", work / "b2")
    (work / "d").mkdir()
    displaced = watch.id(work / "b")
    watch.records()
    (work / "a").rename(work / "d" / "a")
    change = watch.one(Kind.RENAME)
    assert change.places == (watch.place("a"), watch.place("a", work / "d"))
    assert (change.other, change.path) == (None, watch.path("d/a"))
    (work / "d" / "a").rename(work / "b")
    change = watch.one(Kind.RENAME)
    assert change.object == watch.id(work / "b")
    assert (change.other, change.other_links, change.rename_flags) == (displaced, 1, 0)
    assert change.ctime_ns == (work / "b").stat().st_ctime_ns


def test_exchange(watch: Watch, work: Path) -> None:
    (work / "f").write_text("f")
    (work / "d").mkdir()
    (work / "d" / "inner").touch()
    ids = watch.id(work / "f"), watch.id(work / "d")
    watch.records()
    done = _libc.renameat2(-100, bytes(work / "f"), -100, bytes(work / "d"), RENAME_EXCHANGE)
    assert done == 0
    change = watch.one(Kind.RENAME)
    assert (change.object, change.other) == ids
    assert change.rename_flags == RENAME_EXCHANGE
    (work / "f" / "inner").chmod(0o600)
    assert watch.one(Kind.ATTRIBUTES).path == watch.path("f/inner")


def test_paths_follow_renames_of_directories_above(watch: Watch, work: Path) -> None:
    (work / "a" / "b").mkdir(parents=True)
    (work / "a" / "b" / "f").touch()
    with open(work / "a" / "b" / "f", "r+b", 0) as file:
        (work / "a").rename(work / "z")
        watch.records()
        file.write(b"1")
        os.fsync(file.fileno())
        change = watch.one(Kind.WRITE)
        assert change.path == watch.path("z/b/f")
        assert change.places == (watch.place("f", work / "z" / "b"),)


def test_an_object_without_a_name_makes_no_records(watch: Watch, work: Path) -> None:
    with open(work / "x", "wb", 0) as file:
        (work / "x").unlink()
        watch.records()
        file.write(b"1")
        os.fchmod(file.fileno(), 0o600)
        os.ftruncate(file.fileno(), 0)
        os.setxattr(file.fileno(), "user.a", b"")
    assert watch.kinds() == []


def test_who_wrote_and_in_which_job(watch: Watch, work: Path) -> None:
    (work / "x").touch(0o666)
    (work / "x").chmod(0o666)
    watch.records()
    done = as_user(
        "fd = os.open(arg[0], os.O_WRONLY); os.write(fd, b'x'); print(os.getpid())",
        work / "x",
        environment={"SLURM_JOB_ID": "4711.batch"},
    )
    assert done.returncode == 0, done.stderr
    who = watch.one(Kind.WRITE).who
    assert who is not None
    assert (who.pid, who.uid, who.job) == (int(done.stdout), OTHER, "4711.batch")


def test_a_job_that_begins_by_exec_in_the_process_that_opened_its_output(
    watch: Watch, work: Path
) -> None:
    inner = "exec env SLURM_JOB_ID=9 sh -c 'echo from the job > job'"
    subprocess.run(["sh", "-c", f"exec > output; echo before; {inner}"], check=True, cwd=work)
    wrote = {
        change.path: change.who for record, change in watch.records() if record.kind is Kind.WRITE
    }
    before, job = wrote[watch.path("output")], wrote[watch.path("job")]
    assert before is not None
    assert job is not None
    assert before.pid == job.pid
    assert (before.job, job.job) == ("", "9")


def test_who_wrote_is_the_last_opener_whoever_closes(watch: Watch, work: Path) -> None:
    program = (
        "import os, threading\n"
        "def write():\n"
        "    f = os.open('f', os.O_WRONLY | os.O_CREAT)\n"
        "    os.write(f, b'x')\n"
        "    os.close(f)\n"
        "thread = threading.Thread(target=write)\n"
        "thread.start()\n"
        "thread.join()\n"
        "os.seteuid(7)\n"
        "os.chdir('open')\n"
        "write()\n"
        "print(os.getpid())\n"
    )
    (work / "open").mkdir()
    (work / "open").chmod(0o777)
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, check=True, cwd=work, capture_output=True, text=True)
    who = [change.who for record, change in watch.records() if record.kind is Kind.WRITE]
    assert [(by.pid, by.uid) for by in who if by] == [(int(done.stdout), 0), (int(done.stdout), 7)]
    with open(work / "f", "r+b", 0) as first:
        code = "f = os.open(arg[0], os.O_RDWR)\nprint(os.getpid(), flush=True)\ninput()"
        command = [sys.executable, "-c", f"import os, sys\narg = sys.argv[1:]\n{code}"]
        with subprocess.Popen(
            [*command, str(work / "f")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as later:
            assert later.stdout is not None
            pid = int(later.stdout.readline())
            first.write(b"by the first, told as the last opener's")
            os.fsync(first.fileno())
            by = watch.one(Kind.WRITE).who
            assert by is not None
            assert by.pid == pid
            later.communicate(b"\n")


def test_a_refused_change_makes_no_record(watch: Watch, work: Path) -> None:
    (work / "d" / "e").mkdir(parents=True)
    watch.records()
    for call in (
        lambda: (work / "d").rmdir(),
        lambda: (work / "d").mkdir(),
        lambda: (work / "missing").unlink(),
        lambda: (work / "d").rename(work / "d" / "e" / "f"),
    ):
        with pytest.raises(OSError, match=r"\[Errno"):
            call()
    assert watch.kinds() == []


def test_set_id_bits_cleared_by_a_truncating_open_are_recorded(watch: Watch, work: Path) -> None:
    (work / "x").touch()
    (work / "x").chmod(0o6777)
    work.chmod(0o777)
    watch.records()
    done = as_user("os.close(os.open(arg[0], os.O_WRONLY | os.O_TRUNC))", work / "x")
    assert done.returncode == 0, done.stderr
    kinds = watch.kinds()
    assert sorted(kinds) == [Kind.WRITE, Kind.ATTRIBUTES]


def test_changed_files_that_stay_open_are_recorded_by_and_by(tmp_path: Path) -> None:
    with (
        overlaid(tmp_path, "journal-open-files=0.1") as overlay,
        open(overlay.mountpoint / "x", "wb", 0) as file,
    ):
        start = head(overlay)
        file.write(b"1")
        while not (found := changes(overlay, start)) or found[-1][1].size == 0:
            os.fstat(file.fileno())
        record, change = found[-1]
        assert (record.kind, change.size, record.settled) == (Kind.WRITE, 1, True)


@pytest.mark.parametrize("options", [("io=threads",), ("attr-timeout=0",)])
def test_the_same_records_with_other_options(tmp_path: Path, options: tuple[str, ...]) -> None:
    with overlaid(tmp_path, *options, over=True) as overlay:
        start = head(overlay)
        program = (
            "import os, sys\nos.chdir(sys.argv[1])\n"
            "open('a', 'w').write('x' * 500000)\nassert len(open('a').read()) == 500000\n"
            "os.replace('a', 'b')\nf = open('b', 'a')\nf.write('y')\nf.flush()\n"
            "os.fsync(f.fileno())\nf.close()\nos.unlink('b')"
        )
        subprocess.run([sys.executable, "-c", program, overlay.mountpoint], check=True)
        kinds = [record.kind for record, _ in changes(overlay, start)]
        assert kinds == [Kind.CREATE, Kind.WRITE, Kind.RENAME, Kind.WRITE, Kind.UNLINK]
