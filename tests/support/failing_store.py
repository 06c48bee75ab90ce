"""A site store of which one call fails, whichever it is: reading ones, too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from replicator.stores.base import StoreError


class FailingStore:
    """Any site store.

    Attributes:
        count: how many calls were made so far.
        fail_at: which of them fails, counted from one on; 0: none.
        errno: with that.
    """

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.count = 0
        self.fail_at = 0
        self.errno = 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.inner, name)
        return self._failing(name, method) if callable(method) else method

    def _failing(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            if self.count == self.fail_at:
                raise StoreError.of(f"{name} at the site", self.errno)
            return method(*arguments, **options)

        return call
