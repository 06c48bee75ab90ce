"""Exact comparison of two real trees: everything a mirror promises to keep.

Content, type, mode, owner, nanosecond modification times of files and directories, symlink targets,
device numbers, hard-link groups, extended attributes and ACLs. Not holes, not access times. The
reserved directory at a root, and mirrorfs's own attributes, are no part of a tree.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TypeAlias

RESERVED = b".mirrorfs"
ROOT = b"."

ALIASES = frozenset({"trusted.SGI_ACL_FILE", "trusted.SGI_ACL_DEFAULT"})
"""Under these names XFS shows ACLs a second time."""


@dataclass(frozen=True, slots=True)
class Object:
    """One name of a tree, as it is compared. `content`: SHA-256 of a file, target of a symlink.
    `names`: all names of the object, of one that has several."""

    type: str
    mode: str
    uid: int
    gid: int
    size: int | None
    mtime_ns: int
    rdev: tuple[int, int] | None
    content: str | bytes | None
    names: tuple[bytes, ...]
    xattrs: tuple[tuple[bytes, bytes], ...]


Tree: TypeAlias = dict[bytes, Object]

_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}


def snapshot(path: str | bytes | os.PathLike[str], *, sockets: bool = True) -> Tree:
    """Everything at and below `path`, by relative path; the root itself is `.`. `sockets`: those,
    too; sites have none."""
    root = os.fsencode(path)
    found = {
        name: status
        for name, status in _walk(root, b"")
        if sockets or not stat.S_ISSOCK(status.st_mode)
    }
    groups: dict[tuple[int, int], list[bytes]] = defaultdict(list)
    for name, status in found.items():
        if not stat.S_ISDIR(status.st_mode):
            groups[status.st_dev, status.st_ino].append(name)
    return {
        name: _object(os.path.join(root, name), status, groups[status.st_dev, status.st_ino])
        for name, status in sorted(found.items())
    }


def differences(a: Tree, b: Tree, limit: int = 100) -> list[str]:
    """What is not the same, one readable line each; empty for equal trees."""
    lines: list[str] = []
    for name in sorted(a.keys() | b.keys()):
        one, other = a.get(name), b.get(name)
        if one is None or other is None:
            where, there = ("second", other) if one is None else ("first", one)
            assert there is not None
            lines.append(f"{os.fsdecode(name)!r}: {there.type} only in the {where}")
        elif one.type != other.type:
            lines.append(f"{os.fsdecode(name)!r}: {one.type} | {other.type}")
        else:
            lines += [
                f"{os.fsdecode(name)!r}: {field}: {values[0]} | {values[1]}"
                for field, values in _fields(one, other)
            ]
    if len(lines) > limit:
        lines[limit:] = [f"and {len(lines) - limit} more"]
    return lines


def _fields(one: Object, other: Object) -> Iterator[tuple[str, tuple[object, object]]]:
    for field in fields(Object):
        values = getattr(one, field.name), getattr(other, field.name)
        if field.name == "xattrs":
            values = _unlike(dict(values[0]), dict(values[1]))
        if values[0] != values[1]:
            yield field.name, values


def _unlike(
    one: dict[bytes, bytes], other: dict[bytes, bytes]
) -> tuple[dict[bytes, bytes], dict[bytes, bytes]]:
    """Only what differs."""
    same = one.items() & other.items()
    return dict(sorted(one.items() - same)), dict(sorted(other.items() - same))


def _walk(root: bytes, below: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
    path = os.path.join(root, below) if below else root
    yield below or ROOT, os.lstat(path)
    with os.scandir(path) as entries:
        for entry in entries:
            if not below and entry.name == RESERVED:
                continue
            name = os.path.join(below, entry.name)
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(root, name)
            else:
                yield name, entry.stat(follow_symlinks=False)


def _object(path: bytes, status: os.stat_result, names: list[bytes]) -> Object:
    kind = stat.S_IFMT(status.st_mode)
    content: str | bytes | None = None
    if kind == stat.S_IFREG:
        content = _digest(path)
    elif kind == stat.S_IFLNK:
        content = os.readlink(path)
    device = kind in (stat.S_IFCHR, stat.S_IFBLK)
    return Object(
        type=_TYPES[kind],
        mode=f"{stat.S_IMODE(status.st_mode):04o}",
        uid=status.st_uid,
        gid=status.st_gid,
        size=status.st_size if kind in (stat.S_IFREG, stat.S_IFLNK) else None,
        mtime_ns=status.st_mtime_ns,
        rdev=(os.major(status.st_rdev), os.minor(status.st_rdev)) if device else None,
        content=content,
        names=tuple(sorted(names)) if len(names) > 1 else (),
        xattrs=tuple(sorted(_xattrs(path))),
    )


def _digest(path: bytes) -> str:
    flags = os.O_RDONLY | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags | os.O_NOATIME)
    except PermissionError:
        descriptor = os.open(path, flags)
    with open(descriptor, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _xattrs(path: bytes) -> Iterator[tuple[bytes, bytes]]:
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        names = []
    for name in names:
        if ".mirrorfs." not in name and name not in ALIASES:
            yield os.fsencode(name), os.getxattr(path, name, follow_symlinks=False)
