"""A site store of which chosen calls fail, counted from one on: once, or for ever."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from replicator.stores.base import StoreError

CALLS = (
    *("open_directory", "lookup", "list", "xattrs", "stage", "discard", "is_alike", "commit"),
    *("move", "exchange", "link", "remove", "keep", "set_attributes", "set_root_attributes"),
    *("set_mark", "set_directory_times", "read_file", "write_file", "append_file"),
)


class FailingStore:
    """Any site store.

    Attributes:
        count, calls: how many were made so far, and of which methods.
        fail_at: which of them fails; 0: none.
        for_ever: so do all that follow of the same method about the same name.
        errno: with that.
        met: method and name of the call that failed first.
    """

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.count = 0
        self.calls: list[str] = []
        self.fail_at = 0
        self.for_ever = False
        self.errno = 0
        self.met: tuple[str, object] | None = None

    def heal(self) -> None:
        """Nothing fails any more."""
        self.fail_at, self.met = 0, None

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.inner, name)
        return self._failing(name, method) if name in CALLS else method

    def _failing(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            self.calls.append(name)
            about = name, arguments[1] if len(arguments) > 1 and name != "stage" else None
            if self.fail_at and (self.count == self.fail_at or self._again(about)):
                self.met = self.met or about
                raise StoreError.of(f"{name} at the site", self.errno)
            return method(*arguments, **options)

        return call

    def _again(self, about: tuple[str, object]) -> bool:
        return self.for_ever and self.met == about
