"""Where a comparison is: the walk, and what is saved of it."""

from __future__ import annotations

from mirrorfs.journal.record import ObjectId, Place, SequenceNumber
from replicator import comparison as module
from replicator.comparison import At, Comparison
from replicator.held import key_of
from replicator.planner import ObjectItem, PlaceItem, ReconcileItem

R, A, B = ObjectId(b"r"), ObjectId(b"a"), ObjectId(b"b")
POSITION = (SequenceNumber(7), 0)


def of(*directories: ObjectId, whole: bool = True, adopt: bool = False) -> Comparison:
    items = [ReconcileItem(each, whole, POSITION, b"path") for each in directories]
    return Comparison(items, adopt=adopt)


def again(comparison: Comparison) -> Comparison:
    """The same after a kill."""
    return Comparison.restored(comparison.state(), 3)


def test_all_roots_are_swept_before_one_is_created() -> None:
    both = of(A, B)
    roots = []
    while (root := both.next_root()) is not None:
        roots.append((root.directory, both.creating))
    assert roots == [(A, False), (B, False), (A, True), (B, True)]
    adopting = of(A, adopt=True)
    assert adopting.next_root() is not None
    assert adopting.creating
    assert adopting.next_root() is None


def test_it_goes_on_behind_the_last_name_done() -> None:
    one = of(R)
    assert one.next_root() is not None
    assert one.here() is None
    assert one.directory() is one.item
    one.give_up()  # nothing is under way
    one.enter(R)
    here = one.here()
    assert here is not None
    here.list([b"c", b"a", b"b"])
    here.done(None)
    here.done(B)
    after = again(one)
    assert (after.began, after.at, after.roots) == (3, 1, {(R, True)})
    there = after.here()
    assert there is not None
    assert there.names is None
    there.list([b"d", b"c", b"a", b"b"])
    assert list(there.names or ()) == [b"c", b"d"], "b is done, d is new"
    there.done(A)
    there.done(None)
    there.go_below()
    assert there.children is None, "those before it was cut off are not known any more"
    there.found([(b"b", B), (b"c", A)])
    assert there.into() == B
    after.enter(B)
    way = again(after)
    assert [(level.directory, level.below, level.after) for level in way.state().way] == [
        (R, True, b"b"),
        (B, False, None),
    ]
    assert not way.at_root
    assert way.leave().directory == B
    assert way.at_root
    back = way.here()
    assert back is not None
    assert back.still([b"a", b"b", b"c"]) == [b"c"]


def test_the_directories_met_among_the_names_are_gone_into() -> None:
    at = At(R)
    at.list([b"a", b"b", b"c"])
    for child in (A, None, B):
        at.done(child)
    at.go_below()
    assert [at.into(), at.after, at.into(), at.after, at.into()] == [A, b"a", B, b"c", None]
    assert at.children is not None, "there are no others"


def test_of_many_directories_only_some_are_remembered() -> None:
    room = module._CHILDREN_MAX
    at = At(R)
    at.list([b"%05d" % index for index in range(room + 2)])
    for _ in range(room + 2):
        at.done(A)
    at.go_below()
    for _ in range(room):
        assert at.into() == A
    assert at.into() is None
    assert at.children is None, "the others are to be looked for"
    at.found((name, B) for name in at.still([b"%05d" % index for index in range(2 * room + 3)]))
    assert at.more
    for _ in range(room):
        assert at.into() == B
    assert at.into() is None
    assert at.children is None
    at.found([(b"z", A)])
    assert [at.into(), at.into()] == [A, None]
    assert at.children is not None


def test_what_is_given_up_is_the_name_or_the_directory() -> None:
    one = of(R)
    one.next_root()
    one.enter(R)
    here = one.here()
    assert here is not None
    here.list([b"a", b"b"])
    assert one.subject() is one.item
    here.at_name = True
    subject = one.subject()
    assert isinstance(subject, PlaceItem)
    assert (subject.place, subject.position) == (Place(R, b"a"), POSITION)
    one.give_up()
    assert list(here.names or ()) == [b"b"]
    assert here.children is None, "whether it is a directory is to be looked for"
    one.enter(A)
    below = one.subject()
    assert isinstance(below, ReconcileItem)
    assert (below.directory, below.whole, below.path) == (A, True, None)
    one.give_up()
    assert one.here() is here


def test_an_object_that_is_owed_is_taken_up_again() -> None:
    comparison = of(ObjectId(b"d"))
    owed = ObjectItem(ObjectId(b"o"), comparison.position)
    comparison.owed[owed] = None
    assert [key_of(each) for each in again(comparison).owed] == [key_of(owed)]
