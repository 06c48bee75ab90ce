"""Journals with records, and what `status` shows of them, for its tests.

Import `journal` and `writer` (fixtures) into the module of tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from rich.console import Console

from mirrorfs.journal.record import Checkpoint, Kind
from mirrorfs.journal.writer import JournalWriter
from replicator.config import RunSettings, SiteSettings
from replicator.status import StatusReader
from replicator.status_report import VolumeReport
from replicator.status_text import render
from tests.support.reports import journal_at

SITE: Final = SiteSettings("backup", "file:///mnt/backup/data", "/mnt/backup/data")


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """Where it is."""
    return tmp_path / "journal"


@pytest.fixture
def writer(journal: Path) -> Iterator[JournalWriter]:
    """Of a journal with ten records."""
    made = journal_at(journal)
    append(made, 10)
    yield made
    made.close()


def append(writer: JournalWriter, count: int) -> None:
    """So many records that change nothing."""
    for number in range(count):
        writer.append(Kind.CHECKPOINT, Checkpoint(str(number)))


def status(journal: Path, *sites: SiteSettings) -> VolumeReport:
    """What is told of these sites."""
    with StatusReader(RunSettings(str(journal), sites)) as reader:
        return reader.read()


def text(report: VolumeReport, width: int = 80) -> str:
    """The screen, that wide."""
    console = Console(width=width, highlight=False, markup=False, color_system=None)
    with console.capture() as captured:
        console.print(render(report))
    return captured.get()
