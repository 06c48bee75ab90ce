"""Paths by the patterns of gitignore(5). Pure.

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
        try:
            self._spec = GitIgnoreSpec.from_lines(lines)
        except re.error as error:
            raise ValueError(str(error)) from error

    def match(self, path: bytes) -> bool:
        """Whether they fit that path, which is relative to the root of the tree; one of a directory
        fits what is below it, too."""
        # a newline at the end of a name would pass for the end of the name
        return self._spec.match_file(path.decode(errors="surrogateescape").replace("\n", "\udc0a"))
