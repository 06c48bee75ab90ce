"""The directory store: large files in extents, on a real disk."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

import pytest

from replicator.stores.base import Attributes, StoreError
from replicator.stores.unfinished import EXTENTS
from replicator.view import SourceChangedError
from tests.support.copies import EXTENT, FILE, SIZE, Bench, bench
from tests.support.dying import KilledError, killed_at, moments
from tests.support.sites import attributes, mark

__all__ = ["bench"]

pytestmark = pytest.mark.fuse  # root, for owners and marks

CAPABILITIES = bytes.fromhex("01000002 00040000 00000000 00000000 00000000")


def test_a_large_file_is_copied_in_extents(bench: Bench) -> None:
    content = bench.content()
    assert bench.put(content) == SIZE
    assert content.shared == 11
    assert bench.file() == bench.source.read_bytes()
    assert bench.entry().mark == mark(b"f", 5)
    assert EXTENTS not in os.listxattr(bench.site / "f")
    assert bench.staged() == []


def test_nothing_is_written_down_before_it_is_on_the_disk(bench: Bench) -> None:
    with killed_at(1 << 30) as made:
        bench.put()
    copied = made[: made.index("chown") - 1]  # then come the mark, and the rest
    told = [number for number, name in enumerate(copied) if name == "setxattr"]
    assert len(told) == 10
    assert all(copied[number - 1] == "fdatasync" for number in told)


def test_holes_of_a_large_file_stay_holes(bench: Bench) -> None:
    with bench.source.open("wb") as file:
        file.truncate(100 * EXTENT)
        for at in (0, 50 * EXTENT, 99 * EXTENT):
            file.seek(at)
            file.write(b"x" * 10)
    bench.put()
    assert bench.file() == bench.source.read_bytes()
    assert (bench.site / "f").stat().st_blocks <= bench.source.stat().st_blocks


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
def test_a_copy_that_failed_goes_on_where_it_ended(bench: Bench, code: int) -> None:
    with pytest.raises(StoreError):
        bench.put(bench.content(OSError(code, ""), after=5 * EXTENT))
    (name,) = bench.staged()
    assert name.startswith("P")
    assert bench.put() == SIZE - 5 * EXTENT
    assert bench.file() == bench.source.read_bytes()
    assert bench.staged() == []


@pytest.mark.parametrize("how", ["source", "boot", "no version", "garbage", "the stage"])
def test_of_another_content_nothing_is_taken(bench: Bench, how: str) -> None:
    with pytest.raises(StoreError):
        bench.put(bench.content(OSError(errno.EIO, ""), after=5 * EXTENT))
    (name,) = bench.staged()
    left = bench.site / ".mirrorfs" / "stage" / name
    if how == "source":
        bench.source.write_bytes(os.urandom(SIZE))
    elif how == "boot":
        bench.reopen("another")
    elif how == "garbage":
        os.setxattr(left, EXTENTS, b"\1" * 80)
    elif how == "the stage":
        os.truncate(left, 5)
    content = bench.content()
    if how == "no version":
        content.version = None
    assert bench.put(content) == SIZE
    assert bench.file() == bench.source.read_bytes()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_what_there_was_no_space_for_takes_none(bench: Bench, code: int) -> None:
    with pytest.raises(StoreError) as raised:
        bench.put(bench.content(OSError(code, ""), after=5 * EXTENT))
    assert raised.value.no_space
    assert bench.staged() == []


def test_a_failed_sync_proves_nothing_that_was_copied(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked again, the kernel says that all is well."""
    calls = []

    def fail_once(fd: int) -> None:
        calls.append(fd)
        if len(calls) == 3:
            raise OSError(errno.EIO, "")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail_once)
        with pytest.raises(StoreError):
            bench.put()
    assert bench.staged() == []


