"""Which record each operation makes, as one table, and what the record says."""

from __future__ import annotations

import errno
import stat

import pytest

from mirrorfs import capture
from mirrorfs.capture import RENAME_EXCHANGE, Captured, Subject
from mirrorfs.errors import MirrorfsError, UsageError, errno_of
from mirrorfs.journal.record import SETTLED, Change, Kind, ObjectId, Place, Who

FILE, DIRECTORY, OTHER = ObjectId(b"file"), ObjectId(b"directory"), ObjectId(b"other")
HERE, THERE = Place(DIRECTORY, b"here"), Place(DIRECTORY, b"there")
WHO = Who(1, 2, "job")


def _subject(mode: int = stat.S_IFREG, *, links: int = 1, dirty: bool = False) -> Subject:
    return Subject(FILE, mode, links, 99, dirty)


CLEAN = _subject()
DIRTY = _subject(dirty=True)
NAMELESS = _subject(links=0)
DIR = _subject(stat.S_IFDIR | 0o755, links=2)


def _change(mode: int = stat.S_IFREG, links: int = 1, **more: object) -> Change:
    fields: dict[str, object] = {"places": (HERE,), "path": b"d/here", "ctime_ns": 99, **more}
    return Change(object=FILE, mode=mode, links=links, **fields)  # type: ignore[arg-type]


CASES: list[tuple[str, Captured | None, tuple[Kind, Change, int] | None]] = [
    *(
        (kind.label, capture.made(_subject(mode), HERE, b"d/here"), (kind, _change(mode), SETTLED))
        for kind, mode in (
            (Kind.CREATE, stat.S_IFREG | 0o644),
            (Kind.MKDIR, stat.S_IFDIR | 0o2755),
            (Kind.SYMLINK, stat.S_IFLNK | 0o777),
            (Kind.MKNOD, stat.S_IFIFO),
            (Kind.MKNOD, stat.S_IFSOCK),
            (Kind.MKNOD, stat.S_IFCHR),
            (Kind.MKNOD, stat.S_IFBLK),
        )
    ),
    ("being made", capture.made(DIRTY, HERE, b"d/here"), (Kind.CREATE, _change(), 0)),
    (
        "link with no other name known",
        capture.linked(CLEAN, HERE, b"d/here", None),
        (Kind.LINK, _change(), SETTLED),
    ),
    (
        "link",
        capture.linked(CLEAN, HERE, b"d/here", THERE),
        (Kind.LINK, _change(places=(HERE, THERE)), SETTLED),
    ),
    (
        "unlink of one of several names",
        capture.removed(CLEAN, HERE, b"d/here"),
        (Kind.UNLINK, _change(), SETTLED),
    ),
    (
        "unlink of the last name",
        capture.removed(NAMELESS, HERE, b"d/here"),
        (Kind.UNLINK, _change(links=0, ctime_ns=0), SETTLED),
    ),
    (
        "rmdir",
        capture.removed(DIR._replace(links=0), HERE, None),
        (Kind.RMDIR, _change(DIR.mode, 0, ctime_ns=0, path=None), SETTLED),
    ),
    (
        "rename",
        capture.renamed(CLEAN, (THERE, HERE), b"d/here", 0, None),
        (Kind.RENAME, _change(places=(THERE, HERE)), SETTLED),
    ),
    (
        "rename over another",
        capture.renamed(DIRTY, (THERE, HERE), b"d/here", 0, Subject(OTHER, 0, 3, 0, False)),
        (Kind.RENAME, _change(places=(THERE, HERE), other=OTHER, other_links=3), 0),
    ),
    (
        "exchange",
        capture.renamed(
            CLEAN, (THERE, HERE), None, RENAME_EXCHANGE, Subject(OTHER, 0, 1, 0, False)
        ),
        (
            Kind.RENAME,
            _change(places=(THERE, HERE), other=OTHER, other_links=1, rename_flags=2, path=None),
            SETTLED,
        ),
    ),
    (
        "rename between two names of one object",
        capture.renamed(CLEAN, (THERE, HERE), b"d/here", 0, CLEAN),
        None,
    ),
    (
        "write",
        capture.written(CLEAN, HERE, b"d/here", 7, 8, WHO),
        (Kind.WRITE, _change(size=7, mtime_ns=8, who=WHO), SETTLED),
    ),
    (
        "write by no known name",
        capture.written(CLEAN, None, None, 7, 8, None),
        (Kind.WRITE, _change(places=(), path=None, size=7, mtime_ns=8), SETTLED),
    ),
    ("write without a name left", capture.written(NAMELESS, None, None, 7, 8, WHO), None),
    (
        "attributes",
        capture.attributes(DIRTY, HERE, b"d/here"),
        (Kind.ATTRIBUTES, _change(), 0),
    ),
    (
        "attributes of the root",
        capture.attributes(DIR, None, b""),
        (Kind.ATTRIBUTES, _change(DIR.mode, 2, places=(), path=b""), SETTLED),
    ),
    ("attributes without a name left", capture.attributes(NAMELESS, None, None), None),
    (
        "xattr",
        capture.xattr(CLEAN, HERE, b"d/here", b"user.a"),
        (Kind.XATTR, _change(xattr=b"user.a"), SETTLED),
    ),
    (
        "xattr by no known name",
        capture.xattr(CLEAN, None, None, b"user.a"),
        (Kind.XATTR, _change(places=(), path=None, xattr=b"user.a"), SETTLED),
    ),
    ("xattr without a name left", capture.xattr(NAMELESS, None, None, b"user.a"), None),
]


@pytest.mark.parametrize(
    ("captured", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_captured(captured: Captured | None, expected: Captured | None) -> None:
    assert captured == expected


@pytest.mark.parametrize(
    ("name", "reserved"),
    [
        (b"user.mirrorfs.state", True),
        (b"trusted.mirrorfs.mark", True),
        (b"user.mirrorfs", False),
        (b"user.a", False),
        (b"security.mirrorfs.x", False),
    ],
)
def test_reserved_attributes(name: bytes, reserved: bool) -> None:
    assert capture.reserved_xattr(name) is reserved


def test_errors_carry_what_ends_a_command_or_a_request() -> None:
    assert (UsageError("x").exit_code, MirrorfsError("x").exit_code) == (64, 70)
    assert errno_of(OSError(errno.ENOSPC, "full")) == errno.ENOSPC
    assert errno_of(OSError("no number")) == errno.EIO
