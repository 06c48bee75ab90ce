"""What an engine tells of its work, to whoever measures it.

Pure. The engine calls, on the thread that carries out the step, `begun` and then `done`, `held` or
`dropped` for each item; an item that is put off to later ends with `dropped`, and begins again.
Nothing an observer does can fail a step.
"""

from __future__ import annotations

from typing import Protocol

from mirrorfs.journal.record import Record
from replicator.planner import Item


class Observer(Protocol):
    """Is told what happens to the items of a plan."""

    def fed(self, record: Record) -> None:
        """The record was taken into the plan."""

    def begun(self, item: Item) -> None:
        """A step is going to be carried out."""

    def done(self, item: Item) -> None:
        """It was: what the item asked for is so at the site."""

    def held(self, item: Item) -> None:
        """It failed, or waits for a writer: it is held, and tried again later."""

    def dropped(self, item: Item) -> None:
        """It ended in another way: put off, or trouble with the whole site."""

    def copying(self, item: Item) -> None:
        """The calling thread, one of the workers, copies a file for that step."""

    def copied(self, item: Item) -> None:
        """It does so no more."""


class Unobserved:
    """Nobody looks."""

    def fed(self, record: Record) -> None:
        """See Observer."""

    def begun(self, item: Item) -> None:
        """See Observer."""

    def done(self, item: Item) -> None:
        """See Observer."""

    def held(self, item: Item) -> None:
        """See Observer."""

    def dropped(self, item: Item) -> None:
        """See Observer."""

    def copying(self, item: Item) -> None:
        """See Observer."""

    def copied(self, item: Item) -> None:
        """See Observer."""
