"""In which order changes become visible at a site: what an operator may choose."""

from __future__ import annotations

import enum


class CommitOrder(enum.Enum):
    """In which order changes become visible at a site."""

    ANY = "any"
    """Those of one object, and of one place, in the journal's order."""
    DIRECTORY = "directory"
    """Those within one directory, too, and a directory before what is in it."""
    JOURNAL = "journal"
    """All of them."""
