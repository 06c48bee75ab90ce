"""The files by which a journal knows its sites: cursors, the lock, what the writer remembers.

Reads and writes them; what follows from them is decided in `retention`. FORMAT.md beside this
file, section 10, is normative.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from typing import Final

from mirrorfs.journal.retention import (
    Retention,
    RetentionError,
    decode_retention,
    encode_retention,
)
from mirrorfs.journal.site_cursor import (
    SiteCursor,
    SiteCursorError,
    decode_cursor,
    encode_cursor,
)

SITES_NAME: Final = "sites"
LOCK_NAME: Final = "retention.lock"
RETENTION_NAME: Final = "retention.json"

_CURSOR = ".cursor"
_REPORT = ".json"


class SitesBusyError(Exception):
    """A site is just saying what it needs, or segments are just being removed."""


@contextlib.contextmanager
def sites_locked(journal: str, *, wait: bool) -> Iterator[None]:
    """Hold the lock under which sites attach and segments are removed.

    Without `wait`: SitesBusyError if somebody else holds it. OSError.
    """
    fd = os.open(f"{journal}/{LOCK_NAME}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    except BlockingIOError:
        raise SitesBusyError(f"{journal}/{LOCK_NAME}: held") from None
    finally:
        os.close(fd)


def cursor_path(journal: str, site: str) -> str:
    """Where the cursor file of a site lies."""
    return f"{journal}/{SITES_NAME}/{site}{_CURSOR}"


def read_cursor(journal: str, site: str) -> SiteCursor | None:
    """What the journal knows of a site; None: nothing. SiteCursorError, OSError."""
    try:
        with open(cursor_path(journal, site), "rb") as file:
            cursor = decode_cursor(file.read())
    except FileNotFoundError:
        return None
    if cursor.site != site:
        raise SiteCursorError(f"is that of site {cursor.site}")
    return cursor


def read_cursors(journal: str) -> dict[str, SiteCursor | SiteCursorError]:
    """What the journal knows of each site; what is in doubt is given as an error.

    A report without a cursor file is a doubt, too. OSError.
    """
    found: dict[str, SiteCursor | SiteCursorError] = {}
    try:
        names = sorted(os.listdir(f"{journal}/{SITES_NAME}"))
    except FileNotFoundError:
        return found
    for name in names:
        site, extension = os.path.splitext(name)
        if extension not in (_CURSOR, _REPORT) or site in found:
            continue
        try:
            cursor = read_cursor(journal, site)
        except SiteCursorError as error:
            found[site] = error
        except OSError as error:
            found[site] = SiteCursorError(f"cannot be read: {error.strerror}")
        else:
            found[site] = cursor or SiteCursorError("is missing: there is a report only")
    return found


def write_cursor(journal: str, cursor: SiteCursor, *, durable: bool) -> None:
    """Replace a site's cursor file. OSError."""
    directory = f"{journal}/{SITES_NAME}"
    os.makedirs(directory, exist_ok=True)
    _replace(cursor_path(journal, cursor.site), encode_cursor(cursor), durable=durable)
    if durable:
        _sync(directory)
        _sync(journal)


def read_retention(journal: str) -> Retention:
    """What the writer remembers; RetentionError, OSError."""
    try:
        with open(f"{journal}/{RETENTION_NAME}", "rb") as file:
            return decode_retention(file.read())
    except FileNotFoundError:
        return Retention()
    except RetentionError as error:
        raise RetentionError(f"{RETENTION_NAME}: {error}") from None


def write_retention(journal: str, retention: Retention, *, durable: bool) -> None:
    """Replace what the writer remembers. OSError."""
    _replace(f"{journal}/{RETENTION_NAME}", encode_retention(retention), durable=durable)
    if durable:
        _sync(journal)


def _replace(path: str, data: bytes, *, durable: bool) -> None:
    scratch = f"{path}.{os.getpid()}"
    try:
        with open(scratch, "wb", opener=_private) as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(scratch, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(scratch)
        raise


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _sync(directory: str) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
