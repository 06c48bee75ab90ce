"""What was staged for a step gets its place, or goes.

Left in the stage it would stay until the site is opened again, and a full site would stay full.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from replicator.stores.base import SiteStore, Staged, StoreError


@contextlib.contextmanager
def used(store: SiteStore, staged: Staged) -> Iterator[None]:
    """It gets its place inside; if that fails, it is discarded."""
    try:
        yield
    except Exception:
        with contextlib.suppress(StoreError):
            store.discard(staged)
        raise
