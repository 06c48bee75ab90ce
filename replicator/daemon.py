"""The replicator's process: one driver per site, their leases and reports, and signals.

Sites have nothing to do with each other here: each has its own reader, source and cursor, and one
that halts, backs off or does not answer leaves the others alone, at the start as well.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec
import trio

from mirrorfs.journal.control_client import ControlError
from mirrorfs.journal.reader import JournalReader, NoJournalError
from mirrorfs.journal.segment import CorruptionError, Header
from mirrorfs.journal.site_cursor import SiteCursor, SiteCursorError, SiteStatus
from mirrorfs.journal.site_files import read_cursor, sites_locked, write_cursor
from replicator.config import RunSettings, SiteSettings
from replicator.cursor import read_reports, report_path
from replicator.failures import REFUSALS
from replicator.site import SiteDriver
from replicator.site_state import Phase, SiteReport, StateError
from replicator.standing import why_silent
from replicator.stores.base import (
    SiteEmptiedError,
    SiteMissingError,
    SiteReadOnlyError,
    SiteRefusedError,
    StoreError,
)
from replicator.stores.lease import RENEW_SECONDS
from replicator.view import SourceError, SourceRefusedError

_log = logging.getLogger(__name__)

OPEN_SECONDS: Final = 10.0
"""A site that has not answered for so long is not waited for at the start."""

_REPORT_SECONDS = 1.0

_EXIT_CODES: tuple[tuple[type[Exception], int], ...] = (
    (NoJournalError, 66),
    (SiteMissingError, 66),
    (SiteEmptiedError, 66),
    (SiteReadOnlyError, 73),
    (SiteRefusedError, 69),
    (SourceRefusedError, 66),
    (CorruptionError, 74),
    (StateError, 74),
    (ControlError, 66),
    (PermissionError, 77),
)
_NOT_WRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_WHY_NOT = (NoJournalError, *REFUSALS, ControlError, StoreError, SourceError, OSError)


class StartError(Exception):
    """The replicator cannot start, in one line, with the exit code for it."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def run(settings: RunSettings, ready: Callable[[], None]) -> int:
    """Replicate until SIGTERM or SIGINT, then drain and stop; a second signal stops at once.

    Calls `ready` when signals are listened for, and all sites are open, or say why not, or have
    had OPEN_SECONDS. Returns the exit code: 0, or that of what halted the last site. Raises
    StartError if no site can be opened.
    """
    _check_privileges()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    drivers = [SiteDriver(site, settings.journal) for site in settings.sites]
    failures = trio.run(_run, drivers, ready, settings)
    if failures:
        mistake = next((each for each in failures if not isinstance(each, _WHY_NOT)), None)
        raise mistake or _refused(failures)
    halted = [driver.failure for driver in drivers if driver.failure is not None]
    if any(driver.lost for driver in drivers):
        return 66
    return exit_code(halted[0]) if len(halted) == len(drivers) else 0


def attach(settings: RunSettings, site: SiteSettings, *, adopt: bool, take_over: bool) -> str:
    """Prepare a site directory for its first `run`, or take one that was something else.

    Returns what the next run will do, in one line. Raises StartError.
    """
    _check_privileges()
    driver = SiteDriver(site, settings.journal, adopt=adopt, take_over=take_over)
    try:
        driver.open()
    except _WHY_NOT as error:
        raise _refused([error]) from error
    initial = driver.is_initial
    driver.report()
    driver.close()
    if not initial:
        return "it is attached already, and goes on where it stopped"
    if adopt or take_over:
        return "the next run adopts what is equal there, and moves the rest to .mirrorfs/kept"
    return "the next run makes the initial copy"


def detach(journal: str, name: str, *, forget: bool) -> str:
    """Let the journal keep records for that site only within a budget; `forget`: not at all.

    Returns what that means, in one line. Raises StartError, NoJournalError, CorruptionError,
    OSError.
    """
    with JournalReader(journal) as reader, sites_locked(journal, wait=True):
        report = read_reports(journal).get(name)
        if isinstance(report, SiteReport) and why_silent(report, time.time_ns()) is None:
            where = f"process {report.pid} on {report.host}"
            raise StartError(f"site {name}: a replicator works on it: stop it first: {where}", 69)
        try:
            known = read_cursor(journal, name)
        except SiteCursorError as error:
            if not forget:
                told = f"site {name}: its cursor {error}: attach it again, or --forget"
                raise StartError(told, 74) from None
            known = None
        if known is None and not forget:
            told = "the journal has no cursor of it: attach it first, or --forget"
            raise StartError(f"site {name}: {told}", 66)
        write_cursor(journal, _detached(reader.header, name, known, forget=forget), durable=True)
        if forget:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(report_path(journal, name))
            return "forgotten: nothing is kept for it"
    return "detached: records are kept for it within the budget that the mount gives"


