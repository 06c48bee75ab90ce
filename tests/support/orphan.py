"""A job that outlives the daemon of the mount it works on, and goes on trying: a program.

    python -m tests.support.orphan DIRECTORY

Opens all it can there, says "ready", and for each line it reads tries every way to change
something; it answers with the ways that an error did not stop, as JSON.
"""

from __future__ import annotations

import json
import mmap
import os
import sys
from collections.abc import Callable


class Orphan:
    """What it holds: a directory (it is in it, too), a file in it, a mapping of the file."""

    def __init__(self, directory: str) -> None:
        os.chdir(directory)
        self.directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
        self.file = os.open("file", os.O_RDWR | os.O_CREAT)
        os.write(self.file, b"-" * 8192)
        self.appending = os.open("file", os.O_WRONLY | os.O_APPEND)
        self.mapping = mmap.mmap(self.file, 8192)
        self.mapping[0:6] = b"before"

    def ways(self) -> dict[str, Callable[[], object]]:
        """Each of them would change the source."""
        file, at = self.file, self.directory
        return {
            "write": lambda: os.write(file, b"after"),
            "pwrite": lambda: os.pwrite(file, b"after", 0),
            "append": lambda: os.write(self.appending, b"after"),
            "sendfile": self.send,
            "splice": self.splice,
            "ftruncate": lambda: os.ftruncate(file, 5),
            "posix_fallocate": lambda: os.posix_fallocate(file, 0, 100_000),
            "fsync": lambda: os.fsync(file),
            "msync": self.store,
            "fchmod": lambda: os.chmod(file, 0o600),
            "fchown": lambda: os.chown(file, 1, 1),
            "futimens": lambda: os.utime(file, (1, 1)),
            "fsetxattr": lambda: os.setxattr(file, "user.after", b"1"),
            "open again": lambda: os.open(f"/proc/self/fd/{file}", os.O_WRONLY),
            "create": lambda: os.open("new", os.O_CREAT | os.O_WRONLY),
            "create at": lambda: os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=at),
            "mkdir": lambda: os.mkdir("new", dir_fd=at),
            "link": lambda: os.link(f"/proc/self/fd/{file}", "linked", dst_dir_fd=at),
            "rename": lambda: os.replace("file", "moved", src_dir_fd=at, dst_dir_fd=at),
            "unlink": lambda: os.unlink("file", dir_fd=at),
        }

    def store(self) -> None:
        """The store itself only changes memory."""
        self.mapping[0:6] = self.mapping[4096:4102] = b"after!"
        self.mapping.flush()

    def send(self) -> None:
        """From another file."""
        with open(sys.executable, "rb") as other:
            os.sendfile(self.file, other.fileno(), 0, 100)

    def splice(self) -> None:
        """From a pipe."""
        reading, writing = os.pipe()
        try:
            os.write(writing, b"after")
            os.splice(reading, self.file, 5, offset_dst=0)
        finally:
            os.close(reading)
            os.close(writing)

    def possible(self) -> list[str]:
        """The ways that are open."""
        found = []
        for name, way in self.ways().items():
            try:
                way()
            except OSError:
                continue
            found.append(name)
        return found


def _main() -> None:
    orphan = Orphan(sys.argv[1])
    _say("ready")
    for _ in sys.stdin:
        _say(json.dumps(orphan.possible()))


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _main()
