"""Where new files go: spread, the same for every client, past servers that are full."""

from __future__ import annotations

from collections import Counter

from xrootdfs.placement import FREE_BYTES_MIN, Placement, ranked
from xrootdfs.values import Server, Space

SERVERS = [Server(f"server{number}:1094") for number in range(4)]
CHOSEN = [
    "server1:1094",
    "server2:1094",
    "server1:1094",
    "server3:1094",
    "server3:1094",
    "server1:1094",
]


def test_every_client_chooses_the_same() -> None:
    for number in range(100):
        path = b"d/%d" % number
        forwards = ranked(path, SERVERS, Placement.NAME, {})
        backwards = ranked(path, SERVERS[::-1], Placement.NAME, {})
        assert forwards == backwards
        assert sorted(forwards) == SERVERS


def test_names_are_spread() -> None:
    count = Counter(ranked(b"d/%d" % n, SERVERS, Placement.NAME, {})[0] for n in range(1000))
    assert set(count) == set(SERVERS)
    assert min(count.values()) > 150


def test_the_choice_is_settled() -> None:
    """Another one would let two versions of this program create one name twice."""
    chosen = [ranked(b"d/%d" % n, SERVERS, Placement.NAME, {})[0].address for n in range(6)]
    assert chosen == CHOSEN


def test_a_server_less_moves_only_its_own_names() -> None:
    for number in range(200):
        path = b"d/%d" % number
        first, second = ranked(path, SERVERS, Placement.NAME, {})[:2]
        without = [server for server in SERVERS if server != SERVERS[0]]
        expected = second if first == SERVERS[0] else first
        assert ranked(path, without, Placement.NAME, {})[0] == expected


def test_a_directory_stays_together() -> None:
    chosen = {ranked(b"d/%d" % n, SERVERS, Placement.DIRECTORY, {})[0] for n in range(50)}
    assert len(chosen) == 1
    chosen = {ranked(b"d%d/f" % n, SERVERS, Placement.DIRECTORY, {})[0] for n in range(50)}
    assert len(chosen) > 1


def test_full_servers_come_last() -> None:
    room = Space(total=1 << 40, free=1 << 39)
    full = Space(total=1 << 40, free=FREE_BYTES_MIN - 1)
    space = {SERVERS[0]: full, SERVERS[1]: room, SERVERS[2]: full}
    for number in range(50):
        order = ranked(b"%d" % number, SERVERS, Placement.NAME, space)
        assert set(order[:2]) == {SERVERS[1], SERVERS[3]}


def test_by_room() -> None:
    space = {server: Space(1 << 40, free) for server, free in zip(SERVERS, (5, 9, 7), strict=False)}
    order = ranked(b"f", SERVERS, Placement.SPACE, space)
    assert order == [SERVERS[3], SERVERS[1], SERVERS[2], SERVERS[0]]
