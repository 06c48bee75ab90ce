"""How mirrorfs fares, as lines and JSON."""

from __future__ import annotations

import json

import msgspec

from mirrorfs import report
from mirrorfs.journal.control_client import Status
from mirrorfs.journal.record import SequenceNumber
from mirrorfs.journal.retention import Holder


def test_status() -> None:
    status = Status(
        pid=7,
        host="node17",
        version="0.1.0",
        mountpoint=b"/m",
        source=b"/s\xff",
        head=SequenceNumber(9),
        durable_head=SequenceNumber(8),
        degraded="no space",
        nodes=3,
        open_files=1,
    )
    assert "  journal     9 records, 1 not yet durable" in report.status_lines(status)
    *_, degraded, marked = report.status_lines(status)
    assert "  room        not known" in report.status_lines(status)
    assert degraded == "  DEGRADED    no space: changes go on without records"
    assert marked.endswith(
        "  since 1970-01-01T00:00:00.000000Z; 0 directories marked to be compared"
    )
    for marks, everything, said in (
        (1, False, "1 directory marked to be compared"),
        (1, True, "the whole tree is marked to be compared"),
    ):
        marked_so = msgspec.structs.replace(status, marks=marks, everything=everything)
        assert report.status_lines(marked_so)[-1].endswith(said)
    blocking = msgspec.structs.replace(
        status, journal_full="block", room_bytes=4096, room_seconds=5400.0
    )
    lines = report.status_lines(blocking)
    assert "  room        4.0 KiB on the journal's disk, 1.5 hours at the rate of late" in lines
    assert "  DEGRADED    no space: changes wait" in lines
    roomy = msgspec.structs.replace(status, room_bytes=4096, degraded=None)
    assert "  room        4.0 KiB on the journal's disk" in report.status_lines(roomy)
    assert report.status_value(roomy)["degraded_since"] is None
    assert report.status_value(status)["source"] == "/s\\xff"


def test_what_is_kept() -> None:
    kept = report.Kept(SequenceNumber(7), 3, 5 << 20, (Holder("a", "attached"), Holder("", "odd")))
    assert report.kept_lines(kept) == [
        "  kept        from record 7: 5.0 MiB in 3 segments",
        "  kept for    site a: attached",
        "  kept for    odd",
    ]
    assert json.loads(json.dumps(report.kept_value(kept))) == {
        "first": 7,
        "segments": 3,
        "disk_bytes": 5 << 20,
        "holders": [{"site": "a", "reason": "attached"}, {"site": "", "reason": "odd"}],
    }
    few = report.Kept(SequenceNumber(1), 1, 0, ())
    assert report.kept_lines(few) == ["  kept        from record 1: 0 bytes in 1 segment"]
