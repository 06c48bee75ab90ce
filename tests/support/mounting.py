"""Real small file systems for one test, mounted and taken away again."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_EXT4_IOC_SHUTDOWN: Final = 0x8004587D


@contextlib.contextmanager
def tmpfs(where: Path, options: str = "size=1m") -> Iterator[Path]:
    """A tmpfs mounted there (root only)."""
    where.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "mirrorfs-test", where], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", "-l", where], check=True)  # busy after a failure


@contextlib.contextmanager
def ext4(where: Path, size_bytes: int = 8 << 20) -> Iterator[Path]:
    """An ext4 in a file beside it, mounted there (root only)."""
    image = where.with_suffix(".image")
    with image.open("wb") as file:
        file.truncate(size_bytes)
    subprocess.run(["mkfs.ext4", "-q", "-b", "4096", image], check=True)
    where.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", "loop", image, where], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", "-l", where], check=True)  # busy after a failure


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
