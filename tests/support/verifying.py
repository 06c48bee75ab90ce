"""A source, its journal, and a site that is a true copy, to be compared after something is wrong.

Import the fixture `bench` into the module that asks for it.
"""

from __future__ import annotations

import os
import stat
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mirrorfs.journal.record import Change, Checkpoint, Kind, ObjectId, Place, handle_id
from mirrorfs.journal.segment import SourceIdentity
from mirrorfs.journal.writer import JournalWriter
from replicator import system_calls
from replicator.config import SiteSettings
from replicator.site_state import SiteState, encode_state
from replicator.verify import Finding, SiteResult, verify
from tests.support.records import VOLUME
from tests.support.reports import journal_at, put_report, state_of

EPOCH = 1


def id_of(path: Path) -> ObjectId:
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    try:
        handle = system_calls.handle_of(descriptor)
    finally:
        os.close(descriptor)
    return handle_id(EPOCH, handle.type, handle.handle)


def identity(path: Path) -> SourceIdentity:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return SourceIdentity(
            path=os.fsencode(path),
            fs_uuid=system_calls.file_system_uuid(descriptor),
            fsid=system_calls.file_system_id(descriptor),
            root=id_of(path),
            ctime_granularity_ns=0,
        )
    finally:
        os.close(descriptor)


@dataclass
class Bench:
    """A source, a journal of it, and a site that is a true copy."""

    source: Path
    site: Path
    journal: Path
    writer: JournalWriter
    findings: list[Finding] = field(default_factory=list)

    def change(self, kind: Kind, path: Path, name: str | None = None) -> None:
        """Append a record about an object; about a name in that directory, if one is given."""
        places = () if name is None else (Place(id_of(path), os.fsencode(name)),)
        object = id_of(path) if name is None else ObjectId(b"\1some object")
        self.writer.append(kind, Change(object, places, None, 0o100644, 1))

    def say(self, state: SiteState, **report: Any) -> None:
        """What the site remembers; with fields, a replicator that runs reports, too."""
        (self.site / ".mirrorfs" / "state").write_bytes(encode_state(state))
        if report:
            put_report(self.journal, state, **report)

    def verify(self) -> SiteResult:
        """Compare."""
        self.findings.clear()
        settings = SiteSettings("backup", f"file://{self.site}", str(self.site))
        (result,) = verify(
            str(self.journal), [settings], self.findings.append, lambda site, entries: None
        )
        assert result.differences + result.in_flight == len(self.findings)
        return result

    @property
    def lines(self) -> list[str]:
        """Differences found."""
        return [f"{each.path}: {each.difference}" for each in self.findings if not each.in_flight]

    @property
    def in_flight(self) -> list[str]:
        """Places in flight."""
        return [each.path for each in self.findings if each.in_flight]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    source, site, journal = (tmp_path / name for name in ("source", "site", "journal"))
    (source / "d").mkdir(parents=True)
    (source / "d" / "f").write_bytes(b"data")
    (source / "g").write_bytes(b"data")
    os.link(source / "g", source / "h")
    (source / "s").symlink_to("d")
    os.mknod(source / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mkfifo(source / "fifo")
    os.setxattr(source / "g", "trusted.one", b"1")
    subprocess.run(["setfacl", "-m", "u:1234:r", source / "d"], check=True)
    with (source / "sparse").open("wb") as stream:
        stream.truncate(1 << 40)
        os.pwrite(stream.fileno(), b"x", 1 << 39)
    subprocess.run(["cp", "-a", "--sparse=always", source, site], check=True)
    for top in (source, site):
        (top / ".mirrorfs").mkdir()
        os.utime(top, ns=(1, 1))
    volume = uuid.UUID(bytes=VOLUME)
    (source / ".mirrorfs" / "volume").write_text(f"{volume}\n")
    (site / ".mirrorfs" / "site").write_text(
        f'{{"format": 1, "volume": "{volume}", "name": "backup"}}'
    )
    os.setxattr(site / "g", "trusted.mirrorfs.mark", b"x")
    writer = journal_at(journal, identity(source))
    writer.append(Kind.CHECKPOINT, Checkpoint("x"))
    made = Bench(source, site, journal, writer)
    made.say(state_of(writer))
    try:
        yield made
    finally:
        writer.close()


ENTRIES = 8
"""Names in the source of a bench."""
