"""Every system call that a directory site makes fails, one after the other, in every kind of
change: once, and for ever. The site ends equal, or says what it could not do; nothing is left in
its stage, no descriptor stays open; and it is equal when the fault is over.
"""

from __future__ import annotations

import errno
import gc
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

from replicator import site
from replicator.config import SiteSettings
from replicator.failures import is_final
from replicator.site import SiteDriver
from replicator.site_state import HeldStep, SiteState
from replicator.stores import unfinished
from replicator.stores.base import SiteRefusedError, StoreError, UnsyncedError
from replicator.surroundings import TroubleError
from tests.support import campaign
from tests.support import mounting as disks
from tests.support.failing_calls import FailingCalls, errors
from tests.support.mounts import Mounting, mounting
from tests.support.trees import differences, snapshot

pytestmark = pytest.mark.fuse

__all__ = ["mounting"]

_TRIES = campaign.pick(12, 1 << 30)
"""So many of all combinations are tried of each scenario."""
_LOG = (1 << 20) + 5000
_LARGE = 3 << 19
_ACL = bytes.fromhex(
    "02000000 01000600ffffffff 02000600e8030000 04000400ffffffff 10000600ffffffff 20000400ffffffff"
)


def grow(top: Path) -> None:
    """What is there before."""
    for name in ("one", "two", "three", "two/below"):
        (top / name).mkdir()
    for name in ("one/file", "one/other", "two/below/deep", "two/below/deeper", "three/gone"):
        (top / name).write_text(f"{name} at first")
    os.link(top / "one/file", top / "two/linked")
    (top / "log").write_bytes(b"line\n" * (_LOG // 5))
    (top / "link").symlink_to("one")


def contents(top: Path) -> None:
    (top / "one/new").write_text("new")
    (top / "two/linked").write_text("written again, under both names")
    with (top / "log").open("ab") as log:
        log.write(b"last line\n" * 100)
    os.truncate(top / "one/other", 5)
    with (top / "sparse").open("wb") as file:
        for at in (0, 400_000, 800_000):
            file.seek(at)
            file.write(b"data")
    (top / "large").write_bytes(Random(1).randbytes(_LARGE))
    (top / "empty").touch()


def names(top: Path) -> None:
    (top / "one/new").write_text("new")
    (top / "one/new").rename(top / "one/other")
    (top / "two/below").rename(top / "one/below")
    (top / "one/below/deep").write_text("written there")
    (top / "one").rename(top / "three/one")
    os.link(top / "three/one/file", top / "another")
    (top / "two/linked").unlink()
    (top / "two").rmdir()
    (top / "two").symlink_to("three")
    (top / "three/gone").unlink()
    (top / "link").unlink()
    (top / "link").mkdir()
    (top / "log").rename(top / "link/log")


def attributes(top: Path) -> None:
    (top / "one/other").chmod(0o600)
    os.chown(top / "two/below", 12, 34)
    os.utime(top / "one/file", ns=(10**18, 10**18 + 1))
    os.setxattr(top / "one/other", "user.one", b"value")
    os.setxattr(top / "three", "trusted.other", b"value")
    os.setxattr(top / "three/gone", "system.posix_acl_access", _ACL)
    os.setxattr(top, "user.root", b"of the root")
    os.mknod(top / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mkfifo(top / "fifo")
    os.chown(top / "link", 5, 6, follow_symlinks=False)
    (top / "one/dressed").write_text("dressed")
    os.setxattr(top / "one/dressed", "user.one", b"value")


def everything(top: Path) -> None:
    """At a site that has nothing yet."""
    contents(top)
    attributes(top)


@dataclass
class Clock:
    """In the place of `time`: it goes on when it is told to."""

    ahead_ns: int = 0

    def time_ns(self) -> int:
        return time.time_ns() + self.ahead_ns

    def monotonic(self) -> float:
        return self.ahead_ns / 1e9

    def sleep(self, seconds: float) -> None:
        self.ahead_ns += int(seconds * 1e9)


@dataclass
class Trials:
    """One scenario: source and journal as they are after it, the site as it was before.

    Attributes:
        settings: of the site.
    """

    base: Path
    source: Path
    journal: Path
    clock: Clock
    adopt: bool = False
    settings: SiteSettings = field(init=False)

    def __post_init__(self) -> None:
        site_path = self.base / "site"
        self.settings = SiteSettings("site", f"file://{site_path}", str(site_path))
        self.failing = FailingCalls(str(site_path))

    def keep(self) -> None:
        """The site, and what the journal knows of it, are where trials begin."""
        for name, path in self._kept():
            subprocess.run(["cp", "-a", path, self.base / f"{name}.before"], check=True)
        self.before = self._all()

    def put_back(self) -> None:
        """To where they begin."""
        for name, path in self._kept():
            shutil.rmtree(path)
            subprocess.run(["cp", "-a", self.base / f"{name}.before", path], check=True)

    def _kept(self) -> list[tuple[str, Path]]:
        return [("site", self.base / "site"), ("sites", self.journal / "sites")]

    def driver(self) -> SiteDriver:
        return SiteDriver(self.settings, str(self.journal), adopt=self.adopt)

    def work(self, driver: SiteDriver) -> str:
        """As a driver does, for a while; why it comes to no end, or ""."""
        reason, tries = "", 0
        for _ in range(9):
            try:
                self._round(driver)
                reason, tries = "", 0
            except (TroubleError, StoreError, SiteRefusedError) as error:
                if is_final(error):
                    raise
                reason, tries = str(error), tries + 1
                causes = error, error.__cause__
                if tries % 3 == 0 or any(isinstance(each, UnsyncedError) for each in causes):
                    driver._unsynced = any(isinstance(each, UnsyncedError) for each in causes)
                    driver.close()
            self.clock.ahead_ns += 100 * 10**9
        return reason

    def _round(self, driver: SiteDriver) -> None:
        if driver._engine is None:
            driver.open()
        engine = driver._engine
        assert engine is not None
        while driver._slice() or engine.waiting:
            assert driver._reader is not None
            if engine.waiting:
                time.sleep(0.001)
                self.clock.ahead_ns += 10**7
        driver._save(engine)

    def differing(self) -> list[str]:
        return differences(snapshot(self.source), snapshot(self.base / "site"))

    def _all(self) -> set[bytes]:
        """All contents there are."""
        return {
            path.read_bytes()
            for top in (self.source, self.base / "site")
            for path in top.rglob("*")
            if path.is_file() and not path.is_symlink() and ".mirrorfs" not in path.parts
        }

    def strange(self) -> list[Path]:
        """Files of the site with content that the source never had."""
        return [
            path
            for path in (self.base / "site").rglob("*")
            if stat.S_ISREG(path.lstat().st_mode)
            and ".mirrorfs" not in path.parts
            and not any(each.startswith(path.read_bytes()) for each in self.before)
        ]

    def staged(self) -> list[str]:
        return os.listdir(self.base / "site/.mirrorfs/stage")


def state_of(driver: SiteDriver) -> SiteState | None:
    return None if driver._engine is None else driver._engine.state


def held_of(driver: SiteDriver) -> list[HeldStep]:
    return [] if driver._engine is None else list(driver._engine.held)


def attempt(trials: Trials, call: int, code: int, *, for_ever: bool) -> str:
    """One fault; what it met."""
    trials.put_back()
    descriptors = open_files()
    driver = trials.driver()
    with trials.failing.failing(call, code, for_ever=for_ever):
        reason = trials.work(driver)
    if not for_ever:  # it may have been the last call of all
        reason = trials.work(driver)
    met = trials.failing.met
    what = f"call {call}, {met}, {errno.errorcode.get(code, 'short')}, {reason!r}"
    held, differing, state = held_of(driver), trials.differing(), state_of(driver)
    assert trials.strange() == [], what
    assert not [step for step in held if "internal" in step.error], (what, held)
    if not for_ever:
        assert (reason, differing, held) == ("", [], []), what
    elif differing and not reason:
        assert held, (what, differing)
        assert state is not None
        assert state.clean < state.working, what
    met_removal = met is not None and met[0] in ("unlink", "rmdir")
    if not (reason or held or met_removal):
        assert trials.staged() == [], what
    assert trials.work(driver) == "", what
    driver._save_and_close()
    driver = trials.driver()
    assert trials.work(driver) == "", what
    assert (trials.differing(), held_of(driver)) == ([], []), what
    state = state_of(driver)
    assert state is not None
    assert state.clean == state.working, what
    driver._save_and_close()
    assert trials.staged() == [], what
    assert extents_left(trials) == [], what
    gc.collect()
    left = {path for fd, path in open_files().items() if fd not in descriptors}
    assert left == set(), what
    return "" if met is None else met[0]


def open_files() -> dict[str, str]:
    """By descriptor."""
    found = {}
    for each in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found[each] = os.readlink(f"/proc/self/fd/{each}")
    return found


def extents_left(trials: Trials) -> list[Path]:
    """Files with what belongs to files that are being copied."""
    return [
        path
        for path in (trials.base / "site").rglob("*")
        if unfinished.EXTENTS in os.listxattr(path, follow_symlinks=False)
    ]


@pytest.fixture
def base(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """Where source and site are: as the machine has it, or where blocks can be shared."""
    if request.param == "here":
        yield tmp_path
        return
    with disks.xfs(tmp_path / "disk") as disk:
        yield disk


def prepare(
    base: Path, scenario: Callable[[Path], None], clock: Clock, before: Callable[[Path], None]
) -> Trials:
    mounts = Mounting(base)
    mounted = mounts()
    try:
        grow(mounted.mountpoint)
        (base / "site").mkdir()
        trials = Trials(base, mounted.source, mounted.journal, clock)
        before(base / "site")
        if scenario is not everything:
            driver = trials.driver()
            assert trials.work(driver) == ""
            assert trials.differing() == []
            driver._save_and_close()
        else:
            (mounted.journal / "sites").mkdir(exist_ok=True)
        scenario(mounted.mountpoint)
        mounted.umount()
    finally:
        mounts.clean_up()
    trials.keep()
    return trials


def fresh(_: Path) -> None:
    pass


def to_adopt(top: Path) -> None:
    """Something is there already."""
    (top / "one").mkdir()
    (top / "one/file").write_text("one/file at first")
    (top / "surplus").mkdir()
    (top / "surplus/file").write_text("surplus")


@pytest.mark.parametrize("base", campaign.pick(["here"], ["here", "xfs"]), indirect=True)
@pytest.mark.parametrize("scenario", [contents, names, attributes, everything])
def test_every_system_call_fails(
    scenario: Callable[[Path], None],
    base: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    monkeypatch.setattr(site, "time", clock)
    monkeypatch.setattr(unfinished, "LARGE_BYTES", 5 << 18)
    monkeypatch.setattr(unfinished, "EXTENT_BYTES", 1 << 18)
    monkeypatch.setattr(unfinished, "SYNC_BYTES", 1 << 19)
    trials = prepare(base, scenario, clock, to_adopt if scenario is everything else fresh)
    trials.adopt = scenario is everything
    attempt(trials, 0, 0, for_ever=False)
    calls = list(trials.failing.calls)
    faults = [
        (call, code, for_ever)
        for call, name in enumerate(calls, 1)
        for code in errors(name)
        for for_ever in (False, True)
    ]
    chosen = Random(campaign.FIRST_SEED).sample(faults, min(_TRIES, len(faults)))
    for call, code, for_ever in chosen:
        attempt(trials, call, code, for_ever=for_ever)
    with capfd.disabled():
        print(f"\n{len(chosen)} of {len(faults)} faults at {len(calls)} calls")  # noqa: T201
