"""What tests of the engine share: a mount for a whole module, other users, what was recorded."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mirrorfs.journal.reader import JournalReader
from mirrorfs.journal.record import Change, Record
from tests.support.mounts import MIRRORFS, ROOT, Mounted, Mounting

OTHER = 12345
"""A user id and group id nobody has."""


@contextmanager
def overlaid(base: Path, *options: str, over: bool = False) -> Iterator[Mounted]:
    """A new mounted tree below `base` that other users can reach; `over`: covers its source.

    At the end it must unmount cleanly, and its log must hold neither warnings nor errors.
    """
    reachable(base)
    mounting = Mounting(base)
    try:
        mounted = mounting(*options, over=over)
        yield mounted
        mounted.umount()
        log = (mounted.journal / "mirrorfs.log").read_text()
        loud = [line for line in log.splitlines() if " INFO " not in line]
        assert not loud, "\n".join(loud)
    finally:
        mounting.clean_up()


@contextmanager
def limited(base: Path, descriptors: int, *options: str) -> Iterator[Mounted]:
    """A mount whose daemon may open so many files."""
    with overlaid(base, *options) as overlay:
        overlay.umount()
        limit = ("prlimit", f"--nofile={descriptors}:{descriptors}", *MIRRORFS, "mount")
        said = ",".join((f"journal={overlay.journal}", *options))
        command = [*limit, str(overlay.source), str(overlay.mountpoint), "-o", said]
        subprocess.run(command, check=True, cwd=ROOT)
        yield overlay


def head(mounted: Mounted) -> int:
    """Sequence of the last record."""
    with JournalReader(str(mounted.journal)) as reader:
        return reader.head()


def changes(mounted: Mounted, after: int) -> list[tuple[Record, Change]]:
    """The records about objects after that one."""
    return [
        (record, record.body)
        for record in mounted.records()
        if record.sequence > after and isinstance(record.body, Change)
    ]


def reachable(path: Path) -> None:
    """Let other users pass through a directory and those above it."""
    for directory in (path, *path.parents):
        if directory.stat().st_uid == os.geteuid() and directory != Path("/"):
            directory.chmod(directory.stat().st_mode | 0o011)


def as_user(
    code: str,
    *arguments: os.PathLike[str] | str,
    uid: int = OTHER,
    gid: int = OTHER,
    groups: tuple[int, ...] = (),
    umask: int = 0o022,
    environment: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run Python code (`os`, `sys`, `arg` = arguments are there) as a process of another user."""
    program = f"import os, sys, errno, stat\narg = sys.argv[1:]\n{code}"
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        user=uid,
        group=gid,
        extra_groups=groups,
        umask=umask,
        capture_output=True,
        text=True,
        env={**os.environ, **(environment or {})},
        cwd="/",
    )


def fails(code: int, call: Callable[[], object]) -> bool:
    """The call raises OSError with that errno."""
    try:
        call()
    except OSError as error:
        return error.errno == code
    return False


def below(mounted: Mounted, path: Path) -> Path:
    """Where the file system below has what jobs see at `path`."""
    return mounted.source / path.relative_to(mounted.mountpoint)


def open_to_all(path: Path) -> Path:
    """Let everybody write it; returns it."""
    path.chmod(0o777 if path.is_dir() else 0o666)
    return path
