"""Compare what stands at one place of two trees: everything a mirror promises to keep.

Reads only, by descriptors, symlinks never followed and access times left alone. What a difference
means is decided elsewhere.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from replicator import system_calls
from replicator.patterns import Wanted
from replicator.stores.base import RESERVED
from replicator.wording import escaped
from replicator.xattrs import path_of, read_xattrs

_OBJECT: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOATIME | os.O_CLOEXEC
_CONTENT: Final = os.O_RDONLY | os.O_NOATIME | os.O_CLOEXEC
_CHUNK_BYTES: Final = 1 << 20

Path: TypeAlias = tuple[bytes, ...]
"""Names from the root down; empty: the root."""

Inode: TypeAlias = tuple[int, int]

TYPES: Final = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}


class Tree:
    """One of the trees, by a descriptor of its root, which stays the caller's."""

    def __init__(self, root_fd: int) -> None:
        self.root_fd = root_fd
        self._mount_id = _mount_id(root_fd)

    @contextlib.contextmanager
    def open(self, path: Path) -> Iterator[int]:
        """The object there, as an O_PATH descriptor; however deep, two are held on the way.

        OSError; EXDEV: another file system is mounted there.
        """
        fd = self._checked(os.open(b".", _OBJECT, dir_fd=self.root_fd))
        try:
            for name in path:
                below = self._checked(os.open(name, _OBJECT, dir_fd=fd))
                os.close(fd)
                fd = below
            yield fd
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def child(self, directory: int, name: bytes) -> Iterator[int]:
        """The same for a name in a directory held open."""
        fd = self._checked(os.open(name, _OBJECT, dir_fd=directory))
        try:
            yield fd
        finally:
            os.close(fd)

    def list(self, directory: int) -> list[bytes]:
        """The names in a directory, without the reserved one at the root. OSError."""
        listing = os.open(b".", _DIRECTORY, dir_fd=directory)
        try:
            names = [os.fsencode(name) for name in os.listdir(listing)]
            if RESERVED in names and os.path.samestat(os.fstat(listing), os.fstat(self.root_fd)):
                names.remove(RESERVED)
        finally:
            os.close(listing)
        return names

    def _checked(self, fd: int) -> int:
        try:
            if _mount_id(fd) != self._mount_id:
                raise OSError(errno.EXDEV, "another file system is mounted there")
        except BaseException:
            os.close(fd)
            raise
        return fd


