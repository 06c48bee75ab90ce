"""Steps that are held: what waits for whom."""

from __future__ import annotations

from random import Random

import pytest

from mirrorfs.journal.record import ObjectId, Place, SequenceNumber
from replicator.held import AheadError, DeferredError, HeldSteps, Subject
from replicator.planner import PlaceItem
from replicator.stores.base import StoreError

FILE = ObjectId(b"file")
ITEM = PlaceItem(Place(ObjectId(b"directory"), b"name"), (SequenceNumber(5), 0))


@pytest.mark.parametrize(
    ("error", "expects"),
    [
        (DeferredError("open for writing"), True),
        (AheadError("a record is still to come"), False),
        (StoreError("it failed", 5, transient=False), False),
    ],
)
def test_a_writer_is_expected_only_where_one_is_waited_for(error: Exception, expects: bool) -> None:
    held = HeldSteps([], Random(1))
    held.hold(ITEM, error, 0, Subject(object=FILE), unsure=False)
    assert held.expects(FILE) is expects
    assert HeldSteps(held.all(), Random(1)).expects(FILE) is expects
    held.done(ITEM)
    assert not held.expects(FILE)