def _detached(header: Header, name: str, known: SiteCursor | None, *, forget: bool) -> SiteCursor:
    status: SiteStatus = "forgotten" if forget else "detached"
    if known is None:
        return SiteCursor(
            site=name,
            status=status,
            volume=header.volume.hex(),
            journal=header.journal.hex(),
            tag=f"{header.tag:016x}",
            sequence=0,
            since_ns=time.time_ns(),
        )
    since_ns = known.since_ns if known.status == status else time.time_ns()
    return msgspec.structs.replace(known, status=status, since_ns=since_ns)


def exit_code(error: Exception) -> int:
    """The documented exit code for what keeps a replicator from working."""
    if isinstance(error, OSError) and error.errno in _NOT_WRITTEN:
        return 73
    return next((code for kind, code in _EXIT_CODES if isinstance(error, kind)), 70)


def _check_privileges() -> None:
    if os.geteuid() != 0:
        raise StartError("must run as root (CAP_SYS_ADMIN and CAP_DAC_READ_SEARCH)", 77)


def _refused(errors: Sequence[Exception]) -> StartError:
    """Why nothing can be done, in one line; the code is that of the first error."""
    first = errors[0]
    code = 66 if isinstance(first, StoreError | SourceError) else exit_code(first)
    error = StartError("; ".join(dict.fromkeys(map(_line, errors))), code)
    error.__cause__ = first
    return error


def _line(error: Exception) -> str:
    """What, where, for an operator."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return str(error)


@dataclass
class _Beginning:
    """The first try to open each site. No driver goes on before it is known that one can."""

    sites: int
    failures: list[Exception] = field(default_factory=list)
    open: int = 0
    decided: trio.Event = field(default_factory=trio.Event)
    _heard: trio.Event = field(default_factory=trio.Event)

    async def begun(self, failure: Exception | None) -> None:
        """For a driver to tell what came of it, and to wait until it may go on."""
        if failure is None:
            self.open += 1
        else:
            self.failures.append(failure)
        if self.open + len(self.failures) == self.sites:
            self._heard.set()
        await self.decided.wait()

    async def is_refused(self) -> bool:
        """Wait for all, but not for ever; whether no site can be opened."""
        with trio.move_on_after(OPEN_SECONDS):
            await self._heard.wait()
        return len(self.failures) == self.sites


async def _run(
    drivers: Sequence[SiteDriver], ready: Callable[[], None], settings: RunSettings
) -> list[Exception]:
    """To the end; why no site could be opened."""
    beginning = _Beginning(len(drivers))
    async with trio.open_nursery() as nursery:
        await nursery.start(_obey_signals, drivers)
        async with trio.open_nursery() as sites:
            for driver in drivers:
                sites.start_soon(driver.run, beginning.begun)
            if await beginning.is_refused():
                nursery.cancel_scope.cancel()
            else:
                await _tell_metrics(nursery, drivers, settings)
                for driver in drivers:
                    nursery.start_soon(_report, driver)
                    nursery.start_soon(_renew, driver)
                ready()
                beginning.decided.set()
        nursery.cancel_scope.cancel()
    return [] if beginning.decided.is_set() else beginning.failures


async def _obey_signals(
    drivers: Sequence[SiteDriver], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for _ in signals:
            _log.info("stopping when all records are applied; again to stop at once")
            for driver in drivers:
                driver.stop()


async def _report(driver: SiteDriver) -> None:
    """Every second, and as soon as the cursor is saved: somebody may wait for it."""
    while True:
        driver.saved.renew()
        try:
            driver.look()
            driver.look_for_orders()
            driver.report()
        except Exception:  # noqa: BLE001 - the site is more important
            _log.exception("%s: no report", driver.settings.name)
        await driver.saved.wait(_REPORT_SECONDS)


async def _tell_metrics(
    nursery: trio.Nursery, drivers: Sequence[SiteDriver], settings: RunSettings
) -> None:
    """As a file, on a port of this host, or both, if the operator asks for it."""
    if settings.metrics_file is None and settings.metrics_listen is None:
        return
    from replicator import metrics  # here: its library is only needed for this

    def text() -> bytes:
        reports = (driver.current() for driver in drivers)
        return metrics.exposition([each for each in reports if each is not None], time.time_ns())

    if settings.metrics_listen is not None:
        host, port = settings.metrics_listen
        try:
            listeners = await trio.open_tcp_listeners(port, host=host)
        except OSError as error:  # sites are more important
            _log.warning("metrics: %s port %d: %s", host, port, error.strerror or error)
        else:
            nursery.start_soon(metrics.serve, listeners, text)
    if settings.metrics_file is not None:
        nursery.start_soon(metrics.write_file, settings.metrics_file, text)


async def _renew(driver: SiteDriver) -> None:
    """One task for each site: one that does not answer must not cost others their leases."""
    limiter = trio.CapacityLimiter(1)
    while True:
        await trio.sleep(RENEW_SECONDS)
        if driver.phase in (Phase.HALTED, Phase.STOPPED):
            return
        try:
            await trio.to_thread.run_sync(driver.renew, limiter=limiter, abandon_on_cancel=True)
        except SiteRefusedError as error:
            driver.halt(error)
        except StoreError as error:
            _log.warning("%s: %s", driver.settings.name, error)
