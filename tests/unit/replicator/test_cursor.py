"""What a site tells the journal: before it relies on a record, and never too much."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from mirrorfs.journal.activity_header import ActivityHeader, encode_activity_header
from mirrorfs.journal.reader import JournalReader
from mirrorfs.journal.record import Kind, Tag
from mirrorfs.journal.recovery import open_journal
from mirrorfs.journal.retention import Limits
from mirrorfs.journal.site_cursor import SiteCursor
from mirrorfs.journal.site_files import cursor_path, read_cursor, write_cursor
from mirrorfs.journal.writer import JournalWriter, WriterOptions
from mirrorfs.upkeep import Upkeep, UpkeepOptions
from replicator import cursor
from replicator.config import SiteSettings
from replicator.cursor import attach_site, cursor_of, tell_cursor
from replicator.site import SiteDriver
from replicator.site_state import STATE_FILE, SiteState, decode_state, encode_state
from replicator.stores.base import StoreError
from replicator.stores.memory import MemoryStore
from tests.support.mirror import Mirror
from tests.support.records import SOURCE, VOLUME, created
from tests.support.reports import state_of

NONE = Limits(keep_seconds=-1, detached_keep_seconds=0, detached_bytes=0)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[JournalWriter]:
    options = WriterOptions(segment_bytes_max=1500)
    made = open_journal(str(tmp_path), VOLUME, SOURCE, "node17", options).writer
    for number in range(100):
        made.append(Kind.CREATE, created(number))
    yield made
    made.close()


def retain(directory: Path, writer: JournalWriter) -> int:
    """Remove what may go; the first record that is left."""
    Upkeep(str(directory), writer, UpkeepOptions("none", NONE)).retain()
    with JournalReader(str(directory)) as reader:
        return reader.first()


def store_of(state: SiteState) -> MemoryStore:
    store = MemoryStore()
    store.write_file(STATE_FILE, encode_state(state))
    return store


def attach(directory: Path, store: MemoryStore) -> SiteState:
    with JournalReader(str(directory)) as reader:
        return attach_site(store, reader, "backup", adopt=False)[0]


def known(directory: Path) -> SiteCursor:
    found = read_cursor(str(directory), "backup")
    assert found is not None
    return found


def test_a_site_is_registered_with_what_it_goes_on_from(
    tmp_path: Path, writer: JournalWriter
) -> None:
    state = attach(tmp_path, store_of(state_of(writer, working=40)))
    assert (state.working, state.initial) == (40, False)
    assert (known(tmp_path).sequence, known(tmp_path).status) == (40, "attached")
    assert 1 < retain(tmp_path, writer) <= 41
    tell_cursor(str(tmp_path), state_of(writer, working=80), 1)
    assert 41 < retain(tmp_path, writer) <= 81


def test_a_new_site_needs_what_comes_after_the_head(tmp_path: Path, writer: JournalWriter) -> None:
    state = attach(tmp_path, MemoryStore())
    assert (state.working, state.initial) == (100, True)
    assert known(tmp_path).sequence == 100
    writer.append(Kind.CREATE, created(1))
    assert retain(tmp_path, writer) <= 101


def test_nothing_goes_between_the_look_and_the_word(
    tmp_path: Path, writer: JournalWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer wants to remove segments at the worst moment, for a site that was detached."""
    old = cursor_of(state_of(writer, working=40), "detached", 1)
    write_cursor(str(tmp_path), old, durable=True)
    load = cursor.load_state
    firsts = []

    def meanwhile(*arguments: object, **keywords: object) -> SiteState:
        state = load(*arguments, **keywords)  # type: ignore[arg-type]
        firsts.append(retain(tmp_path, writer))
        return state

    monkeypatch.setattr(cursor, "load_state", meanwhile)
    state = attach(tmp_path, store_of(state_of(writer, working=40)))
    assert firsts == [1]
    assert (state.working, state.initial) == (40, False)
    assert 1 < retain(tmp_path, writer) <= 41


