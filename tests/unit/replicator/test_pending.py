"""What a site has still to do concerns the places it is about, and no others."""

from __future__ import annotations

import pytest

from mirrorfs.journal.record import (
    Body,
    Change,
    Checkpoint,
    Kind,
    ObjectId,
    Place,
    Reconcile,
    Record,
    SequenceNumber,
)
from replicator.pending import Pending
from replicator.site_state import HeldStep

ROOT, DIRECTORY, FILE, OTHER = (ObjectId(name) for name in (b"root", b"directory", b"f", b"other"))
PATH = (b"d", b"f")
IDS = [ROOT, DIRECTORY, FILE]
GONE = [ROOT, DIRECTORY]


def pending(body: Body, kind: Kind = Kind.WRITE) -> Pending:
    made = Pending([])
    made.add([Record(SequenceNumber(1), 0, kind, 0, body)])
    return made


def change(object: ObjectId, *places: Place, other: ObjectId | None = None) -> Change:
    return Change(object, places, None, 0o100644, 1, other=other)


def test_nothing_is_pending() -> None:
    assert not Pending([]).touches(PATH, IDS)
    assert not Pending([]).touches((), [ROOT])
    assert not pending(Checkpoint("now"), Kind.CHECKPOINT).touches(PATH, IDS)


def test_a_reconcile_may_touch_anything() -> None:
    assert pending(Reconcile(OTHER, False, None, ""), Kind.RECONCILE).touches(PATH, IDS)


@pytest.mark.parametrize(
    ("record", "touched"),
    [
        (change(FILE), True),
        (change(OTHER, other=FILE), True),
        (change(OTHER, Place(DIRECTORY, b"f")), True),
        (change(OTHER, Place(FILE, b"x")), True),
        (change(OTHER, Place(DIRECTORY, b"g")), False),
        (change(OTHER, Place(ROOT, b"f")), False),
        (change(DIRECTORY), False),
    ],
)
def test_records_touch_objects_and_places(record: Change, touched: bool) -> None:
    assert pending(record).touches(PATH, IDS) is touched


def test_a_place_without_an_object() -> None:
    assert pending(change(OTHER, Place(DIRECTORY, b"f"))).touches(PATH, GONE)
    assert not pending(change(FILE)).touches(PATH, GONE)
    assert pending(change(FILE)).touches(PATH, [ROOT])


def test_what_is_in_the_root_touches_the_root() -> None:
    assert pending(change(OTHER, Place(ROOT, b"x"))).touches((), [ROOT])
    assert not pending(change(OTHER, Place(DIRECTORY, b"x"))).touches((), [ROOT])


def step(kind: str, **fields: bytes | bool) -> HeldStep:
    values = {"sequence": 1, "since_ns": 0, "due_ns": 0, **fields}
    return HeldStep(kind=kind, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("held", "keeps"),
    [
        (step("place", directory=DIRECTORY, name=b"f"), True),
        (step("place", directory=DIRECTORY, name=b"g"), False),
        (step("place", directory=FILE, name=b"x"), True),
        (step("place", directory=ROOT, name=b"x", object=FILE), True),
        (step("object", object=FILE), True),
        (step("object", object=DIRECTORY), False),
        (step("reconcile", directory=DIRECTORY), True),
        (step("reconcile", directory=FILE), True),
        (step("reconcile", directory=ROOT), False),
        (step("reconcile", directory=ROOT, whole=True), True),
    ],
)
def test_held_steps_keep_places_from_being_true(held: HeldStep, keeps: bool) -> None:
    assert (Pending([held]).holder(PATH, IDS) is held) is keeps


def test_held_steps_and_the_root() -> None:
    child = step("place", directory=ROOT, name=b"x")
    assert Pending([child]).holder((), [ROOT]) is child
    assert Pending([step("object", object=FILE)]).holder((), [ROOT]) is None
    gone = step("place", directory=DIRECTORY, name=b"f")
    assert Pending([gone]).holder(PATH, GONE) is gone
    assert Pending([gone]).holder(PATH, [ROOT]) is None
