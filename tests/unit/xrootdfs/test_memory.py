"""What the memory tells is true, whatever changes and answers cross, and it forgets in time."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from xrootdfs.memory import Lifetimes, Memory, Moment
from xrootdfs.values import ROOT, Found, Kind, Listing, Server, Stat

A, B, C = (Server(f"{name}:1094") for name in "abc")
LIFETIMES = Lifetimes(attributes=10.0, absence=5.0, listing=10.0, location=600.0)


def stat(size: int = 1, mtime: int = 1, kind: Kind = Kind.FILE) -> Stat:
    return Stat(kind, size, 0o644, mtime, mtime, mtime)


def found(*servers: Server, size: int = 1, mtime: int = 1, kind: Kind = Kind.FILE) -> Found:
    return Found(stat(size, mtime, kind), servers, servers)


DIRECTORY = Kind.DIRECTORY


def learned(path: bytes, what: Found, now: float = 0.0, *, whole: bool = True) -> Memory:
    memory = Memory(LIFETIMES)
    memory.learn(path, what, now, memory.moment(), whole=whole)
    return memory


def listed(path: bytes, now: float = 0.0, **names: Found) -> Memory:
    memory = Memory(LIFETIMES)
    entries = {name.encode(): what for name, what in names.items()}
    memory.learn_listing(path, Listing(entries, (A,)), now, memory.moment())
    return memory


# Expiry


def test_attributes_count_for_a_while_and_holders_for_longer() -> None:
    memory = learned(b"d/f", found(A))
    assert memory.found(b"d/f", 9.9) == found(A)
    assert memory.found(b"d/f", 10.0) is None
    assert memory.holders(b"d/f", 599.0) == (A,)
    assert memory.holders(b"d/f", 600.0) == ()
    assert memory.whole(b"d/f", 599.0)
    assert not memory.whole(b"d/f", 600.0)


def test_an_absence_counts_for_a_while() -> None:
    memory = Memory(LIFETIMES)
    memory.learn_absent(b"f", 0.0, memory.moment(), whole=True)
    assert memory.absent(b"f", 4.9)
    assert not memory.absent(b"f", 5.0)
    assert memory.found(b"f", 0.0) is None
    assert memory.holders(b"f", 0.0) == ()


def test_a_listing_tells_of_its_names_and_of_no_others() -> None:
    memory = listed(b"d", a=found(A))
    assert memory.found(b"d/a", 9.9) == found(A)
    assert memory.found(b"d/a", 10.0) is None
    assert memory.absent(b"d/b", 4.9)
    assert not memory.absent(b"d/b", 5.0)
    assert not memory.absent(b"d/a", 0.0)
    assert not memory.absent(b"e/a", 0.0)
    assert not memory.absent(ROOT, 0.0)


def test_an_incomplete_listing_says_nothing_of_other_names() -> None:
    memory = Memory(LIFETIMES)
    listing = Listing({b"a": found(A)}, (A,), silent=(B,))
    memory.learn_listing(b"d", listing, 0.0, memory.moment())
    assert not memory.absent(b"d/b", 0.0)
    assert not memory.whole(b"d/a", 0.0)


def test_a_listing_is_given_sorted_and_is_the_callers_own() -> None:
    memory = listed(b"d", b=found(A), a=found(A))
    listing = memory.listing(b"d", 0.0)
    assert listing is not None
    assert list(listing.entries) == [b"a", b"b"]
    listing.entries.clear()
    again = memory.listing(b"d", 9.9)
    assert again is not None
    assert len(again.entries) == 2
    assert memory.listing(b"d", 10.0) is None
    assert memory.listing(b"e", 0.0) is None


# What was changed here


def test_what_changed_is_asked_for_again_at_its_holders() -> None:
    memory = listed(b"d", a=found(A), b=found(B))
    memory.changed(b"d/a")
    assert memory.found(b"d/a", 0.0) is None
    assert memory.holders(b"d/a", 0.0) == (A,)
    assert memory.whole(b"d/a", 0.0)
    assert memory.listing(b"d", 0.0) is None
    assert memory.found(b"d/b", 0.0) == found(B)


def test_a_change_to_something_unknown() -> None:
    memory = Memory(LIFETIMES)
    memory.changed(b"d/a")
    memory.changed(ROOT)
    assert memory.found(b"d/a", 0.0) is None
    assert not memory.absent(b"d/a", 0.0)


def test_a_change_to_something_absent() -> None:
    memory = Memory(LIFETIMES)
    memory.learn_absent(b"a", 0.0, memory.moment(), whole=True)
    memory.changed(b"a")
    assert not memory.absent(b"a", 0.0)


def test_a_new_directory_is_known_to_be_empty() -> None:
    memory = Memory(LIFETIMES)
    memory.created(b"d", A, stat(kind=DIRECTORY), 0.0)
    assert memory.absent(b"d/x", 0.0)
    listing = memory.listing(b"d", 0.0)
    assert listing is not None
    assert (listing.entries, listing.holders) == ({}, (A,))


def test_a_new_file_stands_in_its_directory_which_is_as_new() -> None:
    memory = learned(b"d", found(A, mtime=3, kind=DIRECTORY))
    memory.created(b"d/f", A, stat(mtime=9), 1.0)
    above = memory.found(b"d", 1.0)
    assert above is not None
    assert above.stat.mtime == 9
    assert memory.found(b"d/f", 1.0) == found(A, mtime=9)
    memory.created(b"d/g", A, stat(mtime=4), 1.0)
    above = memory.found(b"d", 1.0)
    assert above is not None
    assert above.stat.mtime == 9


def test_one_more_holder() -> None:
    memory = learned(b"d", found(A, kind=DIRECTORY))
    memory.placed(b"d", B)
    memory.placed(b"d", B)
    memory.placed(b"unknown", B)
    assert memory.holders(b"d", 0.0) == (A, B)
    assert memory.holders(b"unknown", 0.0) == ()
    of_listing = listed(b"d", a=found(A))
    of_listing.placed(b"d/a", B)
    assert of_listing.holders(b"d/a", 0.0) == (A, B)


def test_what_is_removed_is_gone_with_all_below() -> None:
    memory = listed(b"d", a=found(A, kind=DIRECTORY))
    memory.learn(b"d/a/b/c", found(A), 0.0, memory.moment(), whole=True)
    memory.removed(b"d/a", 1.0)
    assert memory.absent(b"d/a", 1.0)
    assert memory.found(b"d/a/b/c", 1.0) is None
    assert not memory.absent(b"d/a/b/c", 1.0)
    memory.removed(b"x", 1.0)
    assert memory.absent(b"x", 1.0)


def test_a_rename_takes_along_what_is_below() -> None:
    memory = listed(b"d", a=found(A, kind=DIRECTORY), z=found(B))
    memory.learn(b"d/a/f", found(A, size=7), 0.0, memory.moment(), whole=True)
    memory.renamed(b"d/a", b"e", 1.0)
    assert memory.absent(b"d/a", 1.0)
    assert memory.found(b"e", 1.0) is None
    assert memory.holders(b"e", 1.0) == (A,)
    assert memory.found(b"e/f", 1.0) == found(A, size=7)
    memory.renamed(b"e/f", b"d/z", 1.0)
    assert memory.holders(b"d/z", 1.0) == (A,)
    memory.renamed(b"never seen", b"d/z", 1.0)
    assert memory.holders(b"d/z", 1.0) == ()


def test_in_doubt_nothing_is_known() -> None:
    memory = listed(b"d", a=found(A), b=found(B))
    memory.learn(b"d/a", found(A), 0.0, memory.moment(), whole=True)
    memory.forget(b"d/a")
    assert memory.found(b"d/a", 0.0) is None
    assert memory.found(b"d/b", 0.0) is None
    assert not memory.absent(b"d/c", 0.0)
    memory.forget(ROOT)


# Silent servers


def test_who_is_known_not_to_hold_a_name() -> None:
    memory = learned(b"d/f", found(A), 100.0)
    assert memory.excludes(b"d/f", B, 100.0)
    assert memory.excludes(b"d/f", B, 700.0)
    assert not memory.excludes(b"d/f", B, 701.0)
    assert not memory.excludes(b"d/f", A, 100.0)
    assert not memory.excludes(b"d/g", B, 100.0)
    assert not memory.excludes(ROOT, B, 100.0)
    assert not learned(b"d/f", found(A), whole=False).excludes(b"d/f", B, 0.0)
    assert not learned(b"f", Found(stat(), (A,), (A,), (B,))).excludes(b"f", B, 0.0)


def test_a_listing_shortly_before_tells_who_does_not_hold_new_names() -> None:
    memory = listed(b"d", 100.0, a=found(A))
    assert memory.excludes(b"d/new", B, 110.0)
    assert not memory.excludes(b"d/new", B, 110.1)
    assert memory.excludes(b"d/a", B, 110.1)
    assert not memory.excludes(b"d/a", A, 110.1)


def test_an_absence_shortly_before_counts_too() -> None:
    memory = Memory(LIFETIMES)
    memory.removed(b"f", 100.0)
    assert memory.excludes(b"f", A, 105.0)
    assert not memory.excludes(b"f", A, 105.1)


def test_who_does_not_hold_a_directory_holds_nothing_in_it() -> None:
    memory = learned(b"d", found(A, kind=DIRECTORY), 100.0)
    assert memory.excludes(b"d/e/f", B, 100.0)
    assert not memory.excludes(b"d/e/f", A, 100.0)
    assert not memory.excludes(b"d/e/f", B, 701.0)
    assert not memory.excludes(b"e/f", B, 100.0)


def test_a_listing_that_passed_servers_over_excludes_nobody() -> None:
    memory = Memory(LIFETIMES)
    listing = Listing({}, (A,), passed_over=(B,))
    memory.learn_listing(b"d", listing, 0.0, memory.moment())
    assert memory.absent(b"d/x", 0.0)
    assert not memory.excludes(b"d/x", B, 0.0)


# Answers that come too late


def test_an_answer_that_a_change_overtook_is_not_learned() -> None:
    memory = Memory(LIFETIMES)
    asked = memory.moment()
    memory.created(b"d/f", A, stat(size=5), 0.0)
    memory.learn_absent(b"d/f", 0.0, asked, whole=True)
    memory.learn(b"d", found(A, kind=DIRECTORY), 0.0, asked, whole=True)
    memory.learn_listing(b"d", Listing({}, (A,)), 0.0, asked)
    assert memory.found(b"d/f", 0.0) == found(A, size=5)
    assert memory.found(b"d", 0.0) is None
    assert memory.listing(b"d", 0.0) is None
    memory.learn(b"other", found(B), 0.0, asked, whole=True)
    assert memory.found(b"other", 0.0) == found(B)


def test_nor_one_about_what_was_below_something_renamed() -> None:
    memory = Memory(LIFETIMES)
    asked = memory.moment()
    memory.renamed(b"d", b"e", 0.0)
    for path in (b"d/f", b"e/f", b"d/g/h"):
        memory.learn(path, found(A), 0.0, asked, whole=True)
        assert memory.found(path, 0.0) is None


def test_nor_one_from_before_what_was_forgotten() -> None:
    memory = Memory(LIFETIMES, names_max=3)
    asked = memory.moment()
    memory.changed(b"f")
    for name in (b"1", b"2", b"3", b"4"):
        memory.learn(name, found(A), 0.0, memory.moment(), whole=True)
    memory.learn(b"f", found(A), 0.0, asked, whole=True)
    assert memory.found(b"f", 0.0) is None


# Bounds


@given(st.integers(5, 40), st.lists(st.integers(0, 60), max_size=120))
def test_it_stays_within_its_bounds(names_max: int, numbers: list[int]) -> None:
    memory = Memory(LIFETIMES, names_max=names_max)
    for number in numbers:
        directory = b"d%d" % (number % 5)
        if number % 7 == 0:
            entries = {b"%d" % each: found(A) for each in range(number % 4)}
            memory.learn_listing(directory, Listing(entries, (A,)), 0.0, memory.moment())
        elif number % 11 == 0:
            memory.removed(directory, 0.0)
        else:
            path = directory + b"/%d" % number
            memory.learn(path, found(A, size=number), 0.0, memory.moment(), whole=True)
            assert memory.found(path, 0.0) == found(A, size=number)
        assert len(memory) <= names_max


def test_what_was_learned_longest_ago_is_forgotten() -> None:
    memory = Memory(LIFETIMES, names_max=7)
    memory.learn_listing(b"d", Listing({b"f": found(A)}, (A,)), 0.0, memory.moment())
    memory.learn(b"d/f", found(A, size=2), 0.0, memory.moment(), whole=True)
    memory.learn(b"d", found(A, kind=DIRECTORY), 0.0, memory.moment(), whole=True)
    for number in range(3):
        memory.learn(b"x%d" % number, found(A), 0.0, memory.moment(), whole=True)
    assert memory.found(b"d/f", 0.0) is None  # neither as learned, nor as once listed
    assert memory.found(b"x2", 0.0) == found(A)


# All together, against a tree that only this mount changes

NAMES_LIST = (b"a", b"b", b"c")
NAMES = st.sampled_from(NAMES_LIST)


class OwnTree(RuleBasedStateMachine):
    """Changes, questions and answers in any order: the memory never tells what is not so."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.size = 0
        self.tree: dict[bytes, Found] = {}
        self.asked: list[tuple[bytes, Moment, Found | None, Listing | None]] = []

    @initialize(names_max=st.sampled_from([4, 12, 1000]))
    def begin(self, names_max: int) -> None:
        self.memory = Memory(LIFETIMES, names_max=names_max)

    def new(self, kind: Kind, server: Server) -> Found:
        self.size += 1
        return found(server, size=self.size, mtime=0, kind=kind)

    def directory(self, data: st.DataObject) -> bytes:
        known = [p for p, f in self.tree.items() if f.is_directory and p.count(b"/") < 3]
        return data.draw(st.sampled_from([ROOT, *sorted(known)]))

    def place(self, data: st.DataObject) -> bytes:
        directory = self.directory(data)
        name = data.draw(NAMES)
        return directory + b"/" + name if directory else name

    def existing(self, data: st.DataObject) -> bytes:
        return data.draw(st.sampled_from(sorted(self.tree)))

    def below(self, path: bytes) -> Iterator[bytes]:
        return iter([p for p in self.tree if p.startswith(path + b"/")])

    def names(self, path: bytes) -> dict[bytes, Found]:
        start = path + b"/" if path else b""
        rest = {p[len(start) :]: f for p, f in self.tree.items() if p.startswith(start)}
        return {name: f for name, f in rest.items() if b"/" not in name}

    def hold(self, path: bytes, *servers: Server) -> None:
        """Servers make the directories above what they get."""
        while b"/" in path:
            path = path.rpartition(b"/")[0]
            was = self.tree[path]
            holders = (*was.holders, *(s for s in servers if s not in was.holders))
            self.tree[path] = Found(was.stat, holders, holders)

    @rule(
        data=st.data(), kind=st.sampled_from([Kind.FILE, DIRECTORY]), server=st.sampled_from([A, B])
    )
    def create(self, data: st.DataObject, kind: Kind, server: Server) -> None:
        path = self.place(data)
        if path not in self.tree:
            self.tree[path] = self.new(kind, server)
            self.memory.created(path, server, self.tree[path].stat, self.now)
            self.hold(path, server)

    @precondition(lambda self: self.tree)
    @rule(data=st.data())
    def change(self, data: st.DataObject) -> None:
        path = self.existing(data)
        old = self.tree[path]
        stat = self.new(old.stat.kind, A).stat
        self.tree[path] = Found(stat, old.holders, old.holders)
        self.memory.changed(path)

    @precondition(lambda self: self.tree)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        path = self.existing(data)
        for each in (path, *self.below(path)):
            del self.tree[each]
        self.memory.removed(path, self.now)

    @precondition(lambda self: self.tree)
    @rule(data=st.data())
    def rename(self, data: st.DataObject) -> None:
        old, new = self.existing(data), self.place(data)
        if old == new or new.startswith(old + b"/") or old.startswith(new + b"/"):
            return
        for each in [new, *self.below(new)]:
            self.tree.pop(each, None)
        for each in [old, *self.below(old)]:
            self.tree[new + each[len(old) :]] = self.tree.pop(each)
        self.hold(new, *self.tree[new].holders)
        self.memory.renamed(old, new, self.now)

    @rule(data=st.data())
    def ask(self, data: st.DataObject) -> None:
        path = self.place(data)
        self.asked.append((path, self.memory.moment(), self.tree.get(path), None))

    @rule(data=st.data())
    def ask_listing(self, data: st.DataObject) -> None:
        path = self.directory(data)
        listing = Listing(self.names(path), (A, B))
        self.asked.append((path, self.memory.moment(), None, listing))

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.asked) - 1))
        path, moment, what, listing = self.asked.pop(index)
        if listing is not None:
            self.memory.learn_listing(path, listing, self.now, moment)
        elif what is not None:
            self.memory.learn(path, what, self.now, moment, whole=True)
        else:
            self.memory.learn_absent(path, self.now, moment, whole=True)

    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        self.memory.forget(self.place(data))

    @rule(seconds=st.sampled_from([1.0, 6.0, 11.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def nothing_false(self) -> None:
        if not hasattr(self, "memory"):
            return
        paths = {*self.tree, *NAMES_LIST, *(p + b"/" + n for p in self.tree for n in NAMES_LIST)}
        for path in paths:
            true = self.tree.get(path)
            known = self.memory.found(path, self.now)
            assert known is None or (true is not None and known.stat == true.stat)
            assert not (self.memory.absent(path, self.now) and true is not None)
            holders = self.memory.holders(path, self.now)
            assert not holders or (true is not None and set(holders) <= set(true.holders))
            if holders and self.memory.whole(path, self.now):
                assert true is not None
                assert set(holders) == set(true.holders)
            for server in (A, B, C):
                if self.memory.excludes(path, server, self.now):
                    assert true is None or server not in true.holders
        for path in [ROOT, *(p for p, f in self.tree.items() if f.is_directory)]:
            listing = self.memory.listing(path, self.now)
            names = {name: true.stat for name, true in self.names(path).items()}
            assert listing is None or {n: f.stat for n, f in listing.entries.items()} == names


TestOwnTree = OwnTree.TestCase
TestOwnTree.settings = settings(max_examples=200, stateful_step_count=30)
