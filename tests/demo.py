"""The demonstration behind `make run`: a federation mounted; a workload mirrored and compared.

Everything happens below one temporary directory and is unmounted and removed at the end, whatever
ends it. It uses the installed commands as an operator would, and looks into none of their parts.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from tests import demo_federation
from tests.demo_federation import FederationStage

SITES = ("here", "there")
WAIT_SECONDS = 300
REFRESH_SECONDS = 0.5

_MODULE = """\
#include "parts.h"
/* the {n}th part: sum of the squares below {n}000 */
long part_{n}(void) {{ long sum = 0; for (long i = 0; i < {n}000; i++) sum += i * i; return sum; }}
"""
_MAIN = """\
#include <stdio.h>
#include "parts.h"
int main(void) {{ long sum = 0; {calls} printf("%ld\\n", sum); return 0; }}
"""


class DemoError(Exception):
    """A step of the demonstration failed; the message is all there is to say."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


class Commands:
    """Runs commands, one at a time; from another thread, `stop` ends it and refuses more."""

    def __init__(self) -> None:
        self._running: subprocess.Popen[str] | None = None
        self._stopped = False

    def __call__(self, *words: str | Path, cwd: Path | None = None) -> str:
        """Run a command to its end and return what it printed; DemoError if it fails."""
        if self._stopped:
            raise DemoError("stopped")
        process = subprocess.Popen(
            words,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._running = process
        try:
            said, _ = process.communicate()
        except KeyboardInterrupt:
            process.wait()
            raise
        finally:
            self._running = None
        if process.returncode != 0:
            said = said.strip() or f"ended with status {process.returncode}"
            raise DemoError(f"{words[0]}: {said}" if ":" not in said else said, process.returncode)
        return said

    def stop(self) -> None:
        """No more commands; the one that runs is ended."""
        self._stopped = True
        if self._running is not None:
            self._running.terminate()


class Workload:
    """What a day of jobs does to a tree, in small. `steps` run in order."""

    def __init__(self, source: Path, workshop: Path, command: Commands) -> None:
        self.command = command
        self.source = source
        self.workshop = workshop
        self.random = random.Random(1)
        self.steps: tuple[Callable[[], str], ...] = (
            self.write_files,
            self.rewrite_files,
            self.rename_things,
            self.link_things,
            self.change_attributes,
            self.delete_things,
            self.clone_repository,
            self.compile_program,
        )

    def _files(self, count: int) -> list[Path]:
        """Some of the files written first, none twice."""
        return self.random.sample(sorted(self.source.glob("run/*/field.*")), count)

    def write_files(self) -> str:
        """Many small files and some large ones, as jobs write them."""
        total = 0
        for number in range(400):
            directory = self.source / "run" / f"step{number // 20:02}"
            directory.mkdir(parents=True, exist_ok=True)
            size = self.random.randrange(2, 5) << 20 if number % 50 == 7 else 1024 << number % 6
            (directory / f"field.{number:04}").write_bytes(self.random.randbytes(size))
            total += size
        return f"wrote 400 files of 1 KiB to 4 MiB, {total >> 20} MiB, in 20 directories"

    def rewrite_files(self) -> str:
        """Overwrite, append, and the way careful programs replace a file."""
        overwritten, appended, replaced = 40, 40, 60
        files = self._files(overwritten + appended + replaced)
        for path in files[:overwritten]:
            path.write_bytes(self.random.randbytes(3000))
        for path in files[overwritten : overwritten + appended]:
            with path.open("ab") as stream:
                stream.write(b"one more line\n")
        for path in files[overwritten + appended :]:
            temporary = path.with_suffix(".tmp")
            temporary.write_bytes(self.random.randbytes(5000))
            temporary.replace(path)
        sparse = self.source / "run" / "sparse"
        with sparse.open("wb") as stream:
            stream.truncate(64 << 20)
            os.pwrite(stream.fileno(), b"in the middle", 32 << 20)
        return f"overwrote {overwritten}, appended to {appended}, replaced {replaced} by rename"

    def rename_things(self) -> str:
        """Files, and directories with their content."""
        for path in self._files(50):
            path.replace(path.with_name(f"renamed-{path.suffix[1:]}"))
        archive = self.source / "archive" / "2024"
        archive.mkdir(parents=True)
        for number in range(5):
            name = f"step{number:02}"
            (self.source / "run" / name).replace(archive / name)
        return "renamed 50 files, and moved 5 directories with their content"

    def link_things(self) -> str:
        """Hard links, symbolic links, a fifo, an odd name."""
        names = self.source / "names"
        names.mkdir()
        for number, path in enumerate(self._files(20)):
            (names / f"hard{number}").hardlink_to(path)
            (names / f"soft{number}").symlink_to(os.path.relpath(path, names))
        os.mkfifo(names / "fifo", 0o640)
        Path(os.fsdecode(bytes(names) + b"/not utf-8: \xff\xfe")).write_text("a name is bytes\n")
        return "made 20 hard links, 20 symbolic links, a fifo, a name that is not UTF-8"

    def change_attributes(self) -> str:
        """Mode, owner, times to the nanosecond, extended attributes, ACLs."""
        for number, path in enumerate(self._files(60)):
            path.chmod((0o600, 0o640, 0o755)[number % 3])
            os.chown(path, 1000 + number, 100)
            os.utime(path, ns=(10**18 + number, 10**18 + 123_456_789 + number))
            os.setxattr(path, "user.run", str(number).encode())
        self.command("setfacl", "-R", "-m", "u:1234:rX", self.source / "archive")
        return "changed mode, owner, times and attributes of 60 files, ACLs of a tree"

    def delete_things(self) -> str:
        """Files, and a directory with its content."""
        for path in self._files(60):
            path.unlink()
        shutil.rmtree(self.source / "run" / "step19")
        return "deleted 60 files, and a directory with its content"

    def clone_repository(self) -> str:
        """A git repository, made outside of the tree and cloned into it."""
        upstream = self.workshop / "upstream"
        upstream.mkdir()
        git = ("git", "-c", "user.name=demo", "-c", "user.email=demo@localhost")
        self.command(*git, "init", "--quiet", "--initial-branch=main", cwd=upstream)
        for number in range(1, 21):
            (upstream / f"part{number}.c").write_text(_MODULE.format(n=number))
            parts = "".join(f"long part_{n}(void);\n" for n in range(1, number + 1))
            (upstream / "parts.h").write_text(parts)
            calls = "".join(f"sum += part_{n}(); " for n in range(1, number + 1))
            (upstream / "main.c").write_text(_MAIN.format(calls=calls))
            self.command(*git, "add", ".", cwd=upstream)
            self.command(*git, "commit", "--quiet", "-m", f"part {number}", cwd=upstream)
        project = self.source / "project"
        self.command("git", "clone", "--quiet", "--no-hardlinks", upstream, project)
        self.command("git", "fsck", "--full", "--strict", cwd=project)
        return "cloned a git repository of 20 commits; git fsck found it whole"

    def compile_program(self) -> str:
        """Compile what was cloned, and run it."""
        project = self.source / "project"
        sources = sorted(path.name for path in project.glob("*.c"))
        for name in sources:
            self.command("cc", "-O2", "-g", "-c", name, cwd=project)
        self.command("cc", "-o", "program", *[f"{name[:-2]}.o" for name in sources], cwd=project)
        said = int(self.command(project / "program"))
        if said != sum(i * i for n in range(1, 21) for i in range(n * 1000)):
            raise DemoError(f"the program compiled on the mount says {said}")
        return f"compiled and linked {len(sources)} C files; the program runs"


class Screen:
    """What the spectator sees: what was done, and on a terminal the status live below it."""

    def __init__(self, journal: Path) -> None:
        self.console = Console(highlight=False)
        self.live = self.console.is_terminal
        self.journal = journal
        self.began = time.monotonic()

    def say(self, text: str) -> None:
        """One line of what was done; above the status if that is shown."""
        self.console.print(f"{time.monotonic() - self.began:5.1f} s  {text}", markup=False)

    def status(self) -> Text:
        """What `replicator status` prints; its exit code only says how urgent it is."""
        said = subprocess.run(
            ["replicator", "status", "--journal", self.journal],
            env={**os.environ, "COLUMNS": str(self.console.width)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            start_new_session=True,
        )
        shown = (said.stdout or said.stderr).strip("\n")
        return Text(f"\n{shown}\n")

    def during(self, work: Future[None]) -> None:
        """Show the status: on a terminal while `work` runs, else after it. Raise what it raised."""
        if self.live:
            with Live(self.status(), console=self.console, auto_refresh=False) as live:
                while not work.done():
                    futures.wait([work], REFRESH_SECONDS)
                    live.update(self.status(), refresh=True)
            work.result()
        else:
            work.result()
            self.console.print(self.status())


class Interrupts:
    """SIGINT, SIGTERM and SIGHUP are KeyboardInterrupt inside `raised`; outside they wait for it,
    so that nothing is begun without being known, and cleaning up is not cut short."""

    def __init__(self) -> None:
        self._raise = False
        self._pending = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._interrupt)

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        self._pending = True
        if self._raise:
            self._raise = False
            raise KeyboardInterrupt

    @contextmanager
    def raised(self) -> Iterator[None]:
        """In here the first of them ends what is being done."""
        self._raise = True
        try:
            if self._pending:
                raise KeyboardInterrupt
            yield
        finally:
            self._raise = False


class Stage:
    """The mount and the replicator of one demonstration; `clean` may be called at any time."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.command = Commands()
        self.source = base / "source"
        self.journal = base / "journal"
        self.replicator: subprocess.Popen[bytes] | None = None
        self.log = base / "replicator.log"

    def mount(self) -> None:
        """mirrorfs over the source itself."""
        for name in ("source", "journal", *SITES):
            (self.base / name).mkdir()
        self.command("mirrorfs", "mount", self.source, self.source, "-o", f"journal={self.journal}")

    def replicate(self) -> None:
        """The replicator, to every site."""
        sites = [word for name in SITES for word in ("--site", f"{name}=file://{self.base / name}")]
        with self.log.open("wb") as log:
            self.replicator = subprocess.Popen(
                ["replicator", "run", "--journal", self.journal, *sites],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Until every site has everything up to now."""
        deadline = time.monotonic() + WAIT_SECONDS
        for name in SITES:
            words = ("--journal", self.journal, "--site", name, "--timeout", "5", "now")
            while True:
                try:
                    self.command("replicator", "wait", *words)
                    break
                except DemoError as error:
                    if self.replicator is not None and self.replicator.poll() is not None:
                        self.drain()
                    if error.status != 1 or time.monotonic() > deadline:
                        raise

    def drain(self) -> None:
        """End the replicator, after what is in the journal."""
        if self.replicator is None:
            return
        self.replicator.terminate()
        status = self.replicator.wait(WAIT_SECONDS)
        self.replicator = None
        if status != 0:
            said = self.log.read_text(errors="replace").strip()
            raise DemoError(f"the replicator ended with status {status}\n{said}")

    def unmount(self) -> None:
        """The mount goes; its daemon ends."""
        self.command("mirrorfs", "umount", self.source)

    def clean(self) -> None:
        """Nothing of the demonstration stays behind."""
        if self.replicator is not None:
            self.replicator.kill()
            self.replicator.wait()
        for options in ((), ("-l",)):
            if str(self.source) in self._mounted():
                umount = ["mirrorfs", "umount", *options, self.source]
                subprocess.run(umount, capture_output=True, start_new_session=True)
        if left := self._mounted():
            sys.stderr.write(f"still mounted, left as it is: {', '.join(left)}\n")
        else:
            shutil.rmtree(self.base)

    def _mounted(self) -> list[str]:
        """Mounts below our directory, alive or dead (stat(2) of a dead one only fails)."""
        mounts = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
        points = [line.split(" ")[4] for line in mounts]
        return [point for point in points if point.startswith(f"{self.base}/")]


def work(stage: Stage, screen: Screen) -> None:
    """The workload, until both sites have all of it."""
    for step in Workload(stage.source, stage.base, stage.command).steps:
        screen.say(step())
    stage.wait()
    screen.say("every site has everything")


def play(stage: Stage, screen: Screen) -> None:
    """What the spectator waits for: the workload, the end of the replicator, the comparison."""
    with ThreadPoolExecutor(1) as pool:
        try:
            screen.during(pool.submit(work, stage, screen))
        except BaseException:
            stage.command.stop()
            raise
    stage.drain()
    said = stage.command("replicator", "verify", "--full", "--journal", stage.journal)
    verdict = said.strip().splitlines()[-1]
    screen.say("stopped the replicator; compared every site with the source")
    stage.unmount()
    screen.say("unmounted")
    screen.console.print(f"\n{verdict}", markup=False)
    if not re.fullmatch(rf"{len(SITES)} sites, \d+ entries, 0 differences", verdict):
        raise DemoError("the sites differ")


def show_federation(stage: Stage, screen: Screen, interrupts: Interrupts) -> None:
    """A federation, if there can be one here."""
    if (missing := demo_federation.missing()) is not None:
        screen.say(f"{missing} not installed: going on without a federation")
        return
    federation = FederationStage(stage.base, stage.command, screen.say)
    try:
        federation.mount()
        with interrupts.raised():
            federation.play()
        federation.unmount()
    finally:
        federation.clean()


def main() -> int:
    """Run the demonstration; the status to exit with."""
    interrupts = Interrupts()
    stage = Stage(Path(tempfile.mkdtemp(prefix="mirrorfs-demo-")))
    screen = Screen(stage.journal)
    try:
        show_federation(stage, screen, interrupts)
        stage.mount()
        screen.say("mounted mirrorfs over the source tree")
        stage.replicate()
        screen.say(f"started the replicator to {len(SITES)} sites")
        with interrupts.raised():
            play(stage, screen)
        return 0
    except DemoError as error:
        sys.stderr.write(f"{error}\n")
        return error.status
    except OSError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: cleaning up\n")
        return 130
    finally:
        stage.clean()


if __name__ == "__main__":
    sys.exit(main())
