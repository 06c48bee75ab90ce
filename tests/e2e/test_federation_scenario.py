"""Days of a job on a mounted federation, with no pause between two steps.

Every answer is held against what the job did, and against what the data servers have on disk.
"""

from __future__ import annotations

import os
import random
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.federation import Federation
from tests.support.federation import federation as federation
from tests.support.federation_mounts import FederationMount
from tests.support.federation_mounts import federation_mount as federation_mount

pytestmark = [pytest.mark.xrootd, pytest.mark.fuse]

_FILES = 10
_DIRECTORIES = 12
_FILES_IN_EACH = 9


def _run(*words: str | Path) -> str:
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _sums(path: Path) -> tuple[str, str]:
    """adler32 and crc32c of what can be read there, by the official programs."""
    return _run("xrdadler32", path).split()[0], _run("xrdcrc32c", path).split()[0]


def _stored_sums(federation: Federation, name: str) -> set[tuple[str, str]]:
    """The same, computed by the data servers that hold it."""
    found = set()
    for server in federation.holders(name):
        words = ("xrdfs", server.url, "query", "checksum")
        sums = [
            _run(*words, f"{name}?cks.type={kind}").split()[1] for kind in ("adler32", "crc32c")
        ]
        found.add((sums[0], sums[1]))
    return found


def test_ten_files(
    federation: Federation, federation_mount: FederationMount, tmp_path: Path
) -> None:
    """Written, copied, checked, listed, renamed twice, removed."""
    work = federation_mount.mountpoint / "ten"
    work.mkdir()
    choice = random.Random(10)
    sums = {}
    for number in range(_FILES):
        original = tmp_path / f"file{number}"
        original.write_bytes(choice.randbytes(choice.randrange(1 << 22)))
        sums[original.name] = _sums(original)
        shutil.copyfile(original, work / original.name)
        shutil.copyfile(work / original.name, work / f"{original.name}.copy")

    expected = {f"{name}{suffix}" for name in sums for suffix in ("", ".copy")}
    assert set(os.listdir(work)) == expected
    listed = _run("ls", "-l", work).splitlines()[1:]
    assert {line.split()[-1] for line in listed} == expected
    for line in listed:
        size, name = line.split()[4], line.split()[-1]
        assert int(size) == (tmp_path / name.removesuffix(".copy")).stat().st_size
    for name in expected:
        sum_of_original = sums[name.removesuffix(".copy")]
        assert _sums(work / name) == sum_of_original
        assert _stored_sums(federation, f"/ten/{name}") == {sum_of_original}

    for name in sorted(sums):
        (work / name).rename(work / f"{name}.first")
        (work / f"{name}.first").rename(work / f"{name}.second")
        assert not (work / name).exists()
        assert not (work / f"{name}.first").exists()
        assert _sums(work / f"{name}.second") == sums[name]
    assert set(os.listdir(work)) == {f"{n}{s}" for n in sums for s in (".copy", ".second")}

    for path in sorted(work.iterdir()):
        path.unlink()
        assert not path.exists()
    assert os.listdir(work) == []
    work.rmdir()
    assert not work.exists()
    assert federation.holders("/ten") == []


def _make(top: Path) -> dict[str, bytes]:
    """Directories in directories with files in them; content by relative path."""
    choice = random.Random(20)
    made = {}
    directories = [top]
    top.mkdir()
    for number in range(_DIRECTORIES):
        directory = choice.choice(directories) / f"directory {number}"
        directory.mkdir()
        directories.append(directory)
        for file in range(_FILES_IN_EACH):
            path = directory / f"file-{file}.dat"
            path.write_bytes(choice.randbytes(choice.randrange(5000)))
            made[str(path.relative_to(top))] = path.read_bytes()
    return made


def _seen(top: Path) -> dict[str, bytes]:
    return {str(path.relative_to(top)): path.read_bytes() for path in _files(top)}


def _files(top: Path) -> Iterator[Path]:
    for directory, _, names in os.walk(top, onerror=_fail):
        yield from (Path(directory) / name for name in names)


def _fail(error: OSError) -> None:
    raise error


def test_trees_spread_over_the_servers(
    federation: Federation, federation_mount: FederationMount
) -> None:
    """Many directories and files made and removed recursively, three times under the same names."""
    top = federation_mount.mountpoint / "tree"
    for _ in range(3):
        made = _make(top)
        assert _seen(top) == made
        held = [{name for name in server.files() if name.startswith("/tree/")}
                for server in federation.servers]  # fmt: skip
        assert all(held), "some data server got nothing"
        assert set().union(*held) == {f"/tree/{name}" for name in made}
        assert sum(map(len, held)) == len(made), "a file is on more than one data server"
        shutil.rmtree(top)
        assert not top.exists()
        assert federation.holders("/tree") == []


def test_renames_of_trees(federation: Federation, federation_mount: FederationMount) -> None:
    """A directory whose content is on several data servers moves whole, also over an empty one."""
    before, after = (federation_mount.mountpoint / name for name in ("before", "after"))
    made = _make(before)
    before.rename(after)
    assert not before.exists()
    assert _seen(after) == made
    before.mkdir()
    after.rename(before)
    assert not after.exists()
    assert _seen(before) == made
    shutil.rmtree(before)
    assert federation.holders("/before") == []


