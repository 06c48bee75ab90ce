"""Somebody who looks at a path all the time, in a process of his own: see hammer.py."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.mounts import ROOT


@contextmanager
def hammered(path: Path, device: int) -> Iterator[dict[str, object]]:
    """What a process sees that looks all the time; told when it has ended."""
    process = subprocess.Popen(
        [sys.executable, ROOT / "tests" / "support" / "hammer.py", path, str(device)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    told: dict[str, object] = {}
    try:
        assert process.stdout.readline() == "ready\n"
        yield told
        told.update(json.loads(process.communicate(timeout=60)[0]))
    finally:
        process.kill()
        process.communicate()
