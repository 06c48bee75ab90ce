"""Open the source a journal names, and nothing else: another tree under its path is refused.

What identifies it: the root's file handle, the file system's UUID (or its id), and the volume's
UUID in `.mirrorfs/volume`. Device numbers and paths are not compared: they change.
"""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from typing import Final

from mirrorfs.journal.control_client import ControlClient, NotRunningError
from mirrorfs.journal.reader import JournalReader
from mirrorfs.journal.record import handle_id
from mirrorfs.journal.segment import Header
from replicator import system_calls
from replicator.source import Source
from replicator.stores.base import RESERVED, TRANSIENT
from replicator.view import SourceError, SourceRefusedError

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOATIME | os.O_CLOEXEC


def open_journaled_source(reader: JournalReader) -> Source:
    """The source: from mirrorfs if it runs (its mount may hide the tree), else by its path.

    Raises SourceRefusedError, SourceError, ControlError, OSError.
    """
    try:
        return _handed_out(reader)
    except NotRunningError:
        try:
            return open_source(reader.header)
        except SourceRefusedError:
            # While an engine that died is started again, the path leads into its mount, and waits.
            with contextlib.suppress(NotRunningError):
                return _handed_out(reader)
            raise


def _handed_out(reader: JournalReader) -> Source:
    with ControlClient(reader.path) as client:
        header, root_fd = client.root()
    return adopt_source(header, root_fd)


def open_source(header: Header) -> Source:
    """The source a journal names, opened by its path: for when no mirrorfs is there to hand it
    out. Raises SourceRefusedError, SourceError."""
    path = header.source.path
    shown = os.fsdecode(path)
    try:
        root_fd = os.open(path, _DIRECTORY)
    except FileNotFoundError:
        raise SourceRefusedError(f"{shown}: the source does not exist") from None
    except NotADirectoryError:
        raise SourceRefusedError(f"{shown}: the source is not a directory") from None
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            raise SourceRefusedError(
                f"{shown}: a file system that died is still mounted over the source: mount it again"
            ) from None
        raise SourceRefusedError(f"{shown}: the source: {error.strerror}") from error
    return adopt_source(header, root_fd)


def adopt_source(header: Header, root_fd: int) -> Source:
    """The source a journal names, by a descriptor of its root, which becomes ours.

    Raises SourceRefusedError if it is not that tree, SourceError.
    """
    shown = os.fsdecode(header.source.path)
    try:
        differs = _difference(header, root_fd)
        if differs is not None:
            raise SourceRefusedError(f"{shown}: not the source this journal names: {differs}")
        nodes = _nodes(root_fd)
        if len(nodes) > 1:
            raise SourceRefusedError(
                f"{shown}: nodes {', '.join(nodes)} write a journal each of this source, and this"
                " version follows one journal: changes would be missed"
            )
        return Source(root_fd, header.epoch, header.source.ctime_granularity_ns)
    except OSError as error:
        os.close(root_fd)
        code = error.errno or errno.EIO
        raise SourceError(
            f"{shown}: the source: {os.strerror(code)}", code, transient=code in TRANSIENT
        ) from error
    except BaseException:
        os.close(root_fd)
        raise


def _difference(header: Header, root_fd: int) -> str | None:
    """What tells this directory from the source the journal names; None if it is it."""
    source = header.source
    over = "a mounted FUSE file system" if _is_fuse(root_fd) else "another directory"
    try:
        handle = system_calls.handle_of(root_fd)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return f"it is {over}"
    if source.root != handle_id(header.epoch, handle.type, handle.handle):
        return f"it is {over}"
    if source.fs_uuid:
        if system_calls.file_system_uuid(root_fd) != source.fs_uuid:
            return "it is on another file system"
    elif source.fsid and system_calls.file_system_id(root_fd) != source.fsid:
        return "it is on another file system"
    volume = str(uuid.UUID(bytes=header.volume))
    found = _volume_of(root_fd)
    if found != volume:
        return f"its .mirrorfs/volume says {found or 'nothing'}, the journal {volume}"
    return None


def _nodes(root_fd: int) -> list[str]:
    """The nodes that write journals of their own of the source; none where one alone does."""
    try:
        nodes = os.open(RESERVED + b"/nodes", _DIRECTORY | os.O_NOFOLLOW, dir_fd=root_fd)
    except FileNotFoundError:
        return []
    try:
        return sorted(os.listdir(nodes))
    finally:
        os.close(nodes)


def _is_fuse(descriptor: int) -> bool:
    return system_calls.file_system_type(descriptor) == system_calls.FUSE_SUPER_MAGIC


def _volume_of(root_fd: int) -> str | None:
    """The UUID in `.mirrorfs/volume`; None if there is none."""
    flags = os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        reserved = os.open(RESERVED, os.O_RDONLY | os.O_DIRECTORY | flags, dir_fd=root_fd)
        try:
            descriptor = os.open(b"volume", os.O_RDONLY | flags, dir_fd=reserved)
        finally:
            os.close(reserved)
    except (FileNotFoundError, NotADirectoryError):
        return None
    with open(descriptor, "rb") as file:
        return file.read(100).decode("ascii", "replace").strip()
