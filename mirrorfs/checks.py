"""What must hold before a mount is tried; each refusal is one line.

Only looks: nothing is made, mounted or changed here.
"""

from __future__ import annotations

import errno
import os
import stat

from mirrorfs import covered, holders, host, mounted, mountinfo
from mirrorfs.config import Volume
from mirrorfs.errors import NotPermittedError, RefusedError, UnusableError
from mirrorfs.holders import Holder
from mirrorfs.journal.reader import nodes_with_journals
from mirrorfs.journal.segment import parse_segment_name

_FUSE_DEVICE = os.makedev(10, 229)


def check_permissions() -> None:
    """Root, and /dev/fuse. NotPermittedError."""
    if os.geteuid() != 0:
        raise NotPermittedError("mount: not permitted: only root may mount")
    try:
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        device = os.fstat(fd).st_rdev
        os.close(fd)
        if device != _FUSE_DEVICE:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
    except OSError as error:
        raise NotPermittedError(
            f"/dev/fuse: {error.strerror}: the kernel module fuse must be usable here"
        ) from None


def check_places(volume: Volume) -> None:
    """Source, mountpoint and journal, each and together. UnusableError, RefusedError."""
    source, mountpoint = volume.source, volume.mountpoint or volume.source
    dead = len(covered.dead_at(mountpoint, volume.subtype))
    entry = mountinfo.mounted_at(mountpoint)
    if not dead and entry is not None and mounted.is_ours(entry):
        _check_alive(mountpoint, "mountpoint")
        raise RefusedError(f"mountpoint: {mountpoint}: mirrorfs is mounted there already")
    top = _status_beneath(mountpoint, dead) if dead else None
    root = top if top and _is_over(volume) else _check_directory(source, "source")
    same = (entry for entry in mountinfo.mounts() if entry.device == root.st_dev)
    within = next(filter(mounted.is_ours, same), None)
    if within is not None:
        raise RefusedError(
            f"source: {source}: inside the mirrorfs mount {within.path}: name a tree outside"
        )
    top = top or _check_directory(mountpoint, "mountpoint")
    if not os.path.samestat(root, top):
        if _is_within(mountpoint, root):
            raise UnusableError(
                f"mountpoint: {mountpoint}: inside the source: the source itself is allowed, or a"
                " directory outside"
            )
        if _is_within(source, top):
            raise UnusableError(
                f"mountpoint: {mountpoint}: above the source: the mount would hide it"
            )
    if _is_within(volume.journal, root):
        raise UnusableError(f"journal: {volume.journal}: inside the source: keep it outside")
    _check_nodes(volume)
    if _is_within(volume.journal, top):
        raise UnusableError(f"journal: {volume.journal}: inside the mountpoint: keep it outside")


def open_source(volume: Volume, dead: int) -> int:
    """A descriptor (O_PATH) of the source's root, beneath so many dead mounts at the mountpoint.

    UnusableError.
    """
    try:
        if dead and _is_over(volume):
            return covered.open_beneath(volume.source, dead)
        return os.open(volume.source, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise UnusableError(f"source: {volume.source}: {error.strerror}") from None


def check_holders(volume: Volume, device: int, ours: set[int], force: bool) -> list[Holder]:
    """Processes that would go on to use the source past a mount over it. RefusedError, unless
    `force`."""
    if not _is_over(volume):
        return []
    exempt = ours | host.replicators(volume.journal_directory)
    found = holders.of_tree(volume.source, device, exempt)
    if found and not force:
        raise RefusedError(
            f"mountpoint: {volume.source}: in use, past any mount over it, by"
            f" {holders.words(found)}: what they change would have no record: end them, or -o force"
        )
    return found


def _is_over(volume: Volume) -> bool:
    """The mountpoint is the source itself."""
    source, mountpoint = volume.source, volume.mountpoint or volume.source
    return source == mountpoint or os.path.realpath(source) == os.path.realpath(mountpoint)


def _status_beneath(path: str, dead: int) -> os.stat_result:
    try:
        found = covered.open_beneath(path, dead)
    except OSError as error:
        raise UnusableError(f"mountpoint: {path}: {error.strerror}") from None
    try:
        return os.fstat(found)
    finally:
        os.close(found)


def _check_nodes(volume: Volume) -> None:
    """A directory of one journal is not one of a journal a node, nor the other way round."""
    try:
        names = os.listdir(volume.journal)
    except OSError:
        return
    if volume.writers == "many":
        if any(parse_segment_name(name) for name in names):
            raise RefusedError(
                f"journal: {volume.journal}: a journal of writers=one: for writers=many name"
                " another directory; each node's journal will be in it"
            )
        return
    nodes = nodes_with_journals(volume.journal)
    if nodes:
        raise RefusedError(
            f"journal: {volume.journal}: the journals of nodes {', '.join(nodes)} are in it, of"
            " writers=many: for writers=one name another directory"
        )


def _check_directory(path: str, what: str) -> os.stat_result:
    try:
        found = os.stat(path)
    except OSError as error:
        raise _unusable(error, path, what) from None
    if not stat.S_ISDIR(found.st_mode):
        raise UnusableError(f"{what}: {path}: not a directory")
    return found


def _check_alive(path: str, what: str) -> None:
    try:
        os.statvfs(path)  # the kernel may know the answer to a stat without the daemon
    except OSError as error:
        raise _unusable(error, path, what) from None


def _unusable(error: OSError, path: str, what: str) -> UnusableError | RefusedError:
    if error.errno == errno.ENOTCONN:
        return RefusedError(f"{what}: {path}: a dead mount: run 'umount -l {path}' first")
    return UnusableError(f"{what}: {path}: {error.strerror}")


def _is_within(path: str, directory: os.stat_result) -> bool:
    """Is it that directory or below it? What does not exist yet is where its parent is."""
    at = os.path.realpath(path)
    while True:
        try:
            if os.path.samestat(os.stat(at), directory):
                return True
        except OSError:
            pass
        above = os.path.dirname(at)
        if above == at:
            return False
        at = above
