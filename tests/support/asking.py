"""Questions to `replicator` and the answers, without what differs from run to run."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final, TypeAlias

from tests.support.replicating import Replication, run

TIME: Final = re.compile(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ")
Done: TypeAlias = subprocess.CompletedProcess[str]


def ask(replication: Replication, command: str, *arguments: str) -> Done:
    return run(command, "--journal", replication.journal, *arguments)


def said(done: Done) -> str:
    """Its output, without what differs from run to run."""
    assert done.stderr == "", done.stderr
    return TIME.sub("TIME", done.stdout)


def state_of(done: Done) -> str:
    """What `explain` says of the one site, on one line."""
    lines = said(done).splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("  state"))
    return " ".join(" ".join(lines[start:]).split()).removeprefix("state ")


def told(replication: Replication, path: str, *sites: str) -> dict[str, str]:
    """What `explain --json` says of the one site."""
    options = [word for each in sites for word in ("--site", each)]
    done = ask(replication, "explain", "--json", *options, path)
    (site,) = json.loads(done.stdout)["sites"]
    well = ("there", "absent", "excluded", "filtered")
    assert done.returncode == (site["verdict"] not in well)
    return dict(site)


@contextlib.contextmanager
def immutable(path: Path) -> Iterator[None]:
    """Nobody may change it, not even root."""
    subprocess.run(["chattr", "+i", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", path], check=True)


def wait_until_failed(replication: Replication, path: bytes) -> None:
    def failed() -> bool:
        held = replication.report("site").state.held
        return any(step.path == path and step.tries >= 3 for step in held)

    replication.expect(failed, f"{path!r} does not fail")