def test_a_sync_of_one_hand_that_failed_is_not_made_good_by_the_next(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel says once that it lost something; who asks next is told that all is well."""
    content, syncs = bench.content(), 0

    def fail_first(fd: int) -> None:
        nonlocal syncs
        syncs += 1
        if syncs == 1:
            raise OSError(errno.EIO, "")

    def share(parts: Sequence[Callable[[], None]]) -> None:
        with pytest.raises(OSError, match="5"):
            parts[0]()
        for part in parts[1:]:
            with suppress(OSError):
                part()
        raise SourceChangedError("nobody waits")

    content.share = share  # type: ignore[method-assign]
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail_first)
        with pytest.raises(SourceChangedError):
            bench.put(content)
    assert bench.staged() == []


@pytest.mark.parametrize("told", [True, False], ids=["", "no version"])
def test_a_large_file_is_on_the_disk_when_it_gets_its_place(bench: Bench, told: bool) -> None:
    bench.store.unfinished.sync_bytes = 1 << 30
    content = bench.content()
    if not told:
        content.version = None
    with killed_at(1 << 30) as made:
        bench.put(content)
    assert made.count("fdatasync") == 1
    copied = [number for number, name in enumerate(made) if name == "copy_file_range"]
    assert copied[-1] < made.index("fdatasync") < made.index("chown")


def test_what_failed_is_forgotten_or_bounded(bench: Bench) -> None:
    def fail() -> None:
        with pytest.raises(StoreError):
            bench.put(bench.content(OSError(errno.EIO, ""), after=5 * EXTENT))

    fail()
    bench.reopen()
    assert len(bench.staged()) == 1
    bench.store.forget_unfinished()
    assert bench.staged() == []
    bench.store.unfinished.left_bytes_max = EXTENT
    fail()
    assert len(bench.staged()) == 1  # it is in use until its error is told
    bench.store.unfinished.tidy()
    assert bench.staged() == []
    (bench.site / ".mirrorfs" / "stage" / "Pwhatever").touch()
    bench.reopen()
    assert bench.staged() == []


def test_who_gave_up_leaves_what_is_on_the_disk(bench: Bench) -> None:
    with pytest.raises(SourceChangedError):
        bench.put(bench.content(SourceChangedError("nobody waits"), after=3 * EXTENT))
    assert bench.put() == SIZE - 3 * EXTENT
    with pytest.raises(SourceChangedError):
        bench.put(bench.content(SourceChangedError("nobody waits")))
    assert bench.staged() == []


def test_two_copies_of_one_object_do_not_meet(bench: Bench) -> None:
    staged = bench.store.stage(attributes(FILE), bench.content(), mark(b"f", 1))
    other = bench.store.stage(attributes(FILE), bench.content(), mark(b"f", 2))
    bench.store.discard(staged)
    bench.store.commit(other, bench.store.root(), b"f")
    assert bench.file() == bench.source.read_bytes()


def test_killed_at_every_call_a_large_copy_goes_on(bench: Bench) -> None:
    def attempt(call: int) -> bool:
        bench.store.forget_unfinished()
        (bench.site / "f").unlink(missing_ok=True)
        killed = False
        with killed_at(call), suppress(KilledError):
            try:
                bench.put()
            except KilledError:
                killed = True
        bench.reopen()
        for name in bench.staged():  # as much as its attribute says is on the disk
            assert name.startswith("P")
        if not (bench.site / "f").exists():
            bench.put()
        assert bench.file() == bench.source.read_bytes()
        assert bench.entry().mark == mark(b"f", 5)
        assert EXTENTS not in os.listxattr(bench.site / "f")
        assert bench.staged() == []
        return killed

    assert moments(attempt) > 30


def test_attributes_come_after_content_in_the_one_right_order(bench: Bench) -> None:
    """A later one would undo an earlier one: chown takes capabilities away, ACLs change the mode,
    and everything moves the times."""
    wanted: Attributes = attributes(
        stat.S_IFREG | 0o6755, uid=12, gid=34, xattrs={b"security.capability": CAPABILITIES}
    )
    with killed_at(1 << 30) as made:
        staged = bench.store.stage(wanted, bench.content(), mark(b"f", 1))
    bench.store.discard(staged)
    last = made[::-1]
    assert last[:3] == ["utime", "chmod", "setxattr"]
    assert made.index("chown") > max(
        number for number, name in enumerate(made) if name in ("pwrite", "copy_file_range")
    )
    assert made.index("chown") < len(made) - 3


def test_many_hands_make_one_file(bench: Bench) -> None:
    content = bench.content()

    def share(parts: Sequence[Callable[[], None]]) -> None:
        threads = [threading.Thread(target=part) for part in parts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    content.share = share  # type: ignore[method-assign]
    assert bench.put(content) == SIZE
    assert bench.file() == bench.source.read_bytes()
