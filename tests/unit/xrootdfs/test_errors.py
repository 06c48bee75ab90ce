"""Statuses of the client library as errors: every code there is, and any other."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xrootdfs.errors import (
    FS_ERRNO,
    LOCAL_ERRNO,
    SERVER_ERRNO,
    CallError,
    Origin,
    XrootdfsError,
    errno_of,
    error_of,
    server_errno,
)

# The numbers of XProtocol.hh and of XrdClStatus.hh.
SERVER_CODES = range(3000, 3035)
LOCAL_CODES = [*range(1, 18), *range(101, 111), *range(201, 209), *range(301, 308), 401, 402, 500]


def answered(number: int, text: str = "") -> CallError:
    return error_of({"code": 400, "errno": number, "message": text})


def test_every_code_of_the_protocol_has_its_errno() -> None:
    assert sorted(SERVER_ERRNO) == list(SERVER_CODES)
    assert sorted(LOCAL_ERRNO) == LOCAL_CODES


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (3000, errno.EINVAL),
        (3002, errno.ENAMETOOLONG),
        (3003, errno.EBUSY),
        (3009, errno.ENOSPC),
        (3010, errno.EACCES),
        (3011, errno.ENOENT),
        (3016, errno.EISDIR),
        (3018, errno.EEXIST),
        (3021, errno.EDQUOT),
        (3024, errno.EAGAIN),
        (3025, errno.EROFS),
        (3027, errno.ENODATA),
        (3034, errno.ETIMEDOUT),
        (2999, errno.EIO),
        (3035, errno.EIO),
    ],
)
def test_what_a_server_answers(number: int, expected: int) -> None:
    error = answered(number, "[ERROR] Server responded with an error: [1] words\n")
    assert (error.errno, error.origin, error.silent) == (expected, Origin.ANSWERED, False)
    assert error.reason == "[1] words"


@pytest.mark.parametrize(("text", "expected"), sorted(FS_ERRNO.items()))
def test_a_file_systems_error_is_in_the_text(text: str, expected: int) -> None:
    said = f"[ERROR] Server responded with an error: [3005] Unable to remove /a; b; {text}\n"
    assert answered(3005, said).errno == expected


@pytest.mark.parametrize("text", ["", "no words", "Unable to remove /a; something new"])
def test_an_unknown_file_system_error_is_no_device_error(text: str) -> None:
    assert answered(3005, text).errno == errno.EIO


def test_only_two_answers_say_that_a_name_is_missing() -> None:
    missing = {number for number in SERVER_CODES if answered(number).missing}
    assert missing == {3011}
    assert answered(3005, "x; not a directory").missing
    assert not answered(3005, "x; directory not empty").missing


@pytest.mark.parametrize("code", LOCAL_CODES)
def test_a_local_error_says_nothing_of_files(code: int) -> None:
    error = error_of({"code": code, "errno": 0, "message": "[FATAL] words"})
    assert error.silent
    assert not error.missing
    assert error.errno not in (errno.ENOENT, errno.ENODEV)
    assert error.reason == "words"


@pytest.mark.parametrize("code", [102, 103, 104, 105, 106, 107, 109, 110, 201, 207, 303])
def test_connections_that_break_leave_open_what_was_done(code: int) -> None:
    error = error_of({"code": code, "errno": 0})
    assert error.origin is Origin.UNREACHABLE
    assert error.unsure


@pytest.mark.parametrize("code", [101, 108, 202, 203, 204])
def test_connections_that_never_were_carried_nothing(code: int) -> None:
    error = error_of({"code": code, "errno": 0})
    assert error.origin is Origin.UNSENT
    assert not error.unsure


def test_an_expired_call_is_late() -> None:
    error = error_of({"code": 206, "errno": 0})
    assert (error.errno, error.origin) == (errno.ETIMEDOUT, Origin.LATE)


@given(st.integers(), st.integers(), st.text())
def test_any_status_has_an_errno(code: int, number: int, text: str) -> None:
    error = error_of({"code": code, "errno": number, "message": text})
    assert error.errno in errno.errorcode
    assert error.errno != errno.ENODEV
    assert error.silent == (code != 400)
    if error.missing:
        assert number in (3005, 3011)


@given(st.text())
def test_any_text_has_an_errno(text: str) -> None:
    assert server_errno(3005, text) in {*FS_ERRNO.values(), errno.EIO}


def test_errno_of_any_exception() -> None:
    assert errno_of(CallError(errno.EBUSY, "")) == errno.EBUSY
    assert errno_of(OSError()) == errno.EIO
    assert errno_of(ValueError()) == errno.EIO


def test_refusals_have_exit_codes_of_their_own() -> None:
    codes = [kind.exit_code for kind in XrootdfsError.__subclasses__()]
    assert {64, 66, 69, 77} <= set(codes)
