"""Looks at a path without a pause, and tells what it saw: a program, no module.

Usage: hammer.py PATH DEVICE — DEVICE: st_dev of what must never be seen. Writes "ready", goes on
until its standard input ends, and writes one JSON object: how often it looked, got an answer, saw
that device or a name that only the tree beneath a mount shows, and which errors it got. Only the
standard library.
"""

from __future__ import annotations

import json
import os
import select
import sys


def _main() -> None:
    path, device = sys.argv[1], int(sys.argv[2])
    looks = answers = raw = 0
    errors: dict[str, int] = {}
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while not select.select([0], [], [], 0)[0]:
        for _ in range(200):
            looks += 1
            try:
                raw += os.stat(path).st_dev == device
                raw += os.path.lexists(f"{path}/.mirrorfs")
                os.statvfs(path)
                answers += 1
            except OSError as error:
                name = os.strerror(error.errno or 0)
                errors[name] = errors.get(name, 0) + 1
    told = {"looks": looks, "answers": answers, "raw": raw, "errors": errors}
    sys.stdout.write(json.dumps(told))


if __name__ == "__main__":
    _main()
