"""The upkeep of real journals: what is compressed, what goes, and that doubt keeps everything."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from mirrorfs import upkeep
from mirrorfs.journal.reader import JournalReader
from mirrorfs.journal.record import Kind, SequenceNumber
from mirrorfs.journal.recovery import open_journal
from mirrorfs.journal.retention import Holder, Limits
from mirrorfs.journal.site_cursor import SiteCursor, SiteStatus
from mirrorfs.journal.site_files import (
    cursor_path,
    read_cursors,
    read_retention,
    sites_locked,
    write_cursor,
)
from mirrorfs.journal.writer import JournalWriter, WriterOptions
from mirrorfs.upkeep import Upkeep, UpkeepOptions
from tests.support.records import SOURCE, VOLUME, created

NONE = Limits(keep_seconds=-1, detached_keep_seconds=3600, detached_bytes=1 << 40)


def opened(directory: Path, segment_bytes: int = 1500) -> JournalWriter:
    options = WriterOptions(segment_bytes_max=segment_bytes)
    return open_journal(str(directory), VOLUME, SOURCE, "node17", options).writer


def append(writer: JournalWriter, count: int) -> None:
    for _ in range(count):
        writer.append(Kind.CREATE, created(writer.head + 1))


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[JournalWriter]:
    made = opened(tmp_path)
    append(made, 100)
    yield made
    made.close()


def kept(directory: Path, writer: JournalWriter, limits: Limits = NONE) -> int:
    """The first record that is left after a look at the sites."""
    Upkeep(str(directory), writer, UpkeepOptions("none", limits)).retain()
    with JournalReader(str(directory)) as reader:
        assert [r.sequence for batch in reader.read() for r in batch][-1] == writer.head
        return reader.first()


def put(
    directory: Path,
    writer: JournalWriter,
    sequence: int,
    status: SiteStatus = "attached",
    site: str = "backup",
    since_ns: int = 1 << 62,
) -> None:
    cursor = SiteCursor(
        site=site,
        status=status,
        volume=writer.header.volume.hex(),
        journal=writer.header.journal.hex(),
        tag=f"{writer.header.tag:016x}",
        sequence=sequence,
        since_ns=since_ns,
    )
    write_cursor(str(directory), cursor, durable=True)


def test_without_sites_time_alone_counts(tmp_path: Path, writer: JournalWriter) -> None:
    young = Limits(keep_seconds=3600, detached_keep_seconds=0, detached_bytes=0)
    assert kept(tmp_path, writer, young) == 1
    assert kept(tmp_path, writer) == writer.header.first > 90


def test_what_an_attached_site_needs_stays(tmp_path: Path, writer: JournalWriter) -> None:
    put(tmp_path, writer, 50)
    first = kept(tmp_path, writer)
    assert 1 < first <= 51
    assert kept(tmp_path, writer) == first
    assert read_retention(str(tmp_path)).holders == (Holder("backup", "attached"),)
    put(tmp_path, writer, 60)
    assert first < kept(tmp_path, writer) <= 61
    put(tmp_path, writer, 70, site="other")
    put(tmp_path, writer, 100)
    assert kept(tmp_path, writer) <= 71
    put(tmp_path, writer, 0, "forgotten", site="other")
    assert kept(tmp_path, writer) == writer.header.first


def test_a_cursor_past_the_end_of_its_incarnation_counts_as_that_end(tmp_path: Path) -> None:
    """A power cut took records that the site had seen: it needs those that have their numbers."""
    writer = opened(tmp_path)
    append(writer, 20)
    put(tmp_path, writer, 40)
    writer.close()
    writer = opened(tmp_path)
    append(writer, 60)
    assert kept(tmp_path, writer) <= 21
    writer.close()


def test_a_detached_site_has_its_budget(tmp_path: Path, writer: JournalWriter) -> None:
    now_ns = writer.header.created_ns
    put(tmp_path, writer, 50, "detached", since_ns=now_ns)
    assert kept(tmp_path, writer) <= 51
    hour_ago = now_ns - 3700 * 10**9
    put(tmp_path, writer, 50, "detached", since_ns=hour_ago)
    assert kept(tmp_path, writer) == writer.header.first
    put(tmp_path, writer, 50, "detached", since_ns=now_ns)  # too late: nothing is kept for it now
    append(writer, 60)
    assert kept(tmp_path, writer) == writer.header.first


def test_a_detached_site_may_hold_so_many_bytes(tmp_path: Path, writer: JournalWriter) -> None:
    put(tmp_path, writer, 50, "detached", since_ns=writer.header.created_ns)
    roomy = Limits(keep_seconds=-1, detached_keep_seconds=3600, detached_bytes=20_000)
    assert kept(tmp_path, writer, roomy) <= 51
    small = Limits(keep_seconds=-1, detached_keep_seconds=3600, detached_bytes=2_000)
    assert kept(tmp_path, writer, small) == writer.header.first


def no_cursor(directory: Path) -> None:
    os.unlink(cursor_path(str(directory), "backup"))


def empty_cursor(directory: Path) -> None:
    Path(cursor_path(str(directory), "backup")).write_bytes(b"")


def another_sites_cursor(directory: Path) -> None:
    path = Path(cursor_path(str(directory), "backup"))
    path.write_bytes(path.read_bytes().replace(b"backup", b"other"))


def no_directory(directory: Path) -> None:
    for path in (directory / "sites").iterdir():
        path.unlink()
    (directory / "sites").rmdir()


def a_directory_instead(directory: Path) -> None:
    no_cursor(directory)
    os.mkdir(cursor_path(str(directory), "backup"))


def unreadable_memory(directory: Path) -> None:
    (directory / "retention.json").write_bytes(b"{")


def a_report_alone(directory: Path) -> None:
    (directory / "sites" / "older.json").write_bytes(b"{}")


@pytest.mark.parametrize(
    "doubt",
    [
        no_cursor,
        empty_cursor,
        another_sites_cursor,
        no_directory,
        a_directory_instead,
        unreadable_memory,
        a_report_alone,
    ],
)
def test_doubt_keeps_everything(
    tmp_path: Path,
    writer: JournalWriter,
    doubt: Callable[[Path], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    put(tmp_path, writer, 30)
    first = kept(tmp_path, writer)
    doubt(tmp_path)
    if doubt is unreadable_memory:
        put(tmp_path, writer, 100)
    for _ in range(2):
        assert kept(tmp_path, writer) == first
    assert "everything is kept" in caplog.text
    caplog.clear()


def test_a_forgotten_site_is_no_doubt(tmp_path: Path, writer: JournalWriter) -> None:
    put(tmp_path, writer, 30)
    kept(tmp_path, writer)
    assert read_retention(str(tmp_path)).sites == ("backup",)
    put(tmp_path, writer, 30, "forgotten")
    kept(tmp_path, writer)
    assert read_retention(str(tmp_path)).sites == ()
    no_cursor(tmp_path)
    assert kept(tmp_path, writer) == writer.header.first
    assert read_cursors(str(tmp_path)) == {}


def test_nothing_goes_while_a_site_attaches(tmp_path: Path, writer: JournalWriter) -> None:
    with sites_locked(str(tmp_path), wait=True):
        assert kept(tmp_path, writer) == 1
    assert kept(tmp_path, writer) > 1


# Compression


def in_large_segments(directory: Path) -> JournalWriter:
    writer = opened(directory, 70_000)
    append(writer, 2000)
    return writer


def sizes(directory: Path) -> list[int]:
    return [path.stat().st_size for path in sorted(directory.glob("*.seg"))]


def work(directory: Path, writer: JournalWriter, compression: str = "zstd") -> None:
    keep = Limits(keep_seconds=3600, detached_keep_seconds=0, detached_bytes=0)
    options = UpkeepOptions("zstd" if compression == "zstd" else "none", keep)
    Upkeep(str(directory), writer, options).work()
    with JournalReader(str(directory)) as reader:
        assert sum(map(len, reader.read(SequenceNumber(1)))) == writer.head


def test_sealed_segments_are_compressed(tmp_path: Path) -> None:
    writer = in_large_segments(tmp_path)
    before = sizes(tmp_path)
    work(tmp_path, writer, "none")
    assert sizes(tmp_path) == before
    work(tmp_path, writer)
    after = sizes(tmp_path)
    assert all(new < old / 2 for new, old in zip(after[:-1], before[:-1], strict=True))
    assert after[-1] == before[-1]
    append(writer, 10)
    writer.close()


def test_small_segments_stay_as_they_are(tmp_path: Path, writer: JournalWriter) -> None:
    before = sizes(tmp_path)
    work(tmp_path, writer)
    assert sizes(tmp_path) == before


def test_a_corrupt_segment_is_named_and_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = in_large_segments(tmp_path)
    path = sorted(tmp_path.glob("*.seg"))[0]
    data = path.read_bytes()
    path.write_bytes(data[:5000] + b"?" + data[5001:])
    kept = Upkeep(str(tmp_path), writer, UpkeepOptions("zstd", NONE))
    kept._compress()
    kept._compress()
    assert caplog.text.count(path.name) == 1
    assert path.stat().st_size == len(data)
    assert sizes(tmp_path)[1] < len(data) / 2
    caplog.clear()
    path.write_bytes(data)
    writer.close()


def test_a_full_disk_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    writer = in_large_segments(tmp_path)
    before = sizes(tmp_path)

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    keep = Limits(keep_seconds=3600, detached_keep_seconds=0, detached_bytes=0)
    kept = Upkeep(str(tmp_path), writer, UpkeepOptions("zstd", keep))
    with monkeypatch.context() as patched:
        patched.setattr(upkeep, "compress_segment", refuse)
        for _ in range(3):
            kept.work()
    assert caplog.text.count("No space left") == 1
    assert sizes(tmp_path) == before
    caplog.clear()
    writer.close()


async def test_it_works_beside_the_writer_until_it_is_cancelled(tmp_path: Path) -> None:
    writer = in_large_segments(tmp_path)
    before = sizes(tmp_path)
    keep = Limits(keep_seconds=3600, detached_keep_seconds=0, detached_bytes=0)
    kept = Upkeep(str(tmp_path), writer, UpkeepOptions("zstd", keep))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kept.serve)
        with trio.fail_after(60):
            while True:
                if all(new < old for new, old in zip(sizes(tmp_path), before[:-1], strict=False)):
                    break
                await trio.sleep(0.01)
        append(writer, 1000)
        nursery.cancel_scope.cancel()
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".new")]
    with JournalReader(str(tmp_path)) as reader:
        assert sum(map(len, reader.read())) == 3000
    writer.close()


def test_a_stop_ends_it_between_two_blocks(tmp_path: Path) -> None:
    writer = in_large_segments(tmp_path)
    before = sizes(tmp_path)
    keep = Limits(keep_seconds=3600, detached_keep_seconds=0, detached_bytes=0)
    kept = Upkeep(str(tmp_path), writer, UpkeepOptions("zstd", keep))
    kept.stop()
    kept.work()
    assert sizes(tmp_path) == before
    assert not list(tmp_path.glob("*.new"))
    writer.close()


def test_what_nobody_thought_of_ends_nothing(
    tmp_path: Path,
    writer: JournalWriter,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("unheard of")

    monkeypatch.setattr(upkeep, "read_cursors", fail)
    Upkeep(str(tmp_path), writer, UpkeepOptions("none", NONE)).work()
    assert "unheard of" in caplog.text
    caplog.clear()


def test_compression_leaves_room_for_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = in_large_segments(tmp_path)
    before = sizes(tmp_path)
    monkeypatch.setattr(upkeep, "_ROOM", 1 << 60)
    work(tmp_path, writer)
    assert sizes(tmp_path) == before
    writer.close()
