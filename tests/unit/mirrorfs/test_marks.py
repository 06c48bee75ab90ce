"""The set of marks: what a change touches, how many become fewer, how they look on the disk."""

from __future__ import annotations

import stat
from random import Random

import pytest

from mirrorfs.journal.record import Change, Kind, ObjectId, Place
from mirrorfs.marks import Mark, Marks, Noted, Way, _line, decode, encode_head, encode_mark
from tests.support.records import ROOT, object_id

D, E, F, X = (object_id(number) for number in range(4))
FILE, DIRECTORY = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755


def change(
    *places: tuple[ObjectId, bytes],
    mode: int = FILE,
    path: bytes | None = b"d/x",
    other: ObjectId | None = None,
    flags: int = 0,
) -> Change:
    where = tuple(Place(directory, name) for directory, name in places)
    return Change(X, where, path, mode, 1, other=other, rename_flags=flags)


DX, EX = (D, b"x"), (E, b"x")
TOUCHED: dict[str, tuple[Kind, Change, list[Mark]]] = {
    "create": (Kind.CREATE, change(DX), [Mark(D, False, b"d")]),
    "without a path": (Kind.UNLINK, change(DX, path=None), [Mark(D, False, None)]),
    "in the root": (Kind.RMDIR, change((ROOT, b"x"), path=b"x"), [Mark(ROOT, False, b"")]),
    "link": (Kind.LINK, change(DX, EX), [Mark(D, False, b"d"), Mark(E, False, None)]),
    "rename": (Kind.RENAME, change(EX, DX), [Mark(E, False, None), Mark(D, False, b"d")]),
    "mkdir": (
        Kind.MKDIR,
        change(DX, mode=DIRECTORY),
        [Mark(D, False, b"d"), Mark(X, True, b"d/x")],
    ),
    "write": (Kind.WRITE, change(DX), [Mark(D, False, b"d")]),
    "write, no name known": (Kind.WRITE, change(path=None), [Mark(ROOT, True, b"")]),
    "write, no path known": (Kind.WRITE, change(DX, path=None), [Mark(D, False, None)]),
    "of a directory": (
        Kind.ATTRIBUTES,
        change(DX, mode=DIRECTORY),
        [Mark(X, False, b"d/x")],
    ),
}


@pytest.mark.parametrize("name", TOUCHED)
def test_what_a_change_touches(name: str) -> None:
    kind, body, expected = TOUCHED[name]
    marks = Marks(ROOT)
    assert marks.change(kind, body) == expected == list(marks)
    assert marks.change(kind, body) == [], "it is marked already"
    assert len(marks) == len(expected)


def test_what_is_made_in_a_new_directory_needs_no_mark() -> None:
    marks = Marks(ROOT)
    marks.add(D, b"d", whole=True)
    made = Change(E, (Place(D, b"e"),), b"d/e", DIRECTORY, 2)
    assert marks.change(Kind.MKDIR, made) == []
    assert marks.add(E, b"d/e") == []
    below = Change(F, (Place(E, b"f"),), b"d/e/f", DIRECTORY, 2)
    assert marks.change(Kind.MKDIR, below) == []
    moved = Change(E, (Place(D, b"e"), Place(ROOT, b"e")), b"e", DIRECTORY, 2)
    assert marks.change(Kind.RENAME, moved) == [Mark(ROOT, False, b""), Mark(E, True, b"e")]
    assert marks.add(F, b"e/f") == []


def test_a_directory_that_leaves_a_whole_mark_is_marked() -> None:
    ways: dict[ObjectId, Way] = {F: [(ROOT, b""), (F, b"f")]}
    exchange = change(EX, DX, mode=DIRECTORY, other=F, flags=2)
    for whole, other, new in ((False, F, 0), (True, F, 2), (True, X, 1)):
        marks = Marks(ROOT, ways.get)
        marks.add(D, b"d", whole=whole)
        marks.add(E, b"e")
        body = change(EX, DX, mode=DIRECTORY, other=other, flags=2)
        assert len(marks.change(Kind.RENAME, body)) == new
    marks = Marks(ROOT)
    marks.add(D, b"d", whole=True)
    assert marks.change(Kind.RENAME, change((D, b"y"), DX, mode=DIRECTORY)) == []
    assert marks.change(Kind.RENAME, exchange)[-1] == Mark(ROOT, True, b"")
    assert marks.everything
    assert marks.change(Kind.RENAME, exchange) == marks.add(E, None) == marks.add_everything() == []


