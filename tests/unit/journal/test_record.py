"""The record codec: every kind there and back, older and newer writers, what is refused."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorfs.journal.record import (
    Body,
    Change,
    Kind,
    ObjectId,
    Place,
    RecordError,
    Who,
    birth_id,
    decode_body,
    encode_body,
    handle_id,
    split_handle_id,
)
from tests.support.records import EVERY_KIND, ROOT, created


def test_every_kind_has_a_sample() -> None:
    assert {kind for kind, _, _ in EVERY_KIND} == set(Kind)


@pytest.mark.parametrize(("kind", "flags", "body"), EVERY_KIND)
def test_round_trip(kind: Kind, flags: int, body: Body) -> None:
    assert decode_body(kind, encode_body(body)) == (kind, body)


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(RecordError, match="unknown record kind 12"):
        decode_body(12, encode_body(created(1)))


@pytest.mark.parametrize(
    "payload", [b"", b"\xc0", b"\x91\xc0", b"\x93\xc4\x01a\x90\xc0", b"x" * 40]
)
def test_bad_payload_is_refused(payload: bytes) -> None:
    with pytest.raises(RecordError, match="bad create record"):
        decode_body(Kind.CREATE, payload)


def test_elements_a_newer_writer_adds_are_ignored() -> None:
    elements = msgspec.msgpack.decode(encode_body(created(1)))
    payload = msgspec.msgpack.encode([*elements, "new", {"and": "more"}])
    assert decode_body(Kind.CREATE, payload)[1] == created(1)


def test_elements_an_older_writer_left_out_have_defaults() -> None:
    elements = msgspec.msgpack.decode(encode_body(created(1)))
    payload = msgspec.msgpack.encode(elements[:5])
    body = decode_body(Kind.CREATE, payload)[1]
    assert isinstance(body, Change)
    assert (body.path, body.ctime_ns, body.who) == (b"file000001", 0, None)


def test_labels() -> None:
    assert [Kind.CREATE.label, Kind.UNMOUNT.label] == ["create", "unmount"]


def test_handle_ids() -> None:
    identity = handle_id(7, -2, b"handle")
    assert split_handle_id(identity) == (7, -2, b"handle")
    assert identity != handle_id(8, -2, b"handle")


@pytest.mark.parametrize("identity", [b"", b"\x01", bytes(9), birth_id(1, 2, 3)])
def test_what_is_no_handle_id(identity: bytes) -> None:
    with pytest.raises(RecordError, match="not the id of a file handle"):
        split_handle_id(ObjectId(identity))


places = st.lists(st.builds(Place, st.just(ROOT), st.binary(max_size=300)), max_size=3)
changes = st.builds(
    Change,
    object=st.binary(min_size=1, max_size=137).map(ObjectId),
    places=places.map(tuple),
    path=st.none() | st.binary(max_size=5000),
    mode=st.integers(0, 0o177777),
    links=st.integers(0, 1 << 32),
    ctime_ns=st.integers(-(1 << 63), (1 << 63) - 1),
    size=st.integers(0, 1 << 63),
    extents=st.none() | st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9))).map(tuple),
    xattr=st.none() | st.binary(max_size=255),
    who=st.none() | st.builds(Who, st.integers(0, 1 << 22), st.integers(0, 1 << 32), st.text()),
)


@given(changes)
def test_any_change_round_trips(change: Change) -> None:
    assert decode_body(Kind.WRITE, encode_body(change)) == (Kind.WRITE, change)


@given(st.sampled_from(Kind), st.binary(max_size=200))
def test_noise_is_refused_or_a_record(kind: Kind, payload: bytes) -> None:
    try:
        known, body = decode_body(kind, payload)
    except RecordError:
        return
    assert known is kind
    assert decode_body(kind, encode_body(body)) == (kind, body)
