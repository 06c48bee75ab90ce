"""The node table against a simple model, and its rules one by one."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from mirrorfs.inodes import ROOT_NUMBER, InodeTable, Node, coldest


def _add(table: InodeTable, directory: Node, name: bytes, number: int, *, is_dir: bool) -> Node:
    node = table.nodes.get(number) or table.add(number, directory=is_dir)
    assert table.bind(directory, name, node) == []
    node.lookups += 1
    return node


def _dir(table: InodeTable, directory: Node, name: bytes, number: int) -> Node:
    return _add(table, directory, name, number, is_dir=True)


def _file(table: InodeTable, directory: Node, name: bytes, number: int) -> Node:
    return _add(table, directory, name, number, is_dir=False)


def test_numbers_leave_room_for_the_root() -> None:
    table = InodeTable(root_inode=77)
    assert table.number_of(77) == ROOT_NUMBER
    assert table.number_of(1) == 77
    assert table.number_of(5) == 5
    assert InodeTable(root_inode=1).number_of(1) == ROOT_NUMBER


def test_paths_are_found_by_walking_up() -> None:
    table = InodeTable(2)
    a = _dir(table, table.root, b"a", 10)
    b = _dir(table, a, b"b", 11)
    file = _file(table, b, b"f", 12)
    assert table.path(table.root) == b""
    assert table.path(file) == b"a/b/f"
    assert table.path_in(table.root, b"x") == b"x"
    assert table.path_in(b, b"x") == b"a/b/x"
    table.move(table.root, b"a", table.root, b"z")
    assert table.path(file) == b"z/b/f"
    table.unbind(a, b"b")
    assert table.path(file) is None
    assert table.path_in(b, b"x") is None
    assert repr(file) == "<node 12 b'f'>"


def test_a_file_keeps_all_its_names() -> None:
    table = InodeTable(2)
    d = _dir(table, table.root, b"d", 10)
    file = _file(table, table.root, b"1", 11)
    assert file.named
    assert file.other_name(table.root, b"1") is None
    _file(table, table.root, b"2", 11)
    _file(table, d, b"1", 11)
    assert list(file.names()) == [(table.root, b"1"), (table.root, b"2"), (d, b"1")]
    assert file.other_name(table.root, b"1") == (table.root, b"2")
    assert file.other_name(table.root, b"2") == (table.root, b"1")
    table.unbind(table.root, b"2")
    table.unbind(table.root, b"1")
    assert list(file.names()) == [(d, b"1")]
    table.unbind(d, b"1")
    assert not file.named
    assert list(file.names()) == []
    assert table.unbind(d, b"1") == []
    assert table.nodes[11] is file


def test_binding_again_changes_nothing_and_displaces_others() -> None:
    table = InodeTable(2)
    one = _file(table, table.root, b"x", 10)
    assert table.bind(table.root, b"x", one) == []
    two = _file(table, table.root, b"x", 11)
    assert not one.named
    assert table.root.children == {b"x": two}


def test_a_directory_has_one_name() -> None:
    table = InodeTable(2)
    d = _dir(table, table.root, b"old", 10)
    assert table.bind(table.root, b"new", d) == []
    assert table.root.children == {b"new": d}


def test_a_foreign_move_never_makes_a_circle() -> None:
    table = InodeTable(2)
    a = _dir(table, table.root, b"a", 10)
    b = _dir(table, a, b"b", 11)
    table.bind(b, b"a", a)
    assert b.children == {}
    table.bind(b, b"root", table.root)
    assert b.children == {}
    assert table.path(b) == b"a/b"


def test_forgotten_nodes_leave_with_the_directories_that_stayed_for_them() -> None:
    table = InodeTable(2)
    a = _dir(table, table.root, b"a", 10)
    b = _dir(table, a, b"b", 11)
    file = _file(table, b, b"f", 12)
    file.lookups += 1
    assert table.forget(10, 1) == []
    assert table.forget(11, 1) == []
    assert table.forget(12, 1) == []
    assert table.path(file) == b"a/b/f"
    assert table.forget(12, 5) == [file, b, a]
    assert list(table.nodes) == [ROOT_NUMBER]
    assert table.root.children == {}
    assert table.forget(12, 1) == []
    assert table.leave_unused(file) == []


def test_open_handles_keep_a_node() -> None:
    table = InodeTable(2)
    file = _file(table, table.root, b"f", 10)
    file.handles = 1
    assert table.forget(10, 1) == []
    assert table.unbind(table.root, b"f") == []
    assert table.closed(file) == [file]


def test_moving_displaces_and_knows_what_it_does_not_know() -> None:
    table = InodeTable(2)
    d = _dir(table, table.root, b"d", 10)
    one, two = _file(table, table.root, b"1", 11), _file(table, d, b"2", 12)
    assert table.move(table.root, b"1", d, b"2") == []
    assert (table.path(one), table.path(two)) == (b"d/2", None)
    two.lookups = 0
    assert table.leave_unused(two) == [two]
    assert table.move(table.root, b"unknown", d, b"2") == []
    assert not one.named
    _file(table, table.root, b"a", 13)
    _file(table, table.root, b"b", 13)
    table.move(table.root, b"a", table.root, b"b")
    assert set(table.root.children) == {b"d", b"a", b"b"}


def test_moving_out_of_a_directory_nobody_holds() -> None:
    table = InodeTable(2)
    d = _dir(table, table.root, b"d", 10)
    file = _file(table, d, b"f", 11)
    table.forget(10, 1)
    assert table.move(d, b"f", table.root, b"g") == [d]
    assert table.path(file) == b"g"


def test_exchanging() -> None:
    table = InodeTable(2)
    d = _dir(table, table.root, b"d", 10)
    inner, file = _file(table, d, b"i", 11), _file(table, table.root, b"f", 12)
    assert table.exchange(table.root, b"d", table.root, b"f") == []
    assert (table.path(d), table.path(file), table.path(inner)) == (b"f", b"d", b"f/i")
    assert table.exchange(table.root, b"d", d, b"unknown") == []
    assert table.path(file) == b"f/unknown"
    assert table.exchange(table.root, b"nothing", d, b"i") == []
    assert table.path(inner) == b"nothing"


def test_cold_descriptors_are_found_twice_as_late_when_used() -> None:
    table = InodeTable(2)
    nodes = [_file(table, table.root, b"%d" % number, number) for number in range(10, 16)]
    nodes[0].handles = nodes[2].handles = 1
    for nameless in nodes[:2]:
        table.unbind(table.root, nameless.name)
    nodes[3].referenced = False
    assert coldest(nodes, 2) == [nodes[3], nodes[2]]
    assert not nodes[5].referenced
    nodes[2].referenced = True
    assert coldest(nodes, 2) == [nodes[3], nodes[4]]
    assert coldest([], 3) == []


class _Model:
    """A tree of names, and a table that is told of every change of it."""

    def __init__(self) -> None:
        self.table = InodeTable(2)
        self.names: dict[tuple[int, bytes], int] = {}  # (directory, name) -> object, by number
        self.directories = [ROOT_NUMBER]
        self._numbers = iter(range(10, 1000))

    def _fits(self, number: int, directory: int) -> bool:
        """A directory cannot go below itself."""
        while directory not in (number, ROOT_NUMBER):
            directory = next(d for (d, _), n in self.names.items() if n == directory)
        return directory != number

    def _node(self, place: tuple[int, bytes]) -> Node:
        return self.table.nodes[place[0]]

    def make(self, place: tuple[int, bytes], _: tuple[int, bytes]) -> None:
        if place in self.names:
            return
        number = self.names[place] = next(self._numbers)
        is_dir = number % 3 == 0
        _add(self.table, self._node(place), place[1], number, is_dir=is_dir)
        if is_dir:
            self.directories.append(number)

    def link(self, old: tuple[int, bytes], new: tuple[int, bytes]) -> None:
        number = self.names.get(old)
        if number is not None and number not in self.directories and new not in self.names:
            _file(self.table, self._node(new), new[1], number)
            self.names[new] = number

    def unlink(self, place: tuple[int, bytes], _: tuple[int, bytes]) -> None:
        if place in self.names and self.names[place] not in self.directories:
            self.table.unbind(self._node(place), place[1])
            del self.names[place]

    def move(self, old: tuple[int, bytes], new: tuple[int, bytes]) -> None:
        number, other = self.names.get(old), self.names.get(new)
        if number in (None, other) or other in self.directories:
            return
        assert number is not None
        if self._fits(number, new[0]):
            self.table.move(self._node(old), old[1], self._node(new), new[1])
            self.names[new] = self.names.pop(old)

    def exchange(self, old: tuple[int, bytes], new: tuple[int, bytes]) -> None:
        number, other = self.names.get(old), self.names.get(new)
        if number is None or other is None or number == other:
            return
        if self._fits(number, new[0]) and self._fits(other, old[0]):
            self.table.exchange(self._node(old), old[1], self._node(new), new[1])
            self.names[old], self.names[new] = other, number

    def forget(self, place: tuple[int, bytes], _: tuple[int, bytes]) -> None:
        number = self.names.get(place)
        if number is not None and number not in self.directories:
            self.table.forget(number, self.table.nodes[number].lookups)
            self.names = {place: named for place, named in self.names.items() if named != number}

    def check(self) -> None:
        """The table knows exactly these names, from both ends."""
        nodes = self.table.nodes
        down = {
            (directory, name): child.number
            for directory in self.directories
            for name, child in nodes[directory].children.items()
        }
        up = {
            (parent.number, name): number
            for number, node in nodes.items()
            for parent, name in node.names()
        }
        assert down == up == self.names


_PLACE = st.tuples(st.integers(0, 5), st.sampled_from([b"a", b"b", b"c"]))
_CHANGE = st.sampled_from(
    [_Model.make, _Model.link, _Model.unlink, _Model.move, _Model.exchange, _Model.forget]
)


@given(st.lists(st.tuples(_CHANGE, _PLACE, _PLACE), max_size=40))
def test_names_stay_true_whatever_happens(
    steps: list[
        tuple[
            Callable[[_Model, tuple[int, bytes], tuple[int, bytes]], None],
            tuple[int, bytes],
            tuple[int, bytes],
        ]
    ],
) -> None:
    model = _Model()
    for change, old, new in steps:
        count = len(model.directories)
        places = [(model.directories[at % count], name) for at, name in (old, new)]
        change(model, *places)
        model.check()
