"""Where errors of the operating system become errors of a site."""

from __future__ import annotations

import errno
import os
from types import TracebackType

from replicator.stores.base import StoreError


class border:
    """Turns OSError into StoreError, and nothing else. (A class: it is entered for each call.)"""

    __slots__ = ("_kind", "_what", "_where")

    def __init__(self, what: str, where: bytes, kind: type[StoreError] = StoreError) -> None:
        self._what = what
        self._where = where
        self._kind = kind

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, OSError):
            where = os.fsdecode(self._where)
            message = f"cannot {self._what} {where!r}: {error.strerror or error}"
            raise self._kind.of(message, error.errno or errno.EIO) from error
