"""Jobs that change files of a mounted federation at random, and know what must be there.

Each has a directory of its own. What was done without an error must be so from then on. After an
error the name may be anything until the next change of it that succeeds: that is for the job to
find out, as with any file system whose server went away.
"""

from __future__ import annotations

import errno
import os
import random
import threading
from collections import Counter
from pathlib import Path
from typing import Final

UNAVAILABLE: Final = frozenset((errno.EIO, errno.EHOSTUNREACH, errno.ETIMEDOUT))

_NAMES: Final = 12
_PAUSE_SECONDS: Final = 0.01


class Unknown:
    """The state of a name after an error."""


UNKNOWN: Final = Unknown()
State = bytes | None | Unknown


class RandomJob(threading.Thread):
    """One job.

    Attributes:
        states: content of each name, None for none.
        wrong: what was seen and cannot be, in words.
        done: how often each operation succeeded, and failed.
    """

    def __init__(self, directory: Path, seed: int) -> None:
        super().__init__(name=f"job {seed}", daemon=True)
        self.directory = directory
        self.states: dict[str, State] = {f"name{number}": None for number in range(_NAMES)}
        self.wrong: list[str] = []
        self.done: Counter[str] = Counter()
        self._history: list[str] = []
        self._random = random.Random(seed)
        self._ending = threading.Event()

    def run(self) -> None:
        """Until the end, or something is wrong."""
        operations = (self._write, self._write, self._append, self._rename, self._unlink,
                      self._read, self._read, self._create)  # fmt: skip
        while not self._ending.wait(_PAUSE_SECONDS) and not self.wrong:
            operation = self._random.choice(operations)
            name = self._random.choice(list(self.states))
            what = operation.__name__.strip("_")
            try:
                operation(name)
            except OSError as error:
                self.done[f"{what} failed"] += 1
                self._note(f"{what} {name}: {errno.errorcode[error.errno or 0]}")
                if error.errno not in UNAVAILABLE:
                    self._tell(f"{what} {name}: {error}")
            else:
                self.done[what] += 1
                self._note(f"{what} {name}")

    def end(self) -> None:
        """After what it is doing."""
        self._ending.set()

    def check(self, directory: Path) -> list[str]:
        """What is not as it must be, seen in that directory."""
        found: list[str] = []
        for name, state in self.states.items():
            if isinstance(state, Unknown):
                continue
            try:
                content: bytes | None = (directory / name).read_bytes()
            except FileNotFoundError:
                content = None
            if content != state:
                found.append(f"{name}: {_short(content)} is there, not {_short(state)}")
        listed = set(os.listdir(directory))
        present = {name for name, state in self.states.items() if isinstance(state, bytes)}
        absent = {name for name, state in self.states.items() if state is None}
        found += [f"{name}: not listed" for name in sorted(present - listed)]
        found += [f"{name}: listed" for name in sorted(absent & listed)]
        return [f"{line}\n    {self._history_of(line.split(':')[0])}" for line in found]

    # What it does; the state is unknown from the first step of a change to its last

    def _content(self) -> bytes:
        return self._random.randbytes(self._random.choice((0, 10, 5000, 300_000, 1_500_000)))

    def _write(self, name: str) -> None:
        content = self._content()
        self.states[name] = UNKNOWN
        (self.directory / name).write_bytes(content)
        self.states[name] = content

    def _create(self, name: str) -> None:
        before, content = self.states[name], self._content()
        self.states[name] = UNKNOWN
        try:
            with (self.directory / name).open("xb") as stream:
                stream.write(content)
        except FileExistsError:
            self.states[name] = before
            if before is None:
                self._tell(f"{name}: exists")
            return
        if isinstance(before, bytes):
            self._tell(f"{name}: made, though it was there")
        self.states[name] = content

    def _append(self, name: str) -> None:
        before = self.states[name]
        if not isinstance(before, bytes):
            return
        content = self._content()
        self.states[name] = UNKNOWN
        with (self.directory / name).open("ab") as stream:
            stream.write(content)
        self.states[name] = before + content

    def _rename(self, name: str) -> None:
        target = self._random.choice(list(self.states))
        state = self.states[name]
        if not isinstance(state, bytes) or name == target:
            return
        self.states[name] = self.states[target] = UNKNOWN
        (self.directory / name).replace(self.directory / target)
        self.states[name], self.states[target] = None, state

    def _unlink(self, name: str) -> None:
        state = self.states[name]
        if not isinstance(state, bytes):
            return
        self.states[name] = UNKNOWN
        (self.directory / name).unlink()
        self.states[name] = None

    def _read(self, name: str) -> None:
        state = self.states[name]
        try:
            content: bytes | None = (self.directory / name).read_bytes()
        except FileNotFoundError:
            content = None
        if not isinstance(state, Unknown) and content != state:
            self._tell(f"{name}: {_short(content)} was read, not {_short(state)}")

    # What it tells

    def _note(self, what: str) -> None:
        self._history.append(what)

    def _tell(self, what: str) -> None:
        self.wrong.append(f"{what}\n    {self._history_of(what.split(':')[0].split()[-1])}")

    def _history_of(self, name: str) -> str:
        about = [line for line in self._history if name in line.replace(":", "").split()]
        return "; ".join(about[-12:])


def _short(content: State) -> str:
    if not isinstance(content, bytes):
        return "nothing"
    return f"{len(content)} bytes {content[:8].hex()}"
