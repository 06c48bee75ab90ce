"""Drives one site: read the journal, feed the engine, save the cursor, report.

A thin driver: everything that blocks runs in slices on a worker thread, one at a time, so nothing
here needs a lock; between slices the trio side decides whether to go on, wait, back off or stop.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, closing
from random import Random
from typing import TypeVar

import msgspec
import trio

from mirrorfs.journal.reader import JournalReader, RecordsGoneError
from mirrorfs.journal.record import SequenceNumber
from replicator import watching
from replicator.applied import ApplyLog
from replicator.config import SiteSettings
from replicator.cursor import (
    attach_site,
    incarnations_of,
    is_known,
    read_log,
    tell_cursor,
    under_way_path,
    went_back,
)
from replicator.engine import Engine
from replicator.failures import PausedError, StopNowError, expected, is_final
from replicator.following import Follower
from replicator.lag import Waits
from replicator.look import free_bytes, measured, seen, seen_before, tell
from replicator.obeying import Obeying
from replicator.observing import Observing
from replicator.opening import open_journaled_source
from replicator.patterns import Wanted
from replicator.progress import Progress
from replicator.site_state import TRANSITIONS, Phase, SiteReport, backoff_seconds
from replicator.standing import boot_id
from replicator.stopwatch import timed
from replicator.stores.base import StoreError, UnsyncedError
from replicator.stores.directory import DirectoryStore
from replicator.subset import part_of
from replicator.surroundings import Surroundings, TroubleError, why
from replicator.under_way import InternalError, UnderWay
from replicator.view import SourceError
from replicator.waking import SAVE_IDLE_SECONDS, Waking, patience
from replicator.wording import span
from replicator.workers import Threads

_Result = TypeVar("_Result")

_log = logging.getLogger(__name__)

_SLICE_SECONDS = 0.05
_SLICE_STEPS = 16
_READ_MAX = 4096
_SAVE_BUSY_SECONDS = 5.0
_SAVE_COMPARING_SECONDS = 30.0  # to compare again takes less than to bring it to the disk so often
_REOPEN_AFTER = 3
_SPACE_SECONDS_MAX = 5.0
_PAUSE_LOOK_SECONDS = 60.0


class SiteDriver:
    """One site of one journal.

    Attributes:
        phase, reason: what it is doing, and why, for people.
        failure: what halted it.
        lost: it did not answer, and was left as it is at a stop.
        saved: woken when the cursor has been saved.
    """

    def __init__(
        self, settings: SiteSettings, journal: str, *, adopt: bool = False, take_over: bool = False
    ) -> None:
        self.settings = settings
        self.journal = journal
        self.phase = Phase.STARTING
        self.reason = ""
        self.failure: Exception | None = None
        self.lost = False
        self._adopt, self._take_over = adopt or take_over, take_over
        self._phase_ns = self._started_ns = time.time_ns()
        self._head = SequenceNumber(0)
        self._opened = ExitStack()
        self._reader: JournalReader | None = None
        self._store: DirectoryStore | None = None
        self._limiter = trio.CapacityLimiter(1)
        self._scope = trio.CancelScope()
        self._progress = Progress()
        self._inside = False
        self._stop_since = 0.0
        self._engine: Engine | None = None
        self._seen: SiteReport | None = None
        self._waits = Waits()
        self._saved = self._worked = time.monotonic()
        self.orders = Obeying(journal, settings.name)
        self._observing = Observing(ApplyLog(journal, settings.name), settings.workers)
        self._free: int | None = None
        self._pausing = self._stopping = self._stop_now = False
        self._looked_again = self._unsynced = False
        self._attached_ns = 0
        self._waking, self.saved = Waking(), Waking()
        self._follower = Follower(journal, settings.name, self._waking.wake_from_thread)
        self._random = Random()

    # life --------------------------------------------------------------------------------------

    def open(self) -> None:
        """Open journal, source and site, and take up the cursor; all or nothing. Blocks.

        Raises NoJournalError, one of REFUSALS, StoreError, SourceError, OSError.
        """
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        opened = self._opened
        reader = self._reader = opened.enter_context(JournalReader(self.journal))
        self._head = reader.head()
        source = opened.enter_context(closing(open_journaled_source(reader)))
        settings, name = self.settings, self.settings.name
        store = self._store = DirectoryStore.open(
            os.fsencode(settings.path),
            volume=reader.header.volume,
            name=name,
            known=is_known(self.journal, name),
            adopt=self._adopt,
            take_over=self._take_over,
            source=source.root_fd,
            read_back=self.settings.read_back,
            boot=boot_id(),
        )
        opened.callback(store.close)
        under_way = opened.enter_context(closing(UnderWay(under_way_path(self.journal, name))))
        workers = Threads(settings.workers, settings.bandwidth, self._waking.wake_from_thread)
        opened.callback(workers.close)
        state, self._attached_ns = attach_site(store, reader, name, adopt=self._adopt)
        shown, anew = part_of(source, Wanted(settings.include, settings.exclude), state)
        world = Surroundings(
            clock_ns=time.time_ns,
            head=self._look_for_head,
            sleep=time.sleep,
            tick=self._tick,
            boot=boot_id(),
            random=self._random,
            mount=store.mount,
            log=lambda: read_log(self.journal),
            unsynced=self._unsynced,
            workers=workers,
            copies_max=2 * self.settings.workers,
            deadline_ns=lambda path: self.settings.deadline_of(path) * 1_000_000_000,
            commit_order=self.settings.commit_order,
            observer=self._observing,
            anew=anew,
            under_way=under_way,
            deletes_max=settings.deletes_max,
        )
        self._observing.restart()
        self._engine = Engine(
            timed(shown, "source"), timed(store, "site"), state, incarnations_of(reader), world
        )
        self._observing.object_waits = self._engine.step.bench.object_waits
        self._waits.clear()
        reader.seek(SequenceNumber(state.working + 1))
        self._save(self._engine)
        self._unsynced = False

    def close(self) -> None:
        """Give everything back. Blocks."""
        if self._engine is not None:
            self._engine.step.staging.abandon()
            self._engine.step.bench.map.close()
        self._opened.close()
        self._store = self._reader = self._engine = None

    def stop(self) -> None:
        """Drain and end; asked again: end at once."""
        self._stop_since = self._stop_since or time.monotonic()
        at_once = self.phase in (Phase.INITIAL_COPY, Phase.BACKING_OFF)
        self._stop_now = self._stopping or at_once or self._engine is None
        self._stopping = True
        self._waking.wake()

    async def run(self, begun: Callable[[Exception | None], Awaitable[None]]) -> None:
        """Open the site if it is not, and work until stopped or halted. `begun` is told what was
        in the way of the first try to open it; what it raises ends this."""
        with self._scope:
            await self._run(begun)
        if self._scope.cancelled_caught:
            self._enter(Phase.STOPPED, f"left as it is: no progress at {watching.at(self._engine)}")
        self.report()

    async def _run(self, begun: Callable[[Exception | None], Awaitable[None]]) -> None:
        tries = 0
        self._waking.begin()
        self.saved.begin()
        failure = await self._begin()
        await begun(failure)
        while True:
            try:
                if failure is not None:
                    raise failure
                if await self._round():
                    break
                tries = 0
                self._looked_again = False
            except StopNowError:
                break
            except Exception as error:  # noqa: BLE001 - the other sites go on
                failure = None
                if await self._look_again(error):
                    continue
                if is_final(error):
                    self.halt(error)
                    break
                tries += 1
                await self._back_off(expected(error, self.settings.name, self.reason), tries)
                if self._stop_now:
                    break
        await self._in_thread(self._save_and_close)
        await self._in_thread(self._follower.close)
        if self.phase is not Phase.HALTED:
            self._enter(Phase.STOPPED, "")

    async def _begin(self) -> Exception | None:
        """Try to open the site; what was in the way."""
        try:
            if self.orders.paused is not None:
                self._enter(Phase.PAUSED, "")
            elif self._engine is None:
                await self._in_thread(self.open)
        except Exception as error:  # noqa: BLE001 - the other sites go on
            return error
        return None

    async def _round(self) -> bool:
        """Work for a moment, or be held up; whether this was the end."""
        if self.orders.paused is not None:
            self._follower.start()
            return await self._pause()
        if self._engine is None:
            if self._stop_now:
                return True
            await self._in_thread(self.open)
        self._follower.start()
        if self.is_initial:
            self._enter(Phase.INITIAL_COPY, "")
        try:
            return await self._work()
        except PausedError:
            return False

    async def _look_again(self, error: Exception) -> bool:
        """Whether another look at the cursor may help: records went while it was detached, say."""
        if self._looked_again or not isinstance(error, RecordsGoneError):
            return False
        self._looked_again = True
        _log.warning("%s: %s", self.settings.name, error)
        await self._in_thread(self.close)
        return True

    async def _work(self) -> bool:
        """One slice, then wait if there is nothing to do; whether this was the end."""
        reader, engine = self._reader, self._engine
        assert reader is not None, "opened"
        assert engine is not None, "opened"
        reader.drain_wake()
        self._waking.renew()  # before the slice: what lands after it has looked wakes us
        stopping = self._stopping  # only a slice begun after `stop` has seen all that was there
        busy = await self._in_thread(self._slice)
        waiting = engine.waiting
        if self._stop_now or (stopping and not busy and not waiting):
            return True
        if engine.state.initial:
            self._enter(Phase.INITIAL_COPY, "")
        else:
            self._enter(Phase.CATCHING_UP if busy or waiting else Phase.TAILING, engine.comparing)
        if not busy and stopping == self._stopping:
            await self._waking.wait(patience(engine), reader.wake_fd)
        return False

    async def _pause(self) -> bool:
        """Let go of the site until the operator says otherwise; whether to stop meanwhile."""
        if self._engine is not None:
            await self._in_thread(self._save_and_close)
        pause = self.orders.paused
        self._enter(Phase.PAUSED, "" if pause is None else pause.reason)
        self._pausing = False
        if pause is not None:
            await self._waking.wait(_PAUSE_LOOK_SECONDS)
        return self._stopping

    def look_for_orders(self) -> None:
        """Called now and then: what an operator ordered must not wait for something else."""
        self._pausing = self.orders.paused is not None and self.phase is not Phase.PAUSED
        resumed = self.phase is Phase.PAUSED and self.orders.paused is None
        if self._pausing or resumed or self.orders.waiting:
            self._waking.wake()

    async def _in_thread(self, act: Callable[[], _Result]) -> _Result:
        """Do what may block in a thread of this site's own."""
        self._inside = True
        try:
            # abandoned only when nothing more is done here
            return await trio.to_thread.run_sync(act, limiter=self._limiter, abandon_on_cancel=True)
        finally:
            self._inside = False

    async def _back_off(self, error: Exception, tries: int) -> None:
        no_space = isinstance(error, TroubleError) and error.no_space
        free = await self._in_thread(self._look_for_space) if no_space else None
        reason = why(error, free, self._observing.failed_size)
        if self.reason != reason and not isinstance(error, InternalError):
            _log.warning("%s: %s", self.settings.name, reason)
        self._enter(Phase.BACKING_OFF, reason)
        mistaken = isinstance(error, InternalError)
        unsynced = isinstance(error, UnsyncedError) or isinstance(error.__cause__, UnsyncedError)
        self._unsynced = self._unsynced or unsynced
        if unsynced or mistaken or (not no_space and tries % _REOPEN_AFTER == 0):
            await self._in_thread(self.close)
        if self._stopping:
            self._stop_now = True
            return
        self._waking.renew()
        seconds = backoff_seconds(tries, self._random.random())
        await self._waking.wait(min(seconds, _SPACE_SECONDS_MAX) if no_space else seconds)
        if self._stopping:
            self._stop_now = True

    @property
    def is_initial(self) -> bool:
        """Whether the initial copy is still to be made."""
        return self._engine is not None and self._engine.state.initial

    def look(self) -> None:
        """Called every second, whatever the site is at: is it stalled, and will it stop?"""
        progress, name, now = self._progress, self.settings.name, time.monotonic()
        watching.look(progress, self._engine, now, inside=self._inside)
        at = watching.at(self._engine)
        if progress.stalled and Phase.STALLED in TRANSITIONS[self.phase]:
            if self.phase is not Phase.STALLED:
                _log.warning("%s: stalled: no progress at %s", name, at)
            self._enter(Phase.STALLED, f"no progress for {span(progress.seconds)} at {at}")
        stopping = now - self._stop_since if self._stopping else 0.0
        if progress.is_lost(stopping, at_once=self._stop_now) and not self.lost:
            self.lost = True
            _log.error("%s: it does not stop: left as it is, at %s", name, at)
            self._scope.cancel()

    def halt(self, error: Exception) -> None:
        """Give up: only an operator can mend it."""
        if self.phase is Phase.HALTED:
            return
        self._stop_now = True
        self.failure = error
        _log.error("%s: halted: %s", self.settings.name, error)
        self._enter(Phase.HALTED, str(error))

    def _enter(self, phase: Phase, reason: str) -> None:
        if phase is not self.phase:
            assert phase in TRANSITIONS[self.phase], f"{self.phase} -> {phase}"
            self._phase_ns = time.time_ns()
            quiet = {Phase.CATCHING_UP, Phase.TAILING}
            if not {phase, self.phase} <= quiet:
                _log.info("%s: %s", self.settings.name, phase.value)
        self.phase, self.reason = phase, reason
        rests = phase in (Phase.PAUSED, Phase.HALTED)
        self._follower.rest(f"{phase.value}: {reason}" if rests else "")

    # on the worker thread ----------------------------------------------------------------------

    def _tick(self) -> None:
        if self._stop_now:
            raise StopNowError
        if self._pausing and not self._stopping:
            raise PausedError

    def _slice(self) -> bool:
        """Work for a moment; whether there is more to do."""
        engine = self._engine
        assert engine is not None, "opened"
        deadline = time.monotonic() + _SLICE_SECONDS
        more = True
        self.orders.obey(engine, lambda: self._save(engine))
        while more and time.monotonic() < deadline:
            self._tick()
            fed = self._feed(engine)
            self._follower.keep(engine)
            done = engine.work(_SLICE_STEPS)
            self._follower.keep(engine)
            more = fed > 0 or done > 0
            if done:
                self._worked = time.monotonic()
            elif not more:
                engine.step.finish()
            self._waits.passed(engine.plan.working(), time.time_ns())
        if not more and engine.idle and not engine.held:
            self._observing.all_true()
        now = time.monotonic()
        idle = not more and now - self._worked >= SAVE_IDLE_SECONDS
        applied = engine.plan.working() != engine.state.working
        seconds = _SAVE_BUSY_SECONDS if applied else _SAVE_COMPARING_SECONDS
        if engine.unsaved and (idle or engine.crowded or now - self._saved >= seconds):
            self._save(engine)
            self._saved = time.monotonic()
            self._look_for_space()
        return more

    def _look_for_space(self) -> int | None:
        self._free = free_bytes(self.settings.path)
        return self._free

    def _save(self, engine: Engine, *, stopped: bool = False) -> None:
        """Save the cursor at the site; then the journal need not keep what is before it."""
        engine.save(stopped=stopped)
        try:
            tell_cursor(self.journal, engine.state, self._attached_ns)
        except OSError as error:
            _log.debug("%s: the journal was not told: %s", self.settings.name, error)
        self.saved.wake_from_thread()

    def _feed(self, engine: Engine) -> int:
        """Read on, as far as the plan has room; how many records."""
        reader = self._reader
        assert reader is not None, "opened"
        room = min(engine.room(), _READ_MAX)
        records = reader.poll(room) if room else []
        if not records:
            return 0
        self._look_for_head()  # also tells of a new incarnation
        if reader.tag_of(records[-1].sequence) != engine.plan.known_tag:
            engine.set_incarnations(incarnations_of(reader))
            gone = went_back(reader, engine.state)
            if gone is not None:
                raise RecordsGoneError(f"{self.journal}: {gone}")
        engine.feed((record, reader.tag_of(record.sequence)) for record in records)
        self._waits.add(records)
        return len(records)

    def _look_for_head(self) -> SequenceNumber:
        assert self._reader is not None, "opened"
        self._head = self._reader.head()
        return self._head

    def _save_and_close(self) -> None:
        if self._engine is not None:
            try:
                self._save(self._engine, stopped=True)
            except Exception as error:  # noqa: BLE001 - it goes on from the one before
                told = None if isinstance(error, StoreError | SourceError) else error
                name = self.settings.name
                _log.warning("%s: the cursor could not be saved: %s", name, error, exc_info=told)
            self._look(self._engine)
        self.close()

    def renew(self) -> None:
        """Renew the lease of the site. Raises SiteRefusedError, StoreError."""
        if self._store is not None:
            self._store.renew()

    def _look(self, engine: Engine) -> None:
        """What there is to report; it stays when the site is closed for a while."""
        began, oldest = self._started_ns, self._waits.oldest_ns
        self._seen = seen(self.settings, engine, self._head, began, oldest)

    # reports -----------------------------------------------------------------------------------

    def current(self) -> SiteReport | None:
        """How things are now; None: the site was not open yet, and the journal cannot be read."""
        if self._engine is not None:
            self._look(self._engine)
        elif self._seen is None:
            self._seen = seen_before(self.journal, self.settings, self._started_ns)
        if self._seen is None:
            return None
        return msgspec.structs.replace(
            measured(self._seen, self._waits, self._observing),
            phase=self.phase.value,
            phase_ns=self._phase_ns,
            reason=self.reason,
            free_bytes=self._free,
        )

    def report(self) -> None:
        """Write the report beside the journal."""
        self._observing.flush()
        self.orders.answer_after(lambda: tell(self.journal, self.current()))
