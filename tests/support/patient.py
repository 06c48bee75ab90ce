"""The program of `ill`, which waits a minute for what is held in a directory, not five seconds.

So the order in which a site shows things does not depend on how busy the machine is.
"""

from __future__ import annotations

import sys
from typing import Final

from replicator import patience
from tests.support import ill

PATIENT: Final = (sys.executable, "-m", "tests.support.patient")

if __name__ == "__main__":
    vars(patience)["_LIMIT_NS"] = vars(patience)["_WINDOW_NS"]
    ill.main()
