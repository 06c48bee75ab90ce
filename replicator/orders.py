"""What an operator orders a replicator to do, as files beside its report.

`JOURNAL/sites/NAME.paused` holds a site up for as long as it is there. `JOURNAL/sites/NAME.orders/`
has one file for each order; the replicator of the site takes it up within a second, saves what came
of it, and puts an answer in its place. Files need no server: what is ordered while no replicator
runs, or on another host of a shared journal, holds all the same. Who may write there may order.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from replicator.site_state import HeldStep

_ORDER: Final = ".order"
_ANSWER: Final = ".answer"
_ANSWERS_KEPT_SECONDS: Final = 3600
_POLL_SECONDS: Final = 0.02


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """Try held steps again now, or pass over them for good.

    Attributes:
        steps: ids of steps (see `step_id`); None: all that are held.
        skip: pass over them; `reason`: why. by: user id of who ordered it.
    """

    steps: tuple[str, ...] | None = None
    skip: bool = False
    reason: str = ""
    by: int = 0
    time_ns: int


class Pause(msgspec.Struct, frozen=True, kw_only=True):
    """A site is held up: why, by whom (a user id), since when."""

    reason: str = ""
    by: int = 0
    time_ns: int


def _path(journal: str, site: str, ending: str) -> str:
    return f"{journal}/sites/{site}.{ending}"


# pause ---------------------------------------------------------------------------------------


def pause(journal: str, site: str, reason: str) -> bool:
    """Hold a site up; False if it is held up already. OSError."""
    if read_pause(journal, site) is not None:
        return False
    os.makedirs(f"{journal}/sites", exist_ok=True)
    value = Pause(reason=reason, by=os.getuid(), time_ns=time.time_ns())
    _write(_path(journal, site, "paused"), msgspec.json.encode(value))
    return True


def resume(journal: str, site: str) -> bool:
    """Let it go on; False if it was not held up. OSError."""
    try:
        os.unlink(_path(journal, site, "paused"))
    except FileNotFoundError:
        return False
    return True


def read_pause(journal: str, site: str) -> Pause | None:
    """The pause of a site, if it is held up. A file nobody can read holds it up, too."""
    path = _path(journal, site, "paused")
    try:
        with open(path, "rb") as file:
            return msgspec.json.decode(file.read(), type=Pause)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError):
        return Pause(reason=f"{path} cannot be read", time_ns=0)


# orders: who gives them ----------------------------------------------------------------------


def give(journal: str, site: str, order: Order) -> str:
    """Lay down an order; its file. OSError."""
    directory = _path(journal, site, "orders")
    os.makedirs(directory, mode=0o700, exist_ok=True)
    path = f"{directory}/{time.time_ns()}-{os.getpid()}{_ORDER}"
    _write(path, msgspec.json.encode(order))
    return path


def answer_to(
    path: str, timeout_seconds: float, sleep: Callable[[float], None] = time.sleep
) -> str | None:
    """What came of an order; None if nobody has taken it up within that time."""
    answer = path.removesuffix(_ORDER) + _ANSWER
    waited = 0.0
    while waited <= timeout_seconds:
        with contextlib.suppress(FileNotFoundError):
            with open(answer, encoding="utf-8") as file:
                text = file.read()
            os.unlink(answer)
            return text
        sleep(_POLL_SECONDS)
        waited += _POLL_SECONDS
    return None


# orders: who takes them ----------------------------------------------------------------------


class Orders:
    """The orders for one site, as its replicator takes them."""

    def __init__(self, journal: str, site: str) -> None:
        self._journal = journal
        self._site = site
        self._directory = _path(journal, site, "orders")

    @property
    def paused(self) -> Pause | None:
        """Whether the site is to be held up."""
        return read_pause(self._journal, self._site)

    @property
    def waiting(self) -> bool:
        """Whether there are orders to take."""
        return bool(self._names(_ORDER))

    def take(self) -> list[tuple[str, Order]]:
        """The orders there are, the oldest first; each is to be answered."""
        taken = []
        for name in self._names(_ORDER):
            path = f"{self._directory}/{name}"
            try:
                with open(path, "rb") as file:
                    taken.append((path, msgspec.json.decode(file.read(), type=Order)))
            except FileNotFoundError:
                continue
            except msgspec.DecodeError as error:
                self.answer(path, f"not understood: {error}")
        return taken

    def answer(self, path: str, text: str) -> None:
        """It was done, and saved."""
        with contextlib.suppress(OSError):
            _write(path.removesuffix(_ORDER) + _ANSWER, text.encode())
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        for name in self._names(_ANSWER):  # of those that did not wait for them
            with contextlib.suppress(OSError):
                old = f"{self._directory}/{name}"
                if time.time_ns() / 1e9 - os.stat(old).st_mtime > _ANSWERS_KEPT_SECONDS:
                    os.unlink(old)

    def _names(self, ending: str) -> list[str]:
        try:
            return sorted(name for name in os.listdir(self._directory) if name.endswith(ending))
        except FileNotFoundError:
            return []


def chosen(steps: Sequence[HeldStep], order: Order) -> list[HeldStep]:
    """The held steps an order is about."""
    if order.steps is None:
        return list(steps)
    return [step for step in steps if step.id in order.steps]


def _write(path: str, data: bytes) -> None:
    with open(f"{path}.new", "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(f"{path}.new", path)
