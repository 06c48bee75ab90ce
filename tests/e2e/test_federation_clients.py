"""Two mounts of one federation, as two hosts have it: what each does, the other finds."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.federated_work import fails
from tests.support.federation import Federation
from tests.support.federation import federation as federation
from tests.support.federation_mounts import mounted

pytestmark = [pytest.mark.xrootd, pytest.mark.fuse]

EXACT = ("attr-timeout=0", "negative-timeout=0", "listing-timeout=0")


@pytest.fixture(scope="module")
def clients(
    federation: Federation, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, Path]]:
    """Two mounts that believe nothing for longer than a request takes."""
    base = tmp_path_factory.mktemp("clients")
    with mounted(federation, base / "a", *EXACT) as a, mounted(federation, base / "b", *EXACT) as b:
        yield a.mountpoint, b.mountpoint


@pytest.fixture
def both(clients: tuple[Path, Path], request: pytest.FixtureRequest) -> tuple[Path, Path]:
    """A new directory, through each."""
    name = request.node.name
    (clients[0] / name).mkdir()
    return clients[0] / name, clients[1] / name


def test_what_one_does_the_other_sees(both: tuple[Path, Path]) -> None:
    a, b = both
    (a / "f").write_bytes(b"one")
    assert (b / "f").read_bytes() == b"one"
    (b / "f").write_bytes(b"two")
    assert (a / "f").read_bytes() == b"two"
    (a / "d").mkdir()
    (b / "f").rename(b / "d/g")
    assert os.listdir(a / "d") == ["g"]
    assert sorted(os.listdir(a)) == ["d"]
    os.chown(a / "d/g", 5, 6)
    os.chmod(a / "d/g", 0o4711)
    os.utime(a / "d/g", (7, 8))
    (a / "link").symlink_to("d/g")
    seen = (b / "d/g").stat()
    assert (seen.st_mode & 0o7777, seen.st_uid, seen.st_gid, seen.st_mtime) == (0o4711, 5, 6, 8)
    assert (b / "link").read_bytes() == b"two"
    (b / "d/g").unlink()
    assert os.listdir(a / "d") == []
    with pytest.raises(FileNotFoundError):
        (a / "link").read_bytes()


def test_what_one_appends_the_other_reads_on(both: tuple[Path, Path]) -> None:
    a, b = both
    with open(a / "log", "ab", buffering=0) as writer, open(b / "log", "rb", buffering=0) as reader:
        for number in range(5):
            writer.write(b"line %d\n" % number)
            os.fsync(writer.fileno())
            assert os.fstat(reader.fileno()).st_size == 7 * (number + 1)
            assert reader.read() == b"line %d\n" % number


def test_a_name_is_made_once(both: tuple[Path, Path]) -> None:
    """By O_EXCL, whoever asks, at the same moment."""

    def create(directory: Path, number: int) -> int:
        try:
            os.close(os.open(directory / f"{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return 0
        return 1

    with ThreadPoolExecutor(8) as pool:
        jobs = [
            pool.submit(create, directory, number)
            for number in range(150)
            for directory in (*both, *both)
        ]
        made = [sum(job.result() for job in jobs[at : at + 4]) for at in range(0, len(jobs), 4)]
    assert made == [1] * 150
    assert sorted(os.listdir(both[0]), key=int) == [str(number) for number in range(150)]


def test_a_name_is_at_one_server_whoever_makes_it(
    both: tuple[Path, Path], federation: Federation
) -> None:
    def write(directory: Path, number: int) -> int:
        try:
            (directory / f"{number}").write_bytes(directory.parent.name.encode())
        except OSError as error:
            return error.errno or 0
        return 0

    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(write, each, number) for number in range(50) for each in both]
        assert {job.result() for job in jobs} <= {0, errno.ESTALE}  # made there just now
    for number in range(50):
        name = f"/{both[0].name}/{number}"
        assert len(federation.holders(name)) == 1
        assert (both[0] / str(number)).read_bytes() in (b"a", b"b")


def test_what_the_other_removes_is_gone(both: tuple[Path, Path]) -> None:
    a, b = both
    (a / "f").write_bytes(b"content")
    with open(b / "f", "rb", buffering=0) as file:
        assert file.read(3) == b"con"
        (a / "f").unlink()
        with fails(errno.ENOENT):
            (b / "f").read_bytes()
        (a / "f").write_bytes(b"another, longer")
        assert os.pread(file.fileno(), 4, 3) == b"tent"
    assert (b / "f").read_bytes() == b"another, longer"


def test_a_file_becomes_a_directory(both: tuple[Path, Path]) -> None:
    a, b = both
    (a / "x").write_bytes(b"content")
    assert (b / "x").is_file()
    (a / "x").unlink()
    (a / "x").mkdir()
    (a / "x/f").touch()
    assert os.listdir(b / "x") == ["f"]
    (b / "x/f").unlink()
    (b / "x").rmdir()
    (b / "x").write_bytes(b"again")
    assert (a / "x").read_bytes() == b"again"
