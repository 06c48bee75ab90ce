"""What a site is to have, by patterns."""

from __future__ import annotations

import pytest

from replicator.patterns import Patterns, Wanted


@pytest.mark.parametrize(
    ("lines", "path", "directory", "fits"),
    [
        (["*.tmp"], b"a/x.tmp", False, "*.tmp"),
        (["*.tmp"], b"a/x.tmp\n", False, None),
        (["*.tmp", "!keep.tmp"], b"keep.tmp", False, None),
        (["*.tmp", "!keep.tmp"], b"b/x.tmp", False, "*.tmp"),
        (["/a/b/"], b"a/b", True, "/a/b/"),
        (["/a/b/"], b"a/b", False, None),
        (["/a/b/"], b"a/b/c/d", False, "/a/b/"),
        (["# x", "", "x"], b"x", False, "x"),
        (["\u00e4*"], "\u00e4x".encode(), False, "\u00e4*"),
        (["?x"], b"\xffx", False, "?x"),
        (["*.log"], b"a/new\nline.log", False, "*.log"),
        ([], b"a", False, None),
        (["*"], b"", False, None),
    ],
)
def test_patterns_are_those_of_gitignore(
    lines: list[str], path: bytes, directory: bool, fits: str | None
) -> None:
    assert Patterns(lines).which(path, directory=directory) == fits


@pytest.mark.parametrize("line", ["!", "a/[z-a]"])
def test_a_pattern_that_is_none(line: str) -> None:
    with pytest.raises(ValueError, match=r"!|z-a"):
        Patterns([line])


def test_without_patterns_all_is_wanted() -> None:
    assert not Wanted()
    assert Wanted()(b"a", directory=False)


@pytest.mark.parametrize(
    ("path", "directory", "why_not"),
    [
        (b"products", True, ""),
        (b"products/nwp", True, ""),
        (b"products/nwp/a", False, ""),
        (b"products/x.tmp", False, "excluded by '*.tmp'"),
        (b"products/other", False, "not among what is included"),
        (b"other", True, "not among what is included"),
        (b"static", True, ""),
        (b"static/deep", True, ""),
        (b"static/deep/g.grid", False, ""),
        (b"static/deep/g.text", False, "not among what is included"),
    ],
)
def test_directories_that_may_hold_what_is_included_are_there(
    path: bytes, directory: bool, why_not: str
) -> None:
    wanted = Wanted(["/products/nwp/", "/static/*/*.grid"], ["*.tmp"])
    assert wanted
    assert wanted.why_not(path, directory=directory) == why_not
    assert wanted(path, directory=directory) == (why_not == "")


def test_what_is_included_by_name_may_be_in_any_directory() -> None:
    wanted = Wanted(["*.grid", "!x.grid"])
    assert wanted(b"a/b", directory=True)
    assert wanted(b"a/b/g.grid", directory=False)
    assert not wanted(b"a/b/x.grid", directory=False)
