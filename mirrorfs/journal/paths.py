"""Paths as people name them -> paths as records have them. Asks mirrorfs where it is mounted."""

from __future__ import annotations

import contextlib
import os

from mirrorfs.journal.control_client import ControlClient, ControlError, NotRunningError
from mirrorfs.journal.finding import relative
from mirrorfs.journal.reader import JournalReader

_PATIENCE_SECONDS = 2.0


def inside(path: bytes, reader: JournalReader) -> bytes:
    """Relative to the root of the source: a path as a shell has it, in the source or its mount; one
    that leads elsewhere is meant from the root on."""
    roots = [reader.header.source.path]
    with (
        contextlib.suppress(NotRunningError, ControlError, OSError),
        ControlClient(reader.path, _PATIENCE_SECONDS) as client,
    ):
        roots.append(client.status().mountpoint)
    at = b"/"
    with contextlib.suppress(OSError):  # removed, or in a mount that is dead
        at = os.getcwdb()
    return relative(path, roots, at)
