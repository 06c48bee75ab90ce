"""Metrics: a parser of Prometheus reads what the reports say; the server takes no nonsense."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from replicator import metrics
from replicator.site_state import SiteReport
from replicator.work import WorkReport
from tests.support.reports import SECOND_NS, held, journal_at, report_of, state_of

NOW = 1_795_326_956 * SECOND_NS


@pytest.fixture
def report(tmp_path: Path) -> SiteReport:
    writer = journal_at(tmp_path / "journal")
    steps = [held(1), held(2), held(3, waiting=True)]
    state = state_of(writer, working=10, held=steps, site='b"\\x\n')
    writer.close()
    return report_of(
        state,
        head=20,
        done=15,
        queue=7,
        oldest_ns=NOW - 5 * SECOND_NS,
        lag_p50=0.5,
        counters={"removed": 3},
        work=WorkReport(busy=0.5, source=0.25),
    )


def parsed(text: bytes) -> dict[str, float]:
    values = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            labels = {**sample.labels}
            assert labels.pop("site") == 'b"\\x\n'
            values[" ".join((sample.name, *labels.values()))] = sample.value
    return values


def test_a_parser_reads_what_the_report_says(report: SiteReport) -> None:
    values = parsed(metrics.exposition([report], NOW))
    assert values["mirrorfs_site_lag_seconds"] == 5
    assert values["mirrorfs_site_lag_records"] == 5
    assert values["mirrorfs_site_lag_p50_seconds"] == 0.5
    assert "mirrorfs_site_lag_p99_seconds" not in values
    assert "mirrorfs_site_free_bytes" not in values
    assert (values["mirrorfs_site_failed_steps"], values["mirrorfs_site_waiting_steps"]) == (2, 1)
    assert (values["mirrorfs_site_working_cursor"], values["mirrorfs_site_clean_cursor"]) == (15, 0)
    assert values["mirrorfs_site_state tailing"] == 1
    assert sum(value for name, value in values.items() if "_state " in name) == 1
    assert values["mirrorfs_site_step_share source"] == 0.25
    assert values["mirrorfs_site_steps_total removed"] == 3
    assert values["mirrorfs_site_busy_ratio"] == 0.5


def test_a_replicator_that_measured_nothing_yet(report: SiteReport) -> None:
    state = report.state
    values = parsed(metrics.exposition([report_of(state)], NOW))
    assert values["mirrorfs_site_lag_seconds"] == 0
    assert not any("step_share" in name for name in values)
    assert parsed(metrics.exposition([], NOW)) == {}


async def ask(request: bytes, text: Callable[[], bytes] = lambda: b"m 1\n") -> bytes:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(metrics.serve, listeners, text)
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with stream:
            await stream.send_all(request)
            await stream.send_eof()
            answer = b""
            while more := await stream.receive_some(4096):
                answer += more
        nursery.cancel_scope.cancel()
    return answer


@pytest.mark.parametrize(
    ("request_line", "status", "body"),
    [
        (b"GET /metrics HTTP/1.1", b"200 OK", b"m 1\n"),
        (b"GET /metrics?x=1 HTTP/1.0", b"200 OK", b"m 1\n"),
        (b"HEAD /metrics HTTP/1.1", b"200 OK", b""),
        (b"GET /etc/passwd HTTP/1.1", b"404 Not Found", b"GET /metrics\n"),
        (b"POST /metrics HTTP/1.1", b"404 Not Found", b"GET /metrics\n"),
        (b"nonsense", b"404 Not Found", b"GET /metrics\n"),
    ],
)
async def test_requests(request_line: bytes, status: bytes, body: bytes) -> None:
    head, _, content = (await ask(request_line + b"\r\nHost: x\r\n\r\n")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 " + status + b"\r\n")
    assert content == body


@pytest.mark.parametrize("request_bytes", [b"", b"GET /metrics", b"x" * 20_000])
async def test_what_is_no_request_gets_no_answer(request_bytes: bytes) -> None:
    try:
        assert await ask(request_bytes) == b""
    except* trio.BrokenResourceError:
        pass  # closed before it had been read to its end


async def test_the_file_is_replaced_and_goes_at_the_end(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    path = tmp_path / "m.prom"
    texts = iter((b"1\n", b"2\n", b"3\n"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(metrics.write_file, str(path), lambda: next(texts))
        await trio.sleep(1)
        assert path.read_bytes() == b"1\n"
        await trio.sleep(10)
        assert path.read_bytes() == b"2\n"
        assert os.listdir(tmp_path) == ["m.prom"]
        nursery.cancel_scope.cancel()
    assert os.listdir(tmp_path) == []


async def test_a_file_that_cannot_be_written_is_said_once(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(metrics.write_file, str(tmp_path / "no" / "m"), lambda: b"")
        await trio.sleep(35)
        nursery.cancel_scope.cancel()
    assert [record.message for record in caplog.records] == [
        f"metrics: {tmp_path}/no/m: No such file or directory"
    ]
    caplog.clear()
