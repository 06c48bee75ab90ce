"""The apply log: what is written is read, hours are compressed, old ones go."""

from __future__ import annotations

import os
from pathlib import Path

from replicator.applied import Applied, ApplyLog, directory_of, last_applied, read_applied

SECOND = 1_000_000_000
HOUR = 3600 * SECOND
DAY = 24 * HOUR
NOW = 1_795_326_956 * SECOND


def entry(number: int, at: int = NOW) -> Applied:
    return Applied(at - SECOND, at, 10 * number, number, f"{number:04x}", f"a/\\x{number:02x}")


def write(log: ApplyLog, at: int, *numbers: int) -> None:
    for number in numbers:
        log.add(entry(number, at))
    log.write(log.take(), at)


def read(journal: Path, since: int = 0) -> list[int]:
    return [each.sequence for each in read_applied(str(journal), "backup", since)]


def files(journal: Path) -> list[str]:
    return sorted(os.listdir(directory_of(str(journal), "backup")))


def test_what_was_written_is_read(tmp_path: Path) -> None:
    log = ApplyLog(str(tmp_path), "backup")
    write(log, NOW, 1, 2)
    write(log, NOW)
    write(log, NOW, 3)
    assert list(read_applied(str(tmp_path), "backup")) == [entry(1), entry(2), entry(3)]
    assert list(read_applied(str(tmp_path), "other")) == []


def test_hours_that_are_over_are_compressed_and_read_all_the_same(tmp_path: Path) -> None:
    log = ApplyLog(str(tmp_path), "backup")
    write(log, NOW, 1, 2)
    write(log, NOW + HOUR, 3)
    write(log, NOW + 2 * HOUR, 4)
    assert [name.partition(".")[2] for name in files(tmp_path)] == ["jsonl.zst"] * 2 + ["jsonl"]
    assert read(tmp_path) == [1, 2, 3, 4]
    assert read(tmp_path, NOW + HOUR) == [3, 4]
    found = last_applied(str(tmp_path), "backup", "0002", NOW)
    assert found == entry(2)
    assert last_applied(str(tmp_path), "backup", "0002", NOW + HOUR) is None
    assert last_applied(str(tmp_path), "other", "0002", NOW) is None


def test_old_hours_go(tmp_path: Path) -> None:
    log = ApplyLog(str(tmp_path), "backup")
    for day in range(33):
        write(log, NOW + day * DAY, day)
    assert read(tmp_path) == list(range(2, 33))


def test_the_log_is_bounded_by_its_size(tmp_path: Path) -> None:
    log = ApplyLog(str(tmp_path), "backup", keep_bytes=300)
    for hour in range(20):
        write(log, NOW + hour * HOUR, hour)
    sizes = [
        os.stat(f"{directory_of(str(tmp_path), 'backup')}/{f}").st_size for f in files(tmp_path)
    ]
    assert sum(sizes[:-1]) <= 300
    assert read(tmp_path)[-1] == 19


def test_a_line_cut_short_by_a_kill_is_passed_over(tmp_path: Path) -> None:
    log = ApplyLog(str(tmp_path), "backup")
    write(log, NOW, 1, 2)
    (name,) = files(tmp_path)
    path = Path(directory_of(str(tmp_path), "backup")) / name
    path.write_bytes(path.read_bytes()[:-10])
    again = ApplyLog(str(tmp_path), "backup")
    write(again, NOW, 3)
    assert read(tmp_path) == [1, 3]
    write(again, NOW + HOUR, 4)
    assert read(tmp_path) == [1, 3, 4]


def test_a_compressed_log_that_was_damaged_costs_itself_alone(tmp_path: Path) -> None:
    log = ApplyLog(str(tmp_path), "backup")
    write(log, NOW, 1)
    write(log, NOW + HOUR, 2)
    path = Path(directory_of(str(tmp_path), "backup")) / files(tmp_path)[0]
    path.write_bytes(b"no compressed data")
    assert read(tmp_path) == [2]
    assert last_applied(str(tmp_path), "backup", "0001", NOW) is None
