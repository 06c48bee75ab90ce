"""`stop` drains: whatever was recorded before it is at the site when the driver has ended."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from replicator.config import SiteSettings
from replicator.site import SiteDriver
from replicator.site_state import Phase
from tests.support.mounts import Mounting, mounting

pytestmark = pytest.mark.fuse
__all__ = ["mounting"]


class StoppedBetweenLooks(SiteDriver):
    """Stopped when it has just found nothing to do, and a change was made since."""

    changed: Path | None = None

    def _slice(self) -> bool:
        more = super()._slice()
        if not more and self.phase is Phase.TAILING and self.changed is not None:
            self.changed.write_text("made after the last look\n")
            self.changed = None
            trio.from_thread.run_sync(self.stop)
        return more


async def begun(failure: Exception | None) -> None:
    assert failure is None


async def test_what_was_recorded_while_the_last_slice_ran(
    mounting: Mounting, tmp_path: Path
) -> None:
    mounted = mounting()
    site = tmp_path / "site"
    site.mkdir()
    driver = StoppedBetweenLooks(
        SiteSettings(name="site", url=f"file://{site}", path=str(site)), str(mounted.journal)
    )
    driver.changed = mounted.mountpoint / "late"
    await trio.to_thread.run_sync(driver.open)
    await driver.run(begun)
    assert driver.phase is Phase.STOPPED
    assert (site / "late").read_text() == "made after the last look\n"
