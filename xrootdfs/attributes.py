"""Attributes as jobs see them: what servers tell, completed by what docs/xattrs.md keeps there.

Reads the kept attributes of what bears the mark, and of nothing else; writes them at all holders.
Knows nothing of nodes, or of who may do what: that is the kernel's.
"""

from __future__ import annotations

import errno
import stat as modes
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from xrootdfs import emulation
from xrootdfs.emulation import NOTHING, Emulated, Times
from xrootdfs.errors import CallError, Origin
from xrootdfs.federation import Federation
from xrootdfs.values import Found, Kind, Server, Stat

SYMLINK_MODE: Final = 0o777

_REMEMBERED_MAX: Final = 100_000
_REMEMBERED_SECONDS: Final = 60
_UNSETTLED_SECONDS: Final = 5
"""So long after a change of attributes another one may leave the server's ctime as it is."""

_SECOND_NS: Final = 1_000_000_000
_TYPES: Final = {Kind.FILE: modes.S_IFREG, Kind.DIRECTORY: modes.S_IFDIR}


@dataclass(frozen=True, slots=True)
class Attributes:
    """Of one name: `mode` with the type, times in nanoseconds; `link` is a symlink's target."""

    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    atime_ns: int
    ctime_ns: int
    link: bytes | None = None

    @property
    def is_directory(self) -> bool:
        """A directory."""
        return modes.S_ISDIR(self.mode)

    @property
    def is_symlink(self) -> bool:
        """A symlink."""
        return self.link is not None


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be set; None: left as it is."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    mtime_ns: int | None = None
    atime_ns: int | None = None

    @property
    def times(self) -> bool:
        """A time is to be set."""
        return self.mtime_ns is not None or self.atime_ns is not None


@dataclass(frozen=True, slots=True)
class _Read:
    """What was kept of an object while the server showed `stat`; counts until a wall-clock time."""

    stat: Stat
    kept: Emulated
    until: int


