"""What stands in the way of a mount, or will: one finding a check, with what to do about it.

Looks at the host, and at what is named: a source, a mount, a volume; before a mount as well as
beside one. It changes nothing; in a journal's directory it writes and removes a file of its own, to
see how long the disk takes. Never waits for a mount that hangs.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from typing import Final

from mirrorfs import checks, host, mounted, mountinfo, system_calls
from mirrorfs.config import Volume, read_volume
from mirrorfs.errors import MirrorfsError
from mirrorfs.findings import Finding, ok, problem, warning
from mirrorfs.guard import watch
from mirrorfs.journal.control_client import CONTROL_NAME, ControlClient, Status
from mirrorfs.journal.reader import JournalReader, NoJournalError
from mirrorfs.journal.segment import CorruptionError
from mirrorfs.site_reports import site_findings

_PATIENCE_SECONDS: Final = 5.0
_SYNCS: Final = 15
_SLOW_SYNC_SECONDS: Final = 0.02
_LITTLE_ROOM_BYTES: Final = 1 << 30
_NO_ROOM_BYTES: Final = 64 << 20
_NETWORK: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "afs", "9p"}
)


@dataclass
class Subject:
    """What is looked at.

    Attributes:
        source: its path; "" if only the host is looked at.
        volume: how it is or would be mounted; None if only a source was named.
        status: of the mirrorfs that has it mounted; None if none has.
        root: descriptor of the source's root, below a mount over it; -1 if it cannot be opened.
    """

    source: str = ""
    volume: Volume | None = None
    status: Status | None = None
    root: int = -1
    findings: list[Finding] = field(default_factory=list)


def examine(named: str | None) -> list[Finding]:
    """Everything about the host, and about the source, mountpoint or volume file named. Raises
    what reading a volume file raises."""
    findings = [*_host(), *_mounts()]
    if named is None:
        return findings
    subject = _subject(named)
    findings += subject.findings
    try:
        if subject.root >= 0:
            findings += _source(subject)
            findings += host.users(subject.source, subject.root, _ours(subject))
        if subject.volume is not None:
            findings += _journal(subject, subject.volume)
            findings += _options(subject, subject.volume)
    finally:
        if subject.root >= 0:
            os.close(subject.root)
    return findings


def _ours(subject: Subject) -> set[int]:
    """Processes that hold the source as is right: mirrorfs, replicators (they only read), this."""
    ours = {os.getpid()}
    if subject.status is not None:
        status = subject.status
        ours |= {status.pid, status.supervisor, *host.replicators(status.journal)}
    return ours


def _host() -> Iterator[Finding]:
    yield host.kernel()
    try:
        checks.check_permissions()
        yield ok("fuse", "/dev/fuse can be used")
    except MirrorfsError as error:
        yield problem("fuse", str(error), "become root, or load the module: modprobe fuse")
    try:
        yield ok("engine", f"python, pyfuse3 {metadata.version('pyfuse3')}")
    except metadata.PackageNotFoundError:
        yield problem("engine", "pyfuse3 is missing", "install the package pyfuse3")
    yield host.descriptors()
    yield host.clock()


# Mounts


def _mounts() -> Iterator[Finding]:
    """Every mount of ours: alive?"""
    for entry in mountinfo.mounts():
        if not entry.ours:
            continue
        try:
            answered = _in_time(lambda path=entry.path: os.statvfs(path))  # type: ignore[misc]
        except OSError as error:
            what = f"{entry.path}: dead: {error.strerror}"
            yield problem("mount", what, "mount it again: that replaces it")
            continue
        if answered:
            yield ok("mount", f"{entry.path}: answers")
        else:
            what = f"{entry.path}: does not answer within {_PATIENCE_SECONDS:g} s"
            yield problem("mount", what, "look at its log, mirrorfs.log in its journal")


def _in_time(call: Callable[[], object]) -> bool:
    """It came back, and did not fail; its OSError otherwise. A call that hangs is left behind."""
    failed: list[OSError] = []

    def run() -> None:
        try:
            call()
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(_PATIENCE_SECONDS)
    if failed:
        raise failed[0]
    return not thread.is_alive()


def _subject(named: str) -> Subject:
    """What is meant, and the mirrorfs that serves it."""
    if os.path.isfile(named):
        subject = Subject(volume=read_volume(None, None, {"volume": named}))
    else:
        subject = Subject(source=os.path.abspath(named), volume=_mounted_volume(named))
    if subject.volume is not None:
        subject.source = subject.volume.source
        _ask(subject, subject.volume.journal_directory)
    if subject.root < 0:
        try:
            subject.root = os.open(subject.source, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            what = f"{subject.source}: {error.strerror}"
            subject.findings.append(problem("source", what, "name a directory that is there"))
    return subject


def _mounted_volume(named: str) -> Volume | None:
    """With what options that directory is mounted by us, as its mountpoint or as its source."""
    for entry in reversed(mountinfo.mounts()):
        if not entry.ours:
            continue
        with contextlib.suppress(OSError, MirrorfsError):
            if not _in_time(lambda path=entry.path: os.statvfs(path)):  # type: ignore[misc]
                continue
            told = mounted.find_daemon(entry.path)
            options = told["options"] if told is not None else {}
            places = {options.get("source"), options.get("mountpoint")}
            if told is not None and os.path.realpath(named) in map(os.path.realpath, places):
                kernel_options = dict.fromkeys(options.pop("kernel_options"), True)
                return read_volume(None, None, {**options, "kernel_options": kernel_options})
    return None


def _ask(subject: Subject, journal: str) -> None:
    """The mirrorfs that writes the journal now."""
    with contextlib.suppress(Exception), ControlClient(journal, _PATIENCE_SECONDS) as client:
        subject.status = client.status()
        subject.root = client.root()[1]


# The source


def _source(subject: Subject) -> Iterator[Finding]:
    source, root = subject.source, subject.root
    kind = host.file_system_type(os.fstat(root).st_dev)
    try:
        system_calls.file_handle(root)
        yield ok("source", f"{source}: {kind}, with file handles")
    except OSError as error:
        what = f"{source}: {kind}: no file handles ({error.strerror})"
        yield problem("source", what, "mirror a tree on another file system: it cannot be mounted")
    inside = [
        entry.path
        for entry in mountinfo.mounts()
        if entry.path.startswith(os.path.realpath(source).rstrip("/") + "/")
    ]
    if inside:
        what = f"{source}: mounted inside it, hidden and not mirrored: {', '.join(inside)}"
        yield warning("submounts", what, "make each of them a volume of its own, or accept that")
    else:
        yield ok("submounts", f"{source}: none")
    if subject.status is None or subject.status.guard == "off":
        yield _guard_possible(subject)
    elif subject.status.lost:
        what = f"on; {subject.status.lost} times more changes behind the mount than could be told"
        yield warning("guard", what, "raise fs.fanotify.max_queued_events; the tree was compared")
    else:
        yield ok("guard", f"on; {subject.status.foreign} directories were changed by others")
    volume = subject.volume
    if kind in _NETWORK and volume is not None and volume.io == "inline":
        what = f"{kind} with io=inline: one slow call holds up all others"
        yield warning("options", what, "mount with io=threads")


def _guard_possible(subject: Subject) -> Finding:
    try:
        os.close(watch(subject.root, subject.source))
    except MirrorfsError as error:
        return ok("guard", f"off, and not possible: {error}")
    return ok("guard", "off: changes behind the mount are found by 'replicator verify --full'")


# The journal


def _journal(subject: Subject, volume: Volume) -> Iterator[Finding]:
    directory = volume.journal_directory
    at = directory
    while not os.path.isdir(at) and at != "/":  # it will be made
        at = os.path.dirname(at)
    if subject.root >= 0 and os.stat(at).st_dev == os.fstat(subject.root).st_dev:
        what = f"{directory}: on the disk of the source: they fill, and are lost, together"
        yield warning("journal", what, "put the journal on a disk of its own")
    else:
        yield ok("journal", f"{directory}: on another disk than the source")
    yield _room(at)
    yield _sync_time(at)
    if at != directory:
        yield ok("records", f"{directory}: does not exist yet")
        return
    yield from _records(subject, directory)
    yield from site_findings(directory, time.time_ns())


def _room(directory: str) -> Finding:
    found = os.statvfs(directory)
    free = found.f_bfree * found.f_frsize  # for root, as mirrorfs is
    says = f"{directory}: {free / (1 << 30):.1f} GiB free"
    if free < _NO_ROOM_BYTES:
        return problem("room", says, "make room: without it changes go on without records")
    if free < _LITTLE_ROOM_BYTES:
        return warning("room", says, "make room: a million records need 130 MB")
    return ok("room", says)


def _sync_time(directory: str) -> Finding:
    """How long a record takes to become durable there."""
    path = os.path.join(directory, f"doctor-{os.getpid()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
    taken = []
    try:
        descriptor = os.open(path, flags, 0o600)
        try:
            os.unlink(path)
            for _ in range(_SYNCS):
                begun = time.monotonic()
                os.write(descriptor, bytes(130))
                os.fdatasync(descriptor)
                taken.append(time.monotonic() - begun)
        finally:
            os.close(descriptor)
    except OSError as error:
        return problem("sync", f"{directory}: {error.strerror}", "make it writable for root")
    seconds = statistics.median(taken)
    says = f"{directory}: a record is durable after {seconds * 1000:.1f} ms"
    if seconds > _SLOW_SYNC_SECONDS:
        return warning("sync", says, "use a faster disk, above all with journal-sync=always")
    return ok("sync", says)


def _records(subject: Subject, directory: str) -> Iterator[Finding]:
    try:
        with JournalReader(directory) as reader:
            head, header = reader.head(), reader.header
            granularity = header.source.ctime_granularity_ns
            reader.seek(head)
            last_ns = reader.poll(1)[0].time_ns if head >= reader.segments()[0].first else 0
    except NoJournalError:
        yield ok("records", f"{directory}: none yet")
        return
    except (CorruptionError, OSError) as error:
        yield problem("records", f"{error}", "keep a copy, and mount with a new journal")
        return
    running = subject.status is not None
    yield ok("records", f"{directory}: {head}, {'a mount writes' if running else 'not mounted'}")
    yield ok("times", f"change times of the source are told apart after {granularity} ns")
    ahead = (last_ns - time.time_ns()) / 1e9
    if ahead > 1:
        what = f"the last record is {ahead:.0f} s in the future: the clock was set back"
        yield warning("clock steps", what, "let the clock be slewed; lags will be wrong till then")
    else:
        yield ok("clock steps", "the last record is not of the future")
    status = subject.status
    if status is not None and status.degraded is not None:
        what = f"changes go on without records: {status.degraded}"
        yield problem("degraded", what, "mend the journal's disk: the rest follows by itself")
    socket = os.path.join(directory, CONTROL_NAME)
    if running and os.stat(socket).st_mode & 0o777 != 0o600:
        yield problem("control", f"{socket}: not for root alone", f"chmod 600 {socket}")


def _options(subject: Subject, volume: Volume) -> Iterator[Finding]:
    try:
        if subject.status is None:
            checks.check_places(volume)
        yield ok("options", f"source, mountpoint and journal of {volume.source} fit together")
    except MirrorfsError as error:
        yield problem("options", str(error), "mount is refused so: name other directories")
