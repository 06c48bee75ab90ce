"""The source tree as it is below the mount: the only module that touches the mirrored files.

Everything goes through descriptors and single names in them, as bytes; the root's descriptors are
opened before the mount covers the source. It knows neither nodes nor records.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable
from typing import Final

from mirrorfs import system_calls
from mirrorfs.callers import ActingAs
from mirrorfs.errors import CannotWriteError, UnusableError
from mirrorfs.journal.record import ObjectId, handle_id, split_handle_id
from mirrorfs.journal.segment import SourceIdentity

_NAMED: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
# All that concerns the daemon's descriptor: the rest is done by the kernel above, and O_DIRECT
# would want aligned buffers, which a request does not bring.
_OPEN_KEPT: Final = os.O_ACCMODE | os.O_APPEND | os.O_TRUNC | os.O_SYNC | os.O_DSYNC | os.O_NOATIME
_LOCAL_MAGICS: Final = frozenset(
    {0xEF53, 0x58465342, 0x9123683E, 0x01021994, 0x2FC12FC1, 0xF2F52010, 0x3434, 0xCA451A4E}
)  # ext4, xfs, btrfs, tmpfs, zfs, f2fs, nilfs2, bcachefs
_LOCAL_GRANULARITY_NS: Final = 10_000_000
_UNKNOWN_GRANULARITY_NS: Final = 2_000_000_000
_WHOLE_UNITS_NS: Final = 1_000_000
_TOO_SLOW_NS: Final = 500_000
_PROBES: Final = 48


def magic_path(descriptor: int) -> bytes:
    """A path that leads to a descriptor's object, a symlink itself included."""
    return b"/proc/self/fd/%d" % descriptor


