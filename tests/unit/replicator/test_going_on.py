"""An initial copy between real directories that is stopped and goes on."""

from __future__ import annotations

import contextlib
import uuid
from pathlib import Path

from replicator.config import SiteSettings
from replicator.site import SiteDriver
from tests.support.records import VOLUME
from tests.support.reports import journal_at
from tests.support.verifying import identity

DIRECTORIES = 12


def test_it_lists_only_what_was_not_done(tmp_path: Path) -> None:
    source, site, journal = (tmp_path / name for name in ("source", "site", "journal"))
    for index in range(DIRECTORIES):
        (source / f"d{index:02}").mkdir(parents=True)
        for name in ("a", "b"):
            (source / f"d{index:02}" / name).write_bytes(b"data")
    (source / ".mirrorfs").mkdir()
    (source / ".mirrorfs" / "volume").write_text(f"{uuid.UUID(bytes=VOLUME)}\n")
    site.mkdir()
    settings = SiteSettings("backup", f"file://{site}", str(site))
    with contextlib.closing(journal_at(journal, identity(source))):
        listed = []
        for parts in (5, 1 << 30):
            driver = SiteDriver(settings, str(journal))
            driver.open()
            engine, store = driver._engine, driver._store
            assert engine is not None
            assert store is not None
            assert engine.state.initial
            for _ in range(parts):
                if not engine.work(1):
                    break
            state = engine.state
            driver._save_and_close()
            listed.append(store.directories_listed)
            copied = len([*site.glob("d*/b")])
            assert copied == DIRECTORIES or parts == 5
    whole, again = 1 + 1 + DIRECTORIES, listed[1]
    assert copied == DIRECTORIES
    assert again < whole - 1, "the root was swept, and some directories done, before"
    assert sum(listed) <= whole + 2 * 3, "what site and limbo hold at each start, and the way"
    assert not state.initial
