"""When what waits in limbo goes for good."""

from __future__ import annotations

from replicator.moves import Bench, Moves

_LIMBO_NS = 10_000_000_000


class Expiring:
    """Of one site: nobody will claim what is dead, nor, after a while, what lives."""

    def __init__(self, bench: Bench, moves: Moves) -> None:
        self._bench = bench
        self._moves = moves
        self._since: dict[bytes, int] = {}

    def look(self, now_ns: int) -> None:
        """Nothing is pending now. Raises StoreError, SourceError."""
        limbo = {name: self._since.get(name, now_ns) for name in self._bench.map.limbo.names}
        for name, since in limbo.items():
            self._moves.expire(name, living=now_ns - since > _LIMBO_NS)
        self._since = limbo
