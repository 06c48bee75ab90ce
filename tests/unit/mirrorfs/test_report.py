"""How mirrorfs fares, as lines and JSON."""

from __future__ import annotations

from mirrorfs import report
from mirrorfs.journal.control_client import Status
from mirrorfs.journal.record import SequenceNumber


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
