"""`make run SOURCE=… SITE=…`: the script mirrors a tree until it is interrupted, then drains it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "mount-scripts" / "mirror"


def _environment(**more: str) -> dict[str, str]:
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        **more,
    }


@pytest.mark.parametrize("arguments", [[], ["/somewhere"], ["", "/elsewhere"]])
def test_source_and_a_site_are_needed(arguments: list[str]) -> None:
    done = subprocess.run([SCRIPT, *arguments], capture_output=True, text=True)
    assert done.returncode == 64
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.fuse
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_tree_is_mirrored_until_interrupted(
    tmp_path_factory: pytest.TempPathFactory, number: signal.Signals
) -> None:
    base = tmp_path_factory.mktemp("m")
    source, journal = base / "source", base / "journal"
    sites = [base / "one", base / ("a name that is long" * 5)]
    for directory in (source, *sites):
        directory.mkdir()
    (source / "before").write_text("here before the mount\n")
    environment = _environment(JOURNAL=str(journal))
    script = subprocess.Popen(
        [SCRIPT, source, *sites],
        env=environment,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert script.stderr is not None
        for line in script.stderr:
            if line.startswith("mirroring "):
                break
        assert os.path.ismount(source)
        # A replicator that was never up could not drain: see that it is.
        name = str(sites[0])[1:].replace("/", "-")
        options = ["--journal", str(journal), "--site", name, "--timeout", "60"]
        subprocess.run(["replicator", "wait", *options, "now"], env=environment, check=True)
        (source / "during").write_text("made through the mount\n")
        script.send_signal(number)
        _, rest = script.communicate()
    finally:
        script.kill()
        if os.path.ismount(source):
            subprocess.run(["mirrorfs", "umount", source], env=environment)
    assert script.returncode == 0, rest
    assert not os.path.ismount(source)
    for site in sites:
        names = sorted(path.name for path in site.iterdir())
        assert names == [".mirrorfs", "before", "during"]
        assert (site / "during").read_text() == "made through the mount\n"