def test_what_others_put_there_is_seen_and_can_be_changed(
    federation: Federation, federation_mount: FederationMount
) -> None:
    """Files placed by other means, on one data server and on two."""
    federation.put("/others/one", b"one", 1)
    federation.put("/others/two", b"two", 0, 2)
    work = federation_mount.mountpoint / "others"
    assert _seen(work) == {"one": b"one", "two": b"two"}
    with (work / "one").open("ab") as stream:
        stream.write(b" more")
    assert (federation.servers[1].data_dir / "others/one").read_bytes() == b"one more"
    (work / "two").rename(work / "one")
    assert _seen(work) == {"one": b"two"}
    holders = federation.holders("/others/one")
    assert {(server.data_dir / "others/one").read_bytes() for server in holders} == {b"two"}
    shutil.rmtree(work)
    assert federation.holders("/others") == []


def test_many_handles_of_one_file(federation_mount: FederationMount) -> None:
    """Written by two at once, read by a third meanwhile; a handle opened for both does both."""
    path = federation_mount.mountpoint / "shared"
    first = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
    second = os.open(path, os.O_WRONLY)
    third = os.open(path, os.O_RDONLY)
    try:
        assert os.pwrite(first, b"aaaa", 0) == 4
        assert os.pwrite(second, b"bbbb", 4) == 4
        assert os.fstat(third).st_size == 8
        assert os.pread(third, 100, 0) == b"aaaabbbb"
        assert os.pread(first, 100, 0) == b"aaaabbbb"
        os.ftruncate(first, 6)
        assert os.pread(third, 100, 0) == b"aaaabb"
        os.fsync(second)
    finally:
        for descriptor in (first, second, third):
            os.close(descriptor)
    assert path.read_bytes() == b"aaaabb"
    path.unlink()


def test_content_is_what_was_last_written(
    federation: Federation, federation_mount: FederationMount
) -> None:
    """A long random history of one file; the data server's disk agrees at the end."""
    path = federation_mount.mountpoint / "history"
    choice = random.Random(30)
    expected = bytearray()
    path.touch()
    for _ in range(40):
        operation = choice.randrange(4)
        if operation == 0:
            expected += (data := choice.randbytes(choice.randrange(1 << 18)))
            with path.open("ab") as stream:
                stream.write(data)
        elif operation == 1:
            at, data = choice.randrange(1 << 19), choice.randbytes(choice.randrange(1, 1 << 17))
            with path.open("r+b") as stream:
                stream.seek(at)
                stream.write(data)
            expected += bytes(max(0, at - len(expected)))
            expected[at : at + len(data)] = data
        elif operation == 2:
            size = choice.randrange(1 << 19)
            os.truncate(path, size)
            expected = expected[:size] + bytes(max(0, size - len(expected)))
        else:
            expected = bytearray(choice.randbytes(choice.randrange(1 << 20)))
            path.write_bytes(expected)
        assert path.stat().st_size == len(expected)
        assert path.read_bytes() == expected
    (holder,) = federation.holders("/history")
    assert (holder.data_dir / "history").read_bytes() == expected
    path.unlink()


def test_names_that_cannot_be_stored_are_refused(
    federation: Federation, federation_mount: FederationMount
) -> None:
    """`?` would begin the options of a URL, and a newline would break listings."""
    for name in ("a?b", "a\nb", "?", "\n"):
        path = federation_mount.mountpoint / name
        for attempt in (path.touch, path.mkdir):
            with pytest.raises(OSError, match="Invalid argument"):
                attempt()
    good = federation_mount.mountpoint / "good"
    good.touch()
    with pytest.raises(OSError, match="Invalid argument"):
        good.rename(federation_mount.mountpoint / "good?")
    assert good.exists()
    good.unlink()
    assert [name for server in federation.servers for name in server.files()] == []


def test_unusual_names(federation: Federation, federation_mount: FederationMount) -> None:
    """All others can be."""
    work = federation_mount.mountpoint / "names"
    work.mkdir()
    names = [
        "#%&+=:;",
        ' blanks "quoted" ',
        "ä€😀",
        "a%20b",
        "*",
        "x" * 254,
        "-",
        "\\",
        "a,b",
        "~'$",
    ]
    for name in names:
        (work / name).write_text(name)
    assert sorted(os.listdir(work)) == sorted(names)
    for name in names:
        assert (work / name).read_text() == name
        assert len(federation.holders(f"/names/{name}")) == 1
    shutil.rmtree(work)


def test_types_and_sizes(federation_mount: FederationMount) -> None:
    """What stat says of directories, files, and what is not there; what statfs says."""
    top = federation_mount.mountpoint
    (top / "sized").mkdir()
    (top / "sized/file").write_bytes(bytes(12345))
    status = (top / "sized/file").stat()
    assert stat.S_ISREG(status.st_mode)
    assert status.st_size == 12345
    assert stat.S_ISDIR((top / "sized").stat().st_mode)
    with pytest.raises(FileNotFoundError):
        (top / "sized/other").stat()
    with pytest.raises(NotADirectoryError):
        (top / "sized/file/other").stat()
    space = os.statvfs(top)
    assert 0 < space.f_bavail <= space.f_blocks
    assert space.f_namemax == 254
    shutil.rmtree(top / "sized")


def test_unmounted_and_mounted_again(
    federation: Federation, tmp_path: Path, federation_mount: FederationMount
) -> None:
    """What one mount wrote below a prefix another one finds, and nothing else."""
    directory = federation_mount.mountpoint / "prefix"
    directory.mkdir()
    (directory / "file").write_text("content")
    other = FederationMount(f"{federation.url}//prefix", tmp_path / "other")
    other.mountpoint.mkdir()
    try:
        for _ in range(2):
            other.mount()
            assert _seen(other.mountpoint) == {"file": b"content"}
            other.umount()
            assert os.listdir(other.mountpoint) == []
    finally:
        other.clean_up()
    shutil.rmtree(directory)
