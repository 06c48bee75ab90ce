"""What jobs may expect of files and names on a mounted federation, one thing a test.

Where XRootD by itself would do something else (a rename that leaves the old file at another server,
a handle that reads back nothing, a size of nought while a file is written), what counts is what
POSIX says, or a refusal.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import random
import subprocess
from pathlib import Path

import pytest

from tests.support.federated_work import fails, served_name
from tests.support.federated_work import work as work
from tests.support.federation import Federation
from tests.support.federation import federation as federation
from tests.support.federation_mounts import FederationMount
from tests.support.federation_mounts import federation_mount as federation_mount

pytestmark = [pytest.mark.xrootd, pytest.mark.fuse]

_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2
_libc = ctypes.CDLL(None, use_errno=True)


def _renameat2(old: Path, new: Path, flags: int) -> None:
    if _libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")


# Content


def test_a_new_file_is_read_by_the_handle_that_made_it(work: Path) -> None:
    descriptor = os.open(work / "f", os.O_RDWR | os.O_CREAT)
    try:
        os.write(descriptor, b"content")
        assert os.pread(descriptor, 100, 0) == b"content"
        assert os.pread(descriptor, 3, 2) == b"nte"
    finally:
        os.close(descriptor)


def test_the_size_is_true_while_a_file_is_written(work: Path) -> None:
    with open(work / "f", "wb", buffering=0) as file:
        for count in range(1, 6):
            file.write(bytes(1000))
            assert os.fstat(file.fileno()).st_size == count * 1000
            assert (work / "f").stat().st_size == count * 1000
            assert file.tell() == count * 1000
    assert (work / "f").stat().st_size == 5000


def test_two_handles_see_each_other(work: Path) -> None:
    with open(work / "f", "w+b", buffering=0) as one, open(work / "f", "r+b", buffering=0) as two:
        one.write(b"from one")
        assert two.read() == b"from one"
        two.seek(5)
        two.write(b"two")
        one.seek(0)
        assert one.read() == b"from two"
    assert (work / "f").read_bytes() == b"from two"


def test_a_reader_is_joined_by_a_writer(work: Path) -> None:
    (work / "f").write_bytes(b"before")
    with open(work / "f", "rb", buffering=0) as reader:
        assert reader.read(3) == b"bef"
        with open(work / "f", "r+b", buffering=0) as writer:
            writer.write(b"behind")
            assert reader.read(3) == b"ind"
        reader.seek(0)
        assert reader.read() == b"behind"


def test_appending_by_two_handles(work: Path) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    one, two = os.open(work / "f", flags), os.open(work / "f", flags)
    try:
        for _ in range(20):
            os.write(one, b"one\n")
            os.write(two, b"two\n")
    finally:
        os.close(one)
        os.close(two)
    assert (work / "f").read_bytes() == b"one\ntwo\n" * 20


def test_appending_to_what_another_client_appended_to(
    work: Path, federation: Federation, federation_mount: FederationMount
) -> None:
    (work / "f").write_bytes(b"ours\n")
    assert (work / "f").stat().st_size == 5  # the kernel knows it now
    (server,) = federation.holders(served_name(work / "f", federation_mount))
    with open(f"{server.data_dir}{served_name(work / 'f', federation_mount)}", "ab") as file:
        file.write(b"theirs\n")
    with open(work / "f", "ab") as file:
        file.write(b"ours again\n")
    assert (work / "f").read_bytes() == b"ours\ntheirs\nours again\n"


def test_what_another_client_wrote_is_read_after_open(
    work: Path, federation: Federation, federation_mount: FederationMount
) -> None:
    (work / "f").write_bytes(b"short")
    assert (work / "f").read_bytes() == b"short"
    (server,) = federation.holders(served_name(work / "f", federation_mount))
    Path(f"{server.data_dir}{served_name(work / 'f', federation_mount)}").write_bytes(
        b"rather long"
    )
    assert (work / "f").read_bytes() == b"rather long"


def test_what_another_client_wrote_over_as_much_is_read_after_open(
    work: Path, federation: Federation, federation_mount: FederationMount
) -> None:
    """The same size, and perhaps the same second."""
    (work / "f").write_bytes(b"one")
    (server,) = federation.holders(served_name(work / "f", federation_mount))
    stored = Path(f"{server.data_dir}{served_name(work / 'f', federation_mount)}")
    for content in (b"two", b"six", b"ten"):
        stored.write_bytes(content)
        assert (work / "f").read_bytes() == content
    os.utime(stored, (5, 5))
    assert (work / "f").read_bytes() == b"ten"
    stored.write_bytes(b"new")
    assert (work / "f").read_bytes() == b"new"


def test_truncation(work: Path) -> None:
    with open(work / "f", "w+b", buffering=0) as file:
        file.write(b"0123456789")
        file.truncate(4)
        assert os.fstat(file.fileno()).st_size == 4
        file.truncate(6)
        assert os.pread(file.fileno(), 100, 0) == b"0123\0\0"
    os.truncate(work / "f", 2)
    assert (work / "f").read_bytes() == b"01"
    os.truncate(work / "f", 3)
    assert (work / "f").read_bytes() == b"01\0"
    with open(work / "f", "wb"):
        pass
    assert (work / "f").stat().st_size == 0


def test_a_hole(work: Path) -> None:
    with open(work / "f", "wb") as file:
        file.seek(3 << 20)
        file.write(b"end")
    content = (work / "f").read_bytes()
    assert len(content) == (3 << 20) + 3
    assert content.strip(b"\0") == b"end"


def test_random_reads_and_writes(work: Path, tmp_path: Path) -> None:
    """The same as on a local file, through several handles of different kinds."""
    chance = random.Random(7)
    paths = (work / "f", tmp_path / "f")
    both = [
        [open(path, mode, buffering=0) for mode in ("w+b", "r+b", "rb")]  # noqa: SIM115
        for path in paths
    ]
    try:
        for _ in range(400):
            which, offset = chance.randrange(3), chance.randrange(4 << 20)
            length = chance.choice((1, 100, 4096, 70_000, 1 << 20))
            action = chance.choice(("read", "read", "write", "write", "append", "truncate", "sync"))
            data = chance.randbytes(length)
            results: list[object] = []
            for handles in both:
                file = handles[which if action == "read" else which % 2]
                if action == "read":
                    results.append(os.pread(file.fileno(), length, offset))
                elif action == "write":
                    results.append(os.pwrite(file.fileno(), data, offset))
                elif action == "append":
                    file.seek(0, os.SEEK_END)
                    results.append(file.write(data))
                elif action == "truncate":
                    results.append(file.truncate(offset))
                else:
                    os.fsync(file.fileno())
                results.append(os.fstat(file.fileno()).st_size)
            assert results[: len(results) // 2] == results[len(results) // 2 :], action
    finally:
        for file in (*both[0], *both[1]):
            file.close()
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_large_files(work: Path) -> None:
    content = random.Random(3).randbytes(20 << 20)
    (work / "f").write_bytes(content)
    assert (work / "f").read_bytes() == content
    with open(work / "f", "r+b") as file:
        file.seek(5 << 20)
        file.write(b"in the middle")
    expected = content[: 5 << 20] + b"in the middle" + content[(5 << 20) + 13 :]
    assert (work / "f").read_bytes() == expected


def test_memory_mapping(work: Path) -> None:
    with open(work / "f", "w+b") as file:
        file.write(bytes(8192))
        file.flush()
        with mmap.mmap(file.fileno(), 8192) as mapped:
            mapped[4000:4010] = b"by mapping"
            mapped.flush()
            assert os.pread(file.fileno(), 10, 4000) == b"by mapping"
    assert (work / "f").read_bytes()[4000:4010] == b"by mapping"


def test_a_mapping_that_outlives_its_descriptor(work: Path) -> None:
    with open(work / "f", "w+b") as file:
        file.write(bytes(4096))
        file.flush()
        mapped = mmap.mmap(file.fileno(), 4096)
    mapped[0:4] = b"late"
    mapped.close()
    with open(work / "f", "rb") as file:
        assert file.read(4) == b"late"


def test_open_flags(work: Path) -> None:
    (work / "f").write_bytes(b"content")
    with fails(errno.EEXIST):
        os.open(work / "f", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    descriptor = os.open(work / "f", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_SYNC)
    os.write(descriptor, b"new")
    os.close(descriptor)
    assert (work / "f").read_bytes() == b"new"
    with fails(errno.EISDIR):
        os.open(work, os.O_WRONLY)
    with fails(errno.ENOTDIR):
        os.open(work / "f", os.O_RDONLY | os.O_DIRECTORY)
    with fails(errno.ENOENT):
        os.open(work / "nothing", os.O_RDWR)
    with fails(errno.ENOTDIR):
        os.open(work / "f" / "below", os.O_RDWR | os.O_CREAT)


def test_a_descriptor_goes_on_after_its_copy_was_closed(work: Path) -> None:
    one = os.open(work / "f", os.O_RDWR | os.O_CREAT)
    try:
        os.write(one, b"first ")
        os.close(os.dup(one))  # the file is closed at its server
        os.write(one, b"second")
        assert os.pread(one, 100, 0) == b"first second"
    finally:
        os.close(one)
    assert (work / "f").read_bytes() == b"first second"


def test_locks_within_the_mount(work: Path) -> None:
    with open(work / "f", "wb") as one, open(work / "f", "wb") as two:
        fcntl.flock(one, fcntl.LOCK_EX)
        with fails(errno.EAGAIN):
            fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_another_program_sees_a_file_as_soon_as_it_is_closed(
    work: Path, federation: Federation, federation_mount: FederationMount
) -> None:
    """With a client that minds who has what open."""
    (work / "f").write_bytes(b"content")
    url = os.getxattr(work / "f", "user.xrootd.url").decode()
    done = subprocess.run(["xrdcp", "-s", url, "-"], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, b"content"), done.stderr


# Names of open files


def test_unlinked_but_open(work: Path) -> None:
    with open(work / "f", "w+b", buffering=0) as file:
        file.write(b"content")
        (work / "f").unlink()
        assert os.listdir(work) == []
        status = os.fstat(file.fileno())
        assert (status.st_nlink, status.st_size) == (0, 7)
        (work / "f").write_bytes(b"another")
        file.write(b", more")
        os.ftruncate(file.fileno(), 10)
        assert os.pread(file.fileno(), 100, 0) == b"content, m"
        assert os.fstat(file.fileno()).st_size == 10
        assert os.fstat(file.fileno()).st_ino != (work / "f").stat().st_ino
    assert (work / "f").read_bytes() == b"another"


def test_unlinked_after_it_was_closed_at_its_server(work: Path) -> None:
    with open(work / "f", "w+b", buffering=0) as file:
        file.write(b"content")
        os.close(os.dup(file.fileno()))
        (work / "f").unlink()
        assert os.pread(file.fileno(), 100, 0) == b"content"


def test_renamed_while_open(work: Path) -> None:
    with open(work / "f", "w+b", buffering=0) as file:
        file.write(b"one ")
        os.close(os.dup(file.fileno()))
        (work / "f").rename(work / "g")
        file.write(b"two")
        (work / "f").write_bytes(b"another")
        assert os.pread(file.fileno(), 100, 0) == b"one two"
    assert (work / "g").read_bytes() == b"one two"
    assert (work / "f").read_bytes() == b"another"


def test_a_directory_above_an_open_file_is_renamed(work: Path) -> None:
    (work / "a/b").mkdir(parents=True)
    with open(work / "a/b/f", "w+b", buffering=0) as file:
        file.write(b"one ")
        (work / "a").rename(work / "c")
        os.close(os.dup(file.fileno()))
        file.write(b"two")
        (work / "c/b/g").write_bytes(b"beside")
    assert (work / "c/b/f").read_bytes() == b"one two"
    assert sorted(os.listdir(work / "c/b")) == ["f", "g"]
    assert os.listdir(work) == ["c"]


def test_replaced_while_open(work: Path) -> None:
    (work / "old").write_bytes(b"old content")
    with open(work / "old", "rb", buffering=0) as file:
        (work / "new").write_bytes(b"new")
        (work / "new").rename(work / "old")
        assert file.read() == b"old content"
    assert (work / "old").read_bytes() == b"new"


def test_rename_flags(work: Path) -> None:
    (work / "a").write_bytes(b"a")
    (work / "b").write_bytes(b"b")
    with fails(errno.EEXIST):
        _renameat2(work / "a", work / "b", _RENAME_NOREPLACE)
    with fails(errno.EINVAL):
        _renameat2(work / "a", work / "b", _RENAME_EXCHANGE)
    _renameat2(work / "a", work / "c", _RENAME_NOREPLACE)
    assert {path.name: path.read_bytes() for path in work.iterdir()} == {"b": b"b", "c": b"a"}
