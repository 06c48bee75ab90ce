"""A replicator to which files are large from one MiB on: a program that takes its arguments.

It quarantines nothing: where the power is cut again and again, it dies at the same file by chance.
"""

from __future__ import annotations

import sys
from typing import Final

from replicator import cli, under_way
from replicator.stores import unfinished

SMALL_EXTENTS: Final = (sys.executable, "-m", "tests.support.small_extents")
LARGE_BYTES: Final = 1 << 20
EXTENT_BYTES: Final = 1 << 18

if __name__ == "__main__":
    vars(unfinished)["LARGE_BYTES"] = LARGE_BYTES
    vars(unfinished)["EXTENT_BYTES"] = EXTENT_BYTES
    vars(unfinished)["SYNC_BYTES"] = 2 * EXTENT_BYTES
    vars(under_way)["DEATHS_MAX"] = sys.maxsize
    cli.main()
