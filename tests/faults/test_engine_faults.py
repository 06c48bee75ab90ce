"""The N-th look at or change of the source fails, N = 1, 2, ... until the request passes.

Whatever fails, and wherever: either the records tell all that changed, or the journal says that it
does not know. And it says so only then: a request that was plainly refused costs no comparison.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, TypeAlias

import pyfuse3
import pytest
import trio

from mirrorfs import engine
from mirrorfs.backing_tree import BackingTree
from mirrorfs.degraded import Directories, EnduringJournal
from mirrorfs.journal.reader import JournalReader
from mirrorfs.journal.record import Kind, Reconcile
from mirrorfs.journal.recovery import open_journal
from mirrorfs.operations import EngineOptions, Operations
from mirrorfs.volume import VolumeDirectory
from tests.support.records import VOLUME
from tests.support.told import Standing, Told

pytestmark = pytest.mark.fuse

How: TypeAlias = Literal["refused", "answer lost", "bug"]
OPENING = ("create", "open_file", "open_directory", "find", "reopen")
CHANGES = (
    *("create", "make_directory", "make_special", "make_symlink", "link", "rename", "remove"),
    *("remove_directory", "set_owner", "set_mode", "set_times", "truncate", "truncate_open"),
    *("set_xattr", "remove_xattr", "open_file", "write"),
)
JOB: Any = SimpleNamespace(pid=os.getpid(), uid=1, gid=1, umask=0o022)


class NthFails:
    """A source tree whose N-th call fails: refused, or done and its answer lost, or by a bug."""

    def __init__(self, tree: BackingTree, nth: int, how: How) -> None:
        self.calls = 0
        self.failed = ""
        self._tree = tree
        self._nth = nth
        self._how = how

    @property
    def reached(self) -> bool:
        """The N-th call took place."""
        return self.calls >= self._nth

    def __getattr__(self, name: str) -> object:
        real = getattr(self._tree, name)
        if not callable(real) or name == "close_descriptor":
            return real

        def call(*arguments: object) -> object:
            self.calls += 1
            if self.calls != self._nth:
                return real(*arguments)
            self.failed = name
            if self._how == "refused":
                raise OSError(errno.EACCES, os.strerror(errno.EACCES))
            found = real(*arguments)
            if name in OPENING:
                os.close(found)
            if self._how == "bug":
                raise KeyError(name)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        return call


class Request:
    """What a job asks for, in a tree of f = g (two names), h, directories d and e, symlink s."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    async def inode(self, name: str, directory: int = 1) -> int:
        entry = await self._operations.lookup(directory, name.encode(), JOB)
        return entry.st_ino

    async def set(self, name: str, **values: int) -> None:
        fields = ("uid", "gid", "mode", "atime", "mtime", "size")
        wanted: Any = SimpleNamespace(**{f"update_{field}": field in values for field in fields})
        attributes = pyfuse3.EntryAttributes()
        for field, value in values.items():
            setattr(attributes, f"st_{field}" + "_ns" * field.endswith("time"), value)
        inode = await self.inode(name)
        await self._operations.setattr(inode, attributes, wanted, None, JOB)

    async def make_file(self) -> None:
        info, _ = await self._operations.create(1, b"new", 0o644, os.O_WRONLY, JOB)
        await self._write(info.fh)

    async def rewrite(self) -> None:
        flags = os.O_WRONLY | os.O_TRUNC
        info = await self._operations.open(await self.inode("h"), flags, JOB)
        await self._write(info.fh)

    async def empty(self) -> None:
        info = await self._operations.open(await self.inode("h"), os.O_RDONLY | os.O_TRUNC, JOB)
        await self._operations.release(info.fh)

    async def _write(self, handle: int) -> None:
        steps: tuple[Callable[[], Awaitable[object]], ...] = (
            lambda: self._operations.write(handle, 0, b"content"),
            lambda: self._operations.flush(handle),
            lambda: self._operations.write(handle, 7, b", more"),
            lambda: self._operations.fsync(handle, True),
            lambda: self._operations.write(handle, 13, b", later"),
            lambda: self._operations.release(handle),
        )
        for step in steps:  # a job goes on after an error, its close comes anyhow
            with contextlib.suppress(pyfuse3.FUSEError):
                await step()

    async def rename(self, old: str, new: str, flags: int = 0) -> None:
        await self._operations.rename(1, old.encode(), 1, new.encode(), flags, JOB)

    async def exchange_and_use(self) -> None:
        with contextlib.suppress(pyfuse3.FUSEError):
            await self.rename("h", "d", 2)
        await self.set("h", mode=stat.S_IFDIR | 0o700)
        await self._operations.unlink(1, b"d", JOB)

    async def replace_and_use(self) -> None:
        with contextlib.suppress(pyfuse3.FUSEError):
            await self.rename("h", "f")
        await self.set("f", mode=stat.S_IFREG | 0o600)
        await self.rename("f", "h")


