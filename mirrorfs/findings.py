"""What a check found, as values, as lines and for JSON.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Level = Literal["ok", "warning", "problem"]

_CODES: dict[Level, int] = {"ok": 0, "warning": 1, "problem": 2}


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: what was found, and what to do about it ("" if there is nothing to do)."""

    check: str
    level: Level
    says: str
    do: str = ""


def ok(check: str, says: str) -> Finding:
    """Nothing to do."""
    return Finding(check, "ok", says)


def warning(check: str, says: str, do: str) -> Finding:
    """It works, and may not for long, or not as well as it could."""
    return Finding(check, "warning", says, do)


def problem(check: str, says: str, do: str) -> Finding:
    """It does not work."""
    return Finding(check, "problem", says, do)


def exit_code(findings: Iterable[Finding]) -> int:
    """0, 1 with a warning, 2 with a problem."""
    return max((_CODES[finding.level] for finding in findings), default=0)


def lines(findings: Iterable[Finding]) -> list[str]:
    """One line each."""
    return [
        f"{found.level:<8} {found.check:<12} {found.says}{f': {found.do}' if found.do else ''}"
        for found in findings
    ]


def value(findings: Sequence[Finding]) -> dict[str, Any]:
    """The same for JSON."""
    worst = max((found.level for found in findings), key=lambda level: _CODES[level], default="ok")
    return {"level": worst, "checks": [asdict(found) for found in findings]}