@dataclass(slots=True)
class Links:
    """Which objects with several names stand for each other, and the first name of each pair."""

    to_site: dict[Inode, tuple[Inode, Path]] = field(default_factory=dict)
    to_source: dict[Inode, tuple[Inode, Path]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Seen:
    """What one look at a place showed.

    Attributes:
        difference: in words; None if there is none.
        versions: of the objects on both sides: equal means that neither was touched between two
            looks.
        kinds: S_IFMT on both sides; None where nothing stands.
        inodes: device and inode number on both sides.
        changed_ns: change time at the source; 0 if nothing stands there.
    """

    difference: str | None
    versions: tuple[tuple[int, ...], tuple[int, ...]]
    kinds: tuple[int | None, int | None]
    inodes: tuple[Inode | None, Inode | None]
    changed_ns: int


@dataclass(frozen=True, slots=True)
class _Side:
    """An object of one side, held open; `status` None: nothing stands there."""

    fd: int
    status: os.stat_result | None

    @property
    def version(self) -> tuple[int, ...]:
        found = self.status
        if found is None:
            return ()
        return (found.st_dev, found.st_ino, found.st_ctime_ns, found.st_mtime_ns, found.st_size)

    @property
    def kind(self) -> int | None:
        return None if self.status is None else stat.S_IFMT(self.status.st_mode)

    @property
    def inode(self) -> Inode | None:
        return None if self.status is None else (self.status.st_dev, self.status.st_ino)


class Comparer:
    """Compares two trees, place by place. Remembers the objects with several names."""

    def __init__(self, source: Tree, site: Tree, wanted: Wanted | None = None) -> None:
        """`wanted`: what the site is to have; None: all."""
        self.source = source
        self.site = site
        self._wanted = wanted or Wanted()
        self._links = Links()
        self._buffers = bytearray(_CHUNK_BYTES), bytearray(_CHUNK_BYTES)

    def look(self, path: Path, directories: tuple[int, int] | None = None) -> Seen:
        """Compare what stands there now. An error of either side is a difference.

        `directories`: the two that hold the place, if they are open; else it is looked for from
        the roots.
        """
        inside = directories or (None, None)
        with contextlib.ExitStack() as opened:
            try:
                here = _side(self.source, path, inside[0], opened)
            except OSError as error:
                return _unreadable("the source", error)
            if here.status is not None and path and not self._is_wanted(path, here):
                here = _Side(-1, None)
            if here.kind == stat.S_IFSOCK:
                here = _Side(-1, None)  # they are skipped: nothing is to stand there
            try:
                there = _side(self.site, path, inside[1], opened)
            except OSError as error:
                return _unreadable("the site", error, here)
            try:
                difference = self._difference(path, here, there)
            except OSError as error:
                difference = f"cannot be compared: {error.strerror}"
            return _seen(difference, here, there)

    def _is_wanted(self, path: Path, here: _Side) -> bool:
        return self._wanted(b"/".join(path), directory=here.kind == stat.S_IFDIR)

    def _difference(self, path: Path, here: _Side, there: _Side) -> str | None:
        one, other = here.status, there.status
        if one is None and other is None:
            return None
        if one is None:
            return f"only at the site: {_article(there.kind)}"
        if other is None:
            return f"missing at the site: {_article(here.kind)}"
        if here.kind != there.kind:
            return f"{_article(here.kind)}, {_article(there.kind)} at the site"
        found = [
            *_attributes(one, other),
            *_xattrs(here.fd, there.fd),
            *(self._links_differ(path, one, other) if here.kind != stat.S_IFDIR else ()),
            *_content(here, one, there, other, self._buffers),
        ]
        return "; ".join(found) or None

    def _links_differ(
        self, path: Path, one: os.stat_result, other: os.stat_result
    ) -> Iterator[str]:
        """The names of one object must be the names of one object at the site, and of no other."""
        if one.st_nlink < 2 and other.st_nlink < 2:
            return
        here, there = (one.st_dev, one.st_ino), (other.st_dev, other.st_ino)
        for known, key, partner in (
            (self._links.to_site, here, there),
            (self._links.to_source, there, here),
        ):
            known_partner, first = known.setdefault(key, (partner, path))
            if known_partner != partner and not self._still_paired(first, path):
                yield f"hard links: with {shown(first)} on one side only"
                return
            known[key] = (partner, first)

    def _still_paired(self, first: Path, path: Path) -> bool:
        """Whether two names are of one object on both sides, or on neither."""
        same = []
        for tree in (self.source, self.site):
            try:
                with tree.open(first) as one, tree.open(path) as other:
                    same.append(os.path.samestat(os.fstat(one), os.fstat(other)))
            except (FileNotFoundError, NotADirectoryError):
                same.append(False)
        return same[0] == same[1]


def shown(path: Path) -> str:
    """A path as people read it."""
    return "/" + escaped(b"/".join(path))


def _side(tree: Tree, path: Path, directory: int | None, opened: contextlib.ExitStack) -> _Side:
    found = tree.open(path) if directory is None else tree.child(directory, path[-1])
    try:
        fd = opened.enter_context(found)
    except (FileNotFoundError, NotADirectoryError):
        return _Side(-1, None)
    return _Side(fd, os.fstat(fd))


def _seen(difference: str | None, here: _Side, there: _Side) -> Seen:
    return Seen(
        difference,
        (here.version, there.version),
        (here.kind, there.kind),
        (here.inode, there.inode),
        0 if here.status is None else here.status.st_ctime_ns,
    )


def _unreadable(what: str, error: OSError, here: _Side | None = None) -> Seen:
    nothing = _Side(-1, None)
    return _seen(f"cannot be read at {what}: {error.strerror}", here or nothing, nothing)


def _article(kind: int | None) -> str:
    return f"a {TYPES.get(kind or 0, 'thing of unknown type')}"


def _attributes(one: os.stat_result, other: os.stat_result) -> Iterator[str]:
    kind = stat.S_IFMT(one.st_mode)
    modes = stat.S_IMODE(one.st_mode), stat.S_IMODE(other.st_mode)
    if modes[0] != modes[1] and kind != stat.S_IFLNK:
        yield f"mode {modes[0]:04o}, {modes[1]:04o} at the site"
    owners = (one.st_uid, one.st_gid), (other.st_uid, other.st_gid)
    if owners[0] != owners[1]:
        yield "owner {}:{}, {}:{} at the site".format(*owners[0], *owners[1])
    if one.st_mtime_ns != other.st_mtime_ns:
        yield f"modification time {_time(one)}, {_time(other)} at the site"
    if kind in (stat.S_IFCHR, stat.S_IFBLK) and one.st_rdev != other.st_rdev:
        yield f"device {_device(one)}, {_device(other)} at the site"


def _time(status: os.stat_result) -> str:
    seconds, rest = divmod(status.st_mtime_ns, 1_000_000_000)
    return f"{seconds}.{rest:09d}"


def _device(status: os.stat_result) -> str:
    return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"


def _xattrs(here: int, there: int) -> Iterator[str]:
    one, other = read_xattrs(path_of(here)), read_xattrs(path_of(there))
    names = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    if names:
        yield f"extended attributes differ: {', '.join(map(escaped, names))}"


def _content(
    here: _Side,
    one: os.stat_result,
    there: _Side,
    other: os.stat_result,
    buffers: tuple[bytearray, bytearray],
) -> Iterator[str]:
    if here.kind == stat.S_IFLNK:
        if os.readlink(b"", dir_fd=here.fd) != os.readlink(b"", dir_fd=there.fd):
            yield "symlink target differs"
    elif here.kind == stat.S_IFREG:
        if one.st_size != other.st_size:
            yield f"content differs: {one.st_size} bytes, {other.st_size} at the site"
        elif not _same_bytes(here.fd, there.fd, one.st_size, buffers):
            yield "content differs"


def _same_bytes(here: int, there: int, size: int, buffers: tuple[bytearray, bytearray]) -> bool:
    """Compare two files of that size; where both have holes nothing is read."""
    with contextlib.ExitStack() as opened:
        fds = []
        for fd in (here, there):
            fds.append(os.open(path_of(fd), _CONTENT))
            opened.callback(os.close, fds[-1])
        offset = 0
        while offset < size:
            offset = max(offset, min(_next_data(fd, offset, size) for fd in fds))
            wanted = min(_CHUNK_BYTES, size - offset)
            views = [memoryview(buffer)[:wanted] for buffer in buffers]
            got = [_fill(fd, view, offset) for fd, view in zip(fds, views, strict=True)]
            if got != [wanted, wanted] or views[0] != views[1]:
                return False
            offset += wanted
    return True


def _next_data(fd: int, offset: int, size: int) -> int:
    try:
        return os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return size
        return offset


def _fill(fd: int, view: memoryview, offset: int) -> int:
    done = 0
    while done < len(view):
        read = os.preadv(fd, [view[done:]], offset + done)
        if read == 0:
            break
        done += read
    return done


def _mount_id(fd: int) -> int:
    """Where it is mounted; the same for all of a file system that cannot tell."""
    try:
        return system_calls.handle_of(fd).mount_id
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return -1
