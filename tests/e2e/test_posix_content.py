"""One file, changed in every way there is, in any order, always has the bytes it should have."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from tests.support.campaign import pick, seeds
from tests.support.mounts import Mounted
from tests.support.overlay import below, overlaid

pytestmark = pytest.mark.fuse

_SIZE_MAX = 400_000
_PAGE = 4096


class Exerciser:
    """A file on a mount, and the bytes that it should have.

    Attributes:
        content: those bytes.
    """

    def __init__(self, path: Path, under: Path, seed: int) -> None:
        self.content = bytearray()
        self._path = path
        self._under = under
        self._random = Random(seed)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        self._mapping: mmap.mmap | None = None
        self._operations: tuple[Callable[[], None], ...] = (
            *((self.write, self.read) * 4),
            *((self.store, self.load) * 3),
            *(self.append, self.truncate, self.truncate_by_path, self.sync, self.reopen),
            *(self.write_directly, self.read_directly, self.look_below, self.copy),
        )

    def close(self) -> None:
        """Close what is open."""
        self._unmap()
        os.close(self._file)

    def step(self) -> str:
        """One operation; its name."""
        operation = self._random.choice(self._operations)
        operation()
        assert os.fstat(self._file).st_size == len(self.content)
        return operation.__name__

    def _unmap(self) -> None:
        if self._mapping is not None:
            self._mapping.close()
            self._mapping = None

    def _span(self, longest: int = 200_000) -> tuple[int, int]:
        offset = self._random.randrange(_SIZE_MAX)
        length = self._random.choice((1, 100, _PAGE, self._random.randrange(longest)))
        return offset, min(length, _SIZE_MAX - offset)

    def _put(self, offset: int, data: bytes) -> None:
        if offset > len(self.content):
            self.content.extend(bytes(offset - len(self.content)))
        self.content[offset : offset + len(data)] = data

    def write(self) -> None:
        offset, length = self._span()
        data = self._random.randbytes(length)
        assert os.pwrite(self._file, data, offset) == length
        self._put(offset, data)

    def read(self) -> None:
        offset, length = self._span()
        assert os.pread(self._file, length, offset) == self.content[offset : offset + length]

    def append(self) -> None:
        data = self._random.randbytes(self._random.randrange(5000))
        with open(self._path, "ab", 0) as file:
            file.write(data)
        self.content += data

    def truncate(self) -> None:
        size = self._random.randrange(_SIZE_MAX)
        os.ftruncate(self._file, size)
        self._cut(size)

    def truncate_by_path(self) -> None:
        size = self._random.choice((0, 1, _PAGE, _PAGE + 1, self._random.randrange(_SIZE_MAX)))
        os.truncate(self._path, size)
        self._cut(size)

    def _cut(self, size: int) -> None:
        self._unmap()
        del self.content[size:]
        self.content.extend(bytes(size - len(self.content)))

    def _map(self) -> mmap.mmap:
        if self._mapping is None or len(self._mapping) > len(self.content):
            self._unmap()
            if not self.content:
                self.write()
            self._mapping = mmap.mmap(self._file, len(self.content))
        return self._mapping

    def store(self) -> None:
        mapping = self._map()
        offset = self._random.randrange(len(mapping))
        data = self._random.randbytes(min(self._random.randrange(9000), len(mapping) - offset))
        mapping[offset : offset + len(data)] = data
        self.content[offset : offset + len(data)] = data
        if self._random.random() < 0.2:
            mapping.flush()

    def load(self) -> None:
        mapping = self._map()
        offset = self._random.randrange(len(mapping))
        assert mapping[offset : offset + 5000] == self.content[: len(mapping)][offset:][:5000]

    def sync(self) -> None:
        self._random.choice((os.fsync, os.fdatasync))(self._file)

    def reopen(self) -> None:
        os.close(self._file)
        self._file = os.open(self._path, os.O_RDWR)

    def write_directly(self) -> None:
        file = os.open(self._path, os.O_WRONLY | os.O_DIRECT)
        with mmap.mmap(-1, 2 * _PAGE) as buffer:
            data = self._random.randbytes(2 * _PAGE)
            buffer[:] = data
            offset = self._random.randrange(_SIZE_MAX // _PAGE) * _PAGE
            assert os.pwritev(file, [buffer], offset) == 2 * _PAGE
        os.close(file)
        self._put(offset, data)

    def read_directly(self) -> None:
        file = os.open(self._path, os.O_RDONLY | os.O_DIRECT)
        with mmap.mmap(-1, 2 * _PAGE) as buffer:
            offset = self._random.randrange(_SIZE_MAX // _PAGE) * _PAGE
            length = os.preadv(file, [buffer], offset)
            assert buffer[:length] == self.content[offset : offset + 2 * _PAGE]
        os.close(file)

    def look_below(self) -> None:
        """What was written, and what was stored before an fsync, is in the source."""
        os.fsync(self._file)
        assert self._under.read_bytes() == self.content

    def copy(self) -> None:
        """To a new name, renamed over the old one."""
        data = bytes(self.content)
        self._unmap()
        new = self._path.with_suffix(".new")
        new.write_bytes(data)
        new.replace(self._path)
        assert os.pread(self._file, _SIZE_MAX * 2, 0) == data  # the old one
        self.reopen()


def _exercise(overlay: Mounted, path: Path, seed: int) -> None:
    exerciser = Exerciser(path, below(overlay, path), seed)
    done: list[str] = []
    try:
        while len(done) < pick(500, 5000):
            done.append(exerciser.step())
    finally:
        exerciser.close()
    assert len(set(done)) == 13
    assert path.read_bytes() == exerciser.content
    assert below(overlay, path).read_bytes() == exerciser.content


@pytest.mark.parametrize("seed", seeds(3, 50))
def test_like_a_model(work: Path, overlay: Mounted, seed: int) -> None:
    _exercise(overlay, work / "file", seed)


@pytest.mark.parametrize("options", [("io=threads",), ("attr-timeout=0",)])
def test_like_a_model_with_other_options(tmp_path: Path, options: tuple[str, ...]) -> None:
    with overlaid(tmp_path, *options) as overlay:
        _exercise(overlay, overlay.mountpoint / "file", 7)
