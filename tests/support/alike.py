"""The same operations on two directories, step by step: they must answer alike.

`Alike` draws operations by a seed, makes each of them in both directories by the same user with the
same umask, and compares what came of it: results, errnos, and what the names touched are
afterwards. One process, so that everything is determined.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Final, NamedTuple, TypeAlias

Answer: TypeAlias = object
Operation: TypeAlias = Callable[[bytes], Answer]

_AT_FDCWD: Final = -100
_OLD_NS: Final = 1_000_000_000_000_000_000
_libc = ctypes.CDLL(None, use_errno=True)
_NAMES: Final = (
    *(b"a", b"b", b"c", b"d", b"e", b"f", b"\xff\xfe", b"L" * 255, b"T" * 256, b"a/", b"b/."),
    *(b"a/x", b"b/x", b"b/y", b"c/x", b"c/y", b"d/x", b"e/..", b"", b".", b"d/x/z", b"e/q"),
)
_MODES: Final = (0o644, 0o600, 0o755, 0o777, 0o000, 0o4755, 0o2755, 0o1777, 0o6711, 0o444, 0o111)


class User(NamedTuple):
    """Who does it."""

    uid: int
    gid: int
    groups: tuple[int, ...]


ROOT: Final = User(0, 0, ())
USERS: Final = (ROOT, ROOT, User(1005, 1005, ()), User(1006, 1006, (1005, 900)))


@contextlib.contextmanager
def acting(user: User, umask: int) -> Iterator[None]:
    """As that user."""
    os.setgroups(user.groups)
    os.setegid(user.gid)
    os.seteuid(user.uid)
    before = os.umask(umask)
    try:
        yield
    finally:
        os.umask(before)
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(())


class Alike:
    """Operations on two directories.

    Attributes:
        unlike: where the answers differ, in words.  done: how many were made.
        succeeded: how many of them were not refused.
    """

    def __init__(self, one: bytes, other: bytes, seed: int) -> None:
        self.unlike: list[str] = []
        self.done = 0
        self.succeeded = 0
        self._roots = (one, other)
        self._random = Random(seed)
        self._open: list[tuple[int, int]] = []

    def close(self) -> None:
        """Close what is open."""
        for pair in self._open:
            for descriptor in pair:
                os.close(descriptor)
        self._open.clear()

    def step(self) -> None:
        """One operation in both."""
        draw = self._random
        user, umask = draw.choice(USERS), draw.choice((0o022, 0, 0o077, 0o027))
        names = [draw.choice(_NAMES) for _ in range(2)]
        if draw.random() < 0.15:
            self._on_open(user)
            return
        what, operation = self._draw(*names)
        said = f"{self.done} {what} {names} uid {user.uid} umask {umask:o}"
        with acting(user, umask):
            answers = [_try(lambda root=root: operation(root)) for root in self._roots]  # type: ignore[misc]
        self._compare(said, answers)
        after = [[_state(root, name) for name in self._around(names)] for root in self._roots]
        self._compare(f"after {said}", after)
        for root in self._roots:
            for name in self._around(names):
                _age(root, name)

    def _compare(self, said: str, answers: Sequence[Answer]) -> None:
        self.done += 1
        self.succeeded += not (isinstance(answers[0], str) and answers[0].startswith("E"))
        if answers[0] != answers[1]:
            self.unlike.append(f"{said}: {answers[0]} | {answers[1]}")

    def _around(self, names: list[bytes]) -> list[bytes]:
        """Names, and the directories they are in."""
        return sorted(
            {part for name in names for part in (name, os.path.dirname(name), b"a", b"b")}
        )

    def _draw(self, name: bytes, other: bytes) -> tuple[str, Operation]:
        draw = self._random
        mode = draw.choice(_MODES)
        made: list[tuple[str, Operation]] = [
            *((f"mkdir {mode:o}", lambda root: os.mkdir(_at(root, name), mode)),) * 3,
            ("rmdir", lambda root: os.rmdir(_at(root, name))),
            *(("unlink", lambda root: os.unlink(_at(root, name))),) * 2,
            *(("rename", lambda root: os.replace(_at(root, name), _at(root, other))),) * 3,
            *self._renames(name, other),
            *(("link", lambda root: _link(_at(root, name), _at(root, other))),) * 2,
            ("symlink", lambda root: os.symlink(other, _at(root, name))),
            ("readlink", lambda root: os.readlink(_at(root, name))),
            (f"mkfifo {mode:o}", lambda root: os.mkfifo(_at(root, name), mode)),
            ("mknod", lambda root: os.mknod(_at(root, name), mode | stat.S_IFREG)),
            ("device", lambda root: os.mknod(_at(root, name), mode | stat.S_IFCHR, 259)),
            (f"chmod {mode:o}", lambda root: os.chmod(_at(root, name), mode)),
            (f"chmod {mode:o}", lambda root: os.chmod(_at(root, name), mode)),
            ("list", lambda root: sorted(os.listdir(_at(root, name)))),
            ("read", lambda root: _read(_at(root, name))),
            *((self._chown(name)), *self._times(name), *self._attributes(name)),
            *(self._opening(name, mode) for _ in range(6)),
            *((self._truncate(name)), self._access(name)),
        ]
        return draw.choice(made)

    def _renames(self, name: bytes, other: bytes) -> list[tuple[str, Operation]]:
        def rename(root: bytes, flags: int) -> None:
            if _libc.renameat2(_AT_FDCWD, _at(root, name), _AT_FDCWD, _at(root, other), flags):
                raise OSError(ctypes.get_errno(), "")

        return [
            ("exchange", lambda root: rename(root, 2)),
            ("rename if free", lambda root: rename(root, 1)),
            ("rename, both", lambda root: rename(root, 3)),
        ]

    def _chown(self, name: bytes) -> tuple[str, Operation]:
        uid = self._random.choice((-1, 0, 1005, 1006))
        gid = self._random.choice((-1, 0, 900, 1005))
        follow = self._random.random() < 0.5
        return (
            f"chown {uid} {gid} {follow}",
            lambda root: os.chown(_at(root, name), uid, gid, follow_symlinks=follow),
        )

    def _times(self, name: bytes) -> list[tuple[str, Operation]]:
        ns = self._random.randrange(-(10**17), 8 * 10**18)
        return [
            ("utime", lambda root: os.utime(_at(root, name), ns=(ns, ns + 1))),
            ("touch", lambda root: os.utime(_at(root, name), follow_symlinks=False)),
        ]

    def _attributes(self, name: bytes) -> list[tuple[str, Operation]]:
        key = self._random.choice(("user.a", "trusted.b", "user." + "n" * 251, "odd.c"))
        value = self._random.randbytes(self._random.choice((0, 5, 3000)))
        how = self._random.choice((0, os.XATTR_CREATE, os.XATTR_REPLACE))
        follow = self._random.random() < 0.7
        return [
            (
                f"setxattr {key} {how}",
                lambda root: os.setxattr(_at(root, name), key, value, how, follow_symlinks=follow),
            ),
            (f"getxattr {key}", lambda root: os.getxattr(_at(root, name), key)),
            (f"removexattr {key}", lambda root: os.removexattr(_at(root, name), key)),
            ("listxattr", lambda root: sorted(os.listxattr(_at(root, name)))),
        ]

    def _truncate(self, name: bytes) -> tuple[str, Operation]:
        size = self._random.choice((0, 3, 5000, -1))
        return f"truncate {size}", lambda root: os.truncate(_at(root, name), size)

    def _access(self, name: bytes) -> tuple[str, Operation]:
        how = self._random.randrange(8)
        return f"access {how}", lambda root: os.access(_at(root, name), how, effective_ids=True)

    def _opening(self, name: bytes, mode: int) -> tuple[str, Operation]:
        """Opened, used, and mostly closed."""
        draw = self._random
        flags = draw.choice((os.O_RDONLY, os.O_WRONLY, os.O_RDWR)) | os.O_NONBLOCK
        for flag in (os.O_CREAT, os.O_CREAT, os.O_TRUNC, os.O_APPEND, os.O_EXCL, os.O_NOFOLLOW):
            flags |= draw.choice((0, flag))
        flags |= draw.choice((0,) * 6 + (os.O_DIRECTORY, os.O_PATH, os.O_DSYNC))
        data, keep = draw.randbytes(draw.choice((0, 7, 5000))), draw.random() < 0.2
        opened: list[int] = []

        def use(root: bytes) -> Answer:
            descriptor = os.open(_at(root, name), flags, mode)
            answers = [_try(lambda: os.write(descriptor, data)), _fstat(descriptor)]
            answers.append(_try(lambda: os.pread(descriptor, 100, 2)))
            opened.append(descriptor)
            if not keep or len(self._open) > 8:
                os.close(opened.pop())
            elif len(opened) == 2:
                self._open.append((opened[0], opened[1]))
            return answers

        return f"open {flags:o} {mode:o} {len(data)}", use

    def _on_open(self, user: User) -> None:
        """Something with what is open still, whatever became of its name."""
        if not self._open:
            return
        draw = self._random
        at = draw.randrange(len(self._open))
        number, size, mode = draw.randrange(8), draw.choice((0, 9, 6000)), draw.choice(_MODES)
        made: list[tuple[str, Callable[[int], Answer]]] = [
            ("pwrite", lambda fd: os.pwrite(fd, b"later", size)),
            ("write", lambda fd: os.write(fd, b"on")),
            ("pread", lambda fd: os.pread(fd, 50, size)),
            ("ftruncate", lambda fd: os.ftruncate(fd, size)),
            ("fchmod", lambda fd: os.fchmod(fd, mode)),
            ("fchown", lambda fd: os.fchown(fd, 1005, 900)),
            ("fsync", lambda fd: os.fsync(fd)),
            ("futimens", lambda fd: os.utime(fd, ns=(4, 5))),
        ]
        what, call = made[number]
        with acting(user, 0):
            answers = [_try(lambda fd=fd: call(fd)) for fd in self._open[at]]  # type: ignore[misc]
        self._compare(f"{self.done} {what} on open, uid {user.uid}", answers)
        self._compare(f"{self.done} after {what} on open", [_fstat(fd) for fd in self._open[at]])
        if draw.random() < 0.3:
            for descriptor in self._open.pop(at):
                os.close(descriptor)


def _at(root: bytes, name: bytes) -> bytes:
    return root + b"/" + name


def _link(old: bytes, new: bytes) -> None:
    os.link(old, new, follow_symlinks=False)


def _read(path: bytes) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return os.read(descriptor, 10000)
    finally:
        os.close(descriptor)


def _try(call: Callable[[], Answer]) -> Answer:
    try:
        return call()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error.errno))


def _fstat(descriptor: int) -> Answer:
    return _seen(os.fstat(descriptor))


def _state(root: bytes, name: bytes) -> Answer:
    """What is there, as root sees it."""
    return _try(lambda: _seen(os.lstat(_at(root, name))))


def _seen(status: os.stat_result) -> Answer:
    """What must be alike: not the numbers and times that a file system gives by itself, but that
    the time of change moved."""
    moved = status.st_mtime_ns != _OLD_NS
    regular = stat.S_ISREG(status.st_mode)
    return (
        oct(status.st_mode),
        status.st_nlink,
        (status.st_uid, status.st_gid),
        status.st_size if regular or stat.S_ISLNK(status.st_mode) else None,
        status.st_rdev,
        status.st_blocks if regular else None,
        moved and not stat.S_ISFIFO(status.st_mode),  # of a fifo the kernel keeps none for FUSE
    )


def _age(root: bytes, name: bytes) -> None:
    """So that a time that moves can be told from one that does not."""
    with contextlib.suppress(OSError):
        os.utime(_at(root, name), ns=(_OLD_NS, _OLD_NS), follow_symlinks=False)
