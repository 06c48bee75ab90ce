"""Becomes a daemon that takes its listening socket over, as another user: a program, no module.

Usage: launcher.py SOCKET UID GID PROGRAM ARGUMENT... — SOCKET: a descriptor, handed over as systemd
would (LISTEN_FDS), or -1; UID: who to become, or -1. A program of its own, since code between fork
and exec is not safe in a process with threads. Only the standard library.
"""

from __future__ import annotations

import os
import sys

_FIRST_PASSED = 3


def _main() -> None:
    descriptor, uid, gid = map(int, sys.argv[1:4])
    if descriptor >= 0:
        if descriptor != _FIRST_PASSED:
            os.dup2(descriptor, _FIRST_PASSED)
            os.close(descriptor)
        os.set_inheritable(_FIRST_PASSED, True)
        os.environ["LISTEN_FDS"] = "1"
        os.environ["LISTEN_PID"] = str(os.getpid())
    if uid >= 0:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    os.umask(0o022)
    os.execv(sys.argv[4], sys.argv[4:])


if __name__ == "__main__":
    _main()
