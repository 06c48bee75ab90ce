"""What is being done outlasts a death; what was, at three in a row, is quarantined."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

import pytest

from mirrorfs.journal.record import ObjectId, Place
from replicator.staging import CopyingError
from replicator.stores.base import StoreError
from replicator.under_way import (
    TABLE,
    CutOffError,
    InternalError,
    QuarantinedError,
    UnderWay,
    deaths_after,
)
from tests.support.mirror import Mirror

HERE, THERE = (Place(ObjectId(b"directory"), name) for name in (b"here", b"there"))
FILE, OTHER = ObjectId(b"file"), ObjectId(b"other")


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "sites" / "site.under-way")


def die_at(path: str, *places: Place, copying: tuple[ObjectId, ...] = ()) -> None:
    """A process that is killed while those are under way."""
    under_way = UnderWay(path)
    for place in places:
        under_way.border(place).__enter__()
    for each in copying:
        under_way.copying(each)
    os.close(under_way._fd)


def refused(under_way: UnderWay, place: Place) -> bool:
    try:
        with under_way.border(place):
            return False
    except QuarantinedError:
        return True


def test_a_step_under_way_at_three_deaths_is_quarantined(path: str) -> None:
    for _ in range(2):
        die_at(path, HERE)
    under_way = UnderWay(path)
    assert not refused(under_way, HERE)
    under_way.border(HERE).__enter__()
    os.close(under_way._fd)
    under_way = UnderWay(path)
    assert refused(under_way, HERE)
    assert not refused(under_way, THERE)


def test_deaths_that_are_not_in_a_row_do_not_count(path: str) -> None:
    for place in (HERE, HERE, THERE, HERE, HERE):
        die_at(path, place)
    assert not refused(UnderWay(path), HERE)


def test_a_death_with_nothing_under_way_ends_the_row(path: str) -> None:
    for places in ((HERE,), (HERE,), (), (HERE,)):
        die_at(path, *places)
    assert not refused(UnderWay(path), HERE)


def test_an_end_in_order_ends_the_row_but_not_the_quarantine(path: str) -> None:
    die_at(path, HERE)
    die_at(path, HERE)
    UnderWay(path).close()
    die_at(path, HERE)
    assert not refused(UnderWay(path), HERE)
    for _ in range(3):
        die_at(path, THERE)
    UnderWay(path).close()
    die_at(path)
    die_at(path, HERE)
    assert refused(UnderWay(path), THERE)


def test_what_was_done_before_a_death_is_not_blamed(path: str) -> None:
    for _ in range(3):
        under_way = UnderWay(path)
        with under_way.border(HERE), under_way.border(THERE):
            pass
        with under_way.border(HERE):
            pass
        slot = under_way.copying(FILE)
        under_way.copied(FILE, slot)
        os.close(under_way._fd)
    under_way = UnderWay(path)
    assert not refused(under_way, HERE)
    under_way.check(FILE)


def test_within_a_step_what_it_is_at_is_blamed_and_then_it_again(path: str) -> None:
    for _ in range(3):
        under_way = UnderWay(path)
        under_way.border(HERE).__enter__()
        with under_way.border(THERE):
            pass
        os.close(under_way._fd)
    under_way = UnderWay(path)
    assert refused(under_way, HERE)
    assert not refused(under_way, THERE)


def test_one_that_is_tried_again_is_free_when_it_was_done(path: str) -> None:
    for _ in range(3):
        die_at(path, HERE)
    under_way = UnderWay(path)
    under_way.lenient = True
    with under_way.border(HERE):
        pass
    under_way.lenient = False
    assert not refused(under_way, HERE)
    die_at(path)
    assert not refused(UnderWay(path), HERE)


def test_pauses_grow_with_deaths_up_to_a_day(path: str) -> None:
    pauses = []
    for death in range(1, 14):
        under_way = UnderWay(path)
        under_way.lenient = True
        under_way.border(HERE).__enter__()
        os.close(under_way._fd)
        if death >= 3:
            with pytest.raises(QuarantinedError) as caught, UnderWay(path).border(HERE):
                pass
            pauses.append(caught.value.pause_seconds)
            assert str(death) in str(caught.value) or death == 3
    assert pauses[:3] == [900.0, 1800.0, 3600.0]
    assert pauses[-1] == 86_400.0


def test_copied_objects_are_tried_one_at_a_time_before_they_are_quarantined(path: str) -> None:
    die_at(path, copying=(FILE, OTHER))
    assert not UnderWay(path).wary
    os.unlink(path)
    die_at(path, copying=(FILE, OTHER))
    die_at(path, copying=(FILE, OTHER))
    under_way = UnderWay(path)
    assert under_way.wary
    under_way.copied(OTHER, under_way.copying(OTHER))
    under_way.copying(FILE)
    os.close(under_way._fd)
    under_way = UnderWay(path)
    under_way.check(OTHER)
    with pytest.raises(QuarantinedError, match="died at it three times"):
        under_way.check(FILE)
    assert not under_way.wary


def test_nothing_is_done_beside_what_may_be_died_of(path: str) -> None:
    """Or the step that happens to be done whenever it dies were quarantined, too."""
    die_at(path, copying=(OTHER,))
    die_at(path, copying=(OTHER,))
    mirror = Mirror(Random(1), inline_bytes=-1)
    mirror.engine.step.bench.under_way = under_way = UnderWay(path)
    tree, root = mirror.tree, mirror.tree.root_thing
    tree.flush(tree.create(root, b"file"))
    mirror.feed(1 << 30)
    mirror.engine.work(1 << 30)
    assert [place.name for place, _ in mirror.site()] == [b"file"]
    assert under_way.wary
    assert not mirror.workers.busy


def test_care_ends(path: str) -> None:
    die_at(path, HERE)
    die_at(path, HERE)
    under_way = UnderWay(path)
    for _ in range(256):
        assert under_way.wary
        under_way.copied(FILE, under_way.copying(FILE))
    assert not under_way.wary


def test_the_table_is_bounded(path: str) -> None:
    many = [ObjectId(b"%d" % number) for number in range(TABLE + 40)]
    for _ in range(2):
        die_at(path, copying=tuple(many))
    assert len(deaths_after(Path(path).read_bytes())) == TABLE


@pytest.mark.parametrize("data", [b"", b"MFUNDER1", b"x" * 9240])
def test_a_file_that_is_none_is_begun_anew(path: str, data: bytes) -> None:
    os.makedirs(os.path.dirname(path))
    Path(path).write_bytes(data)
    assert not refused(UnderWay(path), HERE)
    die_at(path, HERE)
    assert deaths_after(Path(path).read_bytes())


def test_where_nothing_can_be_written_all_goes_on(tmp_path: Path) -> None:
    (tmp_path / "sites").write_bytes(b"")
    under_way = UnderWay(str(tmp_path / "sites" / "site.under-way"))
    assert not refused(under_way, HERE)
    under_way.copied(FILE, under_way.copying(FILE))
    under_way.close()


def test_a_mistake_becomes_the_error_of_a_step() -> None:
    under_way = UnderWay()
    told = "internal error: ValueError: what"
    with pytest.raises(InternalError, match=told) as caught, under_way.border(HERE):
        raise ValueError("what")
    assert isinstance(caught.value.__cause__, ValueError)
    assert not caught.value.transient
    for error in (CutOffError(), CopyingError(FILE), StoreError.of("it", 5)):
        with pytest.raises(type(error)), under_way.border(HERE):
            raise error
