"""URLs, addresses and names: what is understood, and what is refused."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xrootdfs.errors import CallError, UsageError
from xrootdfs.names import (
    NAME_BYTES_MAX,
    PATH_BYTES_MAX,
    Redirector,
    check_name,
    check_path,
    join,
    normal_address,
    parse_url,
    split,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("root://h:1094//a/b", Redirector("root", "h:1094", b"/a/b")),
        ("root://h//a", Redirector("root", "h:1094", b"/a")),
        ("root://H.Example:99", Redirector("root", "h.example:99", b"/")),
        ("root://h:99/", Redirector("root", "h:99", b"/")),
        ("roots://h:99/x//y/", Redirector("roots", "h:99", b"/x/y")),
        ("xroot://[::1]:99//a", Redirector("root", "[::1]:99", b"/a")),
        ("root://h//é b", Redirector("root", "h:1094", "/é b".encode())),
    ],
)
def test_urls(text: str, expected: Redirector) -> None:
    assert parse_url(text) == expected
    assert parse_url(str(expected)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "h:1094//a",
        "http://h//a",
        "root://",
        "root:///a",
        "root://h:0//a",
        "root://h:65536//a",
        "root://h:x//a",
        "root://u@h//a",
        "root://h//a?b",
        "root://h//a\nb",
        "root://h//a/../b",
        "root://h//./b",
        "root://h//\udcff",
    ],
)
def test_urls_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_url(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[::127.0.0.1]:1095", "127.0.0.1:1095"),
        ("[::ffff:10.1.2.3]:1095", "10.1.2.3:1095"),
        ("[::FFFF:10.1.2.3]:01095", "10.1.2.3:1095"),
        ("[2001:DB8::1]:1095", "[2001:db8::1]:1095"),
        ("Host.Example:1095", "host.example:1095"),
        (" host:1 ", "host:1"),
        ("host", None),
        ("host:0", None),
        ("host:65536", None),
        ("2001:db8::1:1095", None),
        ("", None),
    ],
)
def test_addresses(text: str, expected: str | None) -> None:
    assert normal_address(text) == expected
    if expected is not None:
        assert normal_address(expected) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b"a?b", errno.EINVAL),
        (b"a\nb", errno.EINVAL),
        (b"a\0b", errno.EINVAL),
        (b"\xff", errno.EILSEQ),
        ("é".encode("latin-1"), errno.EILSEQ),
        (b"x" * (NAME_BYTES_MAX + 1), errno.ENAMETOOLONG),
        (b"x/" * PATH_BYTES_MAX, errno.ENAMETOOLONG),
    ],
)
def test_names_refused(name: bytes, expected: int) -> None:
    with pytest.raises(CallError) as caught:
        check_name(name)
    assert caught.value.errno == expected


def test_a_path_may_be_longer_than_a_name() -> None:
    check_path(b"/".join([b"x" * NAME_BYTES_MAX] * 3))
    with pytest.raises(CallError):
        check_path(b"x/" * PATH_BYTES_MAX)


@given(st.text(min_size=1, max_size=60))
def test_any_other_name_is_served(text: str) -> None:
    if set(text) & set("?\n\0") or any("\ud800" <= c <= "\udfff" for c in text):
        return
    check_name(text.encode())


@pytest.mark.parametrize("path", [b"a", b"a/b", b"a/b/c"])
def test_join_and_split(path: bytes) -> None:
    assert join(*split(path)) == path