Action: TypeAlias = Callable[[Operations, Request], Awaitable[object]]


async def _link(operations: Operations, request: Request) -> None:
    await operations.link(await request.inode("h"), 1, b"new", JOB)


async def _set_acl(operations: Operations, request: Request) -> None:
    entries = b"\x02\0\0\0" + b"".join(
        bytes((tag, 0, 6, 0)) + b"\xff\xff\xff\xff" for tag in (1, 4, 32)
    )
    await operations.setxattr(await request.inode("h"), b"system.posix_acl_access", entries, JOB)


async def _remove_xattr(operations: Operations, request: Request) -> None:
    await operations.removexattr(await request.inode("h"), b"user.a", JOB)


ACTIONS: dict[str, Action] = {
    "create": lambda _, request: request.make_file(),
    "rewrite": lambda _, request: request.rewrite(),
    "empty": lambda _, request: request.empty(),
    "mkdir": lambda operations, _: operations.mkdir(1, b"new", 0o755, JOB),
    "mknod": lambda operations, _: operations.mknod(1, b"new", stat.S_IFIFO, 0, JOB),
    "symlink": lambda operations, _: operations.symlink(1, b"new", b"h", JOB),
    "link": _link,
    "unlink": lambda operations, _: operations.unlink(1, b"f", JOB),
    "rmdir": lambda operations, _: operations.rmdir(1, b"d", JOB),
    "rename": lambda _, request: request.rename("d", "new"),
    "rename over": lambda _, request: request.replace_and_use(),
    "rename over a directory": lambda _, request: request.rename("e", "d"),
    "exchange": lambda _, request: request.exchange_and_use(),
    "truncate": lambda _, request: request.set("h", size=1),
    "truncate and more": lambda _, request: request.set("f", size=1, mode=0o600, mtime=5),
    "attributes": lambda _, request: request.set("h", uid=5, gid=6, mode=0o640, atime=1),
    "times of a symlink": lambda _, request: request.set("s", atime=1, mtime=2),
    "xattr": _set_acl,
    "remove xattr": _remove_xattr,
}


def prepare(source: Path) -> None:
    for name in ("d", "e"):
        (source / name).mkdir(parents=True)
    source.chmod(0o777)
    for name in ("f", "h"):
        (source / name).write_text("before")
        os.chown(source / name, 1, 1)
    (source / "h").chmod(0o6755)
    os.setxattr(source / "h", "user.a", b"1")
    os.link(source / "f", source / "g")
    (source / "s").symlink_to("h")


def attempt(base: Path, action: Action, nth: int, how: How) -> bool:
    """One run of it on a new tree; True if nothing failed, there being less than N calls."""
    source = base / f"source-{nth}"
    prepare(source)
    tree = BackingTree.open(bytes(source), 1)
    volume = VolumeDirectory(tree.root, str(source))
    opened = open_journal(str(base / f"journal-{nth}"), VOLUME, tree.identity(), "node17")
    where = str(base / f"journal-{nth}")
    journal = EnduringJournal(opened.writer, volume, tree.root_id, directory=where)
    doubts: list[str] = []
    doubt = journal.uncertain

    def uncertain_of(reason: str, directories: Directories | None) -> None:
        doubts.append(reason)
        doubt(reason, directories)

    journal.uncertain = uncertain_of  # type: ignore[method-assign]
    failing: Any = NthFails(tree, nth, how)
    told = Told(Standing.of(tree))
    options = EngineOptions(job_variables=())

    async def run() -> Operations:
        operations = Operations(failing, journal, options)
        with contextlib.suppress(pyfuse3.FUSEError):
            await action(operations, Request(operations))
        return operations

    trio.run(run).finish()
    uncertain = bool(doubts)
    assert journal.degraded is None
    journal.close("node17")
    with JournalReader(str(base / f"journal-{nth}")) as reader:
        records = [record for batch in reader.read() for record in batch]
    assert records[-1].kind is Kind.UNMOUNT
    bodies = [record.body for record in records]
    compared = {body.directory for body in bodies if isinstance(body, Reconcile)}
    assert bool(compared) == uncertain
    assert not any(body.whole for body in bodies if isinstance(body, Reconcile))
    told.hear(record for record in records[:-1] if record.kind is not Kind.RECONCILE)
    differences = told.differences(Standing.of(tree), compared)
    assert differences == [], (nth, failing.calls)
    if uncertain and how == "refused":
        assert failing.failed not in CHANGES
    volume.close()
    tree.close()
    return not failing.reached


@pytest.mark.parametrize("how", ["refused", "answer lost", "bug"])
@pytest.mark.parametrize("name", ACTIONS)
def test_the_nth_failure(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
    how: How,
) -> None:
    monkeypatch.setattr(engine, "prepare_thread", lambda: None)
    nth = 1
    while not attempt(tmp_path, ACTIONS[name], nth, how):
        nth += 1
    assert nth > 3
    caplog.clear()  # it warned of what it must warn of
