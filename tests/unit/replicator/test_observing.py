"""What an engine tells becomes times and apply logs: a file is logged once, when it is whole."""

from __future__ import annotations

import stat
from pathlib import Path
from random import Random

import pytest

from mirrorfs.journal.record import SETTLED, Change, Kind, ObjectId, Place, Record, SequenceNumber
from replicator.applied import Applied, ApplyLog, read_applied
from replicator.observer import Unobserved
from replicator.observing import Observing
from replicator.planner import Item, ObjectItem, PlaceItem, ReconcileItem
from tests.support.mirror import Mirror
from tests.support.records import ROOT, object_id

FILE = stat.S_IFREG | 0o644
A, B = Place(ROOT, b"a"), Place(ROOT, b"b")


class Told:
    """An account with a log, and records to feed it."""

    def __init__(self, directory: Path) -> None:
        self._directory = str(directory)
        self._log = ApplyLog(self._directory, "backup")
        self.observing = Observing(self._log)
        self.sequence = 0

    def feed(self, kind: Kind, *places: Place, number: int = 1, **fields: object) -> None:
        """A record about file `number`."""
        self.sequence += 1
        flags = int(str(fields.pop("flags", SETTLED)))
        values = {"mode": FILE, "links": 1, "path": places[-1].name, **fields}
        body = Change(object_id(number), places, **values)  # type: ignore[arg-type]
        sequence = SequenceNumber(self.sequence)
        self.observing.fed(Record(sequence, self.sequence, kind, flags, body))

    def do(self, item: Item) -> None:
        """Carry out a step."""
        self.observing.begun(item)
        self.observing.done(item)

    def logged(self) -> list[Applied]:
        """What became whole."""
        self.observing.flush()
        return list(read_applied(self._directory, "backup"))

    def names(self) -> list[tuple[str, int, int, int]]:
        """The same: path, newest record, time of the first, size."""
        return [(each.path, each.sequence, each.record_ns, each.size) for each in self.logged()]


@pytest.fixture
def told(tmp_path: Path) -> Told:
    return Told(tmp_path)


def place(at: Place) -> PlaceItem:
    return PlaceItem(at, (SequenceNumber(1), 0))


def object_item(number: int = 1) -> ObjectItem:
    return ObjectItem(object_id(number), (SequenceNumber(1), 0))


def test_a_file_written_is_whole_with_its_place_if_its_object_is_true_then(told: Told) -> None:
    told.feed(Kind.CREATE, A, flags=0)
    told.feed(Kind.WRITE, A, size=7)
    told.do(place(A))
    assert told.names() == [("a", 2, 2, 7)]
    told.do(object_item())
    assert len(told.logged()) == 1


def test_an_object_that_is_still_to_be_made_true_is_not_whole(told: Told) -> None:
    told.observing.object_waits = lambda _: True
    told.feed(Kind.CREATE, A, flags=0)
    told.feed(Kind.WRITE, A, size=7)
    told.do(place(A))
    assert told.names() == []
    told.do(object_item())
    assert told.names() == [("a", 2, 2, 7)]


def test_written_beside_and_renamed_over(told: Told) -> None:
    told.feed(Kind.WRITE, A, number=2, size=3)
    told.feed(Kind.RENAME, A, B, number=2, other=object_id(1), other_links=0, path=b"b")
    told.do(place(B))
    assert told.names() == [("b", 2, 1, 3)]


def test_written_often_it_is_one_file_and_as_old_as_its_first_record(told: Told) -> None:
    for size in range(5):
        told.feed(Kind.WRITE, A, size=size)
    told.do(object_item())
    assert told.names() == [("a", 5, 1, 4)]


def test_what_is_being_written_is_not_expected(told: Told) -> None:
    told.feed(Kind.WRITE, A, flags=0)
    told.do(object_item())
    assert told.names() == []


def test_what_was_removed_or_replaced_is_not_expected(told: Told) -> None:
    told.feed(Kind.WRITE, A)
    told.feed(Kind.UNLINK, A, links=0)
    told.feed(Kind.WRITE, A, number=2)
    told.feed(Kind.RENAME, B, A, number=3, other=object_id(2), other_links=0)
    told.do(place(A))
    assert [each[1] for each in told.names()] == [4]
    told.observing.all_true()
    assert [each[1] for each in told.names()] == [4]
    assert not told.observing._by_place


def test_one_of_two_names_removed(told: Told) -> None:
    told.feed(Kind.LINK, B, links=2)
    told.feed(Kind.UNLINK, B, links=1)
    told.feed(Kind.UNLINK, A, number=9, links=1)
    told.observing.all_true()
    assert [each[1] for each in told.names()] == [1]


def test_a_held_step_leaves_it_to_be_waited_for(told: Told) -> None:
    told.feed(Kind.WRITE, A)
    told.observing.begun(object_item())
    told.observing.held(object_item())
    assert told.names() == []
    told.do(object_item())
    assert len(told.names()) == 1


def test_when_all_is_true_the_rest_is_logged(told: Told) -> None:
    told.feed(Kind.WRITE, A)
    told.observing.all_true()
    told.observing.all_true()
    assert len(told.names()) == 1


def test_directories_and_what_a_new_engine_does_not_know_are_passed_over(told: Told) -> None:
    told.feed(Kind.MKDIR, A, mode=stat.S_IFDIR | 0o755)
    told.feed(Kind.WRITE, B, number=2)
    told.observing.restart()
    told.do(place(A))
    told.do(ReconcileItem(ObjectId(ROOT), True, (SequenceNumber(1), 0)))
    told.observing.all_true()
    assert told.names() == []


def test_so_many_are_followed_and_no_more(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("replicator.observing._AWAITED_MAX", 3)
    for number in range(1, 6):
        told.feed(Kind.WRITE, Place(ROOT, b"%d" % number), number=number)
    told.observing.all_true()
    assert [each[0] for each in told.names()] == ["3", "4", "5"]


def test_the_report_has_the_step_under_way(told: Told) -> None:
    told.feed(Kind.WRITE, A)
    item = object_item()
    item.path = b"a/\xff"
    told.observing.begun(item)
    report = told.observing.report(2**63)
    assert [(each.path, each.size) for each in report.doing] == [("/a/\\xff", 0)]
    told.observing.dropped(item)
    report = told.observing.report(2**62)
    assert report.doing == ()


def test_a_full_disk_costs_the_log_and_nothing_else(told: Told, tmp_path: Path) -> None:
    (tmp_path / "sites").write_text("in the way")
    told.feed(Kind.WRITE, A)
    told.do(object_item())
    told.observing.flush()


@pytest.mark.parametrize("seed", range(5))
def test_with_a_real_engine_each_item_that_begins_ends(seed: int) -> None:
    open_items: list[Item] = []
    ended: list[Item] = []

    class Watching(Unobserved):
        def begun(self, item: Item) -> None:
            assert not open_items
            open_items.append(item)

        def done(self, item: Item) -> None:
            ended.append(open_items.pop())

        held = dropped = done

    mirror = Mirror(Random(seed), observer=Watching())
    tree, root = mirror.tree, mirror.tree.root_thing
    for number in range(20):
        thing = tree.create(root, b"%d" % number)
        tree.write(thing)
        tree.flush(thing)
    mirror.feed(1 << 30)
    mirror.engine.work(1 << 30)
    assert not open_items
    assert len(ended) >= 20