def test_a_site_whose_records_went_gets_an_initial_copy(
    tmp_path: Path, writer: JournalWriter
) -> None:
    write_cursor(
        str(tmp_path), cursor_of(state_of(writer, working=40), "detached", 1), durable=True
    )
    assert retain(tmp_path, writer) > 41
    state = attach(tmp_path, store_of(state_of(writer, working=40)))
    assert (state.initial, state.clean, state.working) == (True, -1, 100)
    assert known(tmp_path).status == "attached"


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_journal_disk_keeps_nobody_from_going_on(
    tmp_path: Path, writer: JournalWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the journal was told before is enough; otherwise the site must not rely on it."""
    attach(tmp_path, store_of(state_of(writer, working=40)))
    monkeypatch.setattr(cursor, "write_cursor", full)
    for working in (40, 70):
        assert attach(tmp_path, store_of(state_of(writer, working=working))).working == working
    with pytest.raises(OSError, match="No space left"):
        attach(tmp_path, store_of(state_of(writer, working=39)))
    monkeypatch.undo()
    write_cursor(
        str(tmp_path), cursor_of(state_of(writer, working=10), "detached", 1), durable=True
    )
    monkeypatch.setattr(cursor, "write_cursor", full)
    with pytest.raises(OSError, match="No space left"):
        attach(tmp_path, store_of(state_of(writer, working=40)))


def test_a_cursor_file_that_cannot_be_read_is_replaced(
    tmp_path: Path, writer: JournalWriter, caplog: pytest.LogCaptureFixture
) -> None:
    attach(tmp_path, store_of(state_of(writer, working=40)))
    Path(cursor_path(str(tmp_path), "backup")).write_bytes(b"{")
    assert retain(tmp_path, writer) == 1
    assert "everything is kept" in caplog.text
    attach(tmp_path, store_of(state_of(writer, working=50)))
    assert known(tmp_path).sequence == 50


def test_the_journal_is_told_after_the_site_has_it(tmp_path: Path) -> None:
    """Were it told before, records could go that the site asks for when it comes back."""
    mirror = Mirror(Random(1))
    driver = SiteDriver(SiteSettings("s", "file:///s", "/s"), str(tmp_path))

    def told() -> int:
        found = read_cursor(str(tmp_path), "s")
        assert found is not None
        return found.sequence

    driver._save(mirror.engine)
    assert told() == 0
    for name in (b"a", b"b"):
        mirror.tree.create(mirror.tree.root_thing, name)
    mirror.feed(1)
    mirror.work(10)
    mirror.feed(10)
    mirror.store.fail_in = 0
    with pytest.raises(StoreError):
        driver._save(mirror.engine)
    assert told() == 0
    mirror.store.fail_in = -1
    driver._save(mirror.engine)
    saved = mirror.store.inner.read_file(STATE_FILE)
    assert saved is not None
    assert told() == decode_state(saved).working
    assert 0 < told() < mirror.tree.head


LOG = Tag(77)


def journal_after(directory: Path, generation: int) -> None:
    """A journal whose first incarnation had an activity log, found at that generation."""
    first = open_journal(str(directory), VOLUME, SOURCE, "node17").writer
    first.append(Kind.CREATE, created(1))
    header = first.header
    first.close()
    told = ActivityHeader(header.journal, header.tag, 0, bytes(36), generation=generation)
    open_journal(str(directory), VOLUME, SOURCE, "node17", told=told).writer.close()


@pytest.mark.parametrize(("seen", "again"), [(0, False), (7, False), (8, True)])
def test_a_journal_that_knows_less_than_the_site_did(
    tmp_path: Path, seen: int, again: bool
) -> None:
    journal_after(tmp_path, 7)
    with JournalReader(str(tmp_path)) as reader:
        header = reader.header
        state = SiteState(
            volume=header.volume.hex(),
            site="backup",
            journal=header.journal.hex(),
            tag=f"{header.incarnations[0].tag:016x}",
            working=1,
            clean=1,
            log_tag=f"{header.incarnations[0].tag:016x}",
            generation=seen,
            saves=40,
            site_cuts=[(1, 2)],
        )
        assert (cursor.went_back(reader, state) is not None) is again
        found = cursor.load_state(encode_state(state), reader, "backup", adopt=False)
        assert found.initial is again
        assert (found.saves, found.site_cuts) == (40, [(1, 2)])  # of the site, whatever becomes
        state.log_tag = f"{header.tag:016x}"
        assert cursor.went_back(reader, state) is None  # of the incarnation that goes on
        state.log_tag = f"{LOG:016x}"
        assert (cursor.went_back(reader, state) is None) is (seen == 0)


def test_what_the_activity_log_says(tmp_path: Path) -> None:
    assert cursor.read_log(str(tmp_path)) == (0, 0)
    header = ActivityHeader(bytes(16), LOG, 0, bytes(36), generation=9, durable=8)
    (tmp_path / "activity").write_bytes(encode_activity_header(header, 1))
    assert cursor.read_log(str(tmp_path)) == (LOG, 8)
