"""One replicator per site: the lease in `.mirrorfs/lock`.

The file names who holds the site; empty, it is free. Its modification time says when it was
renewed, and is compared with times the same file system gives, never with this host's clock. Where
flock(2) works it keeps a second replicator of the same kernel, or cluster, out as well. The file is
never unlinked or replaced, so that the lock and the text are always of one file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import socket
from pathlib import Path

import msgspec

from replicator.stores.base import SiteBusyError, SiteRefusedError

STALE_SECONDS = 60
"""A lease not renewed for so long is nobody's."""

RENEW_SECONDS = 10
"""How often `renew` is to be called."""

_TEXT_BYTES_MAX = 4096

_ours: set[str] = set()
"""Nonces of the leases that this process holds."""


class Holder(msgspec.Struct, frozen=True):
    """Who holds a site.

    Attributes:
        host, machine: host name and /etc/machine-id: together, which host.
        boot: the boot of that host.  pid, started: the process, and when it began (clock ticks).
        nonce: distinguishes two leases of one process.
    """

    host: str
    machine: str
    boot: str
    pid: int
    started: int
    nonce: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def myself() -> Holder:
    """The holder this process would be, with a fresh nonce."""
    return Holder(
        host=socket.gethostname(),
        machine=_text("/etc/machine-id"),
        boot=_text("/proc/sys/kernel/random/boot_id"),
        pid=os.getpid(),
        started=_started(os.getpid()) or 0,
        nonce=secrets.token_hex(8),
    )


class Lease:
    """The lease, held. `directory` is a descriptor of `.mirrorfs` and stays the caller's."""

    def __init__(self, directory: int) -> None:
        """Take it. Raises SiteBusyError when somebody holds it, SiteRefusedError, OSError."""
        self._holder = myself()
        self._fd = os.open(
            b"lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory
        )
        try:
            self._take(directory)
        except BaseException:
            os.close(self._fd)
            _ours.discard(self._holder.nonce)  # the file may say that it is ours
            raise

    def renew(self) -> None:
        """To be called every RENEW_SECONDS. Raises SiteRefusedError when somebody else took it
        (this process was silent for too long): stop writing to the site at once. OSError."""
        self._check()
        self._write()

    def release(self) -> None:
        """Give it back. Does nothing the second time, or when somebody else took it."""
        if self._fd < 0:
            return
        with contextlib.suppress(OSError, SiteRefusedError):
            self._check()
            os.ftruncate(self._fd, 0)
        os.close(self._fd)
        self._fd = -1
        _ours.discard(self._holder.nonce)

    def _take(self, directory: int) -> None:
        text = os.pread(self._fd, _TEXT_BYTES_MAX, 0)
        holder = _parse(text)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SiteBusyError(f"in use by {holder or 'another replicator'}") from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
                raise
        if text and not self._dead(holder):
            age = self._age(directory)
            if age < STALE_SECONDS:
                raise SiteBusyError(
                    f"in use by {holder or 'another replicator'}, last heard of {age:.0f} s ago"
                )
        _ours.add(self._holder.nonce)
        self._write()
        self._check()  # of two that write at once only the second goes on

    def _dead(self, holder: Holder | None) -> bool:
        """Whether it is certain that the holder does not run any more."""
        me = self._holder
        if holder is None or (holder.host, holder.machine) != (me.host, me.machine):
            return False
        if (holder.boot, holder.pid, holder.started) == (me.boot, me.pid, me.started):
            return holder.nonce not in _ours  # let go of when the disk was away: it still says so
        return holder.boot != me.boot or _started(holder.pid) != holder.started

    def _age(self, directory: int) -> float:
        """Seconds since the lease was renewed, by the clock of the file system."""
        name = b"clock." + self._holder.nonce.encode()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        probe = os.open(name, flags, 0o600, dir_fd=directory)
        try:
            os.write(probe, b"\n")
            now = os.fstat(probe).st_mtime_ns
        finally:
            os.close(probe)
            os.unlink(name, dir_fd=directory)
        return (now - os.fstat(self._fd).st_mtime_ns) / 1e9

    def _check(self) -> None:
        holder = _parse(os.pread(self._fd, _TEXT_BYTES_MAX, 0))
        if holder != self._holder:
            raise SiteRefusedError(f"the lease was taken by {holder or 'another replicator'}")

    def _write(self) -> None:
        text = msgspec.json.encode(self._holder) + b"\n"
        os.pwrite(self._fd, text, 0)
        os.ftruncate(self._fd, len(text))
        os.fsync(self._fd)


def _parse(text: bytes) -> Holder | None:
    """The holder; None for anything else (a write in progress, say)."""
    try:
        return msgspec.json.decode(text, type=Holder)
    except msgspec.DecodeError:
        return None


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _started(pid: int) -> int | None:
    """When a process of this host began, in clock ticks since boot; None if it does not run."""
    fields = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return int(fields[19]) if fields and fields[0] not in "ZX" else None
