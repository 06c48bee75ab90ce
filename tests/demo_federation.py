"""The part of the demonstration behind `make run` that shows a federation: written, found, read.

A real redirector and three data servers on loopback, mounted as an operator would, and all of it
gone at the end.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.support.federation import Federation

_SERVERS = 3
_FILES = 12
_FILE_BYTES = 3 << 20


def missing() -> str | None:
    """What is not installed here, if anything."""
    absent = [program for program in ("xrootd", "cmsd") if shutil.which(program) is None]
    return " and ".join(absent) or None


class FederationStage:
    """The federation and its mount; `clean` may be called at any time."""

    def __init__(self, base: Path, command: Callable[..., str], say: Callable[[str], None]) -> None:
        """command: runs one and returns what it printed. say: one line of what was done."""
        self.mountpoint = base / "federation"
        self.command = command
        self.say = say
        self.federation = Federation(_SERVERS)

    def mount(self) -> None:
        """The federation, and it as a tree."""
        self.federation.start()
        self.say(f"started an XRootD redirector and {_SERVERS} data servers")
        self.mountpoint.mkdir()
        self.command("xrootdfs", "mount", f"{self.federation.url}//", self.mountpoint)
        self.say("mounted the federation")

    def play(self) -> None:
        """Write files, find one with its location, read them back, rename and remove them."""
        choice = random.Random(2)
        written = self.mountpoint / "written"
        written.mkdir()
        sums = {}
        for number in range(_FILES):
            content = choice.randbytes(_FILE_BYTES)
            (written / f"field.{number:02}").write_bytes(content)
            sums[f"field.{number:02}"] = hashlib.sha256(content).digest()
        held = [sum(n.startswith("/written/") for n in s.files()) for s in self.federation.servers]
        spread = ", ".join(map(str, held))
        self.say(
            f"wrote {_FILES} files, {_FILES * _FILE_BYTES >> 20} MiB; on the servers: {spread}"
        )
        located = self.command("xrootdfs", "locate", written / "field.07").strip()
        self.say(f"found: {located.splitlines()[-1].strip()}")
        kept = self.mountpoint / "kept"
        written.rename(kept)
        for name, expected in sums.items():
            if hashlib.sha256((kept / name).read_bytes()).digest() != expected:
                raise OSError(f"{kept / name}: not what was written")
        self.say("renamed their directory, read them back: what was written")
        shutil.rmtree(kept)

    def unmount(self) -> None:
        """The mount, then the federation."""
        self.command("xrootdfs", "umount", self.mountpoint)
        self.federation.stop()
        self.say("removed the files, unmounted, stopped the servers")

    def clean(self) -> None:
        """Nothing of it stays behind."""
        for options in ((), ("-l",)):
            if self._mounted():
                umount = ["xrootdfs", "umount", *options, self.mountpoint]
                subprocess.run(umount, capture_output=True, start_new_session=True)
        self.federation.stop()

    def _mounted(self) -> bool:
        mounts = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
        return any(line.split(" ")[4] == str(self.mountpoint) for line in mounts)
