"""The demonstration of `make run`, as a newcomer sees it: ends well, leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import demo_federation

ROOT = Path(__file__).resolve().parents[2]


def _start(tmp_path: Path) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "TMPDIR": str(tmp_path),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "tests.demo"],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.fuse
@pytest.mark.slow
def test_demonstration_ends_with_no_difference_and_leaves_nothing(tmp_path: Path) -> None:
    demo = _start(tmp_path)
    said, errors = demo.communicate()
    assert demo.returncode == 0, errors
    assert errors == ""
    assert said.rstrip().endswith(" entries, 0 differences")
    assert "2 sites, " in said
    if demo_federation.missing() is None:
        assert "read them back: what was written" in said
    assert max(len(line) for line in said.splitlines()) <= 80
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fuse
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("after", ["mounted the federation", "mounted mirrorfs", "deleted 60"])
def test_interrupted_demonstration_leaves_nothing(
    tmp_path: Path, number: signal.Signals, after: str
) -> None:
    demo = _start(tmp_path)
    assert demo.stdout is not None
    for line in demo.stdout:
        if after in line:
            break
    demo.send_signal(number)
    _, errors = demo.communicate()
    assert (demo.returncode, errors) == (130, "interrupted: cleaning up\n")
    assert list(tmp_path.iterdir()) == []
