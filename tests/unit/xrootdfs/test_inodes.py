"""The names the kernel knows: who stays, who goes, under which number."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from xrootdfs.inodes import ROOT_NUMBER, InodeTable, Node


def _looked_up(table: InodeTable, directory: Node, name: bytes, *, is_directory: bool) -> Node:
    node = table.meet(directory, name, is_directory=is_directory)
    node.lookups += 1
    return node


def test_paths() -> None:
    table = InodeTable()
    assert table.path(table.root) == b""
    a = _looked_up(table, table.root, b"a", is_directory=True)
    b = _looked_up(table, a, b"b", is_directory=True)
    assert table.path(a) == b"a"
    assert table.path(b) == b"a/b"
    assert table.path_in(b, b"c") == b"a/b/c"
    assert table.path_in(table.root, b"c") == b"c"
    assert repr(a) == f"<node {a.number} b'a'>"
    table.remove(table.root, b"a")
    assert a.removed
    assert not table.root.removed
    assert table.path(b) is None
    assert table.path_in(b, b"c") is None


def test_a_name_is_one_node_as_long_as_it_is_one_kind() -> None:
    table = InodeTable()
    file = _looked_up(table, table.root, b"a", is_directory=False)
    assert table.meet(table.root, b"a", is_directory=False) is file
    directory = _looked_up(table, table.root, b"a", is_directory=True)
    assert directory is not file
    assert directory.number != file.number  # the kernel knows both
    assert file.removed


def test_nodes_stay_while_they_are_needed() -> None:
    table = InodeTable()
    a = _looked_up(table, table.root, b"a", is_directory=True)
    f = _looked_up(table, a, b"f", is_directory=False)
    table.forget(a.number, 1)
    assert table.nodes.get(a.number) is a  # for what is below it
    f.handles += 1
    table.forget(f.number, 5)
    assert table.nodes.get(f.number) is f  # for its handle
    table.closed(f)
    assert table.nodes == {ROOT_NUMBER: table.root}
    assert table.root.children == {}
    table.forget(f.number, 1)
    table.leave_unused(f)  # it is not there any more
    assert table.nodes == {ROOT_NUMBER: table.root}


def test_a_name_keeps_its_number() -> None:
    """After it was forgotten, and in another mount."""
    numbers = set()
    for table in (InodeTable(), InodeTable()):
        node = _looked_up(table, table.root, b"a", is_directory=False)
        numbers.add(node.number)
        table.forget(node.number, 1)
        numbers.add(table.meet(table.root, b"a", is_directory=False).number)
    assert len(numbers) == 1


def test_removing_what_is_not_known() -> None:
    table = InodeTable()
    assert table.remove(table.root, b"a") is None


def test_moves() -> None:
    table = InodeTable()
    a = _looked_up(table, table.root, b"a", is_directory=True)
    f = _looked_up(table, a, b"f", is_directory=False)
    g = _looked_up(table, table.root, b"g", is_directory=False)
    table.move(table.root, b"a", table.root, b"c")
    assert table.path(f) == b"c/f"
    table.move(a, b"f", table.root, b"g")
    assert table.path(f) == b"g"
    assert g.removed
    table.move(table.root, b"g", table.root, b"g")
    assert table.path(f) == b"g"
    table.move(table.root, b"unknown", table.root, b"g")  # the kernel never looked it up
    assert f.removed


def test_a_move_out_of_a_directory_that_was_kept_for_it() -> None:
    table = InodeTable()
    a = _looked_up(table, table.root, b"a", is_directory=True)
    f = _looked_up(table, a, b"f", is_directory=False)
    table.forget(a.number, 1)
    table.move(a, b"f", table.root, b"f")
    assert table.path(f) == b"f"
    assert a.number not in table.nodes


NAMES = st.sampled_from([b"a", b"b", b"c"])
STEPS = st.one_of(
    st.tuples(st.just("meet"), st.integers(0, 9), NAMES, st.booleans()),
    st.tuples(st.just("forget"), st.integers(0, 9)),
    st.tuples(st.just("remove"), st.integers(0, 9), NAMES),
    st.tuples(st.just("move"), st.integers(0, 9), NAMES, st.integers(0, 9), NAMES),
)


def _take(step: tuple[object, ...], table: InodeTable, known: list[Node]) -> None:
    """One thing that a kernel may do; `known` are the nodes it has references to."""
    match step:
        case ("meet", int(number), bytes(name), bool(is_directory)):
            directory = known[number % len(known)]
            if directory.directory:
                known.append(_looked_up(table, directory, name, is_directory=is_directory))
        case ("forget", int(number)):
            node = known[number % len(known)]
            if node is not table.root:
                table.forget(node.number, node.lookups)
                known[:] = [each for each in known if each is not node]
        case ("remove", int(number), bytes(name)):
            table.remove(known[number % len(known)], name)
        case ("move", int(number), bytes(name), int(to_number), bytes(to_name)):
            directory, to = known[number % len(known)], known[to_number % len(known)]
            if to.directory and not _is_below(to, directory.children.get(name)):
                table.move(directory, name, to, to_name)


def _is_below(node: Node | None, above: Node | None) -> bool:
    while node is not None and node is not above:
        node = node.parent
    return node is not None


@given(st.lists(STEPS, max_size=40))
def test_nothing_is_left_when_everything_is_forgotten(steps: list[tuple[object, ...]]) -> None:
    table = InodeTable()
    known: list[Node] = [table.root]
    for step in steps:
        _take(step, table, known)
        for node in table.nodes.values():
            assert all(child.parent is node for child in node.children.values())
    for node in list(table.nodes.values()):
        if node is not table.root:
            table.forget(node.number, node.lookups)
    assert table.nodes == {ROOT_NUMBER: table.root}
    assert table.root.children == {}
