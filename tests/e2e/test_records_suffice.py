"""The records alone give the tree: nothing that jobs do goes unrecorded, or out of order.

Eight jobs at a time change one tree by a seed each. Afterwards the records, taken as operations,
give that tree: once by directory ids and names, once by paths.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mirrorfs.backing_tree import BackingTree
from mirrorfs.journal.control_client import ControlClient
from tests.support.campaign import FIRST_SEED, pick
from tests.support.mounts import ROOT, Mounted
from tests.support.overlay import head, limited
from tests.support.told import Standing, Told

pytestmark = pytest.mark.fuse

JOBS = 8
OPERATIONS = 40


def run_jobs(directory: Path, first_seed: int) -> None:
    """Jobs that change one tree at the same time, each to its end.

    One that stores through a mapping of a file that another one truncates is ended by SIGBUS.
    """
    program = (sys.executable, "-m", "tests.support.busy_jobs")
    jobs = [
        subprocess.Popen(
            [*program, directory, str(first_seed + job), str(OPERATIONS)],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for job in range(JOBS)
    ]
    said = [job.communicate()[1].decode() for job in jobs]
    fine = (0, -signal.SIGBUS)
    failed = [text for job, text in zip(jobs, said, strict=True) if job.returncode not in fine]
    assert not failed, "\n".join(failed)


def settle(mounted: Mounted) -> None:
    """Wait until the kernel has closed what ended processes had open."""
    with ControlClient(str(mounted.journal)) as client:
        while client.status().open_files:
            os.stat(mounted.mountpoint)


@pytest.mark.parametrize(
    ("options", "rounds"),
    [((), pick(5, 200)), (("io=threads", "journal-open-files=0.1"), 3), (("inode-cache=1000",), 3)],
    ids=["as by default", "data in threads, open files often looked at", "little kept"],
)
def test_records_of_jobs_that_run_together(
    tmp_path: Path, options: tuple[str, ...], rounds: int
) -> None:
    descriptors = 160 if "inode-cache=1000" in options else 20_000
    with limited(tmp_path, descriptors, *options) as mounted:
        tree = BackingTree.open(bytes(mounted.source), 1)
        told = Told(Standing.of(tree))
        heard = head(mounted)
        for number in range(rounds):
            seed = FIRST_SEED + number * JOBS
            run_jobs(mounted.mountpoint, seed)
            settle(mounted)
            told.hear(record for record in mounted.records() if record.sequence > heard)
            heard = head(mounted)
            assert told.differences(Standing.of(tree)) == [], f"seed {seed}"
        assert told.pathless < heard / 20
        tree.close()
