"""How far a site is behind, and how fast it works: windows over time, in bounded memory.

Pure: every moment is an argument. Times are nanoseconds since 1970, or of any one clock; answers
are seconds. When the clock steps back, what was noted in its future is forgotten.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable
from typing import Final

from mirrorfs.journal.record import Record, SequenceNumber

LAG_WINDOW_MINUTES: Final = 60
RATE_WINDOW_SECONDS: Final = 60

_NS: Final = 1_000_000_000
_MINUTE_NS: Final = 60 * _NS
_BUCKETS_PER_OCTAVE: Final = 16
"""Neighbouring buckets are 4.4 % apart, so that a percentile is within 2.2 % of the truth."""
_LEAST_NS: Final = 1000
"""Lags below a microsecond are one bucket."""


class LagWindow:
    """The lags of the last hour: a histogram with logarithmic buckets for each minute."""

    def __init__(self) -> None:
        self._minutes: deque[tuple[int, Counter[int]]] = deque()

    def add(self, now_ns: int, lag_ns: int) -> None:
        """One change reached the site, so long after it was made."""
        minute = now_ns // _MINUTE_NS
        self._forget(minute)
        if not self._minutes or self._minutes[-1][0] != minute:
            self._minutes.append((minute, Counter()))
        self._minutes[-1][1][_bucket(lag_ns)] += 1

    def percentile(self, now_ns: int, fraction: float) -> float | None:
        """Seconds that this fraction (0 to 1) of the changes needed at most; None without any."""
        self._forget(now_ns // _MINUTE_NS)
        counts: Counter[int] = Counter()
        for _, minute in self._minutes:
            counts.update(minute)
        wanted = max(1, math.ceil(fraction * counts.total()))
        for bucket in sorted(counts):
            wanted -= counts[bucket]
            if wanted <= 0:
                return _seconds(bucket)
        return None

    def _forget(self, minute: int) -> None:
        while self._minutes and self._minutes[0][0] <= minute - LAG_WINDOW_MINUTES:
            self._minutes.popleft()
        while self._minutes and self._minutes[-1][0] > minute:
            self._minutes.pop()


class RateWindow:
    """Events per second over the last minute; over the time since the first, if that is less."""

    def __init__(self) -> None:
        self._seconds: deque[tuple[int, int]] = deque()
        self._since_ns: int | None = None

    def add(self, now_ns: int, count: int) -> None:
        """So many events happened."""
        second = now_ns // _NS
        self._forget(second)
        if self._since_ns is None or self._since_ns > now_ns:
            self._since_ns = now_ns
        before = self._seconds.pop()[1] if self._seconds and self._seconds[-1][0] == second else 0
        self._seconds.append((second, before + count))

    def rate(self, now_ns: int) -> float:
        """Events per second."""
        self._forget(now_ns // _NS)
        if self._since_ns is None:
            return 0.0
        lasted = (now_ns - self._since_ns) / _NS
        return sum(count for _, count in self._seconds) / min(max(lasted, 1.0), RATE_WINDOW_SECONDS)

    def _forget(self, second: int) -> None:
        while self._seconds and self._seconds[0][0] <= second - RATE_WINDOW_SECONDS:
            self._seconds.popleft()
        while self._seconds and self._seconds[-1][0] > second:
            self._seconds.pop()


def lag_seconds(oldest_ns: int, now_ns: int) -> float:
    """The lag now: age of the oldest record that was not applied; 0 if there is none (0)."""
    return max(0, now_ns - oldest_ns) / _NS if oldest_ns else 0.0


def eta_seconds(remaining: int, rate: float) -> float | None:
    """When so many records will be done at that many a second; None: cannot be told."""
    if remaining <= 0:
        return 0.0
    return remaining / rate if rate > 0 else None


def _bucket(lag_ns: int) -> int:
    return round(_BUCKETS_PER_OCTAVE * math.log2(max(lag_ns, _LEAST_NS)))


def _seconds(bucket: int) -> float:
    return float(2.0 ** (bucket / _BUCKETS_PER_OCTAVE)) / _NS


class Waits:
    """The records that a site has read and not worked on yet, and how long others waited.

    Attributes:
        lag: of records, from being made to being worked on.  rate: how many were, lately.
    """

    def __init__(self) -> None:
        self.lag = LagWindow()
        self.rate = RateWindow()
        self._times: deque[tuple[SequenceNumber, int]] = deque()

    def clear(self) -> None:
        """Those that wait are read again."""
        self._times.clear()

    def add(self, records: Iterable[Record]) -> None:
        """These were read."""
        self._times.extend((record.sequence, record.time_ns) for record in records)

    @property
    def oldest_ns(self) -> int:
        """When the first of those that wait was made; 0: none does."""
        return self._times[0][1] if self._times else 0

    def passed(self, working: SequenceNumber, now_ns: int) -> None:
        """The working cursor has come so far."""
        count = 0
        while self._times and self._times[0][0] <= working:
            _, time_ns = self._times.popleft()
            self.lag.add(now_ns, max(0, now_ns - time_ns))
            count += 1
        if count:
            self.rate.add(now_ns, count)
