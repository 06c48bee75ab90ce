"""Finding records: patterns, times, who; and the trail of one path through renames."""

from __future__ import annotations

import random
import stat
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorfs.journal.finding import PathPattern, Search, Trail, parse_moment, relative
from mirrorfs.journal.record import (
    Change,
    Checkpoint,
    Kind,
    ObjectId,
    Place,
    Reconcile,
    Record,
    SequenceNumber,
    Who,
    encode_body,
)
from tests.support.records import ROOT, object_id

NOW = 1_700_000_000 * 10**9


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("1970-01-02", 86400),
        ("1970-01-01T01:00", 3600),
        ("1970-01-01T01:00:01.5", 3601.5),
        ("1970-01-01T01:00Z", 3600),
        ("1970-01-01 03:00:00+02:00", 3600),
        ("90s", 1_700_000_000 - 90),
        ("15m", 1_700_000_000 - 900),
        ("2w", 1_700_000_000 - 14 * 86400),
    ],
)
def test_times(text: str, at: float) -> None:
    assert parse_moment(text, NOW) == int(at * 10**9)


@pytest.mark.parametrize("text", ["", "5", "5y", "yesterday", "1970-13-01", "1970-01-01T99", "1e5"])
def test_no_times(text: str) -> None:
    assert parse_moment(text, NOW) is None


@pytest.mark.parametrize(
    ("path", "inside"),
    [
        (b"/srv/data/a/b", b"a/b"),
        (b"/srv/data", b""),
        (b"/", b""),
        (b"/a//b/", b"a/b"),
        (b"./a", b"a"),
        (b"/srv/../srv/data/a/../b", b"b"),
        (b"/mnt/data/a", b"a"),
        (b"mnt/data/a", b"a"),
        (b"srv/x/../data/a", b"a"),
        (b"/srv/database", b"srv/database"),
        (b"../../a", b"a"),
    ],
)
def test_paths_are_relative_to_the_root(path: bytes, inside: bytes) -> None:
    assert relative(path, (b"/srv/data", b"/mnt/data"), b"/") == inside


@pytest.mark.parametrize(
    ("path", "inside"),
    [(b"x", b"run/x"), (b"../x", b"x"), (b"../../x", b"x"), (b"/run/x", b"run/x")],
)
def test_paths_are_meant_from_where_one_is(path: bytes, inside: bytes) -> None:
    assert relative(path, (b"/srv/data",), b"/srv/data/run") == inside


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        (b"", [b"", b"a", b"a/b"], []),
        (b"a/b", [b"a/b", b"a/b/c"], [b"a", b"a/bc", b"x/a/b", b""]),
        (b"a/*", [b"a/b", b"a/b/c", b"a/\nx"], [b"a", b"ab/c"]),
        (b"*.grib", [b"x.grib", b"x.grib/below"], [b"d/x.grib", b"x.grib2"]),
        (b"**/x?", [b"x1", b"a/b/x1", b"a/x1/below"], [b"x", b"x12", b"ax1"]),
        (b"a/**", [b"a/", b"a/b/c"], [b"b/a"]),
        (b"[ab]1", [b"a1", b"b1"], [b"c1"]),
        (b"[!ab]1", [b"c1"], [b"a1", b"/1"]),
        (b"[]x]", [b"]", b"x"], [b"["]),
        (b"a[", [b"a["], [b"a"]),
        (b"f[1]", [b"f[1]", b"f1"], [b"f2"]),
        (b"[\\d]", [b"\\", b"d"], [b"1"]),
    ],
)
def test_patterns(pattern: bytes, matching: list[bytes], other: list[bytes]) -> None:
    made = PathPattern(pattern)
    assert [path for path in matching if not made.matches(path)] == []
    assert [path for path in other if made.matches(path)] == []
    assert made.literal in (b"", pattern)


@given(st.binary(max_size=12))
def test_any_bytes_are_a_pattern_that_matches_itself(name: bytes) -> None:
    assert PathPattern(name).matches(name)


# Records of a small tree

D, E, F, G = (object_id(number) for number in range(10, 14))
FILE, DIRECTORY = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755


