"""Real small file systems for one test, mounted and taken away again."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

_EXT4_IOC_SHUTDOWN: Final = 0x8004587D


@contextlib.contextmanager
def tmpfs(where: Path, options: str = "size=16m") -> Iterator[Path]:
    """A tmpfs mounted there (root only)."""
    where.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "mirrorfs-test", where], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", "-l", where], check=True)  # busy after a failure


def ext4(where: Path, size_bytes: int = 16 << 20) -> contextlib.AbstractContextManager[Path]:
    """An ext4 in a file beside it, mounted there (root only)."""
    return _loop(where, size_bytes, ["mkfs.ext4", "-q", "-b", "4096"])


def xfs(where: Path) -> contextlib.AbstractContextManager[Path]:
    """An XFS, which can share blocks, in a sparse file beside it, mounted there (root only)."""
    return _loop(where, 320 << 20, ["mkfs.xfs", "-q"])


@contextlib.contextmanager
def btrfs_with_quota(where: Path, bytes_max: int) -> Iterator[Path]:
    """A directory of a btrfs that may hold so many bytes: more is EDQUOT, for root as well."""
    with _loop(where, 160 << 20, ["mkfs.btrfs", "-q"]) as mounted:
        subvolume = mounted / "site"
        subprocess.run(["btrfs", "-q", "subvolume", "create", subvolume], check=True)
        subprocess.run(["btrfs", "quota", "enable", mounted], check=True)
        limit_quota(subvolume, bytes_max)
        yield subvolume


def limit_quota(subvolume: Path, bytes_max: int) -> None:
    """Another limit."""
    subprocess.run(["btrfs", "qgroup", "limit", str(bytes_max), subvolume], check=True)


@contextlib.contextmanager
def _loop(where: Path, size_bytes: int, make: list[str]) -> Iterator[Path]:
    image = where.with_suffix(".image")
    with image.open("wb") as file:
        file.truncate(size_bytes)
    subprocess.run([*make, image], check=True)
    where.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", "loop", image, where], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", "-l", where], check=True)  # busy after a failure
        image.unlink()


MOUNTS: Final[Mapping[str, Callable[[Path], contextlib.AbstractContextManager[Path]]]] = {
    "ext4": ext4,
    "xfs": xfs,
    "tmpfs": tmpfs,
}


def fill(disk: Path) -> Path:
    """Use up all space there; the file that has it."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as stream:
        for size in (1 << 20, 4096):
            with contextlib.suppress(OSError):
                while stream.write(bytes(size)):
                    pass
        with contextlib.suppress(OSError):
            os.fsync(stream.fileno())
    return filler


@contextlib.contextmanager
def frozen(disk: Path) -> Iterator[None]:
    """Whoever writes to that file system waits, in a sleep that nothing ends, until it thaws."""
    subprocess.run(["fsfreeze", "--freeze", disk], check=True)
    try:
        yield
    finally:
        subprocess.run(["fsfreeze", "--unfreeze", disk], check=True)


def shut_down(where: Path) -> None:
    """The disk below that ext4 dies: whatever needs it gives EIO."""
    descriptor = os.open(where, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, _EXT4_IOC_SHUTDOWN, struct.pack("I", 2))
    finally:
        os.close(descriptor)


def remount(where: Path, options: str) -> None:
    """Change the options of a mount."""
    subprocess.run(["mount", "-o", f"remount,{options}", where], check=True)


@contextlib.contextmanager
def bindfs(beneath: Path, where: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A FUSE mount of another directory; its process, which may be killed."""
    with open("/proc/self/mounts", "rb") as mounts:
        changed = select.poll()
        changed.register(mounts, select.POLLERR | select.POLLPRI)
        process = subprocess.Popen(["bindfs", "-f", "-o", "nonempty", *options, beneath, where])
        try:
            while not where.is_mount():
                assert process.poll() is None, "bindfs did not mount"
                changed.poll(1000)
            yield process
        finally:
            subprocess.run(["umount", "-l", where], check=True)
            process.kill()
            process.wait()
