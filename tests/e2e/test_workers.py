"""Large files that are replaced, rewritten, moved and removed while they are being copied."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from tests.support import campaign
from tests.support.mounts import Mounting, mounting
from tests.support.replicating import Replicating, replicating
from tests.support.trees import differences, snapshot

pytestmark = pytest.mark.fuse

__all__ = ["mounting", "replicating"]

OPERATIONS = campaign.pick(60, 2000)
WORD = 16


def whole(size: int, number: int) -> bytes:
    """Content every part of which tells what all of it is."""
    return (b"%09d %05d\n" % (size, number)) * (size // WORD)


def is_whole(data: bytes) -> bool:
    """Whether that is one of them, and complete; a file is empty before it is written."""
    if not data:
        return True
    return len(data) == int(data[:9]) and data == data[:WORD] * (len(data) // WORD)


def job(top: Path, number: int) -> None:
    """One client in a directory of its own, which it renames, too."""
    random, at = Random(campaign.FIRST_SEED * 1000 + number), top / f"job{number}"
    at.mkdir()
    for count in range(OPERATIONS):
        name = at / f"f{random.randrange(4)}"
        data = whole(random.choice([4096, 1 << 20, 3 << 20]), count)
        draw = random.randrange(8)
        if draw < 5:  # beside it, and renamed over it
            beside = name.with_suffix(".tmp")
            beside.write_bytes(data)
            beside.replace(name)
        elif draw == 5:
            with suppress(FileNotFoundError):
                name.unlink()
        elif draw == 6:
            with suppress(FileNotFoundError):
                name.replace(at / f"f{random.randrange(4)}")
        else:
            moved = top / f"job{number}-{count}"
            at.replace(moved)
            at = moved


def watch(site: Path, ended: threading.Event, torn: list[str]) -> None:
    """Read what is at the site, again and again."""
    while not ended.is_set():
        for above, _, names in os.walk(site):
            for name in names:
                path = Path(above, name)
                with suppress(FileNotFoundError, NotADirectoryError):
                    if ".mirrorfs" not in path.parts and not is_whole(path.read_bytes()):
                        torn.append(str(path))


def test_nothing_torn_is_shown_and_the_sites_end_equal(
    mounting: Mounting, replicating: Replicating
) -> None:
    mounted = mounting()
    replication = replicating(mounted.journal, "one", "two")
    replication.settle()
    ended, torn = threading.Event(), list[str]()
    watcher = threading.Thread(target=watch, args=(replication.sites["one"], ended, torn))
    jobs = [threading.Thread(target=job, args=(mounted.mountpoint, number)) for number in range(3)]
    watcher.start()
    for each in jobs:
        each.start()
    for each in jobs:
        each.join()
    replication.settle()
    ended.set()
    watcher.join()
    assert torn == []
    expected = snapshot(mounted.source)
    for name, site in replication.sites.items():
        assert differences(expected, snapshot(site)) == [], name
    replication.stop()
    for name in replication.sites:
        assert replication.left_over(name) == [], name


def test_copies_are_read_back(mounting: Mounting, replicating: Replicating, tmp_path: Path) -> None:
    mounted = mounting()
    replication = replicating(mounted.journal, "one", start=False)
    site = replication.sites["one"]
    file = tmp_path / "volume.toml"
    file.write_text(
        f'[volume]\nname = "v"\nsource = "{mounted.source}"\njournal = "{mounted.journal}"\n'
        f'[[site]]\nname = "one"\nurl = "file://{site}"\nworkers = 2\n'
        'verify_writes = "read-back"\ncommit_order = "any"\ndeadline = 1\n'
    )
    replication.options = lambda sites=(): [str(file)]  # type: ignore[method-assign]
    for number in range(4):
        (mounted.mountpoint / f"{number}").write_bytes(whole(1 << 20, number))
    replication.start()
    replication.settle()
    assert differences(snapshot(mounted.source), snapshot(site)) == []
    replication.stop()
