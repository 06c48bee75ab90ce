"""What all three commands have in common."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "words", [["mirrorfs"], ["mirrorfs", "journal"], ["replicator"], ["xrootdfs"]]
)
def test_without_arguments_a_command_shows_its_help(words: list[str]) -> None:
    program = [sys.executable, "-m", words[0], *words[1:]]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 64
    assert done.stdout == ""
    assert done.stderr.startswith(f"Usage: {' '.join(words)} ")
    assert "\nCommands:\n" in done.stderr
