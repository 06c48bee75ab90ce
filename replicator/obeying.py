"""A site obeys its operator: pauses, and orders about steps that are held."""

from __future__ import annotations

import logging
from collections.abc import Callable

from replicator.engine import Engine
from replicator.orders import Orders, Pause

_log = logging.getLogger(__name__)


class Obeying:
    """The orders of one site, from being laid down to being answered."""

    def __init__(self, journal: str, site: str) -> None:
        self._site = site
        self._orders = Orders(journal, site)
        self._answers: list[tuple[str, str]] = []

    @property
    def paused(self) -> Pause | None:
        """Whether the operator holds the site up."""
        return self._orders.paused

    @property
    def waiting(self) -> bool:
        """Whether there are orders."""
        return self._orders.waiting

    def obey(self, engine: Engine, save: Callable[[], None]) -> None:
        """Carry out what was ordered; answered when it is saved, and reported."""
        answered = {path for path, _ in self._answers}
        orders = [each for each in self._orders.take() if each[0] not in answered]
        done = [(path, engine.obey(order)) for path, order in orders]
        if done:
            save()
        for _, answer in done:
            _log.info("%s: ordered: %s", self._site, answer)
        self._answers += done

    def answer_after(self, report: Callable[[], None]) -> None:
        """Report, and then answer what was done before."""
        answers = list(self._answers)
        report()
        for each in answers:
            self._orders.answer(*each)
            self._answers.remove(each)