def test_few_are_left_as_they_are() -> None:
    ways: dict[ObjectId, Way] = {D: [(ROOT, b""), (D, b"d")]}
    marks = Marks(ROOT, ways.get, most=4)
    marks.add(D, b"d")
    marks.add(E, b"gone")
    assert not marks.too_many
    marks.collapse()
    assert list(marks) == [Mark(D, False, b"d")]


def test_too_many_without_ways_are_everything() -> None:
    marks = Marks(ROOT, most=1)
    marks.add(D, b"d")
    marks.add(E, b"e")
    assert marks.too_many
    marks.collapse()
    assert list(marks) == [Mark(ROOT, True, b"")]


@pytest.mark.parametrize("seed", range(30))
def test_fewer_marks_cover_the_same(seed: int) -> None:
    """A random tree; below what is left lies all that was marked, and no more than half is left."""
    random = Random(seed)
    ways: dict[ObjectId, Way] = {ROOT: [(ROOT, b"")]}
    for number in range(60):
        above = ways[random.choice(list(ways))]
        ways[object_id(number)] = [*above, (object_id(number), b"%d" % number)]
    marks = Marks(ROOT, ways.get, most=random.choice([2, 4, 16]))
    wanted: dict[ObjectId, bool] = {}
    while not marks.too_many:
        directory, whole = random.choice(list(ways)), random.random() < 0.2
        marks.add(directory, None, whole=whole)
        wanted[directory] = whole or wanted.get(directory, False)
    marks.collapse()
    assert marks.everything or len(marks) <= marks._most // 2
    left = {mark.directory: mark.whole for mark in marks}
    for marked, whole in wanted.items():
        covered = any(left.get(step[0]) for step in ways[marked][:-1])
        assert covered or (marked in left and left[marked] >= whole)


# On the disk

MARKS = (
    Mark(D, False, b"d"),
    Mark(E, True, b""),
    Mark(F, True, None),
    Mark(X, False, bytes(range(1, 256)) + b"?\n \\x"),
)
TEXT = encode_head(17, "no \n room \xe9") + b"".join(map(encode_mark, MARKS))
NOTED = Noted(17, "no room \\xe9", MARKS)


def test_on_the_disk() -> None:
    assert TEXT.isascii()
    assert TEXT.count(b"\n") == 5
    assert decode(TEXT) == decode(TEXT + bytes(4096)) == NOTED
    assert b" in " not in TEXT.splitlines()[0]
    assert TEXT.splitlines()[1].split()[0::2] == [b"in", b"/d"]


def test_every_prefix_is_what_was_marked_before() -> None:
    """The change of a mark that is not whole has not been answered."""
    first = TEXT.index(b"\n") + 1
    for end in range(len(TEXT)):
        noted = decode(TEXT[:end])
        if end < first:
            assert noted is None
        else:
            assert noted is not None
            assert noted.marks == MARKS[: TEXT[:end].count(b"\n") - 1]


def test_any_other_damage_is_noticed() -> None:
    end = TEXT.rstrip(b"\n").rindex(b"\n") + 1
    for at in range(end):
        spoiled = bytearray(TEXT)
        spoiled[at] ^= 0x11
        assert decode(bytes(spoiled)) is None, at


@pytest.mark.parametrize(
    "line",
    [b"in 00 /d", b"near " + D.hex().encode() + b" /d", b"in xyz /d", b"in"],
    ids=["no id", "word", "not hexadecimal", "short"],
)
def test_what_we_did_not_write(line: bytes) -> None:
    assert decode(encode_head(1, "") + _line(line)) is None
    assert decode(_line(b"another-file 1 2")) is None
    assert decode(b"") is None