class BackingTree:
    """One source tree.

    Attributes:
        path: where it was opened.
        root: O_PATH descriptor of its root.
        root_directory: the same O_RDONLY, for handles and for handing out.
        device: st_dev of everything in it.
        root_inode: inode number of the root.
    """

    def __init__(self, path: bytes, epoch: int, root: int, root_directory: int) -> None:
        attributes = os.fstat(root)
        self.path = path
        self.root = root
        self.root_directory = root_directory
        self.device = attributes.st_dev
        self.root_inode = attributes.st_ino
        self._epoch = epoch
        self.root_id = self.object_id(root)

    @classmethod
    def open(cls, source: bytes, epoch: int, known: int = -1) -> BackingTree:
        """Open the tree at that path. Raises UnusableError: none there, or no file handles.

        `known`: a descriptor (O_PATH) of its root, where the path leads to a mount over it.
        """
        where = os.fsdecode(source)
        try:
            root = os.dup(known) if known >= 0 else os.open(source, os.O_PATH | os.O_DIRECTORY)
        except OSError as error:
            raise UnusableError(f"source: {where}: {error.strerror}") from None
        directory = -1
        try:
            directory = os.open(magic_path(root), os.O_RDONLY | os.O_DIRECTORY)
            tree = cls(os.path.abspath(source), epoch, root, directory)
            os.close(tree.reopen(tree.root_id))
        except OSError as error:
            for descriptor in (root, directory):
                if descriptor >= 0:
                    os.close(descriptor)
            raise UnusableError(
                f"source: {where}: its file system must offer file handles"
                f" (name_to_handle_at: {error.strerror})"
            ) from None
        return tree

    def close(self) -> None:
        """Close the root's descriptors."""
        os.close(self.root)
        os.close(self.root_directory)

    # -- identity --------------------------------------------------------------------------------

    def object_id(self, descriptor: int, name: bytes = b"") -> ObjectId:
        """The id of a descriptor's object, or of `name` in that directory."""
        kind, handle = system_calls.file_handle(descriptor, name)
        return handle_id(self._epoch, kind, handle)

    def id_of(self, kind: int, handle: bytes) -> ObjectId:
        """The id of the object with that file handle."""
        return handle_id(self._epoch, kind, handle)

    def reopen(self, identity: ObjectId) -> int:
        """An O_PATH descriptor of the object with that id (OSError ESTALE: it is gone)."""
        _, kind, handle = split_handle_id(identity)
        return system_calls.open_by_handle(self.root_directory, kind, handle, os.O_PATH)

    def way(self, identity: ObjectId) -> list[tuple[ObjectId, bytes | None]] | None:
        """Ids and paths of the directories from the root down to that one, both included.

        None: there is no directory of that id in the tree. The paths are for people.
        """
        try:
            at = self.reopen(identity)
        except OSError:
            return None
        ids: list[ObjectId] = []
        try:
            top = os.readlink(magic_path(self.root)).rstrip(b"/") + b"/"
            names = os.readlink(magic_path(at)).removeprefix(top).split(b"/")
            while not os.path.samestat(found := os.fstat(at), os.fstat(self.root)):
                above = os.open(b"..", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=at)
                ids.append(self.object_id(at))
                os.close(at)
                at = above
                if os.path.samestat(found, os.fstat(at)) or found.st_dev != self.device:
                    return None
        except OSError:
            return None
        finally:
            os.close(at)
        ids.reverse()
        known = len(names) == len(ids)
        paths = [b"/".join(names[: end + 1]) if known else None for end in range(len(ids))]
        return [(self.root_id, b""), *zip(ids, paths, strict=True)]

    def identity(self) -> SourceIdentity:
        """Which tree this is. Raises CannotWriteError when its reserved directory cannot be made.

        Probes the granularity of change times there, so it is called once, at the start.
        """
        magic, _ = system_calls.file_system(self.root_directory)
        return self.known_identity(self._ctime_granularity_ns(magic))

    def known_identity(self, ctime_granularity_ns: int = 0) -> SourceIdentity:
        """The same, but nothing is made or probed."""
        uuid = system_calls.file_system_uuid(self.root_directory)
        _, fsid = system_calls.file_system(self.root_directory)
        return SourceIdentity(
            path=self.path,
            fs_uuid=uuid if any(uuid) else b"",
            fsid=fsid,
            root=self.root_id,
            ctime_granularity_ns=ctime_granularity_ns,
        )

    def open_reserved(self, name: bytes) -> int:
        """A descriptor (O_RDONLY) of the reserved directory of that name in the root; makes it."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=self.root)
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=self.root)

    def _ctime_granularity_ns(self, magic: int) -> int:
        """What `granularity_ns` makes of some changes in a row."""
        name = b".mirrorfs"
        try:
            directory = self.open_reserved(name)
        except OSError as error:
            where = os.fsdecode(self.path)
            raise CannotWriteError(f"source: {where}/.mirrorfs: {error.strerror}") from None
        probe = b"probe-%d" % os.getpid()  # not another node's
        try:
            file = os.open(probe, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600, dir_fd=directory)
            try:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(probe, dir_fd=directory)
                times = []
                for _ in range(_PROBES):
                    os.pwrite(file, b"x", 0)
                    times.append(os.fstat(file).st_ctime_ns)
            finally:
                os.close(file)
        except OSError as error:
            where = os.fsdecode(self.path)
            raise CannotWriteError(f"source: {where}/.mirrorfs: {error.strerror}") from None
        finally:
            os.close(directory)
        return granularity_ns(times, local=magic in _LOCAL_MAGICS)

    # -- looking ---------------------------------------------------------------------------------

    def find(self, directory: int, name: bytes) -> int:
        """An O_PATH descriptor of what stands there; a symlink is not followed."""
        return os.open(name, _NAMED, dir_fd=directory)

    def attributes_at(self, directory: int, name: bytes) -> os.stat_result:
        """Attributes of what stands there."""
        return os.stat(name, dir_fd=directory, follow_symlinks=False)

    attributes: Callable[[int], os.stat_result] = staticmethod(os.fstat)
    close_descriptor: Callable[[int], None] = staticmethod(os.close)

    def target(self, symlink: int) -> bytes:
        """What a symlink says."""
        return os.readlink(b"", dir_fd=symlink)

    def statistics(self) -> os.statvfs_result:
        """The file system's sizes."""
        return os.fstatvfs(self.root)

    # -- making, moving, removing ----------------------------------------------------------------

    def create(self, directory: int, name: bytes, flags: int, mode: int, caller: ActingAs) -> int:
        """Make a regular file, opened as `flags` say whatever its mode. FileExistsError."""
        flags = flags & _OPEN_KEPT | os.O_CREAT | os.O_EXCL
        with caller:
            return os.open(name, flags, mode & 0o7777, dir_fd=directory)

    def make_directory(self, directory: int, name: bytes, mode: int, caller: ActingAs) -> None:
        """mkdirat(2) on behalf of the caller."""
        with caller:
            os.mkdir(name, mode & 0o7777, dir_fd=directory)

    def make_special(
        self, directory: int, name: bytes, mode: int, device: int, caller: ActingAs
    ) -> None:
        """mknodat(2): a file, fifo, socket or device."""
        with caller:
            os.mknod(name, mode, device, dir_fd=directory)

    def make_symlink(self, directory: int, name: bytes, target: bytes, caller: ActingAs) -> None:
        """symlinkat(2)."""
        with caller:
            os.symlink(target, name, dir_fd=directory)

    def link(self, descriptor: int, directory: int, name: bytes) -> None:
        """Give an object another name."""
        os.link(magic_path(descriptor), name, dst_dir_fd=directory)

    def rename(
        self, directory: int, name: bytes, to_directory: int, to_name: bytes, flags: int
    ) -> None:
        """renameat2(2)."""
        if flags:
            system_calls.rename_with_flags(directory, name, to_directory, to_name, flags)
        else:
            os.replace(name, to_name, src_dir_fd=directory, dst_dir_fd=to_directory)

    def remove(self, directory: int, name: bytes) -> None:
        """unlinkat(2) of anything but a directory."""
        os.unlink(name, dir_fd=directory)

    def remove_directory(self, directory: int, name: bytes) -> None:
        """unlinkat(2) of an empty directory."""
        os.rmdir(name, dir_fd=directory)

    # -- attributes ------------------------------------------------------------------------------

    def truncate(self, descriptor: int, size: int) -> None:
        """Set the size of a file known by an O_PATH descriptor."""
        os.truncate(magic_path(descriptor), size)

    truncate_open: Callable[[int, int], None] = staticmethod(os.ftruncate)

    def set_owner(self, descriptor: int, uid: int, gid: int) -> None:
        """Owner and group; -1 leaves one alone."""
        os.chown(magic_path(descriptor), uid, gid)

    def set_mode(self, descriptor: int, mode: int) -> None:
        """Permission bits."""
        os.chmod(magic_path(descriptor), stat.S_IMODE(mode))

    def set_times(self, descriptor: int, atime_ns: int | None, mtime_ns: int | None) -> None:
        """Times; None leaves one alone."""
        system_calls.set_times(magic_path(descriptor), atime_ns, mtime_ns)

    def xattr(self, descriptor: int, name: bytes) -> bytes:
        """Value of an extended attribute."""
        return os.getxattr(magic_path(descriptor), name)

    def xattrs(self, descriptor: int) -> list[bytes]:
        """Names of all extended attributes."""
        return [os.fsencode(name) for name in os.listxattr(magic_path(descriptor))]

    def set_xattr(self, descriptor: int, name: bytes, value: bytes) -> None:
        """Set an extended attribute or an ACL."""
        os.setxattr(magic_path(descriptor), name, value)

    def remove_xattr(self, descriptor: int, name: bytes) -> None:
        """Remove one."""
        os.removexattr(magic_path(descriptor), name)

    # -- content ---------------------------------------------------------------------------------

    def open_file(self, descriptor: int, flags: int) -> int:
        """Open a file known by an O_PATH descriptor."""
        return os.open(magic_path(descriptor), flags & _OPEN_KEPT)

    def open_directory(self, descriptor: int, flags: int = 0) -> int:
        """Open a directory for listing and syncing; O_NOATIME may be among the flags."""
        return os.open(b".", os.O_RDONLY | os.O_DIRECTORY | flags, dir_fd=descriptor)

    def list(self, directory: int, offset: int | None) -> list[tuple[bytes, int, int, int]]:
        """The next entries of an open directory: name, inode number, d_type, following offset.

        From where the last call ended, or from an `offset` such a call gave (0: the start).
        """
        if offset is not None:
            os.lseek(directory, offset, os.SEEK_SET)
        return system_calls.read_directory(directory)

    read: Callable[[int, int, int], bytes] = staticmethod(os.pread)
    write: Callable[[int, bytes, int], int] = staticmethod(os.pwrite)

    def sync(self, descriptor: int, content_only: bool) -> None:
        """fsync(2) or fdatasync(2). May take long."""
        if content_only:
            os.fdatasync(descriptor)
        else:
            os.fsync(descriptor)

    def sync_directory(self, descriptor: int) -> None:
        """fsync(2) of a directory known by an O_PATH descriptor."""
        opened = self.open_directory(descriptor)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)

    def report_write_errors(self, descriptor: int) -> None:
        """What close(2) of an open file would report now (network file systems, quotas)."""
        os.close(os.dup(descriptor))


def granularity_ns(times: list[int], *, local: bool) -> int:
    """0 if any two changes with a stat between them have different times, else a safe guess.

    `times` are the change times of an object after changes in a row. Whole seconds (ext3, old
    network file systems) show by themselves. Where a change takes longer than a tick of the clock,
    different times prove nothing.
    """
    if all(time_ns % _WHOLE_UNITS_NS == 0 for time_ns in times):
        return _UNKNOWN_GRANULARITY_NS
    if len(set(times)) == len(times) and times[-1] - times[0] < len(times) * _TOO_SLOW_NS:
        return 0
    return _LOCAL_GRANULARITY_NS if local else _UNKNOWN_GRANULARITY_NS


def wants_write(flags: int) -> bool:
    """These flags of open(2) ask for writing."""
    return flags & os.O_ACCMODE != os.O_RDONLY


def truncates(flags: int) -> bool:
    """These flags of open(2) empty the file."""
    return bool(flags & os.O_TRUNC)


def is_missing(error: OSError) -> bool:
    """The name does not exist (as against: it could not be looked up)."""
    return error.errno == errno.ENOENT
