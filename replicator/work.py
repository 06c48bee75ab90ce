"""What the steps of a site spend their time on, over the last minute; which part of it is narrow.

Pure: every moment is an argument. The account is of steps, not of threads: with one step at a time
the steps of a second last a second at most, with sixteen workers sixteen seconds.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

import msgspec

WINDOW_SECONDS: Final = 60
BUSY: Final = 0.5
"""Workers that are at work for less of the time are not what holds a site up."""

LONG_SECONDS: Final = 1.0
"""A step that takes so long is named."""

_NS: Final = 1_000_000_000
_PARTS: Final = {
    "source": "reading the source",
    "site": "writing at the site",
    "copy": "copying content from source to site",
    "own": "the replicator's own work",
}


class Doing(msgspec.Struct, frozen=True, kw_only=True):
    """A step that is being carried out.

    Attributes:
        path: escaped; "?" if it is not known. since_ns: when it began.
        seconds: how long it takes so far.
        size, copied: bytes of the file, and how many of them are copied; 0: no copy is made (yet).
    """

    path: str
    since_ns: int
    seconds: float = 0.0
    size: int = 0
    copied: int = 0


class WorkReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a site's steps did in the last minute.

    Attributes:
        workers: how many steps may run at once. busy: share (0 to 1) of their time that steps took.
        steps: how many ended. service_seconds: of one, on average.
        queue_seconds: how long a record's step had waited when it began, on average.
        source, site, copy, own: shares (0 to 1) of the service: calls at the source, at the site,
            copies by the kernel from one to the other, and the rest.
        doing: the steps under way.
        copies: the same of the workers, which only copy; `workers` of the rest is 1: one thread
            decides.
    """

    workers: int = 1
    busy: float = 0.0
    steps: int = 0
    service_seconds: float = 0.0
    queue_seconds: float = 0.0
    source: float = 0.0
    site: float = 0.0
    copy: float = 0.0
    own: float = 0.0
    doing: tuple[Doing, ...] = ()
    copies: WorkReport | None = None

    @property
    def under_way(self) -> tuple[Doing, ...]:
        """All that is being done and copied."""
        return self.doing if self.copies is None else (*self.doing, *self.copies.doing)


@dataclass(slots=True)
class _Bucket:
    second: int
    steps: int = 0
    service_ns: int = 0
    source_ns: int = 0
    site_ns: int = 0
    copy_ns: int = 0
    waits: int = 0
    waited_ns: int = 0


class WorkWindow:
    """The account of the last minute, second by second."""

    def __init__(self) -> None:
        self._buckets: deque[_Bucket] = deque()
        self._since_ns: int | None = None

    def add(self, now_ns: int, service_ns: int, parts_ns: tuple[int, int, int]) -> None:
        """A step has ended; `parts_ns`: its time at source, site, and in copies by the kernel."""
        bucket = self._bucket(now_ns)
        bucket.steps += 1
        bucket.service_ns += service_ns
        bucket.source_ns += parts_ns[0]
        bucket.site_ns += parts_ns[1]
        bucket.copy_ns += parts_ns[2]

    def waited(self, now_ns: int, wait_ns: int) -> None:
        """A step has begun, so long after the record that asked for it."""
        bucket = self._bucket(now_ns)
        bucket.waits += 1
        bucket.waited_ns += wait_ns

    def report(self, now_ns: int, workers: int, running: list[tuple[int, Doing]]) -> WorkReport:
        """The last minute; `running`: the steps under way, and for how long they are (ns)."""
        self._forget(now_ns // _NS)
        kept = self._buckets
        service = sum(each.service_ns for each in kept)
        steps, waits = sum(each.steps for each in kept), sum(each.waits for each in kept)
        window = WINDOW_SECONDS * _NS
        lasted = 0 if self._since_ns is None else min(max(now_ns - self._since_ns, _NS), window)
        busy = service + sum(min(since, window) for since, _ in running)
        parts = [
            sum(getattr(each, f"{part}_ns") for each in kept) / service if service else 0.0
            for part in ("source", "site", "copy")
        ]
        return WorkReport(
            workers=workers,
            busy=min(1.0, busy / (max(lasted, _NS) * workers)),
            steps=steps,
            service_seconds=service / steps / _NS if steps else 0.0,
            queue_seconds=sum(each.waited_ns for each in kept) / waits / _NS if waits else 0.0,
            source=parts[0],
            site=parts[1],
            copy=parts[2],
            own=max(0.0, 1.0 - sum(parts)) if service else 0.0,
            doing=tuple(each for _, each in running),
        )

    def _bucket(self, now_ns: int) -> _Bucket:
        second = now_ns // _NS
        if self._buckets and self._buckets[-1].second == second:
            return self._buckets[-1]
        self._forget(second)
        if self._since_ns is None or self._since_ns > now_ns:
            self._since_ns = now_ns
        self._buckets.append(_Bucket(second))
        return self._buckets[-1]

    def _forget(self, second: int) -> None:
        while self._buckets and self._buckets[0].second <= second - WINDOW_SECONDS:
            self._buckets.popleft()
        while self._buckets and self._buckets[-1].second > second:
            self._buckets.pop()


class Bottleneck(msgspec.Struct, frozen=True, kw_only=True):
    """What bounds the rate of a site: `part` is none, idle, long, source,
    site, copy or own."""

    part: str
    text: str


def bottleneck(work: WorkReport, queue: int) -> Bottleneck:
    """The narrow part, from queue and service times."""
    copies = work.copies
    if copies is not None and (copies.busy >= BUSY or len(_long(copies)) >= copies.workers):
        return _narrow(copies, queue)
    return _narrow(work, queue)


def _long(work: WorkReport) -> list[Doing]:
    return [step for step in work.doing if step.seconds >= LONG_SECONDS]


def _narrow(work: WorkReport, queue: int) -> Bottleneck:
    workers = "one step at a time" if work.workers == 1 else f"all {work.workers} workers busy"
    long = _long(work)
    if len(long) >= work.workers:
        first = max(long, key=lambda step: step.seconds)
        what = f"a long step, {first.seconds:,.0f} s so far: {first.path}"
        return Bottleneck(part="long", text=f"{what}; {workers}")
    if work.busy < BUSY or not work.steps:
        if not queue:
            return Bottleneck(part="none", text="none: nothing waits for long")
        told = f"none yet: busy {work.busy:.0%} of the last minute"
        return Bottleneck(part="idle", text=told)
    shares = {part: getattr(work, part) for part in _PARTS}
    part = max(shares, key=shares.__getitem__)
    text = f"{_PARTS[part]}: {shares[part]:.0%} of the time of a step; {workers}"
    return Bottleneck(part=part, text=text)