class Tree:
    """Makes the records of changes in a tree, as a writer does."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.paths: dict[ObjectId, bytes] = {ROOT: b""}
        self.at: dict[Place, ObjectId] = {}
        self.modes: dict[ObjectId, int] = {ROOT: DIRECTORY}

    def path(self, place: Place) -> bytes:
        above = self.paths[place.directory]
        return above + b"/" + place.name if above else place.name

    def add(self, kind: Kind, change: Change) -> None:
        sequence = SequenceNumber(len(self.records) + 1)
        self.records.append(Record(sequence, sequence, kind, 1, change))

    def make(self, identity: ObjectId, place: Place, mode: int = FILE) -> None:
        self.at[place], self.modes[identity] = identity, mode
        self.paths[identity] = self.path(place)
        kind = Kind.MKDIR if mode == DIRECTORY else Kind.CREATE
        self.add(kind, Change(identity, (place,), self.paths[identity], mode, 1))

    def write(self, place: Place, who: Who | None = None) -> None:
        identity = self.at[place]
        self.add(Kind.WRITE, Change(identity, (place,), self.path(place), FILE, 1, who=who))

    def rename(self, old: Place, new: Place, flags: int = 0) -> None:
        moved, displaced = self.at.pop(old), self.at.get(new)
        self.at[new] = moved
        if flags and displaced is not None:
            self.at[old] = displaced
        before, after = self.paths[moved], self.path(new)
        self.paths[moved] = after
        if self.modes[moved] == DIRECTORY:
            for identity, path in self.paths.items():
                if path.startswith(before + b"/"):
                    self.paths[identity] = after + path[len(before) :]
        mode = self.modes[moved]
        body = Change(moved, (old, new), after, mode, 1, other=displaced, rename_flags=flags)
        self.add(Kind.RENAME, body)

    def unlink(self, place: Place) -> None:
        identity = self.at.pop(place)
        self.add(Kind.UNLINK, Change(identity, (place,), self.path(place), FILE, 0))

    def other(self, kind: Kind, body: Checkpoint | Reconcile) -> None:
        sequence = SequenceNumber(len(self.records) + 1)
        self.records.append(Record(sequence, sequence, kind, 1, body))


def sample() -> Tree:
    tree = Tree()
    tree.make(D, Place(ROOT, b"d"), DIRECTORY)  # 1
    tree.make(E, Place(ROOT, b"e"), DIRECTORY)  # 2
    tree.make(F, Place(D, b"f"))  # 3
    tree.write(Place(D, b"f"), Who(7, 1000, "job-1"))  # 4
    tree.rename(Place(D, b"f"), Place(E, b"g"))  # 5
    tree.make(G, Place(D, b"f"))  # 6
    tree.write(Place(D, b"f"), Who(8, 1001, "job-2"))  # 7
    tree.rename(Place(ROOT, b"d"), Place(E, b"d2"))  # 8: e/d2/f is G
    tree.other(Kind.CHECKPOINT, Checkpoint("f"))  # 9
    tree.write(Place(E, b"g"))  # 10
    tree.other(Kind.RECONCILE, Reconcile(E, True, b"e", "why"))  # 11
    tree.other(Kind.RECONCILE, Reconcile(E, False, None, "why"))  # 12
    tree.unlink(Place(E, b"g"))  # 13
    return tree


def through(records: Iterable[Record], search: Search) -> list[int]:
    """What is found, as a reader goes about it."""
    found: list[int] = []
    for record in records:
        payload = memoryview(encode_body(record.body))
        if search.wanted(record.kind, record.time_ns, payload) and search.matches(record):
            found.append(record.sequence)
    return found


@pytest.mark.parametrize(
    ("search", "found"),
    [
        (Search(), list(range(1, 14))),
        (Search(path=PathPattern(b"d")), [1, 3, 4, 5, 6, 7, 8]),
        (Search(path=PathPattern(b"d/f")), [3, 4, 5, 6, 7]),
        (Search(path=PathPattern(b"e/g")), [5, 10, 13]),
        (Search(path=PathPattern(b"e/d*")), [8]),
        (Search(path=PathPattern(b"e")), [2, 5, 8, 10, 11, 13]),
        (Search(path=PathPattern(b"")), [*range(1, 9), 10, 11, 13]),
        (Search(job="job-1"), [4]),
        (Search(job="job"), []),
        (Search(uid=1001), [7]),
        (Search(uid=1001, job="job-1"), []),
        (Search(uid=1001, path=PathPattern(b"d/?")), [7]),
        (Search(kinds=frozenset({Kind.RENAME, Kind.UNLINK})), [5, 8, 13]),
        (Search(path=PathPattern(b"d"), kinds=frozenset({Kind.WRITE})), [4, 7]),
        (Search(since_ns=12), [12, 13]),
        (Search(until_ns=2), [1, 2]),
        (Search(path=PathPattern(b"d"), since_ns=5, until_ns=7), [5, 6, 7]),
        (Search(job="job-2", path=PathPattern(b"d/f")), [7]),
        (Search(job="job-2", path=PathPattern(b"e/g")), []),
    ],
)
def test_searches(search: Search, found: list[int]) -> None:
    assert through(sample().records, search) == found


def test_where_a_rename_came_from_may_not_be_known() -> None:
    tree = sample()
    later = tree.records[4:5]  # d was made before the journal begins
    assert through(later, Search(path=PathPattern(b"d"))) == []
    assert through(later, Search(path=PathPattern(b"e/g"))) == [5]


def trail(records: list[Record], path: bytes, found: ObjectId | None = None) -> list[int]:
    made = Trail(path, found)
    payloads = [memoryview(encode_body(record.body)) for record in records]
    for record, payload in zip(records, payloads, strict=True):
        if made.wanted(record.kind, record.time_ns, payload):
            made.look(record)
    return [
        record.sequence
        for record, payload in zip(records, payloads, strict=True)
        if made.wanted(record.kind, record.time_ns, payload) and made.tells(record)
    ]


@pytest.mark.parametrize(
    ("path", "found"),
    [
        (b"e/g", [3, 4, 5, 10, 11, 13]),  # F, since it was made
        (b"d/f", [3, 4, 5, 6, 7, 8]),  # the path, and G; d moved away
        (b"e/d2", [1, 8, 11]),
        (b"d", [1, 8]),
        (b"nowhere", []),
    ],
)
def test_trails(path: bytes, found: list[int]) -> None:
    assert trail(sample().records, path) == found


def test_a_trail_of_an_object_that_the_source_names() -> None:
    """No record has its path of today: the directory above was moved."""
    assert trail(sample().records, b"e/d2/f", G) == [6, 7, 8, 11]


def test_an_object_that_the_source_names_is_not_another_one() -> None:
    """Though the last record of the path was about another: that one was moved behind the mount."""
    assert trail(sample().records, b"e/g", G) == [5, 6, 7, 10, 11, 13]


def test_records_without_a_path_or_with_another_name_teach_nothing() -> None:
    tree = sample()
    elsewhere = Change(F, (Place(ROOT, b"x"),), b"d/f", FILE, 2)
    nameless = Change(F, (), None, FILE, 0)
    for body in (elsewhere, nameless):
        tree.records.append(Record(SequenceNumber(99), 99, Kind.ATTRIBUTES, 1, body))
    assert through(tree.records, Search(path=PathPattern(b"d"))) == [1, 3, 4, 5, 6, 7, 8, 99]
    assert through(tree.records, Search(path=PathPattern(b""))).count(99) == 1


def test_a_trail_through_an_exchange() -> None:
    tree = Tree()
    tree.make(F, Place(ROOT, b"a"))  # 1
    tree.make(G, Place(ROOT, b"b"))  # 2
    tree.rename(Place(ROOT, b"a"), Place(ROOT, b"b"), flags=2)  # 3
    tree.write(Place(ROOT, b"a"))  # 4: G
    assert trail(tree.records, b"a") == [1, 2, 3, 4]
    assert trail(tree.records[:3], b"a") == [1, 2, 3]
    assert trail(tree.records[:3], b"b") == [1, 2, 3]


@given(st.integers(0, 1 << 32))
def test_the_trail_of_a_path_has_all_about_the_object_there(seed: int) -> None:
    """Random trees: each record of the object that is at a path in the end is in its trail."""
    chance = random.Random(seed)
    tree = Tree()
    directories = [ROOT]
    for number in range(40):
        place = Place(chance.choice(directories), b"%c" % chance.choice(b"abc"))
        if place not in tree.at:
            mode = DIRECTORY if chance.random() < 0.2 else FILE
            tree.make(object_id(100 + number), place, mode)
            if mode == DIRECTORY:
                directories.append(object_id(100 + number))
        elif tree.modes[tree.at[place]] == FILE:
            new = Place(chance.choice(directories), b"%c" % chance.choice(b"abc"))
            taken = tree.modes.get(tree.at.get(new, F), FILE)
            if chance.random() < 0.5 or new == place or taken == DIRECTORY:
                tree.write(place)
            else:
                tree.rename(place, new)
    for place, identity in tree.at.items():
        about = [
            record.sequence
            for record in tree.records
            if isinstance(record.body, Change)
            and (identity in (record.body.object, record.body.other) or place in record.body.places)
        ]
        assert set(about) <= set(trail(tree.records, tree.path(place)))
