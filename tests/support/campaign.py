"""How much a campaign does: short with fixed seeds for every day, long with new ones for torture.

`CAMPAIGN=long` asks for the long version, `SEED=N` says where its seeds begin. A campaign names the
seed that failed, so that it can be run again: `CAMPAIGN=long SEED=N`.
"""

from __future__ import annotations

import os
from typing import Final, TypeVar

_Amount = TypeVar("_Amount")

LONG: Final = os.environ.get("CAMPAIGN") == "long"
FIRST_SEED: Final = int(os.environ.get("SEED", "1")) if LONG else 1


_totals = {"kills": 0, "in flight": 0, "power cuts": 0}


def tally(*, kills: int = 0, in_flight: int = 0, power_cuts: int = 0) -> None:
    """A campaign has done so much, and nothing was lost."""
    for name, number in zip(_totals, (kills, in_flight, power_cuts), strict=True):
        _totals[name] += number


def total() -> str:
    """What all campaigns of this session have done, in one line; empty if there were none."""
    if not any(_totals.values()):
        return ""
    kills, in_flight, power_cuts = _totals.values()
    return f"{kills} kills ({in_flight} with work in flight), {power_cuts} power cuts, 0 lost"


def pick(short: _Amount, long: _Amount) -> _Amount:
    """One of the two."""
    return long if LONG else short


def seeds(short: int, long: int) -> list[int]:
    """So many seeds: the same ones every day, others in every long campaign."""
    return [FIRST_SEED + number for number in range(pick(short, long))]
