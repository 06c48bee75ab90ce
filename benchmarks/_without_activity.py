"""`mirrorfs`, but no mount of it keeps an activity log: for comparison. A program.

It says so in the source as a mount does whose disk does not take the log, so that after an unclean
end everything is compared.
"""

from __future__ import annotations

import sys

from mirrorfs import cli, lookback


def _no_log(*_: object) -> None:
    """In place of the one that begins it."""


if __name__ == "__main__":
    lookback.begin_log = _no_log  # type: ignore[assignment]
    cli.main(sys.argv[1:])
