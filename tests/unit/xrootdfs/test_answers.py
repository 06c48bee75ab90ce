"""What servers answer, as values."""

from __future__ import annotations

import errno

import pytest

from xrootdfs.answers import space_of, stat_of
from xrootdfs.errors import CallError
from xrootdfs.values import Kind, Space

TOLD = {
    "id": "1",
    "size": 5,
    "flags": 16 | 32,
    "modtime": 7,
    "ctime": 8,
    "atime": 9,
    "mode": "0640",
    "owner": "o",
    "group": "g",
    "extended": True,
}


def test_a_stat() -> None:
    stat = stat_of(TOLD)
    assert (stat.kind, stat.size, stat.mode, stat.id) == (Kind.FILE, 5, 0o640, "1")
    assert (stat.mtime, stat.ctime, stat.atime) == (7, 8, 9)
    assert (stat.owner, stat.group, stat.pending) == ("o", "g", False)


@pytest.mark.parametrize(
    ("flags", "kind", "mode"),
    [
        (0, Kind.FILE, 0),
        (16, Kind.FILE, 0o444),
        (16 | 32, Kind.FILE, 0o644),
        (16 | 1, Kind.FILE, 0o555),
        (2 | 16, Kind.DIRECTORY, 0o555),
        (2 | 16 | 32 | 1, Kind.DIRECTORY, 0o755),
        (4 | 16, Kind.OTHER, 0o444),
    ],
)
def test_servers_that_tell_no_mode(flags: int, kind: Kind, mode: int) -> None:
    stat = stat_of({**TOLD, "flags": flags, "extended": False})
    assert (stat.kind, stat.mode, stat.owner) == (kind, mode, "")
    assert (stat.mtime, stat.ctime, stat.atime) == (7, 7, 7)


def test_a_file_that_is_not_kept_yet() -> None:
    assert stat_of({**TOLD, "flags": 64}).pending


def test_space() -> None:
    assert space_of(b"oss.cgroup=public&oss.space=10&oss.free=4&x\0") == Space(10, 4)


@pytest.mark.parametrize("data", [b"", b"oss.space=a&oss.free=1", b"oss.free=1"])
def test_space_that_is_none(data: bytes) -> None:
    with pytest.raises(CallError) as caught:
        space_of(data)
    assert caught.value.errno == errno.EIO
