"""Whether a server is asked: one state for each, moved by what its calls say.

Pure.

        ┌──────────── answer ────────────┐
        ▼                                │
       UP ──── silence ────► SUSPECT ────┤
        ▲                       │        │
        │                    silence     │
        │                       ▼        │
        └────── answer ────── DOWN ◄─────┘ silence
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import Final


class State(enum.Enum):
    """UP and SUSPECT servers are asked, DOWN ones only pinged; all but UP are pinged."""

    UP = "up"
    SUSPECT = "suspect"
    DOWN = "down"


_TABLE: Final = {
    (State.UP, True): State.UP,
    (State.UP, False): State.SUSPECT,
    (State.SUSPECT, True): State.UP,
    (State.SUSPECT, False): State.DOWN,
    (State.DOWN, True): State.UP,
    (State.DOWN, False): State.DOWN,
}


@dataclass(frozen=True, slots=True)
class Health:
    """How one server fares.

    Attributes:
        since: when it came into this state, in seconds of the caller's clock.
        lost_at: when it last began not to answer; None while it is up.
        reason: what its last silence looked like.
    """

    state: State
    since: float
    lost_at: float | None = None
    reason: str = ""


def told(health: Health, answered: bool, now: float, reason: str = "") -> Health:
    """Its health after a call that it answered, or did not."""
    state = _TABLE[health.state, answered]
    if state is State.UP:
        return health if health.state is State.UP else Health(state, now)
    lost_at = now if health.lost_at is None else health.lost_at
    since = health.since if state is health.state else now
    return replace(health, state=state, since=since, lost_at=lost_at, reason=reason)
