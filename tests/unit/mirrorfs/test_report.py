"""How mirrorfs fares, as lines and JSON."""

from __future__ import annotations

import json

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
    assert report.status_lines(status)[-1].startswith("  DEGRADED    no space")
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
