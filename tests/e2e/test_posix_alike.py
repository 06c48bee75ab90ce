"""Thousands of operations by several users on a mount and on a plain directory answer alike."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.alike import Alike
from tests.support.campaign import seeds
from tests.support.mounts import Mounted
from tests.support.overlay import reachable

pytestmark = pytest.mark.fuse

STEPS = 1500


@pytest.mark.parametrize("seed", seeds(3, 100))
def test_like_the_file_system_below(
    work: Path, overlay: Mounted, tmp_path: Path, seed: int
) -> None:
    reachable(tmp_path)
    for directory in (work / "in", tmp_path / "in"):
        directory.mkdir()
        directory.chmod(0o1777)
    alike = Alike(os.fsencode(work / "in"), os.fsencode(tmp_path / "in"), seed)
    try:
        while alike.done < STEPS and not alike.unlike:
            alike.step()
    finally:
        alike.close()
    assert alike.unlike == []
    assert alike.succeeded > STEPS / 3
