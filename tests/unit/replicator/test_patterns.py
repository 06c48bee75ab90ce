"""Paths by the patterns of gitignore: names are bytes."""

from __future__ import annotations

import pytest

from replicator.patterns import Patterns


@pytest.mark.parametrize(
    ("lines", "path", "fits"),
    [
        (["products/**"], b"products/a/b", True),
        (["products/**"], b"a/products/b", False),
        (["products/"], b"a/products/b", True),
        (["products/"], b"products", False),
        (["*.log"], b"a/b.log", True),
        (["*.log", "!keep.log"], b"a/keep.log", False),
        (["/a"], b"a/b", True),
        (["/a"], b"b/a", False),
        (["*.log"], b"a/\xff\xfe.log", True),
        (["*.log"], b"a/new\nline.log", True),
        (["*.log"], b"a.log\n", False),
        ([], b"a", False),
        (["*"], b"", False),
    ],
)
def test_what_fits(lines: list[str], path: bytes, fits: bool) -> None:
    assert Patterns(lines).match(path) is fits


@pytest.mark.parametrize("line", ["!", "a/[z-a]"])
def test_what_is_no_pattern(line: str) -> None:
    with pytest.raises(ValueError, match=r"!|z-a"):
        Patterns([line])
