"""Which paths a site is to have, by the patterns of gitignore(5). Pure.

A name is bytes and may be anything: what is not UTF-8 is matched byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from pathspec import GitIgnoreSpec


class Patterns:
    """Lines as in a `.gitignore`: the last that fits decides, `!` in front takes back."""

    def __init__(self, lines: Iterable[str]) -> None:
        """ValueError: one of them is none."""
        self._lines = tuple(line for line in lines if line.strip() and not line.startswith("#"))
        try:
            self._spec = GitIgnoreSpec.from_lines(self._lines)
        except re.error as error:
            raise ValueError(str(error)) from error

    def match(self, path: bytes, *, directory: bool = False) -> bool:
        """Whether they fit that path, which is relative to the root of the tree; one of a directory
        fits what is below it, too."""
        return self.which(path, directory=directory) is not None

    def which(self, path: bytes, *, directory: bool = False) -> str | None:
        """The one that decides, if they fit."""
        # a newline at the end of a name would pass for the end of the name
        text = path.decode(errors="surrogateescape").replace("\n", "\udc0a")
        found = self._spec.check_file(text + "/" if directory else text)
        return self._lines[found.index] if found.include and found.index is not None else None


class Wanted:
    """Which paths a site is to have. Pure."""

    def __init__(self, include: Iterable[str] = (), exclude: Iterable[str] = ()) -> None:
        """`include`: only what these patterns fit, and the directories above; none: all.
        `exclude`: not what these fit. ValueError: one is no pattern."""
        self.include, self.exclude = tuple(include), tuple(exclude)
        self._include = Patterns(self.include) if self.include else None
        self._exclude = Patterns(self.exclude)
        self._roots = [_literal(line) for line in self.include]

    def __bool__(self) -> bool:
        """Whether there is something that it is not to have."""
        return bool(self.include or self.exclude)

    def __call__(self, path: bytes, *, directory: bool) -> bool:
        """Whether that path, from the root of the source on, is to be there."""
        return not self.why_not(path, directory=directory)

    def why_not(self, path: bytes, *, directory: bool) -> str:
        """The pattern that keeps it away, in words; "": it is to be there."""
        pattern = self._exclude.which(path, directory=directory)
        if pattern is not None:
            return f"excluded by {pattern!r}"
        if self._include is None or self._include.match(path, directory=directory):
            return ""
        if directory and any(_may_hold(path, root) for root in self._roots):
            return ""
        return "not among what is included"


def _literal(pattern: str) -> bytes:
    """The directory that holds all which such a pattern fits, as far as it is told by name."""
    if pattern.startswith(("#", "!")) or "/" not in pattern.rstrip("/").rstrip():
        return b""
    names: list[str] = []
    for name in pattern.strip("/").split("/"):
        if any(sign in name for sign in "*?[\\"):
            break
        names.append(name)
    return "/".join(names).encode(errors="surrogateescape")


def _may_hold(path: bytes, root: bytes) -> bool:
    """Whether a directory is above that root, or below."""
    return not root or root == path or _is_in(root, path) or _is_in(path, root)


def _is_in(path: bytes, directory: bytes) -> bool:
    return path.startswith(directory + b"/")
