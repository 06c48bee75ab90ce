"""What fanotify tells, taken apart."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from mirrorfs import foreign
from mirrorfs.foreign import Event, events

NAMES = st.binary(min_size=1, max_size=255).filter(lambda name: b"\0" not in name)
HANDLES = st.tuples(st.integers(-(2**31), 2**31 - 1), st.binary(min_size=1, max_size=128))


def information(kind: int, handle: tuple[int, bytes], name: bytes) -> bytes:
    body = bytes(8) + struct.pack("=Ii", len(handle[1]), handle[0]) + handle[1]
    if name:
        body += name + b"\0"
    body += bytes(-(4 + len(body)) % 4)
    return struct.pack("=BBH", kind, 0, 4 + len(body)) + body


def encoded(mask: int, pid: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack("=IBBHQii", 24 + len(body), 3, 0, 24, mask, -1, pid) + body


EVENTS = st.builds(
    lambda mask, pid, handle, name: (mask, pid, handle, name),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**31 - 1),
    HANDLES,
    NAMES,
)


@given(st.lists(EVENTS, max_size=5))
def test_names(wanted: list[tuple[int, int, tuple[int, bytes], bytes]]) -> None:
    data = b"".join(encoded(e[0], e[1], information(2, e[2], e[3])) for e in wanted)
    assert list(events(data)) == [Event(*each) for each in wanted]


def test_a_directory_without_a_name() -> None:
    (found,) = events(encoded(foreign.ATTRIBUTES, 7, information(3, (1, b"h"), b"")))
    assert found == Event(foreign.ATTRIBUTES, 7, (1, b"h"), b".")


def test_what_else_may_be_told_is_passed_over() -> None:
    parts = (information(1, (1, b"file"), b""), information(2, (1, b"h"), b"name"))
    assert [e.name for e in events(encoded(2, 7, *parts))] == [b"name"]
    assert list(events(encoded(foreign.OVERFLOW, 0))) == [Event(foreign.OVERFLOW, 0, None, b"")]
