"""Put a FUSE mount in its place; it allows no more than the mount the source is on."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Final

import pyfuse3

from mirrorfs.config import Volume
from mirrorfs.errors import UnusableError

_RESTRICTIONS: Final = (
    (os.ST_NOSUID, "nosuid", "suid"),
    (os.ST_NODEV, "nodev", "dev"),
    (os.ST_NOEXEC, "noexec", "exec"),
    (os.ST_RDONLY, "ro", "rw"),
)


def put_mount(volume: Volume, operations: pyfuse3.Operations, source_flags: int) -> None:
    """Put the mount there; what libfuse says on standard error becomes the one line.

    It allows no more than the mount the source is on (`source_flags`, of statvfs).
    """
    name = (volume.fsname or volume.source).replace("\\", "\\\\").replace(",", "\\,")
    options = {"default_permissions", "allow_other", f"fsname={name}", f"subtype={volume.subtype}"}
    options.update(volume.kernel_options, restrictions(source_flags))
    options.discard("nodiratime")  # libfuse does not know it; it is for the source anyway
    options.update(
        opposite for _, restriction, opposite in _RESTRICTIONS if restriction not in options
    )
    mountpoint = volume.mountpoint or volume.source
    with _captured_stderr() as said:
        try:
            pyfuse3.init(operations, mountpoint, options)
        except RuntimeError as error:
            reason = " ".join(said().split()) or str(error)
            raise UnusableError(f"mountpoint: {mountpoint}: cannot mount: {reason}") from None


def restrictions(source_flags: int) -> list[str]:
    """What the mount must not allow, since the one below it does not: of `f_flag` of statvfs."""
    return [restriction for flag, restriction, _ in _RESTRICTIONS if source_flags & flag]


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
