"""What answers and silences of the servers mean for the one tree.

Pure. The rule: a name is absent only if every server that could hold it said so, or is known not to
hold it. What a silent server may hold is in doubt, and doubt is an error, never an absence; with
`missing-when-degraded=absent` a server that has been down for `server-grace` no longer counts.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from xrootdfs.errors import CallError, Origin
from xrootdfs.values import Found, Kind, Listing, Server, Stat

Excluded: TypeAlias = Callable[[Server, float], bool]
"""Is that server, silent since that moment, known not to hold the name?"""


@dataclass(frozen=True, slots=True)
class Degraded:
    """How long silence means doubt.

    Attributes:
        absent: servers that are down for `grace_seconds` count as holding nothing.
    """

    absent: bool = False
    grace_seconds: float = 60.0

    def passed_over(self, lost_at: float, now: float) -> bool:
        """A server that is down since `lost_at` no longer counts."""
        return self.absent and now - lost_at >= self.grace_seconds


@dataclass(frozen=True, slots=True)
class Silence:
    """The servers that did not answer one question.

    Attributes:
        lost: servers that are down and were not asked, with the moment each fell silent.
        late: servers that were asked in vain, with the error.
        now: the moment of the question.
    """

    lost: Mapping[Server, float]
    late: Mapping[Server, CallError]
    now: float

    def counting(self, degraded: Degraded) -> tuple[Server, ...]:
        """Those that are not passed over, sorted."""
        lost = {s for s, at in self.lost.items() if not degraded.passed_over(at, self.now)}
        return tuple(sorted(lost | self.late.keys()))

    def passed_over(self, degraded: Degraded) -> tuple[Server, ...]:
        """The others, sorted."""
        gone = (s for s, at in self.lost.items() if degraded.passed_over(at, self.now))
        return tuple(sorted(set(gone) - self.late.keys()))

    def harmless(self, excluded: Excluded) -> bool:
        """None of them can hold it: the others are all there is to be heard."""
        return all(excluded(s, self.lost.get(s, self.now)) for s in {*self.lost, *self.late})

    def doubt(self, degraded: Degraded, excluded: Excluded) -> CallError | None:
        """The error that stands for what these servers may hold; None if that is nothing."""
        for server in self.counting(degraded):
            if excluded(server, self.lost.get(server, self.now)):
                continue
            error = self.late.get(server)
            if error is not None and error.errno == errno.ETIMEDOUT:
                return error
            reason = f"{server} does not answer, and may hold the name"
            return CallError(errno.EIO, reason, Origin.UNREACHABLE)
        return None


def silence(answers: Mapping[Server, object], lost: Mapping[Server, float], now: float) -> Silence:
    """Who stayed silent when some were asked and others are down."""
    late = {s: a for s, a in answers.items() if isinstance(a, CallError) and a.silent}
    return Silence({s: at for s, at in lost.items() if s not in answers}, late, now)


def merge_stats(answers: Mapping[Server, Stat | CallError]) -> Found | None:
    """The name as those describe it who have it; None if nobody said that it has."""
    stats = {s: a for s, a in answers.items() if isinstance(a, Stat)}
    if not stats:
        return None
    return merge(stats)


def merge(stats: Mapping[Server, Stat]) -> Found:
    """One or several descriptions of a name as one. The newest is served."""
    if len(stats) == 1:
        ((server, stat),) = stats.items()
        return Found(stat, (server,), (server,))
    newest = max(stats, key=lambda s: (stats[s].mtime, stats[s].size, s))
    stat = stats[newest]
    holders = [s for s in sorted(stats) if stats[s].kind is stat.kind and s != newest]
    current = [s for s in holders if stat.kind is Kind.DIRECTORY or stats[s].size == stat.size]
    contrary = [s for s in sorted(stats) if stats[s].kind is not stat.kind]
    return Found(stat, (newest, *holders), (newest, *current), tuple(contrary))


def absence(
    answers: Mapping[Server, Stat | CallError],
    silent: Silence,
    degraded: Degraded,
    excluded: Excluded,
) -> CallError:
    """The error for a name that no server said it has."""
    for server in sorted(answers):
        answer = answers[server]
        if isinstance(answer, CallError) and not answer.silent and not answer.missing:
            return answer  # it may be there: EACCES, EIO of the server's disk
    doubt = silent.doubt(degraded, excluded)
    if doubt is not None:
        return doubt
    return CallError(errno.ENOENT, "no server has it", Origin.ANSWERED)


def merge_listings(
    answers: Mapping[Server, Mapping[bytes, Stat] | CallError],
    silent: Silence,
    degraded: Degraded,
    excluded: Excluded,
) -> Listing:
    """A directory as all describe it. CallError if nobody said that it has one there."""
    holders = tuple(s for s in sorted(answers) if not isinstance(answers[s], CallError))
    if not holders:
        raise _no_directory(answers, silent, degraded, excluded)
    names: dict[bytes, dict[Server, Stat]] = {}
    for server in holders:
        listed = answers[server]
        assert not isinstance(listed, CallError)
        for name, stat in listed.items():
            names.setdefault(name, {})[server] = stat
    failed = {
        s for s, a in answers.items() if isinstance(a, CallError) and not a.silent and not a.missing
    }
    counting = {
        s for s in silent.counting(degraded) if not excluded(s, silent.lost.get(s, silent.now))
    }
    return Listing(
        entries={name: merge(names[name]) for name in sorted(names)},
        holders=holders,
        silent=tuple(sorted(counting | failed)),
        passed_over=silent.passed_over(degraded),
    )


def _no_directory(
    answers: Mapping[Server, Mapping[bytes, Stat] | CallError],
    silent: Silence,
    degraded: Degraded,
    excluded: Excluded,
) -> CallError:
    errors = {s: a for s, a in answers.items() if isinstance(a, CallError)}
    for server in sorted(errors):
        if errors[server].errno == errno.ENOTDIR and not errors[server].silent:
            return errors[server]
    return absence(errors, silent, degraded, excluded)
