"""Put a FUSE mount in its place; it allows no more than the mount the source is on.

A mount takes the place of a dead one without a moment in which what is below both can be seen: it
is put beneath the dead one, which is then taken away; or on top of it, where Linux (before 6.5) has
no such call.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import pyfuse3

from mirrorfs import covered, mount_calls, mountinfo
from mirrorfs.config import Volume
from mirrorfs.errors import UnusableError

_log = logging.getLogger(__name__)

_RESTRICTIONS: Final = (
    (os.ST_NOSUID, "nosuid"),
    (os.ST_NODEV, "nodev"),
    (os.ST_NOEXEC, "noexec"),
    (os.ST_RDONLY, "ro"),
)


def open_device() -> int:
    """A connection to the kernel that no mount has yet."""
    return os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)


def put_mount(volume: Volume, connection: int, words: Iterable[str]) -> None:
    """Put the mount at its mountpoint, in place of dead ones of ours that are there.

    `words`: what the kernel does for it. UnusableError.
    """
    path = volume.mountpoint or volume.source
    try:
        dead = covered.dead_at(path, volume.subtype)
        for _ in dead[1:]:  # another dead one is beneath it
            mount_calls.unmount(os.path.realpath(path), mount_calls.MNT_DETACH)
        if dead:
            top = os.open(path, os.O_PATH | os.O_CLOEXEC)
            try:
                replace(volume, connection, words, top)
            finally:
                os.close(top)
            _log.info("the dead mount at %s is replaced", path)
        else:
            _put(volume, connection, words, path)
    except OSError as error:
        raise UnusableError(f"mountpoint: {path}: cannot mount: {error.strerror}") from None


def replace(volume: Volume, connection: int, words: Iterable[str], top: int) -> None:
    """Put the mount where the dead one is whose root the descriptor `top` (O_PATH) is.

    Whoever looks sees the dead one, and then this one. OSError.
    """
    values = {
        "source": _name(volume),
        "subtype": volume.subtype,
        **{key: value or None for key, value in _values(connection)},
    }
    try:
        made = mount_calls.make("fuse", values, words)
    except OSError:  # before Linux 5.2, or the source's name is too long for it
        _put(volume, connection, words, f"/proc/self/fd/{top}")
        _log.info("the dead mount stays beneath the one in its place")
        return
    try:
        try:
            mount_calls.put_beneath(made, top)
        except OSError:
            mount_calls.put_on(made, top)
            _log.info("the dead mount stays beneath the one in its place")
            return
    finally:
        os.close(made)
    mount_calls.detach(top)


def take_over(
    volume: Volume, path: str, device: int, connection: int, words: Iterable[str]
) -> bool:
    """Put the mount in place of the one at `path` (without symlinks) with that st_dev.

    That one does not answer, so it is asked nothing. False: it is not there any more. OSError.
    """
    top = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        number = mount_calls.mount_id(top)
        if all((entry.id, entry.device) != (number, device) for entry in mountinfo.mounts()):
            return False
        replace(volume, connection, words, top)
    finally:
        os.close(top)
    return True


def detach(path: str, device: int) -> None:
    """Take away the mount at `path` (without symlinks) if it has that st_dev. OSError."""
    top = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        number = mount_calls.mount_id(top)
        if any((entry.id, entry.device) == (number, device) for entry in mountinfo.mounts()):
            mount_calls.detach(top)
    finally:
        os.close(top)


def remove_beneath(path: str, subtype: str) -> None:
    """After the mount there was taken away: dead ones of ours that lay beneath it. OSError."""
    for _ in covered.dead_at(path, subtype):
        mount_calls.unmount(os.path.realpath(path), mount_calls.MNT_DETACH)


def serve_on(connection: int, operations: pyfuse3.Operations) -> None:
    """Let these operations answer on a connection, which belongs to the library from now on; what
    it says on standard error becomes the one line. UnusableError."""
    with _captured_stderr() as said:
        try:
            pyfuse3.init(operations, f"/dev/fd/{connection}", set())
        except RuntimeError as error:
            reason = " ".join(said().split()) or str(error)
            raise UnusableError(f"/dev/fuse: cannot be served: {reason}") from None


def words(volume: Volume, source_flags: int) -> frozenset[str]:
    """What the kernel does for a mount of a source that is on one with these flags of statvfs."""
    asked = set(volume.kernel_options)
    asked.discard("nodiratime")  # it is for the source
    return frozenset(asked | set(restrictions(source_flags)))


def restrictions(source_flags: int) -> list[str]:
    """What the mount must not allow, since the one below it does not: of `f_flag` of statvfs."""
    return [restriction for flag, restriction in _RESTRICTIONS if source_flags & flag]


def _put(volume: Volume, connection: int, words: Iterable[str], path: str) -> None:
    data = ",".join(f"{key}={value}" if value else key for key, value in _values(connection))
    mount_calls.mount(_name(volume), path, f"fuse.{volume.subtype}", words, data)


def _name(volume: Volume) -> str:
    return volume.fsname or volume.source


def _values(connection: int) -> list[tuple[str, str]]:
    """What the kernel must know of a FUSE mount; "" where a key says it all."""
    return [
        ("fd", str(connection)),
        ("rootmode", "40000"),
        ("user_id", "0"),
        ("group_id", "0"),
        ("default_permissions", ""),
        ("allow_other", ""),
    ]


@contextlib.contextmanager
def _captured_stderr() -> Iterator[Callable[[], str]]:
    """Descriptor 2 goes to a file for a while; the value reads what stands in it."""
    with tempfile.TemporaryFile() as stream:
        saved = os.dup(2)
        os.dup2(stream.fileno(), 2)

        def said() -> str:
            return os.pread(stream.fileno(), 4096, 0).decode(errors="replace")

        try:
            yield said
        finally:
            os.dup2(saved, 2)
            os.close(saved)
