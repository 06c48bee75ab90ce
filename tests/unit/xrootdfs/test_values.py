"""Servers, copies and listings."""

from __future__ import annotations

import pytest

from xrootdfs.values import Found, Kind, Listing, Server, Stat


@pytest.mark.parametrize(
    ("prefix", "path", "expected"),
    [
        (b"/", b"", b"/"),
        (b"/", b"a/b", b"/a/b"),
        (b"/x/y", b"", b"/x/y"),
        (b"/x/y", b"a", b"/x/y/a"),
    ],
)
def test_paths_at_a_server(prefix: bytes, path: bytes, expected: bytes) -> None:
    assert Server("h:1", prefix).path(path) == expected


def test_a_server_reads_as_its_address() -> None:
    assert str(Server("h:1", b"/x")) == "h:1"


def test_a_listing_is_complete_if_nobody_is_silent() -> None:
    server = Server("h:1")
    assert Listing({}, (server,)).complete
    assert Listing({}, (server,), passed_over=(server,)).complete
    assert not Listing({}, (server,), silent=(server,)).complete


def test_copies() -> None:
    a, b = Server("a:1"), Server("b:1")
    stat = Stat(Kind.FILE, 1, 0o644, 0, 0, 0)
    assert not Found(stat, (a, b), (a, b)).differing
    assert Found(stat, (a, b), (a,)).differing
    assert Found(stat, (a,), (a,), (b,)).differing
    assert not Found(stat, (a,), (a,)).is_directory
