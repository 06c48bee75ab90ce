"""One mount's whole life in its process: discovery, engine, kernel, unmount.

Importing it starts the client library: it is imported once the process has left the terminal and
its environment is set. Decides the order of things, and nothing about operations.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import resource
import signal
import tempfile
from collections.abc import Callable, Iterator
from typing import Final

import pyfuse3
import trio

from xrootdfs import unmount
from xrootdfs.bridge import Bridge
from xrootdfs.config import Mount
from xrootdfs.errors import CallError, RefusedError, UnusableError, XrootdfsError
from xrootdfs.federation import Federation
from xrootdfs.memory import Lifetimes
from xrootdfs.namespace import Degraded
from xrootdfs.ops import Operations
from xrootdfs.placement import Placement
from xrootdfs.serving import ServingOptions
from xrootdfs.status import Attributes
from xrootdfs.topology import Topology
from xrootdfs.values import ROOT, Kind, Server, Stat
from xrootdfs.xrd import Client

_log = logging.getLogger(__name__)

REQUESTS_MAX: Final = 1000
"""Requests of jobs being served at a time: those that wait for a silent server must not be all."""
CLOSE_SECONDS: Final = 30.0
GARBAGE_THRESHOLDS: Final = (50_000, 20, 100)
"""What is known of names lives long: to look for garbage in it as often as the interpreter would
costs a fifth of a listing."""
_OPPOSITES: Final = (("ro", "rw"), ("nosuid", "suid"), ("nodev", "dev"), ("noexec", "exec"))


def serve(mount: Mount, ready: Callable[[], None], start_log: Callable[[], None]) -> None:
    """Mount, call `ready`, and serve until it is unmounted. XrootdfsError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    start_log()
    os.umask(0)
    gc.freeze()
    gc.set_threshold(*GARBAGE_THRESHOLDS)
    try:
        trio.run(_Session(mount).run, ready, strict_exception_groups=True)
    except BaseExceptionGroup as group:
        refusal = _refusal_in(group)
        if refusal is None:
            raise
        raise refusal from None
    pyfuse3.close(unmount=False)
    _log.info("%s is unmounted", mount.mountpoint)


class _Session:
    def __init__(self, mount: Mount) -> None:
        self._mount = mount

    async def run(self, ready: Callable[[], None]) -> None:
        mount = self._mount
        client = Client(
            Bridge(), metadata_seconds=mount.metadata_deadline, data_seconds=mount.data_deadline
        )
        topology = Topology(client, mount.redirectors, refresh_seconds=mount.refresh)
        await _discover(topology)
        await _check_prefixes(client, topology)
        async with trio.open_nursery() as nursery:
            await nursery.start(topology.run)
            federation = Federation(
                client,
                topology,
                nursery,
                degraded=Degraded(
                    absent=mount.missing_when_degraded == "absent",
                    grace_seconds=mount.server_grace,
                ),
                lifetimes=Lifetimes(
                    attributes=mount.attr_timeout,
                    absence=mount.negative_timeout,
                    listing=mount.listing_timeout,
                ),
            )
            operations = Operations(federation, _serving_options(mount), nursery)
            operations.virtual = Attributes(mount, federation).value
            nursery.start_soon(operations.run)
            _mount_fuse(mount, operations)
            nursery.start_soon(self._end_on_signal)
            _log.info("%s mounted at %s", ",".join(mount.urls), mount.mountpoint)
            ready()
            await pyfuse3.main(min_tasks=1, max_tasks=REQUESTS_MAX)
            with trio.move_on_after(CLOSE_SECONDS) as scope:
                await operations.close()
            if scope.cancelled_caught:
                _log.error("ended before all that was written was at the servers")
            nursery.cancel_scope.cancel()

    async def _end_on_signal(self) -> None:
        """SIGTERM, SIGINT: unmount, and go on for those who still use it. Again: end at once."""
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                await trio.to_thread.run_sync(self._unmount, abandon_on_cancel=True)
                break
            async for _ in signals:
                _log.warning("told twice to end: those who still use the mount get errors")
                pyfuse3.terminate()
                return

    def _unmount(self) -> None:
        """In a thread: the kernel may have requests for us before it lets go."""
        path = self._mount.mountpoint
        try:
            try:
                unmount.detach(path, lazy=False)
            except RefusedError:
                _log.warning("%s is in use: detached, ends with its last user", path)
                unmount.detach(path, lazy=True)
        except XrootdfsError as error:
            _log.error("cannot unmount: %s", error)


