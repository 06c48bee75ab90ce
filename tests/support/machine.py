"""A machine to install on: namespaces of mounts and processes, in which /etc, /usr, /var and /run
may be written to, and everything ends with the test.

What is changed there is gone afterwards; the machine beneath stays as it was. Whatever runs in it
was started with no environment but that of `ENVIRONMENT`, as an init system would.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
ENVIRONMENT: Final = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
_PATIENCE_SECONDS: Final = 240.0

_BEGIN: Final = """
set -eu
# What others have mounted must not be held here when they unmount it.
findmnt --kernel --list --noheadings --output FSTYPE,SOURCE,TARGET |
    while read type source target; do
        case $type,$source in
            fuse.*,* | *,/dev/loop*) umount --internal-only --lazy -- "$target" || : ;;
        esac
    done
mount -t tmpfs tmpfs "$1"
for top in /etc /usr /var /sbin; do
    [ ! -L "$top" ] || continue
    mkdir -p "$1/upper$top" "$1/work$top"
    mount -t overlay -o "lowerdir=$top,upperdir=$1/upper$top,workdir=$1/work$top" overlay "$top"
done
mount -t tmpfs tmpfs /run
mknod --mode=666 "$1/fuse" c 10 229  # as udev makes it
mount --bind "$1/fuse" /dev/fuse
echo ready
exec cat >/dev/null
"""

Done = subprocess.CompletedProcess[str]


@dataclass(frozen=True)
class Machine:
    """One that runs.

    Attributes:
        pid: of its first process.
    """

    pid: int

    def run(
        self,
        *command: str | Path,
        check: bool = False,
        env: Mapping[str, str] = ENVIRONMENT,
        cwd: str | Path = "/",
        user: int = 0,
    ) -> Done:
        """Run a command there to its end; it has no input."""
        inside = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"] if user else []
        done = subprocess.run(
            [*self._enter(cwd), "env", "-i", *_assignments(env), *inside, *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=_PATIENCE_SECONDS,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{command}: {done.returncode}: {done.stdout}{done.stderr}")
        return done

    def start(
        self, *command: str | Path, env: Mapping[str, str] = ENVIRONMENT
    ) -> subprocess.Popen[str]:
        """Start a command there; what it says on standard error can be read."""
        return subprocess.Popen(
            [*self._enter("/"), "env", "-i", *_assignments(env), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def write(self, path: str, text: str) -> None:
        """Write a file there; its directory is made."""
        script = 'mkdir -p "$(dirname "$1")" && printf %s "$2" >"$1"'
        self.run("sh", "-c", script, "sh", path, text, check=True)

    def _enter(self, cwd: str | Path) -> list[str]:
        return ["nsenter", f"--target={self.pid}", "--mount", "--pid", f"--wd={cwd}", "--"]


def _assignments(env: Mapping[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in env.items()]


@contextlib.contextmanager
def running_machine(scratch: Path) -> Iterator[Machine]:
    """Start one; `scratch` is an empty directory. All that runs there is killed at the end."""
    command = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
    process = subprocess.Popen(
        [*command, "sh", "-c", _BEGIN, "sh", scratch],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n", "the machine does not start"
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        yield Machine(int(children))
    finally:
        process.stdin.close()  # its first process ends, and all others with it
        process.wait(_PATIENCE_SECONDS)
        process.stdout.close()


def make(target: str, wheels: Path, *variables: str, machine: Machine | None = None) -> Done:
    """Run make on our own Makefile, with the environment of these tests for building."""
    settings = [f"VENV={sys.prefix}", f"WHEELS={wheels}", *variables]
    command = ["make", "--directory", str(ROOT), "--old-file=setup", target, *settings]
    if machine is not None:
        return machine.run(*command, check=True, env={**ENVIRONMENT, "HOME": str(Path.home())})
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=os.environ,
        umask=0o077,  # what is installed is for everybody all the same
    )
    assert done.returncode == 0, f"make {target}: {done.stdout}{done.stderr}"
    return done
