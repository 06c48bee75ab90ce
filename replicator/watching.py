"""Watches a site from outside the threads in which it works: is there progress, at what is it."""

from __future__ import annotations

from replicator.engine import Engine
from replicator.progress import Progress
from replicator.surroundings import describe


def at(engine: Engine | None) -> str:
    """What is being done, or copied, in words."""
    if engine is None:
        return "the site itself"
    owners = [owner for each in engine.step.staging.moving() for owner in list(each.wanted)]
    item = next((owner for owner in owners if owner is not None), engine.doing)
    return "its state" if item is None else describe(item)


def look(progress: Progress, engine: Engine | None, now: float, *, inside: bool) -> None:
    """To be called every second. `inside`: a thread is at work; `now`: seconds."""
    if engine is None:
        progress.look(None, now, waits=inside)
        return
    moving = engine.step.staging.moving()
    looks = sum(each.looks for each in moving)
    seen = engine.worked, engine.plan.known, engine.state.saves, looks, len(moving)
    progress.look(seen, now, waits=inside or bool(moving))
