"""Records as lines and JSON: names without loss, every kind."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorfs.journal import wording
from mirrorfs.journal.record import SequenceNumber
from mirrorfs.journal.segment import decode_records
from tests.support.records import EVERY_KIND, frames

RECORDS, _ = decode_records(b"".join(frames()), SequenceNumber(1))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"plain name", "plain name"),
        (b"", ""),
        ("smørrebrød".encode(), "smørrebrød"),
        (b"back\\slash", "back\\x5cslash"),
        (b"\xff\xfe", "\\xff\\xfe"),
        (b"a\nb\tc\x1b[31m", "a\\x0ab\\x09c\\x1b[31m"),
        ("\u202e".encode(), "\\xe2\\x80\\xae"),
    ],
)
def test_escaped(name: bytes, text: str) -> None:
    assert wording.escaped(name) == text


@given(st.binary(max_size=60))
def test_escaping_loses_nothing_and_prints(name: bytes) -> None:
    text = wording.escaped(name)
    assert text.isprintable()
    pieces = text.split("\\x")
    back = pieces[0].encode()
    for piece in pieces[1:]:
        back += bytes.fromhex(piece[:2]) + piece[2:].encode()
    assert back == name


@pytest.mark.parametrize(
    ("time_ns", "text"),
    [
        (0, "1970-01-01T00:00:00.000000Z"),
        (-1, "1969-12-31T23:59:59.999999Z"),
        ((1 << 63) - 1, "2262-04-11T23:47:16.854775Z"),
        (1 << 80, f"{1 << 80} ns"),
    ],
)
def test_moment(time_ns: int, text: str) -> None:
    assert wording.moment(time_ns) == text


LINES = [
    "mount       /srv/data on node17, process 4711, 0.1.0, after a clean end",
    "mkdir       results",
    "create      file000013  (open)",
    "write       results/file000013  1099511627776 bytes  by 1234 uid 1000 job 8812.batch",
    "write       ?  0 bytes  0 links  (open)",
    "mknod       fifo",
    r"symlink     \xff\x0a\x5c",
    "link        second  2 links",
    "rename      second ->  third  (exchanged)  2 links",
    "attributes  ?  2 links",
    "xattr       /  user.colour  3 links",
    "unlink      third  0 links",
    "rmdir       results  0 links",
    "reconcile   / and below: mirrorfs stopped without unmounting",
    "checkpoint  cycle 2026-01-01T00",
    "epoch       2: restored to another file system",
    "unmount     on node17",
]


def test_lines() -> None:
    lines = [wording.record_line(record) for record in RECORDS]
    assert [line.split("Z  ", 1)[1] for line in lines] == LINES
    assert lines[1].startswith("         2  2023-11-14T22:13:20.123456Z  mkdir")


def test_json_values() -> None:
    values = [json.loads(json.dumps(wording.record_value(record))) for record in RECORDS]
    assert [value["kind"] for value in values] == [kind.label for kind, _, _ in EVERY_KIND]
    assert values[3] == {
        "sequence": 4,
        "time": "2023-11-14T22:13:20.123456Z",
        "kind": "write",
        "settled": True,
        "object": "01010000000100000" + "00d00000077d1f0a2",
        "places": [
            {"directory": "0101000000010000000c00000077d1f0a2", "name": "file000013"},
        ],
        "path": "results/file000013",
        "mode": "100644",
        "links": 1,
        "ctime_ns": 1_700_000_000_123_456_789,
        "size": 1 << 40,
        "mtime_ns": -1,
        "extents": [[0, 4096], [1 << 30, 1]],
        "who": {"pid": 1234, "uid": 1000, "job": "8812.batch"},
    }
    assert (values[8]["rename_flags"], values[8]["other_ctime_ns"]) == (2, 0)
    assert values[10]["xattr"] == "user.colour"
    assert values[13]["reason"] == "mirrorfs stopped without unmounting"
