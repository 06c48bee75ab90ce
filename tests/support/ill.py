"""A replicator that is not well: a program that takes the arguments of `replicator`.

It dies when it copies content that begins with DIE, makes a mistake at BUG, and loses patience in
seconds where the real one takes a minute.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Final, NoReturn

from replicator import cli, daemon, progress, site_state
from replicator.copying import Check, at_once, copy_content
from replicator.stores import directory

ILL: Final = (sys.executable, "-m", "tests.support.ill")
DIE: Final = b"DIE"
BUG: Final = b"BUG"


def _copy(source: int, stage: int, check: Check = at_once) -> int:
    begins = os.pread(source, 3, 0)
    if begins == DIE:
        os.kill(os.getpid(), signal.SIGKILL)
    if begins == BUG:
        raise KeyError("a mistake")
    return copy_content(source, stage, check)


def main() -> NoReturn:
    """The program."""
    vars(directory)["copy_content"] = _copy
    vars(daemon)["OPEN_SECONDS"] = 2.0
    vars(site_state)["BACKOFF_SECONDS_MAX"] = 2.0
    for name in ("STALLED_SECONDS", "STOP_SECONDS", "STOP_NOW_SECONDS"):
        setattr(progress, name, 2.0)
    cli.main()


if __name__ == "__main__":
    main()
