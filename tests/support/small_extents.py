"""A replicator to which files are large from one MiB on: a program that takes its arguments."""

from __future__ import annotations

import sys
from typing import Final

from replicator import cli
from replicator.stores import unfinished

SMALL_EXTENTS: Final = (sys.executable, "-m", "tests.support.small_extents")
LARGE_BYTES: Final = 1 << 20
EXTENT_BYTES: Final = 1 << 18

if __name__ == "__main__":
    vars(unfinished)["LARGE_BYTES"] = LARGE_BYTES
    vars(unfinished)["EXTENT_BYTES"] = EXTENT_BYTES
    vars(unfinished)["SYNC_BYTES"] = 2 * EXTENT_BYTES
    cli.main()