class AttributeKeeper:
    """Reads and writes attributes. `owner` is whose everything is that has no owner kept."""

    def __init__(self, federation: Federation, owner: tuple[int, int], *, emulate: bool) -> None:
        self._federation = federation
        self._client = federation.client
        self._owner = owner
        self._emulate = emulate
        self._remembered: OrderedDict[tuple[Server, str], _Read] = OrderedDict()

    # -- reading ---------------------------------------------------------------------------------

    async def of(self, path: bytes, found: Found) -> Attributes:
        """Attributes of a name that was found."""
        kept = await self.kept(path, found.holders[0], found.stat)
        return self.view(found.stat, kept)

    def shows(self, stat: Stat) -> bool:
        """What a server shows says that attributes are kept there: they cost a request."""
        return self._emulate and emulation.is_marked(stat.mode)

    def plain(self, stat: Stat) -> Attributes:
        """Attributes of something else."""
        return self.view(stat, NOTHING)

    async def kept(self, path: bytes, server: Server, stat: Stat) -> Emulated:
        """What is kept of it at a server. What cannot be read is an error, not an absence: a
        symlink must not turn into a file."""
        if not self.shows(stat):
            return NOTHING
        key = (server, stat.id)
        now = time.time_ns() // _SECOND_NS
        known = self._remembered.get(key)
        if known is not None and known.stat == stat and now < known.until:
            return known.kept
        kept = emulation.decode(await self._client.get_xattrs(server, path, emulation.ALL))
        if stat.id and stat.ctime < now - _UNSETTLED_SECONDS:
            self._remembered[key] = _Read(stat, kept, now + _REMEMBERED_SECONDS)
            if len(self._remembered) > _REMEMBERED_MAX:
                self._remembered.popitem(last=False)
        return kept

    def view(self, stat: Stat, kept: Emulated) -> Attributes:
        """Both together."""
        uid, gid = self._owner if kept.owner is None else kept.owner
        times = kept.times if kept.times is not None and kept.times.hold(stat) else None
        plain = kept == NOTHING
        mode = stat.mode if plain or kept.mode is None else kept.mode
        if kept.link is not None and stat.kind is Kind.FILE:
            kind, mode, size = modes.S_IFLNK, SYMLINK_MODE, len(kept.link)
        else:
            kind, size = _TYPES.get(stat.kind, modes.S_IFREG), stat.size
        return Attributes(
            mode=kind | mode,
            uid=uid,
            gid=gid,
            size=size,
            mtime_ns=stat.mtime * _SECOND_NS if times is None else times.mtime_ns,
            atime_ns=stat.atime * _SECOND_NS if times is None else times.atime_ns,
            ctime_ns=stat.ctime * _SECOND_NS,
            link=kept.link if stat.kind is Kind.FILE else None,
        )

    # -- writing ---------------------------------------------------------------------------------

    def owned(self, mode: int, uid: int, gid: int, link: bytes | None = None) -> Emulated:
        """What is kept of a new object with these attributes."""
        owner = (uid, gid) if self._emulate and (uid, gid) != self._owner else None
        return Emulated(mode=mode, owner=owner, link=link)

    async def change(self, path: bytes, found: Found, change: Change) -> None:
        """Set attributes, at all holders. The servers must have all content by now."""
        stats = await self._stats(path, found, fresh=change.times)
        kept = await self.kept(path, found.holders[0], found.stat)
        now = self.view(found.stat, kept)
        mode = modes.S_IMODE(now.mode) if change.mode is None else change.mode
        owner = (
            now.uid if change.uid is None else change.uid,
            now.gid if change.gid is None else change.gid,
        )
        new = replace(
            kept,
            mode=mode,
            owner=owner if kept.owner is not None or owner != self._owner else None,
        )
        for server, stat in stats.items():
            await self.keep(path, server, stat, self._with_times(new, now, change, stat))

    async def keep(self, path: bytes, server: Server, stat: Stat, kept: Emulated) -> bool:
        """Have these attributes kept at one server, which shows `stat`. The mark comes last.
        Returns whether that took a request: the server shows other bits then."""
        mode = stat.mode if kept.mode is None else kept.mode
        alone = replace(kept, mode=None) == NOTHING
        if alone and not emulation.needs_mark(mode) and not emulation.is_marked(stat.mode):
            if mode == stat.mode:
                return False
            await self._client.chmod(server, path, mode)
            return True
        if not self._emulate:
            raise CallError(errno.EPERM, "attributes are not kept (emulate=off)", Origin.LOCAL)
        await self._client.set_xattrs(server, path, emulation.encode(replace(kept, mode=mode)))
        if stat.mode != emulation.marked(mode):
            await self._client.chmod(server, path, emulation.marked(mode))
        self._remembered.pop((server, stat.id), None)
        return True

    async def drop_times(self, path: bytes, servers: Iterable[Server]) -> None:
        """The content was changed: times that were set are void, even within the same second."""

        async def drop(server: Server) -> None:
            await self._client.remove_xattrs(server, path, [emulation.TIMES])

        answers = await self._federation.ask(servers, drop)
        for answer in answers.values():
            if isinstance(answer, CallError) and answer.errno != errno.ENODATA:
                raise answer
        self._remembered.clear()

    async def _stats(self, path: bytes, found: Found, *, fresh: bool) -> Mapping[Server, Stat]:
        """What each holder shows of it."""
        if not fresh and len(found.holders) == 1:
            return {found.holders[0]: found.stat}
        answers = await self._federation.ask(
            found.holders, lambda server: self._client.stat(server, path)
        )
        stats: dict[Server, Stat] = {}
        for server, answer in answers.items():
            if isinstance(answer, CallError):
                raise answer
            stats[server] = answer
        return stats

    def _with_times(self, kept: Emulated, now: Attributes, change: Change, stat: Stat) -> Emulated:
        if not change.times:
            return kept
        times = Times(
            mtime_ns=now.mtime_ns if change.mtime_ns is None else change.mtime_ns,
            atime_ns=now.atime_ns if change.atime_ns is None else change.atime_ns,
            server=stat.mtime,
            size=None if stat.kind is Kind.DIRECTORY else stat.size,
        )
        return replace(kept, times=times)