# Before the mount


async def _discover(topology: Topology) -> None:
    try:
        await topology.discover()
    except CallError as error:
        url = next(iter(topology.redirector_errors))
        reason = f"cannot be reached: {error.reason}" if error.silent else error.reason
        raise UnusableError(f"redirector: {url}: {reason}") from None


async def _check_prefixes(client: Client, topology: Topology) -> None:
    """Each prefix is a directory at one of its servers at least."""
    answers: dict[Server, Stat | CallError] = {}

    async def look(server: Server) -> None:
        try:
            answers[server] = await client.stat(server, ROOT)
        except CallError as error:
            answers[server] = error

    async with trio.open_nursery() as nursery:
        for server in topology.servers:
            nursery.start_soon(look, server)
    for prefix in sorted({server.prefix for server in answers}):
        told = [answers[server] for server in sorted(answers) if server.prefix == prefix]
        if any(isinstance(each, Stat) and each.kind is Kind.DIRECTORY for each in told):
            continue
        name = prefix.decode(errors="replace")
        for each in told:
            if isinstance(each, CallError) and not each.missing:
                raise UnusableError(f"prefix: {name}: {each.reason}")
        raise UnusableError(f"prefix: {name}: no server has such a directory")


def _serving_options(mount: Mount) -> ServingOptions:
    return ServingOptions(
        uid=mount.uid,
        gid=mount.gid,
        attr_timeout=mount.attr_timeout,
        entry_timeout=mount.attr_timeout,
        negative_timeout=mount.negative_timeout,
        placement=Placement(mount.placement),
        directories_everywhere=mount.directories == "all",
        emulate=mount.emulate == "on",
        operation_seconds=mount.operation_deadline,
    )


def _mount_fuse(mount: Mount, operations: Operations) -> None:
    """Put the mount there; what libfuse says on standard error becomes the one line."""
    name = (mount.fsname or mount.urls[0]).replace("\\", "\\\\").replace(",", "\\,")
    options = {"default_permissions", f"fsname={name}", f"subtype={mount.subtype}"}
    if mount.allow_other:
        options.add("allow_other")
    options.update(set(mount.kernel_options) - {"nodiratime"})  # libfuse does not know it
    if os.geteuid() == 0:
        options.update(opposite for word, opposite in _OPPOSITES if word not in options)
    with _captured_stderr() as said:
        try:
            pyfuse3.init(operations, mount.mountpoint, options)
        except RuntimeError as error:
            reason = " ".join(said().split()) or str(error)
            raise UnusableError(f"mountpoint: {mount.mountpoint}: cannot mount: {reason}") from None


@contextlib.contextmanager
def _captured_stderr() -> Iterator[Callable[[], str]]:
    """Descriptor 2 goes to a file for a while; the value reads what stands in it."""
    with tempfile.TemporaryFile() as stream:
        saved = os.dup(2)
        os.dup2(stream.fileno(), 2)

        def said() -> str:
            return os.pread(stream.fileno(), 4096, 0).decode(errors="replace")

        try:
            yield said
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def _refusal_in(group: BaseExceptionGroup[BaseException]) -> XrootdfsError | None:
    """The refusal that a nursery wrapped."""
    for error in group.exceptions:
        if isinstance(error, XrootdfsError):
            return error
        if isinstance(error, BaseExceptionGroup):
            return _refusal_in(error)
    return None
