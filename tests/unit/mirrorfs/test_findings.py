"""Findings as lines, for JSON, and as an exit code."""

from __future__ import annotations

from mirrorfs.findings import exit_code, lines, ok, problem, value, warning

GOOD, DOUBTFUL, BAD = ok("a", "fine"), warning("b", "so so", "do this"), problem("c", "no", "stop")


def test_exit_codes() -> None:
    assert [exit_code(found) for found in ([], [GOOD], [DOUBTFUL, GOOD], [BAD, DOUBTFUL])] == [
        *(0, 0, 1, 2)
    ]


def test_lines() -> None:
    assert lines([GOOD, DOUBTFUL]) == [
        "ok       a            fine",
        "warning  b            so so: do this",
    ]


def test_json() -> None:
    assert value([]) == {"level": "ok", "checks": []}
    told = value([DOUBTFUL, BAD, GOOD])
    assert told["level"] == "problem"
    assert told["checks"][0] == {"check": "b", "level": "warning", "says": "so so", "do": "do this"}
