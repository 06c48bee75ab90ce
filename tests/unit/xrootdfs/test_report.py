"""The status of a mount, as people read it."""

from __future__ import annotations

from typing import Any

import pytest

from xrootdfs.report import age, status_lines


def server(address: str, state: str = "up", **more: Any) -> dict[str, Any]:
    told = {"address": address, "state": state, "seconds": 75.0, "reason": "refused"}
    return {**told, "listed": True, "passed_over": False, **more}


def status(**more: Any) -> dict[str, Any]:
    told = {
        "mountpoint": "/grid",
        "urls": ["root://one:1094//", "root://other:1094//x"],
        "state": "ok",
        "pid": 7,
        "version": "1.0",
        "servers": {"up": 1, "suspect": 0, "down": 1},
        "redirectors": [{"url": "root://one:1094//", "answers": True, "reason": ""}],
        "server": [server("a:1")],
    }
    return {**told, **more}


def test_all_is_well() -> None:
    assert list(status_lines(status())) == [
        "/grid  root://one:1094//, root://other:1094//x",
        "  state     ok: all servers answer",
        "  by        process 7, version 1.0",
        "  servers   1 up, 0 suspect, 1 down",
        "    a:1                          up",
    ]


def test_what_is_not_well_is_said() -> None:
    lines = list(
        status_lines(
            status(
                state="partial",
                redirectors=[{"url": "root://one//", "answers": False, "reason": "refused"}],
                server=[server("a:1", "down", passed_over=True, listed=False)],
            )
        )
    )
    assert "  state     partial: what only lost servers have is left out" in lines
    assert "  silent    root://one//: refused" in lines
    words = "    a:1                          down for 1 min 15 s: refused (left out)"
    assert lines[-1] == f"{words} (no redirector names it)"


def test_a_state_of_a_later_version_is_shown_as_it_is() -> None:
    assert "  state     odd" in list(status_lines(status(state="odd")))


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.9, "0 s"),
        (59.9, "59 s"),
        (60, "1 min 0 s"),
        (3599, "59 min 59 s"),
        (3660, "1 h 1 min"),
        (90000, "1 d 1 h"),
    ],
)
def test_age(seconds: float, said: str) -> None:
    assert age(seconds) == said
