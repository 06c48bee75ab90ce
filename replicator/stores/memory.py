"""The reference site store: a tree of nodes in memory, behaving as a directory of a file system.

For tests: fast enough to be run a million times, and the behaviour every other store is compared
with. It does no I/O and knows no clock; what changes a directory's entries moves its modification
time on, as a file system would.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, replace
from errno import EINVAL, EISDIR, ENOENT, ENOTDIR, ENOTEMPTY, EPERM

from mirrorfs.journal.record import ObjectId
from replicator.stores.base import (
    RESERVED,
    Attributes,
    Base,
    Content,
    Directory,
    Mark,
    MarkFlag,
    SiteEntry,
    Staged,
    StoreError,
    Syncing,
    Version,
)


class Node:
    """One object; the `children` entries that hold it are its names."""

    __slots__ = ("attributes", "children", "data", "identity", "links", "mark")

    def __init__(
        self, identity: int, attributes: Attributes, data: bytes, mark: Mark | None
    ) -> None:
        self.identity = identity
        self.attributes = attributes
        self.data = data
        self.mark = mark
        self.links = 0
        self.children: dict[bytes, Node] | None = {} if stat.S_ISDIR(attributes.mode) else None

    def below(self) -> Iterator[Node]:
        """This node and all nodes below it."""
        yield self
        for child in (self.children or {}).values():
            yield from child.below()


@dataclass(frozen=True)
class Beginning:
    """A file of the site, and what it held when somebody looked."""

    node: Node
    data: bytes


_EMPTY = Attributes(stat.S_IFDIR | 0o755, 0, 0, 0, 0, 0, {})


class _Nothing:
    """Memory is as durable as it gets."""

    def begin(self) -> None:
        """See Syncing."""

    def finish(self, seen: set[Hashable]) -> None:
        """See Syncing."""

    def close(self) -> None:
        """See Syncing."""


class MemoryStore:
    """SiteStore over nodes. Directories and staged objects are `Node`s.

    Attributes:
        files: our own files (what a directory store has under `.mirrorfs`).
        kept: what `keep` put away, by path.
        extent_bytes: what is copied is kept, so many bytes at a time, until it is complete; 0: not.
        unfinished: what was copied of that content so far.
        between: called wherever a kill may find something half done.
    """

    def __init__(self) -> None:
        self.directories_listed = 0
        self.bytes_written = 0
        self.fidelity_debt = 0
        self.files: dict[str, bytes] = {}
        self.kept: dict[bytes, Node] = {}
        self.extent_bytes = 0
        self.unfinished: dict[ObjectId, tuple[Version, bytes]] = {}
        self.between: Callable[[], None] = lambda: None
        self._tails: dict[Staged, tuple[Beginning, Mark | Callable[[], Mark]]] = {}
        self._created = 0
        self._clock = 0
        self._root = self._create(_EMPTY, b"", None)
        self._limbo = self._create(_EMPTY, b"", None)
        self._root.links = self._limbo.links = 1

    def snapshot(self) -> MemoryStore:
        """The site as a crash at this moment would leave it; staged objects are gone.

        Directories handed out before belong to this store, not to the copy.
        """
        copy = MemoryStore()
        known: dict[Node, Node] = {}
        copy._root = _copy(self._root, known)
        copy._limbo = _copy(self._limbo, known)
        copy.kept = {path: _copy(node, known) for path, node in self.kept.items()}
        copy.files = dict(self.files)
        copy._created = self._created
        copy._clock = self._clock
        return copy

    def nodes(self) -> Iterator[Node]:
        """Every object there is, in limbo and in `kept` as well."""
        for top in (self._root, self._limbo, *self.kept.values()):
            yield from top.below()

    # Directories

    def root(self) -> Directory:
        """See SiteStore."""
        return self._root

    def limbo(self) -> Directory:
        """See SiteStore."""
        return self._limbo

    def open_directory(self, directory: Directory, name: bytes) -> Directory | None:
        """See SiteStore."""
        if directory is self._root and name == RESERVED:
            return None
        node = self._names(directory, name).get(name)
        return node if node is not None and node.children is not None else None

    def close_directory(self, directory: Directory) -> None:
        """See SiteStore."""

    # Looking

    def lookup(self, directory: Directory, name: bytes) -> SiteEntry | None:
        """See SiteStore."""
        if directory is self._root and name == RESERVED:
            return None
        node = self._names(directory, name).get(name)
        return None if node is None else _entry(node)

    def list(self, directory: Directory) -> list[bytes]:
        """See SiteStore."""
        self.directories_listed += 1
        return list(_children(directory))

    def xattrs(self, directory: Directory, name: bytes) -> dict[bytes, bytes]:
        """See SiteStore."""
        return dict(self._node(directory, name).attributes.xattrs)

    def root_entry(self) -> SiteEntry:
        """See SiteStore."""
        return _entry(self._root)

    # Making

    def stage(
        self,
        attributes: Attributes,
        content: Content | None,
        mark: Mark | Callable[[], Mark],
        base: Base | None = None,
    ) -> Staged:
        """See SiteStore."""
        attributes, data = replace(attributes, xattrs=dict(attributes.xattrs)), b""
        if content is not None and stat.S_ISREG(attributes.mode):
            if isinstance(base, Beginning) and content.version is not None:
                data = content.read()
                if data.startswith(base.data) and base.node.data == base.data:
                    self.bytes_written += len(data) - len(base.data)
                    tail = self._create(attributes, data[len(base.data) :], None)
                    self._tails[tail] = base, mark
                    return tail
            data = self._copied(content)
        return self._create(attributes, data, mark() if callable(mark) else mark)

    def _copied(self, content: Content) -> bytes:
        version = content.version
        if version is None or not self.extent_bytes:
            data = content.read()
            self.bytes_written += len(data)
            return data
        known, done = self.unfinished.get(version.object, (version, b""))
        if known != version:
            done = b""
        while more := content.read()[len(done) :][: self.extent_bytes]:
            done += more
            self.bytes_written += len(more)
            self.unfinished[version.object] = version, done
            self.between()
        self.unfinished.pop(version.object, None)
        return done

    def base(self, directory: Directory, name: bytes) -> Base | None:
        """See SiteStore."""
        node = self._node(directory, name)
        return Beginning(node, node.data)

    def is_tail(self, staged: Staged) -> bool:
        """See SiteStore."""
        return staged in self._tails

    def extend(self, staged: Staged, directory: Directory, name: bytes) -> bool:
        """See SiteStore."""
        tail, node = _node(staged), self._node(directory, name)
        base, mark = self._tails[tail]
        if base.node is not node or base.data != node.data or node.links != 1:
            return False
        told = mark() if callable(mark) else mark
        node.mark = replace(told, flags=told.flags & ~MarkFlag.CONTENT)
        for start in range(0, len(tail.data), self.extent_bytes or len(tail.data)):
            self.between()
            node.data = base.data + tail.data[: start + (self.extent_bytes or len(tail.data))]
        self.between()
        _set(node, tail.attributes, mark() if callable(mark) else mark)
        del self._tails[tail]
        return True

    def forget_unfinished(self) -> None:
        """See SiteStore."""
        self.unfinished.clear()

    def discard(self, staged: Staged) -> None:
        """See SiteStore."""
        self._tails.pop(staged, None)

    def is_alike(self, staged: Staged, directory: Directory, name: bytes) -> bool:
        """See SiteStore."""
        return _node(staged).data == self._node(directory, name).data

    def commit(self, staged: Staged, directory: Directory, name: bytes) -> None:
        """See SiteStore."""
        names = self._names(directory, name)
        self._alive(directory)
        _replaceable(names.get(name))
        self._put(directory, name, _node(staged))

    def move(
        self, directory: Directory, name: bytes, to_directory: Directory, to_name: bytes
    ) -> None:
        """See SiteStore."""
        node = self._node(directory, name)
        names = self._names(to_directory, to_name)
        self._alive(to_directory)
        _not_below(node, to_directory)
        if directory is to_directory and name == to_name:
            return
        if names.get(to_name) is not node:
            _replaceable(names.get(to_name))
            self._put(to_directory, to_name, node)
        self._take(directory, name)

    def exchange(
        self, directory: Directory, name: bytes, to_directory: Directory, to_name: bytes
    ) -> None:
        """See SiteStore."""
        here, there = self._node(directory, name), self._node(to_directory, to_name)
        if here is there:
            return
        _not_below(here, to_directory)
        _not_below(there, directory)
        here.links += 1
        there.links += 1
        self._put(directory, name, there)
        self._put(to_directory, to_name, here)
        here.links -= 1
        there.links -= 1

    def link(
        self, directory: Directory, name: bytes, to_directory: Directory, to_name: bytes
    ) -> None:
        """See SiteStore."""
        node = self._node(directory, name)
        if node.children is not None:
            raise _error(EPERM, "a directory has one name only")
        names = self._names(to_directory, to_name)
        self._alive(to_directory)
        stood = names.get(to_name)
        if stood is not None and stood.children is not None:
            raise _error(EISDIR, "a directory stands there")
        if stood is not node:
            self._put(to_directory, to_name, node)

    def remove(self, directory: Directory, name: bytes) -> None:
        """See SiteStore."""
        node = self._names(directory, name).get(name)
        if node is not None:
            if node.children:
                raise _error(ENOTEMPTY, "directory not empty")
            self._take(directory, name)

    def keep(self, directory: Directory, name: bytes, path: bytes) -> None:
        """See SiteStore."""
        node = self._names(directory, name).get(name)
        if node is None:
            return
        free, number = path, 0
        while free in self.kept:
            number += 1
            free = b"%s.%d" % (path, number)
        self.kept[free] = node
        node.links += 1
        self._take(directory, name)

    # Attributes

    def set_attributes(
        self, directory: Directory, name: bytes, attributes: Attributes, mark: Mark
    ) -> None:
        """See SiteStore."""
        _set(self._node(directory, name), attributes, mark)

    def set_root_attributes(self, attributes: Attributes, mark: Mark) -> None:
        """See SiteStore."""
        _set(self._root, attributes, mark)

    def set_mark(self, directory: Directory, name: bytes, mark: Mark) -> None:
        """See SiteStore."""
        self._node(directory, name).mark = mark

    def set_directory_times(self, directory: Directory, atime_ns: int, mtime_ns: int) -> None:
        """See SiteStore."""
        node = _node(directory)
        node.attributes = replace(node.attributes, atime_ns=atime_ns, mtime_ns=mtime_ns)

    # Our own files

    def read_file(self, name: str) -> bytes | None:
        """See SiteStore."""
        return self.files.get(name)

    def write_file(self, name: str, data: bytes) -> None:
        """See SiteStore."""
        self.files[name] = data

    def append_file(self, name: str, data: bytes, *, durable: bool = False) -> None:
        """See SiteStore."""
        self.files[name] = self.files.get(name, b"") + data

    def sync(self) -> None:
        """See SiteStore."""

    def keep_order(self) -> None:
        """See SiteStore."""

    def syncing(
        self, wanted: Iterable[tuple[Directory, bytes | None]], *, whole: bool = False
    ) -> Syncing:
        """See SiteStore."""
        return _Nothing()

    def close(self) -> None:
        """See SiteStore."""

    # Inside

    def _create(self, attributes: Attributes, data: bytes, mark: Mark | None) -> Node:
        self._created += 1
        return Node(self._created, attributes, data, mark)

    def _names(self, directory: Directory, name: bytes) -> dict[bytes, Node]:
        """The entries of a directory, for a name that may stand there."""
        if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
            raise _error(EINVAL, f"no name: {name!r}")
        if directory is self._root and name == RESERVED:
            raise _error(EPERM, "the reserved name")
        return _children(directory)

    def _node(self, directory: Directory, name: bytes) -> Node:
        node = self._names(directory, name).get(name)
        if node is None:
            raise _error(ENOENT, f"nothing at {name!r}")
        return node

    def _alive(self, directory: Directory) -> None:
        if _node(directory).links == 0:
            raise _error(ENOENT, "the directory was removed")

    def _put(self, directory: Directory, name: bytes, node: Node) -> None:
        names = _children(directory)
        stood = names.get(name)
        if stood is not None:
            stood.links -= 1
        names[name] = node
        node.links += 1
        self._touch(directory)

    def _take(self, directory: Directory, name: bytes) -> None:
        _children(directory).pop(name).links -= 1
        self._touch(directory)

    def _touch(self, directory: Directory) -> None:
        self._clock += 1
        node = _node(directory)
        node.attributes = replace(node.attributes, mtime_ns=self._clock)


def _error(errno: int, what: str) -> StoreError:
    return StoreError.of(f"memory: {what}", errno)


def _node(handle: Directory | Staged) -> Node:
    assert isinstance(handle, Node)
    return handle


def _children(directory: Directory) -> dict[bytes, Node]:
    children = _node(directory).children
    if children is None:
        raise _error(ENOTDIR, "not a directory")
    return children


def _replaceable(node: Node | None) -> None:
    if node is not None and node.children:
        raise _error(ENOTEMPTY, "a directory with entries stands there")


def _not_below(node: Node, directory: Directory) -> None:
    """A directory cannot move below itself."""
    if node.children is not None and any(directory is other for other in node.below()):
        raise _error(EINVAL, "a directory cannot move below itself")


def _set(node: Node, attributes: Attributes, mark: Mark) -> None:
    kind, old = stat.S_IFMT(node.attributes.mode), node.attributes
    node.attributes = replace(
        attributes,
        mode=kind | stat.S_IMODE(attributes.mode),
        rdev=old.rdev,
        target=old.target,
        xattrs=dict(attributes.xattrs),
    )
    node.mark = mark


def _entry(node: Node) -> SiteEntry:
    attributes = node.attributes
    return SiteEntry(
        identity=node.identity,
        mode=attributes.mode,
        uid=attributes.uid,
        gid=attributes.gid,
        size=len(node.data),
        mtime_ns=attributes.mtime_ns,
        rdev=attributes.rdev,
        links=node.links,
        mark=node.mark,
    )


def _copy(node: Node, known: dict[Node, Node]) -> Node:
    copy = known.get(node)
    if copy is None:
        copy = known[node] = Node(node.identity, node.attributes, node.data, node.mark)
        copy.links = node.links
        if node.children is not None:
            copy.children = {name: _copy(child, known) for name, child in node.children.items()}
    return copy
