"""What operators order of steps that are held."""

from __future__ import annotations

from replicator.held import HeldSteps
from replicator.orders import Order, chosen
from replicator.site_state import SkippedStep
from replicator.wording import count


def obey(held: HeldSteps, order: Order) -> tuple[str, list[SkippedStep]]:
    """Do what an operator ordered: what came of it, in words, and the steps passed over."""
    steps = chosen(held.all(), order)
    if not steps:
        return "no such step is held", []
    if not order.skip:
        held.hurry(steps)
        return f"{count(len(steps), 'step')} will be tried again now", []
    skipped = [
        SkippedStep(
            kind=step.kind,
            path=step.path,
            sequence=step.sequence,
            error=step.error,
            reason=order.reason,
            by=order.by,
            time_ns=order.time_ns,
        )
        for step in steps
    ]
    for step in steps:
        held.skip(step)
    return f"{count(len(steps), 'step')} skipped", skipped
